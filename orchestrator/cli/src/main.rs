//! `lacuna`: pictures from a diffusion model on clouds that you do not trust.

use std::num::NonZero;
use std::process::ExitCode;

use lacuna::cli::Cli;
use lacuna::ending::{self, Ending};
use lacuna_kernels::allocator::keep_freed_pages;
use lacuna_orchestrator::output::console::note;
use lacuna_telemetry::Program;
use tokio::runtime::Builder;
use tracing::Level;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Its log is of what goes wrong. The tokenizer's finest lines would spell the prompt.
const TOLD: Program = Program {
    name: "lacuna",
    default: "warn,cubecl=error,wgpu=error",
    dependencies: Level::INFO,
    json: false,
};

fn main() -> ExitCode {
    keep_freed_pages();
    if let Err(error) = lacuna_telemetry::start(&TOLD) {
        note(format_args!("error: {error}"));
        return ExitCode::FAILURE;
    }
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    // Two at least: a command may be held up by a file that never ends, and a signal must be heard then.
    let runtime = Builder::new_multi_thread()
        .worker_threads(cores.max(2))
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(run());
            lacuna_telemetry::finish();
            code
        }
        Err(error) => {
            note(format_args!("error: cannot start threads: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> ExitCode {
    let cli = match Cli::read(std::env::args_os().collect()) {
        Ok(cli) => cli,
        Err(asked_or_wrong) => {
            let code = u8::try_from(asked_or_wrong.exit_code()).unwrap_or(1);
            return match asked_or_wrong.print() {
                Ok(()) => ExitCode::from(code),
                Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::from(code),
                Err(e) => {
                    note(format_args!("error: cannot write the standard output: {e}"));
                    ExitCode::FAILURE
                }
            };
        }
    };
    let (result, code) = match ending::run(cli.run()).await {
        Ending::Itself(Ok(())) => return ExitCode::SUCCESS,
        Ending::Itself(Err(error)) => (Some(Err(error)), 1),
        // As shells count the ends by signals.
        Ending::Signal(number, result) => (result, 128 + number),
    };
    match result {
        Some(Err(error)) => note(format_args!("error: {error:#}")),
        Some(Ok(())) => {}
        None => note("error: interrupted; what was finished before is kept"),
    }
    lacuna_telemetry::finish();
    // What still computes is of no use to anybody, and would be waited for.
    std::process::exit(code)
}
