//! `lacuna audit`: what a provider could make of what it sees.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use lacuna_model::device::{self, OpenDevice};
use tokio::task::spawn_blocking;

use lacuna_instruments::audit::corpus::Size;
use lacuna_instruments::audit::sheet::{Column, sheet};
use lacuna_instruments::audit::table::{self, Finding};
use lacuna_instruments::audit::target::Target;
use lacuna_instruments::audit::trial::Trial;
use lacuna_orchestrator::arguments::model::ModelArguments;
use lacuna_orchestrator::arguments::speed::{ComputeArguments, SpeedArguments};
use lacuna_orchestrator::error::{Error, Result};
use lacuna_orchestrator::fleet::config::MAX_WORKERS;
use lacuna_orchestrator::fleet::local::LocalWorkers;
use lacuna_orchestrator::limits;
use lacuna_orchestrator::output::console::Console;
use lacuna_orchestrator::output::{make_directory, write_whole};
use lacuna_orchestrator::pipeline::Pipeline;
use lacuna_orchestrator::policy::Policy;

/// Arguments of `lacuna audit`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  lacuna audit --device cpu --out audit
  lacuna audit --policies private,tiled --prompts 100 --held-out 10
  lacuna audit --policies blind --workers 2,3 --ppidm false --audited-steps 1")]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Pictures that the attacker trains on. Prompts are of the demo model's grammar.
    #[arg(long, default_value_t = 400)]
    prompts: usize,
    /// Pictures that it is tried on.
    #[arg(long, default_value_t = 40)]
    held_out: usize,
    /// Sampler steps.
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// Steps that are audited, from the first to the last.
    #[arg(long, default_value_t = 4)]
    audited_steps: usize,
    /// Numbers of workers, each of a provider of its own.
    #[arg(long, value_delimiter = ',', default_value = "4")]
    workers: Vec<usize>,
    /// The provider that attacks, from 0; under blind all but one do, in every way.
    #[arg(long, default_value_t = 1)]
    provider: usize,
    /// Policies: of each, the fastest placement that it allows is attacked.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "private,prompt-shared,tiled,broadcast"
    )]
    policies: Vec<PathBuf>,
    /// Attack the paper's scheme too: true or false.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    ppidm: bool,
    #[command(flatten)]
    speed: SpeedArguments,
    #[command(flatten)]
    compute: ComputeArguments,
    /// Held-out pictures on the sheet.
    #[arg(long, default_value_t = 5)]
    pictures: usize,
    /// The directory for audit.md, audit.csv, audit.json and sheet.png.
    #[arg(short, long, value_name = "DIR", default_value = "audit")]
    out: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// Anything from a bad argument to a file that cannot be written, in one line.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    check(&arguments)?;
    let policies = arguments.policies.iter().map(|path| Policy::open(path));
    let policies = policies.collect::<Result<Vec<_>>>()?;
    make_directory(&arguments.out)?;
    let console = Console::default();

    let opened = arguments.clone();
    let (trial, device) = spawn_blocking(move || open(&opened)).await??;
    let trial = Arc::new(trial);
    let runs = {
        let trial = trial.clone();
        Arc::new(spawn_blocking(move || trial.runs()).await??)
    };
    let (mut findings, mut columns) = (Vec::new(), Vec::new());
    for (at, workers) in arguments.workers.iter().copied().enumerate() {
        let sizes = trial.base.sizes.latents;
        let local = LocalWorkers::start(workers, &trial.model, &device, sizes).await?;
        let speeds = arguments.compute.given(&arguments.speed, local.config())?;
        let ppidm = arguments.ppidm;
        let cases = trial.cases(&policies, ppidm, local.config(), &speeds, &console)?;
        let (trial, runs, worker) = (trial.clone(), runs.clone(), arguments.provider);
        let (found, more) = spawn_blocking(move || {
            let target = Target {
                pipeline: &trial.pipeline,
                model: &trial.model,
                fleet: local.config(),
                workers: vec![worker],
            };
            trial.attack(cases, &target, &runs)
        })
        .await??;
        findings.extend(found);
        if at == 0 {
            columns = more;
        }
        // What is known so far, should a later round fail.
        write(&arguments, &findings, &columns)?;
    }
    console.line(table::text(&findings));
    console.line(arguments.out.join("sheet.png").display());
    Ok(console.finish()?)
}

/// What can be refused before anything is loaded.
fn check(arguments: &Arguments) -> Result<()> {
    let refuse = |reason: String| Err(Error::Request(reason));
    if arguments.compute.measure {
        let reason = "--measure: an audit plans with the numbers that are given";
        return refuse(reason.into());
    }
    // Of five runs one is set aside to choose penalties.
    limits::check("--prompts", arguments.prompts, limits::COUNT)?;
    if arguments.prompts < 10 {
        return refuse(format!("--prompts {}: at least 10", arguments.prompts));
    }
    for (flag, value) in [
        ("--held-out", arguments.held_out),
        ("--steps", arguments.steps),
        ("--audited-steps", arguments.audited_steps),
    ] {
        limits::check(flag, value, limits::COUNT)?;
    }
    limits::check("--audited-steps", arguments.audited_steps, arguments.steps)?;
    for n in &arguments.workers {
        limits::check("--workers", *n, MAX_WORKERS)?;
        if arguments.provider >= *n {
            return refuse(format!(
                "--provider {}: of {n} workers the last is {}",
                arguments.provider,
                n - 1
            ));
        }
    }
    Ok(())
}

fn write(arguments: &Arguments, findings: &[Finding], columns: &[Column]) -> anyhow::Result<()> {
    let file = |name: &str| arguments.out.join(name);
    write_whole(&file("audit.md"), table::text(findings).as_bytes())?;
    write_whole(&file("audit.csv"), table::csv(findings).as_bytes())?;
    write_whole(&file("audit.json"), &serde_json::to_vec_pretty(findings)?)?;
    sheet(columns).write_png(&file("sheet.png"), &[])?;
    Ok(())
}

fn open(arguments: &Arguments) -> anyhow::Result<(Trial, OpenDevice)> {
    let model = &arguments.model;
    let device = device::open(model.device, model.allow_software)?;
    let parts = model.files()?.open();
    let opened = parts.and_then(|parts| Pipeline::of(parts, &model.lora, &device.device));
    let opened = opened.and_then(|pipeline| pipeline.with_embeddings(&model.embedding));
    let pipeline =
        opened.with_context(|| format!("cannot load the model {}", model.model.display()))?;
    let size = Size {
        train: arguments.prompts,
        held_out: arguments.held_out,
        audited: arguments.audited_steps,
    };
    let trial = Trial::new(pipeline, arguments.steps, size, arguments.pictures)?;
    Ok((trial, device))
}
