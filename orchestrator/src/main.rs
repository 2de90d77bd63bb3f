//! `lacuna`: pictures from a diffusion model on clouds that you do not trust.

use std::process::ExitCode;

use clap::Parser;
use orchestrator::cli::Cli;
use orchestrator::interrupt::{self, Ending};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| "warn,cubecl=error,wgpu=error".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    let (result, code) = match interrupt::run(Cli::parse().run()).await {
        Ending::Itself(Ok(())) => return ExitCode::SUCCESS,
        Ending::Itself(Err(error)) => (Some(Err(error)), 1),
        // As shells count the ends by signals.
        Ending::Signal(number, result) => (result, 128 + number),
    };
    match result {
        Some(Err(error)) => eprintln!("error: {error:#}"),
        Some(Ok(())) => {}
        None => eprintln!("error: interrupted; what was finished before is kept"),
    }
    // What still computes is of no use to anybody, and would be waited for.
    std::process::exit(code)
}
