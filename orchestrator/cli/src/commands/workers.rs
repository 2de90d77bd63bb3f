//! `lacuna workers`: how the workers are.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use futures::future::join_all;
use lacuna_model::weights::{AdapterFile, DigestCache};
use lacuna_protocol::session::{Info, Load};
use tokio::task::spawn_blocking;

use lacuna_orchestrator::arguments::fleet::FleetArguments;
use lacuna_orchestrator::arguments::model::resolve;
use lacuna_orchestrator::arguments::terms::WayArguments;
use lacuna_orchestrator::error::Error;
use lacuna_orchestrator::fleet::client::Client;
use lacuna_orchestrator::fleet::config::WorkerConfig;
use lacuna_orchestrator::fleet::line::held;
use lacuna_orchestrator::fleet::watch::Doing;
use lacuna_orchestrator::interrupt;
use lacuna_orchestrator::model::ModelFiles;
use lacuna_orchestrator::output::console::Console;

/// Arguments of `lacuna workers`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  lacuna workers --fleet fleet.toml
  lacuna workers --fleet fleet.toml --watch         while pictures are made, until Ctrl-C")]
// A number of workers says nothing here.
#[command(mut_arg("workers", |arg| arg.hide(true)))]
pub struct Arguments {
    #[command(flatten)]
    fleet: FleetArguments,
    #[command(flatten)]
    way: WayArguments,
    /// The model that they should hold, a diffusers directory or one file [default: any, but all of them the same].
    #[arg(short, long, env = "LACUNA_MODEL")]
    model: Option<PathBuf>,
    /// Weight file variant, e.g. fp16.
    #[arg(long, env = "LACUNA_VARIANT")]
    variant: Option<String>,
    /// Of a model in one file: a model directory of the same kind, whose unet/config.json is taken.
    #[arg(
        long,
        value_name = "DIR",
        env = "LACUNA_MODEL_CONFIG",
        requires = "model"
    )]
    model_config: Option<PathBuf>,
    /// A low-rank adapter that they should hold; repeat it for several.
    #[arg(long, value_name = "FILE[:STRENGTH]", requires = "model")]
    lora: Vec<AdapterFile>,
    /// Show what they are doing every so many seconds, until Ctrl-C [without a value: 2].
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    watch: Option<u64>,
    /// With --watch: end after so many looks.
    #[arg(long, value_name = "N", requires = "watch")]
    looks: Option<usize>,
}

/// Runs the command.
///
/// # Errors
/// A bad file, or a worker that cannot be used (after the table of all).
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = arguments.way.fleet(arguments.fleet.required()?)?;
    if let Some(seconds) = arguments.watch {
        let workers: Vec<WorkerConfig> = config.everybody().cloned().collect();
        let pause = Duration::from_secs(seconds);
        return watch(&workers, pause, arguments.looks.unwrap_or(usize::MAX)).await;
    }
    let wanted = match arguments.model {
        Some(model) => {
            let files = ModelFiles {
                variant: arguments.variant,
                config: arguments.model_config,
                digests: DigestCache::of_user(),
                ..ModelFiles::of(resolve(&model)?)
            };
            files.check()?;
            let lora = arguments.lora;
            Some(spawn_blocking(move || digest(&files, &lora)).await??)
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

/// Shows what the workers do, again and again.
async fn watch(workers: &[WorkerConfig], pause: Duration, looks: usize) -> anyhow::Result<()> {
    let console = Console::default();
    let terminal = std::io::stdout().is_terminal();
    let mut before: Vec<Option<(Load, Instant)>> = vec![None; workers.len()];
    for look in 0..looks {
        if look > 0 {
            let pause = async {
                tokio::time::sleep(pause).await;
                Ok(())
            };
            interrupt::unless_asked(pause).await?;
        }
        let states = join_all(workers.iter().map(State::of)).await;
        let mut lines = vec![format!(
            "{:<12} {:<34} {:<9} {:>10} {:>8} {:>5} {:>8} {:>8} {:>8} {:>9} {:>9} {:>9}",
            "provider",
            "url",
            "version",
            "round trip",
            "sessions",
            "queue",
            "work/s",
            "MB/s in",
            "MB/s out",
            "compute %",
            "waiting %",
            "link %"
        )];
        for ((worker, state), before) in workers.iter().zip(states).zip(&mut before) {
            let place = format!("{:<12} {:<34}", worker.provider, worker.url.as_str());
            let said = match state {
                Ok(state) => state.doing(before),
                Err(error) => {
                    *before = None;
                    error.to_string()
                }
            };
            lines.push(format!("{place} {said}"));
        }
        if terminal {
            // To the beginning of an empty screen.
            lines[0].insert_str(0, "\x1b[2J\x1b[H");
        }
        console.line(lines.join("\n"));
        if !terminal && look + 1 < looks {
            console.line("");
        }
    }
    Ok(console.finish()?)
}

/// Digest of the U-Net of a model.
fn digest(files: &ModelFiles, lora: &[AdapterFile]) -> anyhow::Result<String> {
    let digest = || {
        let (_, unet, _) = files.open_adapted(lora)?;
        Ok::<_, Error>(unet.digest()?.to_owned())
    };
    digest().with_context(|| format!("cannot read the model {}", files.model.display()))
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

    /// What it does since it was looked at `before`, as a line of the table; it is looked at now.
    fn doing(&self, before: &mut Option<(Load, Instant)>) -> String {
        let line = format!("{:<9} {:>7.1} ms", self.info.version, self.milliseconds);
        let Some(load) = self.info.load else {
            return format!("{line} (it does not say what it does)");
        };
        let now = Instant::now();
        let last = before.replace((load, now));
        let doing = last.and_then(|(last, then)| Doing::between(&last, &load, now - then));
        let Some(doing) = doing else {
            return format!("{line} {:>8} {:>5}", load.sessions, load.queue);
        };
        let [came, went] = doing.megabytes;
        let line = format!(
            "{line} {:>8} {:>5} {:>8.1} {came:>8.2} {went:>8.2}",
            doing.sessions, doing.queue, doing.exchanges
        );
        match doing.parts() {
            Some([compute, waiting, link]) => {
                format!("{line} {compute:>9.0} {waiting:>9.0} {link:>9.0}")
            }
            None => line,
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
