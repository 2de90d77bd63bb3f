//! `lacuna generate`: a prompt to pictures.

mod before;
mod noises;
mod picture;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::Tensor;
use clap::Args;
use lacuna_model::memory;
use tokio::task::spawn_blocking;

use before::Before;
use lacuna_orchestrator::arguments::fleet::FleetArguments;
use lacuna_orchestrator::arguments::model::{ModelArguments, check_model, load};
use lacuna_orchestrator::arguments::sampling::SamplingArguments;
use lacuna_orchestrator::arguments::scheme::SchemeArguments;
use lacuna_orchestrator::arguments::size::PictureSize;
use lacuna_orchestrator::arguments::speed::{ComputeArguments, SpeedArguments};
use lacuna_orchestrator::arguments::terms::TermsArguments;
use lacuna_orchestrator::error::{Error, Result};
use lacuna_orchestrator::generator::order::Order;
use lacuna_orchestrator::interrupt;
use lacuna_orchestrator::limits;
use lacuna_orchestrator::output::console::{Console, note};
use lacuna_orchestrator::output::{Outputs, write_whole};
use lacuna_orchestrator::pipeline::{Pipeline, Sampling};
use lacuna_orchestrator::report::Report;
use noises::Noises;
use picture::Run;

/// Arguments of `lacuna generate`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  lacuna generate \"a large red circle above a small blue square on a yellow background\"
  lacuna generate -m MODEL -p \"a lighthouse at dusk\" -n blurry --seed 7 --steps 30 -o lighthouse.png
  lacuna generate -m MODEL -p \"a lighthouse at dusk\" --fleet fleet.toml --policy private --report report.json
  lacuna generate -m MODEL -p \"a lighthouse at dusk\" --scheme local --size 512x768 --out - | display")]
pub struct Arguments {
    /// What to see; or --prompt.
    #[arg(value_name = "PROMPT", required_unless_present = "prompt")]
    words: Option<String>,
    /// What to see.
    #[arg(short, long, allow_hyphen_values = true, conflicts_with = "words")]
    prompt: Option<String>,
    /// Where to write the picture, a PNG; several are numbered. - is the standard output.
    #[arg(short, long, value_name = "FILE", default_value = "lacuna.png")]
    out: PathBuf,
    /// Number of pictures.
    #[arg(long, value_name = "N", default_value_t = 1)]
    count: usize,
    /// Leave prompt, negative prompt, seed and settings out of the picture's file, which has them as text.
    #[arg(long)]
    no_metadata: bool,
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    sampling: SamplingArguments,
    #[command(flatten)]
    size: PictureSize,
    /// DDIM's amount of fresh noise, 0 to 1.
    #[arg(
        long,
        default_value_t = 0.0,
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    eta: f32,
    #[command(flatten)]
    scheme: SchemeArguments,
    #[command(flatten)]
    terms: TermsArguments,
    #[command(flatten)]
    speed: SpeedArguments,
    #[command(flatten)]
    compute: ComputeArguments,
    #[command(flatten)]
    workers: FleetArguments,
    /// Initial noise, a safetensors file, in place of the seed's.
    #[arg(long, value_name = "FILE", help_heading = "Sampling")]
    latents: Option<PathBuf>,
    /// Where to keep the final latents.
    #[arg(long, value_name = "FILE")]
    save_latents: Option<PathBuf>,
    /// Where to write what it took and who saw what, as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// Anything from a bad argument to a dead worker, in one line; that picture is not written then, and the
/// report says what was done.
pub async fn run(mut arguments: Arguments) -> anyhow::Result<()> {
    let start = Instant::now();
    let seed = arguments.sampling.seed.get_or_insert_with(random_seed);
    let first_seed = *seed;
    let console = Console::new(check(&arguments)?.take_stdout());
    let fleet = match arguments.workers.file() {
        Some(path) => Some(arguments.terms.way.fleet(path)?),
        None => None,
    };
    let policy = arguments.terms.policy(fleet.as_ref())?;
    let (pipeline, device) = load(&arguments.model).await?;
    let sampling = arguments
        .sampling
        .settle(pipeline.guidance_scale, arguments.eta);
    pipeline.check_sampling(&sampling)?;
    let mut unknown = pipeline.unknown_words(arguments.prompt())?;
    unknown.extend(pipeline.unknown_words(&arguments.sampling.negative_prompt)?);
    if !unknown.is_empty() {
        console.line(format_args!(
            "this model does not know: {}; what it makes of them is left to chance",
            unknown.join(", ")
        ));
    }
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        scheme: arguments.scheme.scheme.name().to_owned(),
        model: pipeline.digest().to_owned(),
        seed: first_seed,
        ..Report::default()
    };
    report.seconds.load = start.elapsed().as_secs_f64();
    let noises = Noises::prepare(&arguments, &pipeline)?;
    let context = encode(&arguments, &sampling, &pipeline, &mut report).await?;
    let given = fleet.is_some();
    let users = device.device.clone();
    let order = Order {
        pipeline,
        device,
        sampling,
        scheme: arguments.scheme.scheme.clone(),
        shape: noises.shape,
        whole: None,
        fleet,
        workers: arguments.workers.number(),
    };
    let ready = order.ready().await?;
    report.seconds.load += ready.loading.as_secs_f64();
    let setting = match (&policy, &ready.fleet) {
        (Some(policy), Some(fleet)) => {
            let before = Before {
                arguments: &arguments,
                pipeline: &ready.pipeline,
                sampling: &ready.sampling,
                device: &users,
                policy,
                fleet,
            };
            before.settle(ready.setting.clone(), &console).await?
        }
        (None, Some(_)) if given => {
            console.line(
                "all workers are on this machine, so nobody else's; if a tunnel leads to a provider, give --policy private",
            );
            ready.setting.clone()
        }
        _ => ready.setting.clone(),
    };
    let run = Arc::new(Run {
        context,
        generator: ready.generator(setting, policy),
        arguments,
    });
    let made = pictures(&run, &noises, &mut report, &console).await;
    report.error = made.as_ref().err().map(|error| format!("{error:#}"));
    report.add_accounts(&run.generator);
    report.seconds.total = start.elapsed().as_secs_f64();
    report.peak_memory = memory::peak();
    if made.is_ok() && !report.workers.is_empty() {
        console.line(report.table());
    }
    let reported = match &run.arguments.report {
        Some(path) => write_whole(path, &serde_json::to_vec_pretty(&report)?),
        None => Ok(()),
    };
    // Why there is a picture less says more than why there is no report.
    made?;
    reported?;
    Ok(console.finish()?)
}

