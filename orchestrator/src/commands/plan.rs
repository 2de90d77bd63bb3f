//! `lacuna plan`: the fastest placement that a policy allows, and what its rules cost.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use shared::device::{self, DeviceChoice};
use shared::placement::Placement;

use super::arguments::FleetArguments;
use super::{ComputeArguments, PROMPT_TOKENS, SizeArguments, SpeedArguments};
use crate::error::{Error, Result};
use crate::fleet::config::FleetConfig;
use crate::output::console::{Console, print};
use crate::policy::Policy;
use crate::policy::ledger::Ledger;
use crate::policy::plan::{Plan, Relaxed, Seconds, Speeds, choose, relax};
use crate::schemes::{Scheme, Setting};

/// Arguments of `lacuna plan`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  lacuna plan --policy private --workers 4
  lacuna plan --fleet fleet.toml --measure --model MODEL --size 512x768")]
pub struct Arguments {
    /// What any one provider may see: private, fast, paper, or a TOML file (see configs/policies).
    #[arg(long, value_name = "NAME|FILE", default_value = "private")]
    policy: PathBuf,
    #[command(flatten)]
    size: SizeArguments,
    #[command(flatten)]
    workers: FleetArguments,
    #[command(flatten)]
    speed: SpeedArguments,
    #[command(flatten)]
    compute: ComputeArguments,
    /// auto, cpu or wgpu: where your own part would be computed.
    #[arg(long, env = "LACUNA_DEVICE", default_value_t)]
    device: DeviceChoice,
    /// Accept a GPU that is emulated in software (llvmpipe).
    #[arg(long, env = "LACUNA_ALLOW_SOFTWARE")]
    allow_software: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A plan as JSON.
#[derive(Serialize)]
struct Summary<'a> {
    speeds: &'a Speeds,
    placement: Placement,
    seconds: Seconds,
    bytes_up: u64,
    bytes_down: u64,
    round_trips: usize,
    ledger: &'a Ledger,
    without: &'a [Relaxed],
}

/// Runs the command.
///
/// # Errors
/// A file that cannot be read, or a policy that no placement keeps; the rule is named.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let policy = Policy::open(&arguments.policy)?;
    let fleet = fleet(&arguments)?;
    if arguments.compute.measure && arguments.workers.file().is_none() {
        let reason = "--measure: there is nothing to measure without --fleet";
        return Err(Error::Request(reason.into()).into());
    }
    let device = device::open(arguments.device, arguments.allow_software)?;
    let compute = &arguments.compute;
    let speeds = compute
        .speeds(&arguments.speed, &fleet, &device.device)
        .await?;
    let unet = arguments.size.unet()?;
    let setting = Setting {
        scheme: Scheme::Resident,
        groupnorm: Default::default(),
        offload: Default::default(),
        placement: Placement::default(),
        lanes: true,
        latents: arguments.size.latents()?,
        levels: unet.levels(),
        tokens: PROMPT_TOKENS,
    };
    let plan = choose(&unet, &policy, setting, &fleet, &speeds)?;
    let without = relax(&unet, &policy, setting, &fleet, &speeds)?;
    if arguments.json {
        let summary = summary(&plan, &speeds, &without);
        return Ok(print(serde_json::to_string_pretty(&summary)?)?);
    }
    let console = Console::default();
    console.line(plan.table(&speeds));
    let seconds = plan.seconds.total();
    for relaxed in without {
        let less = seconds - relaxed.seconds;
        console.line(format_args!(
            "without the rule {}: {:.2} s, {less:.2} s less",
            relaxed.rule, relaxed.seconds
        ));
    }
    Ok(console.finish()?)
}

fn summary<'a>(plan: &'a Plan, speeds: &'a Speeds, without: &'a [Relaxed]) -> Summary<'a> {
    let [bytes_up, bytes_down] = plan.count.total();
    Summary {
        speeds,
        placement: plan.setting.placement,
        seconds: plan.seconds,
        bytes_up,
        bytes_down,
        round_trips: plan.count.round_trips(),
        ledger: &plan.ledger,
        without,
    }
}

fn fleet(arguments: &Arguments) -> Result<FleetConfig> {
    match arguments.workers.file() {
        Some(_) => arguments.workers.read(),
        // Each at a provider of its own.
        None => FleetConfig::imagined(arguments.workers.number().unwrap_or(4)),
    }
}
