//! `lacuna audit`: what a provider could make of what it sees.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use shared::device::{self, OpenDevice};
use shared::weights::{Weights, list};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use worker::Model;

use super::placed::DEFAULT_GUIDANCE;
use super::{ComputeArguments, ModelArguments, PROMPT_TOKENS, SpeedArguments};
use crate::audit::attacks::Material;
use crate::audit::corpus::{self, Run, Size};
use crate::audit::outcome::{Outcome, Recovered, attack, baselines};
use crate::audit::sheet::{Cell, Column, sheet};
use crate::audit::table::{self, Finding};
use crate::audit::target::Target;
use crate::audit::view::View;
use crate::error::{Error, Result};
use crate::fleet::config::MAX_WORKERS;
use crate::fleet::local::LocalWorkers;
use crate::limits;
use crate::output::console::Console;
use crate::output::{make_directory, write_whole};
use crate::picture::Picture;
use crate::pipeline::{Pipeline, Sampling};
use crate::policy::Policy;
use crate::policy::plan::choose;
use crate::progress::Progress;
use crate::schemes::ppidm::Ppidm;
use crate::schemes::registry::Options;
use crate::schemes::resident::Resident;
use crate::schemes::{Setting, Sizes};

/// Arguments of `lacuna audit`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  lacuna audit --device cpu --out audit
  lacuna audit --policies private,tiled --prompts 100 --held-out 10")]
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
    /// The provider that attacks, from 0.
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

