//! `lacuna metrics`: pictures against reference pictures.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use lacuna_model::device::{self, DeviceChoice};
use tokio::task::spawn_blocking;

use lacuna_instruments::metrics::comparison::{Comparison, Sets};
use lacuna_instruments::metrics::networks::MetricArguments;
use lacuna_orchestrator::output::console::print;

/// Arguments of `lacuna metrics`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  lacuna metrics ours.png theirs.png
  lacuna metrics ours theirs --metrics psnr,ssim --json")]
pub struct Arguments {
    /// A picture (PNG or JPEG), or a folder of them.
    a: PathBuf,
    /// What it is compared with. Files of two folders pair by their names without ending.
    b: PathBuf,
    #[command(flatten)]
    metrics: MetricArguments,
    /// Print the values of each pair, too.
    #[arg(long)]
    each: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// auto, cpu, wgpu or cuda: where the networks run.
    #[arg(long, env = "LACUNA_DEVICE", default_value_t)]
    device: DeviceChoice,
    /// Accept a GPU that is emulated in software (llvmpipe).
    #[arg(long, env = "LACUNA_ALLOW_SOFTWARE")]
    allow_software: bool,
}

/// Runs the command. A bad picture among many is named and left out; the others are measured, and the
/// run fails at its end.
///
/// # Errors
/// Paths that are not two pictures or two folders of pictures, weights that cannot be read, or any picture
/// that could not be measured.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    spawn_blocking(move || measure(&arguments)).await?
}

fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let sets = Sets::open(&arguments.a, &arguments.b)?;
    let open = || Ok(device::open(arguments.device, arguments.allow_software)?.device);
    let summary = Comparison::of(&sets, &arguments.metrics, arguments.each, open)?;
    if arguments.json {
        print(serde_json::to_string_pretty(&summary)?)?;
    } else {
        print(summary.table())?;
    }
    match summary.failed.len() {
        0 => Ok(()),
        n => bail!("{n} of the pictures or pairs could not be measured; each is named above"),
    }
}