/// Makes the pictures, one after the other.
async fn pictures(
    run: &Arc<Run>,
    noises: &Noises,
    report: &mut Report,
    console: &Console,
) -> anyhow::Result<()> {
    for index in 0..run.arguments.count {
        let (making, noise) = (run.clone(), noises.get(index));
        let picture = spawn_blocking(move || making.picture(index, noise)).await?;
        let picture = picture.map_err(anyhow::Error::from);
        let picture = interrupt::advise(picture, interrupt::is_interrupted, || run.rest(index));
        if let Err(error) = &picture
            && error.downcast_ref().is_some_and(Error::is_of_a_worker)
        {
            // A seed that was drawn is told nowhere else.
            note(run.rest(index));
        }
        let picture = picture?;
        report.seconds.load += picture.load.as_secs_f64();
        report.seconds.decode += picture.decode.as_secs_f64();
        report.pictures.push(picture.path.display().to_string());
        console.line(format_args!(
            "{} ({:.1} s for {} steps, seed {})",
            picture.path.display(),
            picture.denoise.as_secs_f64(),
            run.arguments.sampling.steps,
            run.seed(index),
        ));
    }
    if !run.arguments.no_metadata {
        console.line(
            "The file holds the prompt, the negative prompt and the seed as text; --no-metadata leaves them out.",
        );
    }
    Ok(())
}

/// A seed that is short enough to be typed: of more bits torch takes the lower 32.
fn random_seed() -> u64 {
    rand::random::<u32>().into()
}

impl Arguments {
    fn prompt(&self) -> &str {
        let words = self.prompt.as_deref().or(self.words.as_deref());
        words.unwrap_or_default()
    }

    /// Where nobody else computes, nothing is asked of workers or of the way to them.
    fn check_workers(&self) -> Result<()> {
        let flags = [
            ("--fleet", self.workers.file().is_some()),
            ("--workers", self.workers.number().is_some()),
            ("--insecure", self.terms.way.insecure),
            ("--measure", self.compute.measure),
        ];
        match flags.into_iter().find(|(_, given)| *given) {
            Some((flag, _)) if !self.scheme.scheme.needs_workers() => Err(Error::Request(format!(
                "{flag}: the scheme {} has no workers; leave it out",
                self.scheme.scheme.name()
            ))),
            _ => Ok(()),
        }
    }
}

/// What can be refused before anything is loaded. Gives the files that will be written.
fn check(arguments: &Arguments) -> Result<Outputs> {
    limits::check("--count", arguments.count, limits::PICTURES)?;
    arguments.workers.check()?;
    arguments.check_workers()?;
    arguments.sampling.check()?;
    let mut outputs = Outputs::default();
    let count = arguments.count;
    outputs.add_ending("--out", &arguments.out, count, "png")?;
    if let Some(path) = &arguments.save_latents {
        outputs.add("--save-latents", path, count)?;
    }
    if let Some(path) = &arguments.report {
        outputs.add("--report", path, 1)?;
    }
    outputs.reads("--model", &arguments.model.model);
    let inputs = [
        ("--fleet", arguments.workers.file()),
        ("--policy", arguments.terms.policy.as_deref()),
        ("--latents", arguments.latents.as_deref()),
    ];
    for (flag, path) in inputs {
        path.into_iter().for_each(|path| outputs.reads(flag, path));
    }
    outputs.check()?;
    check_model(&arguments.model)?;
    Ok(outputs)
}

async fn encode(
    arguments: &Arguments,
    sampling: &Sampling,
    pipeline: &Arc<Pipeline>,
    report: &mut Report,
) -> anyhow::Result<Tensor<3>> {
    let start = Instant::now();
    let (arguments, pipeline) = (arguments.clone(), pipeline.clone());
    let guided = sampling.guided();
    let context = spawn_blocking(move || {
        let negative = &arguments.sampling.negative_prompt;
        pipeline.encode(arguments.prompt(), negative, guided)
    });
    let context = context.await??;
    report.seconds.text = start.elapsed().as_secs_f64();
    Ok(context)
}