/// What is attacked: a name, and how the U-Net is placed; none where the policy refuses.
type Case = (String, Option<Setting>);

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
    let (audit, device) = spawn_blocking(move || open(&opened)).await??;
    let audit = Arc::new(audit);
    let runs = {
        let (audit, arguments) = (audit.clone(), arguments.clone());
        Arc::new(spawn_blocking(move || audit.runs(&arguments)).await??)
    };
    let (mut findings, mut columns) = (Vec::new(), Vec::new());
    for (at, workers) in arguments.workers.iter().copied().enumerate() {
        let local =
            LocalWorkers::start(workers, &audit.model, &device, audit.base.sizes.latents).await?;
        let (audit, runs) = (audit.clone(), runs.clone());
        let (asked, policies, console) = (arguments.clone(), policies.clone(), console.clone());
        let runtime = Handle::current();
        let (found, more) = spawn_blocking(move || {
            let target = Target {
                pipeline: &audit.pipeline,
                model: &audit.model,
                fleet: local.config(),
                worker: asked.provider,
                runtime,
            };
            audit.of_workers(&asked, &policies, &target, &runs, &console)
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

/// The model, and how it samples.
struct Audit {
    pipeline: Pipeline,
    weights: Weights,
    model: Arc<Model>,
    sampling: Sampling,
    /// Sizes; the placement is the policies' to choose.
    base: Setting,
}

fn open(arguments: &Arguments) -> anyhow::Result<(Audit, OpenDevice)> {
    let ModelArguments {
        model,
        variant,
        device,
        allow_software,
    } = &arguments.model;
    let device = device::open(*device, *allow_software)?;
    let pipeline = Pipeline::open(model, variant.as_deref(), &device.device)
        .with_context(|| format!("cannot load the model {}", model.display()))?;
    let weights = pipeline.load_unet(&list(pipeline.unet()))?;
    let sampling = Sampling {
        scheduler: None,
        steps: arguments.steps,
        guidance: pipeline.guidance_scale.unwrap_or(DEFAULT_GUIDANCE),
        eta: 0.0,
    };
    let [_, _, rows, columns] = pipeline.latent_shape(None, None)?;
    let strips = Resident {
        // Both halves of a guided step travel in one message: the worker sees the same of them.
        lanes: Some(false),
        ..Resident::default()
    };
    let base = Setting {
        scheme: strips.scheme(),
        sizes: Sizes {
            latents: [sampling.batch(), rows, columns],
            levels: pipeline.unet().levels(),
            tokens: PROMPT_TOKENS,
        },
    };
    let audit = Audit {
        model: Arc::new(Model::new(pipeline.unet().clone(), weights.clone())),
        pipeline,
        weights,
        sampling,
        base,
    };
    Ok((audit, device))
}

impl Audit {
    /// The pictures.
    fn runs(&self, arguments: &Arguments) -> Result<Vec<Run>> {
        let size = Size {
            train: arguments.prompts,
            held_out: arguments.held_out,
            audited: arguments.audited_steps,
        };
        let pictures = size.train + size.held_out;
        let bar = Progress::new("picture", pictures);
        let Self {
            pipeline,
            weights,
            sampling,
            base,
            ..
        } = self;
        corpus::make(pipeline, weights, sampling, base, size, |i| {
            bar.reach(i, pictures);
        })
    }

    /// The cases: each policy's placement, and the paper's scheme.
    fn cases(
        &self,
        arguments: &Arguments,
        policies: &[Policy],
        target: &Target<'_>,
        console: &Console,
    ) -> Result<Vec<Case>> {
        if arguments.compute.measure {
            let reason = "--measure: an audit plans with the numbers that are given";
            return Err(Error::Request(reason.into()));
        }
        let speeds = arguments.compute.given(&arguments.speed, target.fleet)?;
        let case = |policy: &Policy| {
            let name = policy.file.file_stem().unwrap_or_default();
            let name = name.to_string_lossy().into_owned();
            match choose(
                self.pipeline.unet(),
                policy,
                &self.base,
                target.fleet,
                &speeds,
            ) {
                Ok(plan) => {
                    let placement = plan.setting.scheme.placement();
                    console.line(format_args!("{name}: {placement}"));
                    Ok((name, Some(plan.setting)))
                }
                Err(error @ Error::Policy { .. }) => {
                    console.line(format_args!("{name}: {error}"));
                    Ok((name, None))
                }
                Err(error) => Err(error),
            }
        };
        let mut cases = policies.iter().map(case).collect::<Result<Vec<Case>>>()?;
        if arguments.ppidm {
            let paper = self.base.by(Ppidm::default().scheme());
            cases.push(("ppidm".to_owned(), Some(paper)));
        }
        Ok(cases)
    }

    /// Rows of the picture that rows of the latents become.
    fn pixels(&self, rows: Range<usize>) -> Range<usize> {
        let pixels = self.pipeline.pixels_per_latent();
        rows.start * pixels..rows.end * pixels
    }

    fn material<'a>(
        &'a self,
        arguments: &Arguments,
        runs: &'a [Run],
        views: &'a [Vec<View>],
        rows: Range<usize>,
    ) -> Material<'a> {
        Material {
            pipeline: &self.pipeline,
            runs,
            views,
            train: arguments.prompts,
            rows,
        }
    }

    /// All cases with one fleet: what was found, and the columns of the sheet.
    fn of_workers(
        &self,
        arguments: &Arguments,
        policies: &[Policy],
        target: &Target<'_>,
        runs: &[Run],
        console: &Console,
    ) -> Result<(Vec<Finding>, Vec<Column>)> {
        let workers = target.fleet.workers.len();
        let (mut findings, mean) = {
            let rows = target.rows(&self.base)?;
            baselines(&self.material(arguments, runs, &[], rows), workers)?
        };
        let mut outcomes = Vec::new();
        for (name, setting) in self.cases(arguments, policies, target, console)? {
            let Some(setting) = setting else {
                continue;
            };
            let bar = Progress::new("picture", runs.len());
            bar.about(name.clone());
            let views = target.watch(&setting, &self.weights, runs, arguments.prompts, || {
                bar.step();
            });
            drop(bar);
            let views = views?;
            let rows = target.rows(&setting)?;
            let material = self.material(arguments, runs, &views, rows);
            let mut outcome = attack(&name, workers, &material)?;
            findings.append(&mut outcome.findings);
            outcomes.push((name, outcome, self.pixels(target.rows(&setting)?)));
        }
        let held = runs.iter().skip(arguments.prompts).take(arguments.pictures);
        let held: Vec<&Run> = held.collect();
        let own = self.pixels(target.rows(&self.base)?);
        Ok((findings, columns(&held, &outcomes, own, &mean, workers)))
    }
}

/// The columns of the sheet: what is true, what is held, what each case gives away, and the mean. The rows that the
/// provider computes are outlined, `own` in the true picture.
fn columns(
    held: &[&Run],
    outcomes: &[(String, Outcome, Range<usize>)],
    own: Range<usize>,
    mean: &Picture,
    workers: usize,
) -> Vec<Column> {
    let column = |heading: [&str; 2], cells: Vec<Cell>| Column {
        heading: heading.map(str::to_owned),
        cells,
    };
    let truth = held.iter().map(|run| Cell {
        picture: run.picture.clone(),
        caption: caption(&run.prompt.answers),
        outline: own.clone(),
    });
    let mut columns = vec![column(["true picture", "its prompt"], truth.collect())];
    let known = outcomes.iter().find_map(|(_, outcome, _)| {
        let rows = outcome.recovered.iter().take(held.len());
        rows.map(|r| r.held.clone()).collect::<Option<Vec<_>>>()
    });
    if let Some(known) = known {
        let cells = known.into_iter().map(|picture| Cell {
            picture,
            caption: String::new(),
            outline: 0..0,
        });
        let heading = format!("1 of {workers} providers");
        columns.push(column(["it computes", &heading], cells.collect()));
    }
    for (name, outcome, rows) in outcomes {
        let recovered = outcome.recovered.iter().take(held.len());
        let cells = recovered.map(|Recovered { guess, answers, .. }| Cell {
            picture: guess.clone(),
            caption: caption(answers),
            outline: rows.clone(),
        });
        columns.push(column([name, "it recovers"], cells.collect()));
    }
    let cells = held.iter().map(|_| Cell {
        picture: mean.clone(),
        caption: String::new(),
        outline: 0..0,
    });
    columns.push(column(["mean picture", "no attack"], cells.collect()));
    columns
}

/// The shape that a prompt names first, and the background.
fn caption(answers: &[&str]) -> String {
    match answers {
        [_, colour, kind, .., background] => format!("{colour} {kind}-{background}"),
        _ => String::new(),
    }
}
