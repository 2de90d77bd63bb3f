//! `lacuna`: pictures from a diffusion model on clouds that you do not trust.

use std::process::ExitCode;

use orchestrator::cli::Cli;
use orchestrator::logging;
use orchestrator::output::console::note;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    logging::start();
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
    match cli.run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
