//! `lacuna workers`: how the workers are.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use futures::future::join_all;
use lacuna_model::unet::UNetConfig;
use lacuna_model::weights::{AdapterFile, Checkpoint, Library, Stored};
use lacuna_protocol::session::Info;
use tokio::task::spawn_blocking;

use lacuna_orchestrator::arguments::fleet::FleetArguments;
use lacuna_orchestrator::arguments::terms::WayArguments;
use lacuna_orchestrator::fleet::client::Client;
use lacuna_orchestrator::fleet::config::WorkerConfig;
use lacuna_orchestrator::fleet::line::held;
use lacuna_orchestrator::output::console::Console;

/// Arguments of `lacuna workers`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  lacuna workers --fleet fleet.toml")]
pub struct Arguments {
    #[command(flatten)]
    fleet: FleetArguments,
    #[command(flatten)]
    way: WayArguments,
    /// The diffusers model directory that they should hold [default: any, but all of them the same].
    #[arg(short, long, env = "LACUNA_MODEL")]
    model: Option<PathBuf>,
    /// Weight file variant, e.g. fp16.
    #[arg(long, env = "LACUNA_VARIANT")]
    variant: Option<String>,
    /// A low-rank adapter that they should hold; repeat it for several.
    #[arg(long, value_name = "FILE[:STRENGTH]", requires = "model")]
    lora: Vec<AdapterFile>,
}

/// Runs the command.
///
/// # Errors
/// A bad file, or a worker that cannot be used (after the table of all).
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = arguments.way.fleet(arguments.fleet.required()?)?;
    let wanted = match arguments.model {
        Some(model) => {
            let (variant, lora) = (arguments.variant, arguments.lora);
            Some(spawn_blocking(move || digest(&model, variant.as_deref(), &lora)).await??)
        }
        None => None,
    };
    let states = join_all(config.everybody().map(State::of)).await;
    // Without a word on which model it should be, the first worker's.
    let held = states.iter().find_map(|state| state.as_ref().ok()?.model());
    let wanted = wanted.as_deref().or(held);
    let console = Console::default();
    console.line(format_args!(
        "{:<12} {:<34} {:<7} {:<7} {:<28} {:<14} {:>10}",
        "provider", "url", "health", "device", "adapter", "model", "round trip"
    ));
    let mut unwell = 0;
    for (i, (worker, state)) in config.everybody().zip(&states).enumerate() {
        let place = format!("{:<12} {:<34}", worker.provider, worker.url.as_str());
        let state = state.as_ref().map_err(ToString::to_string);
        let said = state.and_then(|state| {
            let line = state.line(i >= config.workers.len());
            state
                .check(wanted)
                .map(|()| line)
                .map_err(|e| e.to_string())
        });
        if said.is_err() {
            unwell += 1;
        }
        console.line(format_args!(
            "{place} {}",
            said.unwrap_or_else(|error| error)
        ));
    }
    console.finish()?;
    if unwell > 0 {
        bail!("{unwell} of {} workers cannot be used", states.len());
    }
    Ok(())
}

/// Digest of the U-Net of a model.
fn digest(model: &Path, variant: Option<&str>, lora: &[AdapterFile]) -> anyhow::Result<String> {
    let folder = model.join("unet");
    let digest = || {
        let unet = UNetConfig::from_file(&folder.join("config.json"))?.build();
        let checkpoint = Checkpoint::open(&folder, Library::Diffusers, variant)?;
        let unet = Stored::new(unet, checkpoint)?;
        let unet = unet.with_adapters(AdapterFile::open_all(lora)?)?;
        Ok::<_, lacuna_model::Error>(unet.digest()?.to_owned())
    };
    digest().with_context(|| format!("cannot read the model {}", model.display()))
}

/// What a worker says of itself.
struct State {
    client: Client,
    info: Info,
    milliseconds: f64,
}

impl State {
    async fn of(worker: &WorkerConfig) -> lacuna_orchestrator::Result<Self> {
        let client = Client::new(worker)?;
        let (info, round_trip) = client.info().await?;
        Ok(Self {
            client,
            info,
            milliseconds: round_trip.as_secs_f64() * 1e3,
        })
    }

    /// The first model that it holds.
    fn model(&self) -> Option<&str> {
        self.info.models.first().map(|model| model.digest.as_str())
    }

    /// That it can be used for the model of the digest `wanted`.
    fn check(&self, wanted: Option<&str>) -> lacuna_orchestrator::Result<()> {
        self.client.agree(&self.info)?;
        // One that waits for a model to be pushed to it is well.
        match wanted {
            Some(wanted) => self.client.check_model(&self.info, wanted),
            None => Ok(()),
        }
    }

    /// It as a line of the table.
    fn line(&self, spare: bool) -> String {
        format!(
            "{:<7} {:<7} {:<28} {:<14} {:>7.1} ms",
            if spare { "spare" } else { "ready" },
            self.info.device,
            self.info.adapter,
            held(&self.info),
            self.milliseconds
        )
    }
}
