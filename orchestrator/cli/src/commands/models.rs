//! `lacuna models`: the models that workers are sent and keep.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use futures::future::join_all;
use tokio::task::spawn_blocking;

use lacuna_model::weights::{AdapterFile, DigestCache};
use lacuna_orchestrator::arguments::fleet::FleetArguments;
use lacuna_orchestrator::arguments::model::resolve;
use lacuna_orchestrator::arguments::terms::WayArguments;
use lacuna_orchestrator::fleet::adapters;
use lacuna_orchestrator::fleet::config::{FleetConfig, WorkerConfig};
use lacuna_orchestrator::fleet::line::short;
use lacuna_orchestrator::fleet::store::{self, Package, Pushed};
use lacuna_orchestrator::model::ModelFiles;
use lacuna_orchestrator::output::console::Console;
use lacuna_orchestrator::progress::Progress;

/// Arguments of `lacuna models`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  lacuna models push --fleet fleet.toml --model sd15 --variant fp16
  lacuna models list --fleet fleet.toml
  lacuna models rm --fleet fleet.toml 3f29ab")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Sends a model's U-Net to every worker that does not have it, spares included; goes on where it ended before.
    Push(PushArguments),
    /// Shows what the workers keep.
    List(WhereArguments),
    /// Removes a model from every worker that keeps it.
    Rm(RemoveArguments),
}

// A number of workers says nothing here.
#[derive(Args, Clone, Debug)]
#[command(mut_arg("workers", |arg| arg.hide(true)))]
struct WhereArguments {
    #[command(flatten)]
    fleet: FleetArguments,
    #[command(flatten)]
    way: WayArguments,
}

#[derive(Args, Clone, Debug)]
struct PushArguments {
    #[command(flatten)]
    at: WhereArguments,
    /// A diffusers model directory or a model in one file, of which the U-Net is sent.
    #[arg(short, long, value_name = "DIR|FILE", env = "LACUNA_MODEL")]
    model: PathBuf,
    /// Weight file variant, e.g. fp16.
    #[arg(long, env = "LACUNA_VARIANT")]
    variant: Option<String>,
    /// Of a model in one file: a model directory of the same kind, whose unet/config.json is taken.
    #[arg(long, value_name = "DIR", env = "LACUNA_MODEL_CONFIG")]
    model_config: Option<PathBuf>,
    /// A low-rank adapter; what of it is of the U-Net is sent, too. Repeat it for several.
    #[arg(long, value_name = "FILE[:STRENGTH]")]
    lora: Vec<AdapterFile>,
}

#[derive(Args, Clone, Debug)]
struct RemoveArguments {
    #[command(flatten)]
    at: WhereArguments,
    /// The model's digest, or as much of its beginning as tells it from others.
    digest: String,
}

impl WhereArguments {
    fn config(&self) -> anyhow::Result<FleetConfig> {
        Ok(self.way.fleet(self.fleet.required()?)?)
    }
}

/// Runs the command.
///
/// # Errors
/// A bad file, or a worker that fails (after the table of all).
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Command::Push(arguments) => push(arguments).await,
        Command::List(arguments) => list(&arguments.config()?).await,
        Command::Rm(arguments) => remove(&arguments.at.config()?, &arguments.digest).await,
    }
}

async fn push(arguments: PushArguments) -> anyhow::Result<()> {
    let config = arguments.at.config()?;
    let lora = arguments.lora;
    let files = ModelFiles {
        variant: arguments.variant,
        config: arguments.model_config,
        digests: DigestCache::of_user(),
        ..ModelFiles::of(resolve(&arguments.model)?)
    };
    files.check()?;
    let packages = spawn_blocking(move || {
        packages(&files, &lora)
            .with_context(|| format!("cannot read the model {}", files.model.display()))
    });
    let packages = packages.await??;
    let console = Console::default();
    for (what, package) in &packages {
        push_one(&console, &config, what, package).await?;
    }
    Ok(())
}

/// The model, and behind it what adapters make of it, each by what it is.
fn packages(
    files: &ModelFiles,
    lora: &[AdapterFile],
) -> lacuna_orchestrator::Result<Vec<(&'static str, Package)>> {
    let mut packages = vec![("model", Package::open(files)?)];
    let (_, stored, _) = files.open_adapted(lora)?;
    if stored.is_adapted() {
        packages.push(("with its adapters", adapters::package(&stored)?));
    }
    Ok(packages)
}

