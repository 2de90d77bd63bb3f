//! `lacuna workers`: how the workers are.

use anyhow::bail;
use clap::Args;
use futures::future::join_all;

use super::arguments::FleetArguments;
use crate::fleet::client::{Client, short};
use crate::fleet::config::WorkerConfig;
use crate::output::console::Console;

/// Arguments of `lacuna workers`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  lacuna workers --fleet fleet.toml")]
pub struct Arguments {
    #[command(flatten)]
    fleet: FleetArguments,
}

/// Runs the command.
///
/// # Errors
/// A bad file, or a worker that is not well (after the table of all).
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = arguments.fleet.read()?;
    let states = join_all(config.workers.iter().map(state)).await;
    let console = Console::default();
    console.line(format_args!(
        "{:<12} {:<34} {:<7} {:<7} {:<28} {:<14} {:>10}",
        "provider", "url", "health", "device", "adapter", "model", "round trip"
    ));
    let mut unwell = 0;
    for (worker, state) in config.workers.iter().zip(states) {
        let place = format!("{:<12} {:<34}", worker.provider, worker.url.as_str());
        match state {
            Ok(line) => console.line(format_args!("{place} {line}")),
            Err(error) => {
                unwell += 1;
                console.line(format_args!("{place} {error}"));
            }
        }
    }
    console.finish()?;
    if unwell > 0 {
        bail!(
            "{unwell} of {} workers cannot be used",
            config.workers.len()
        );
    }
    Ok(())
}

async fn state(worker: &WorkerConfig) -> crate::Result<String> {
    let (info, round_trip) = Client::new(worker)?.info().await?;
    let models: Vec<&str> = info.models.iter().map(|m| short(&m.digest)).collect();
    Ok(format!(
        "{:<7} {:<7} {:<28} {:<14} {:>7.1} ms",
        "ready",
        info.device,
        info.adapter,
        models.join(","),
        round_trip.as_secs_f64() * 1e3
    ))
}
