//! `lacuna workers`: how the workers are.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use futures::future::join_all;

use super::terms::WayArguments;
use crate::fleet::client::{Client, short};
use crate::fleet::config::WorkerConfig;

/// Arguments of `lacuna workers`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// A TOML file that lists the workers (see configs/fleet.example.toml).
    #[arg(long, env = "LACUNA_WORKERS")]
    workers: PathBuf,
    #[command(flatten)]
    way: WayArguments,
}

/// Runs the command.
///
/// # Errors
/// A bad file, or a worker that is not well (after the table of all).
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = arguments.way.fleet(&arguments.workers)?;
    let states = join_all(config.workers.iter().map(state)).await;
    println!(
        "{:<12} {:<34} {:<7} {:<7} {:<28} {:<14} {:>10}",
        "provider", "url", "health", "device", "adapter", "model", "round trip"
    );
    let mut unwell = 0;
    for (worker, state) in config.workers.iter().zip(states) {
        let place = format!("{:<12} {:<34}", worker.provider, worker.url.as_str());
        match state {
            Ok(line) => println!("{place} {line}"),
            Err(error) => {
                unwell += 1;
                println!("{place} {error}");
            }
        }
    }
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