async fn push_one(
    console: &Console,
    config: &FleetConfig,
    what: &str,
    package: &Package,
) -> anyhow::Result<()> {
    console.line(format_args!(
        "{what} {}, {:.2} GB",
        short(&package.digest),
        package.bytes() as f64 / 1e9
    ));
    let workers = config.everybody().count() as u64;
    let megabytes = |bytes: u64| usize::try_from(bytes.div_ceil(1_000_000)).unwrap_or(usize::MAX);
    let all = megabytes(package.bytes().saturating_mul(workers));
    let progress = Progress::new("MB", all);
    let there = AtomicU64::new(0);
    let reached = |bytes: u64| {
        let there = there.fetch_add(bytes, Ordering::Relaxed) + bytes;
        progress.reach(megabytes(there), all);
    };
    let pushes = config
        .everybody()
        .map(|worker| package.push(worker, reached));
    let pushed = join_all(pushes).await;
    drop(progress);
    let told = config.everybody().zip(pushed).map(|(worker, pushed)| {
        let said = match pushed {
            Ok(Pushed::Held) => Ok("has it".into()),
            Ok(Pushed::Sent(bytes)) => Ok(format!("took it: {:.2} GB sent", bytes as f64 / 1e9)),
            Err(error) => Err(error),
        };
        (worker, said)
    });
    tell(console, told)
}

async fn list(config: &FleetConfig) -> anyhow::Result<()> {
    let stored = store::list_all(config).await;
    let told = config.everybody().zip(stored).map(|(worker, stored)| {
        let said = stored.map(|stored| {
            let gigabytes = |bytes: u64| bytes as f64 / 1e9;
            let (taken, most) = (gigabytes(stored.bytes), gigabytes(stored.most));
            let mut said = format!("{taken:.2} of {most:.2} GB");
            for kept in &stored.models {
                let state = match kept.used {
                    true => "in use".into(),
                    false => format!("used {} ago", span(kept.idle_seconds)),
                };
                let (digest, size) = (short(&kept.digest), gigabytes(kept.bytes));
                let adapts = kept.adapts.as_deref();
                let adapts = adapts.map(|base| format!(", adapters of {}", short(base)));
                let adapts = adapts.unwrap_or_default();
                said.push_str(&format!("\n  {digest}  {size:>7.2} GB  {state}{adapts}"));
            }
            for digest in &stored.unfinished {
                said.push_str(&format!("\n  {}  not all there", short(digest)));
            }
            said
        });
        (worker, said)
    });
    tell(&Console::default(), told)
}

async fn remove(config: &FleetConfig, beginning: &str) -> anyhow::Result<()> {
    let stored = store::list_all(config).await;
    let known = stored.iter().filter_map(|stored| stored.as_ref().ok());
    // What was meant is known where all have been asked; where some do not answer, they say so below.
    let digest = match store::meant(beginning, known) {
        Ok(digest) => digest.to_owned(),
        Err(error) => {
            let failed = config
                .everybody()
                .zip(&stored)
                .filter_map(|(worker, stored)| {
                    let error = stored.as_ref().err()?;
                    Some((worker, Err::<String, _>(error)))
                });
            tell(&Console::default(), failed)?;
            return Err(error.into());
        }
    };
    let removals = config
        .everybody()
        .zip(stored)
        .map(async |(worker, stored)| {
            let said = match stored {
                Ok(stored) if !stored.has(&digest) => Ok("does not have it".to_owned()),
                Ok(_) => {
                    let removed = store::remove(worker, &digest).await;
                    removed.map(|()| format!("removed {}", short(&digest)))
                }
                Err(error) => Err(error),
            };
            (worker, said)
        });
    tell(&Console::default(), join_all(removals).await)
}

/// Prints a line of each worker, and fails where one failed.
fn tell<'a, E: std::fmt::Display>(
    console: &Console,
    told: impl IntoIterator<Item = (&'a WorkerConfig, Result<String, E>)>,
) -> anyhow::Result<()> {
    let (mut all, mut failed) = (0, 0);
    for (worker, said) in told {
        all += 1;
        failed += usize::from(said.is_err());
        console.line(format_args!(
            "{:<12} {:<34} {}",
            worker.provider,
            worker.url.as_str(),
            said.unwrap_or_else(|error| error.to_string())
        ));
    }
    console.finish()?;
    if failed > 0 {
        bail!("{failed} of {all} workers failed");
    }
    Ok(())
}

/// Seconds, as a person says them.
fn span(seconds: u64) -> String {
    let (number, unit) = match seconds {
        0..120 => (seconds, "s"),
        120..7200 => (seconds / 60, "min"),
        7200..172_800 => (seconds / 3600, "h"),
        _ => (seconds / 86_400, "days"),
    };
    format!("{number} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_a_fitting_unit() {
        for (seconds, said) in [
            (0, "0 s"),
            (119, "119 s"),
            (120, "2 min"),
            (7200, "2 h"),
            (172_800, "2 days"),
        ] {
            assert_eq!(span(seconds), said);
        }
    }
}
