//! `lacuna generate`: a prompt to pictures.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use shared::device::{self, OpenDevice};
use shared::host::HostTensor;
use shared::selftest;
use shared::whole::{Conditioning, Whole};
use tokio::task::spawn_blocking;
use worker::Model;

use super::{ModelArguments, SchemeArguments};
use crate::error::{Error, Result};
use crate::fleet::Fleet;
use crate::fleet::config::{FleetConfig, MAX_WORKERS};
use crate::fleet::local::LocalWorkers;
use crate::noise::TorchRng;
use crate::output::{check_writable, numbered, write_whole};
use crate::pipeline::{Pipeline, Sampling, Step, read_latents, write_latents};
use crate::report::Report;
use crate::schedulers::SchedulerKind;
use crate::schemes::{Finished, Predictor, Scheme, Setting};

/// Arguments of `lacuna generate`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// What to see.
    prompt: String,
    /// What not to see.
    #[arg(long, default_value = "")]
    negative_prompt: String,
    #[command(flatten)]
    model: ModelArguments,
    /// Sampler steps.
    #[arg(long, default_value_t = 50)]
    steps: usize,
    /// Guidance scale; 1 or less turns guidance off.
    #[arg(long, default_value_t = 7.5)]
    guidance: f32,
    /// Seed of the first picture; the next ones count on. The same noise as torch's CPU generator.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Columns of the picture [default: the model's own].
    #[arg(long)]
    width: Option<usize>,
    /// Rows of the picture [default: the model's own].
    #[arg(long)]
    height: Option<usize>,
    /// Number of pictures.
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// Another scheduler than the model's own.
    #[arg(long)]
    scheduler: Option<SchedulerKind>,
    /// DDIM's amount of fresh noise, 0 to 1.
    #[arg(long, default_value_t = 0.0)]
    eta: f32,
    /// Where the U-Net is computed.
    #[arg(long, default_value_t = Scheme::Ppidm)]
    scheme: Scheme,
    #[command(flatten)]
    settings: SchemeArguments,
    /// A TOML file that lists the workers (see configs/fleet.example.toml).
    #[arg(long, env = "LACUNA_WORKERS", conflicts_with = "local_workers")]
    workers: Option<PathBuf>,
    /// Without --workers: so many workers are started here, on loopback ports.
    #[arg(long, default_value_t = 4)]
    local_workers: usize,
    /// Initial noise, a safetensors file, in place of the seed's.
    #[arg(long)]
    latents: Option<PathBuf>,
    /// Where to keep the final latents.
    #[arg(long)]
    save_latents: Option<PathBuf>,
    /// Where to write the picture; several are numbered.
    #[arg(long, default_value = "lacuna.png")]
    out: PathBuf,
    /// Where to write what it took and who saw what, as JSON.
    #[arg(long)]
    report: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// Anything from a bad argument to a dead worker, in one line; no picture is written then.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let start = Instant::now();
    check(&arguments)?;
    let fleet_config = match &arguments.workers {
        Some(path) if arguments.scheme.needs_workers() => Some(FleetConfig::from_file(path)?),
        _ => None,
    };
    let (pipeline, device) = load(&arguments.model).await?;
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        scheme: arguments.scheme.to_string(),
        model: pipeline.weights.digest().to_owned(),
        ..Report::default()
    };
    report.seconds.load = start.elapsed().as_secs_f64();

    let noises = Noises::prepare(&arguments, &pipeline)?;
    let local = match &fleet_config {
        None if arguments.scheme.needs_workers() => {
            Some(start_workers(&arguments, &pipeline, &device, &noises).await?)
        }
        _ => None,
    };
    let fleet_config = fleet_config.or(local.as_ref().map(|l| l.config().clone()));

    let context = encode(&arguments, &pipeline, &mut report).await?;
    let [_, _, rows, columns] = noises.shape;
    let latents = [sampling(&arguments).batch(), rows, columns];
    let [_, tokens, _] = context.context.dims();
    let run = Arc::new(Run {
        setting: arguments
            .settings
            .setting(arguments.scheme, latents, tokens),
        context,
        sampling: sampling(&arguments),
        pipeline,
        arguments,
    });
    let count = run.arguments.count;
    for index in 0..count {
        let fleet = match &fleet_config {
            Some(config) => {
                let connecting = Instant::now();
                let pipeline = &run.pipeline;
                let digest = pipeline.weights.digest();
                let fleet = run.setting.open(config, digest, &pipeline.unet).await?;
                report.seconds.connect += connecting.elapsed().as_secs_f64();
                Some(fleet)
            }
            None => None,
        };
        let noise = noises.get(index);
        let picture = {
            let run = run.clone();
            spawn_blocking(move || run.picture(index, noise, fleet)).await??
        };
        report.seconds.denoise += picture.denoise.as_secs_f64();
        report.seconds.decode += picture.decode.as_secs_f64();
        report.user.gflop += picture.user_flop as f64 / 1e9;
        report.pictures.push(picture.path.display().to_string());
        if let Some(fleet) = picture.fleet {
            report.add_tallies(&fleet.close().await);
        }
        println!(
            "{} ({:.1} s for {} steps, seed {})",
            picture.path.display(),
            picture.denoise.as_secs_f64(),
            run.arguments.steps,
            run.seed(index),
        );
    }
    report.seconds.total = start.elapsed().as_secs_f64();
    if !report.workers.is_empty() {
        println!("{}", report.table());
    }
    if let Some(path) = &run.arguments.report {
        write_whole(path, &serde_json::to_vec_pretty(&report)?)?;
    }
    Ok(())
}

/// What can be refused before anything is loaded.
fn check(arguments: &Arguments) -> Result<()> {
    let refuse = |reason: String| Err(Error::Request(reason));
    if arguments.count == 0 {
        return refuse("--count 0: at least one picture".into());
    }
    if !(1..=MAX_WORKERS).contains(&arguments.local_workers) {
        let n = arguments.local_workers;
        return refuse(format!("--local-workers {n}: from 1 to {MAX_WORKERS}"));
    }
    if !arguments.guidance.is_finite() {
        return refuse(format!(
            "--guidance {}: it must be a number",
            arguments.guidance
        ));
    }
    for index in 0..arguments.count {
        check_writable(&numbered(&arguments.out, index, arguments.count))?;
        if let Some(path) = &arguments.save_latents {
            check_writable(&numbered(path, index, arguments.count))?;
        }
    }
    arguments.report.as_deref().map_or(Ok(()), check_writable)?;
    let model = &arguments.model.model;
    if !model.is_dir() {
        return refuse(format!(
            "there is no model in {}; give --model a diffusers directory \
             (this repository's own is assets/demo-model)",
            model.display()
        ));
    }
    Ok(())
}

async fn load(arguments: &ModelArguments) -> anyhow::Result<(Arc<Pipeline>, OpenDevice)> {
    let arguments = arguments.clone();
    spawn_blocking(move || {
        let device = device::open(arguments.device, arguments.allow_software)?;
        // Not inside the macro: that evaluates nothing unless the line is logged.
        let report = selftest::run(&device.device)?;
        tracing::debug!("self-test: {report}");
        let pipeline = Pipeline::load(
            &arguments.model,
            arguments.variant.as_deref(),
            &device.device,
        )
        .with_context(|| format!("cannot load the model {}", arguments.model.display()))?;
        Ok((Arc::new(pipeline), device))
    })
    .await?
}

/// Starts workers in this process, which share the weights with it.
async fn start_workers(
    arguments: &Arguments,
    pipeline: &Arc<Pipeline>,
    device: &OpenDevice,
    noises: &Noises,
) -> Result<LocalWorkers> {
    let model = Arc::new(Model::new(pipeline.unet.clone(), pipeline.weights.clone()));
    let [_, _, rows, columns] = noises.shape;
    let latents = [sampling(arguments).batch(), rows, columns];
    LocalWorkers::start(arguments.local_workers, &model, device, latents).await
}

async fn encode(
    arguments: &Arguments,
    pipeline: &Arc<Pipeline>,
    report: &mut Report,
) -> anyhow::Result<Conditioning> {
    let start = Instant::now();
    let (arguments, pipeline) = (arguments.clone(), pipeline.clone());
    let guided = sampling(&arguments).guided();
    let context = spawn_blocking(move || {
        pipeline.encode(&arguments.prompt, &arguments.negative_prompt, guided)
    });
    let context = context.await??;
    report.seconds.text = start.elapsed().as_secs_f64();
    Ok(Conditioning {
        context,
        added: None,
    })
}

fn sampling(arguments: &Arguments) -> Sampling {
    Sampling {
        scheduler: arguments.scheduler,
        steps: arguments.steps,
        guidance: arguments.guidance,
        eta: arguments.eta,
    }
}

/// Initial noise for every picture: given, or by seed.
struct Noises {
    given: Option<Vec<HostTensor>>,
    shape: [usize; 4],
}

impl Noises {
    fn prepare(arguments: &Arguments, pipeline: &Pipeline) -> Result<Self> {
        let Some(path) = &arguments.latents else {
            let shape = pipeline.latent_shape(arguments.width, arguments.height)?;
            return Ok(Self { given: None, shape });
        };
        let given = read_latents(path)?;
        let refuse = |reason: String| Error::Request(format!("{}: {reason}", path.display()));
        if given.len() < arguments.count {
            return Err(refuse(format!(
                "latents for {} pictures, --count is {}",
                given.len(),
                arguments.count
            )));
        }
        let shape = given[0].dims()?;
        let [_, c, rows, columns] = shape;
        let pixels = pipeline.pixels_per_latent();
        // A size that is given must be that of the latents.
        let wanted = pipeline.latent_shape(
            arguments.width.or(Some(columns * pixels)),
            arguments.height.or(Some(rows * pixels)),
        )?;
        if wanted != shape {
            return Err(refuse(format!(
                "latents of {c} x {rows} x {columns}, wanted are {} x {} x {}",
                wanted[1], wanted[2], wanted[3]
            )));
        }
        Ok(Self {
            given: Some(given),
            shape,
        })
    }

    fn get(&self, index: usize) -> Option<HostTensor> {
        self.given.as_ref().map(|given| given[index].clone())
    }
}

/// What all pictures of a run share.
struct Run {
    arguments: Arguments,
    pipeline: Arc<Pipeline>,
    context: Conditioning,
    sampling: Sampling,
    setting: Setting,
}

/// A picture that was written.
struct Done {
    path: PathBuf,
    denoise: Duration,
    decode: Duration,
    user_flop: u64,
    fleet: Option<Fleet>,
}

impl Run {
    fn seed(&self, index: usize) -> u64 {
        self.arguments.seed.wrapping_add(index as u64)
    }

    /// Makes and writes one picture; blocks for as long as it takes.
    fn picture(
        &self,
        index: usize,
        noise: Option<HostTensor>,
        fleet: Option<Fleet>,
    ) -> Result<Done> {
        let start = Instant::now();
        let whole = Whole::new(self.pipeline.weights.clone(), self.context.clone());
        let unet = &self.pipeline.unet;
        let mut predictor = self.setting.predictor(unet, whole, fleet)?;
        let latents = self.sample(index, noise, &mut *predictor)?;
        let Finished { user_flop, fleet } = predictor.finish();
        let denoise = start.elapsed();

        let start = Instant::now();
        let count = self.arguments.count;
        if let Some(path) = &self.arguments.save_latents {
            write_latents(&numbered(path, index, count), &latents)?;
        }
        let picture = self.pipeline.decode(latents)?;
        let path = numbered(&self.arguments.out, index, count);
        picture.write_png(&path, &self.text(index, picture.width, picture.height))?;
        Ok(Done {
            path,
            denoise,
            decode: start.elapsed(),
            user_flop,
            fleet,
        })
    }

    fn sample(
        &self,
        index: usize,
        noise: Option<HostTensor>,
        predictor: &mut dyn Predictor,
    ) -> Result<HostTensor> {
        let mut rng = TorchRng::new(self.seed(index));
        let noise = match noise {
            Some(noise) => noise,
            None => {
                let shape = self
                    .pipeline
                    .latent_shape(self.arguments.width, self.arguments.height)?;
                HostTensor::new(shape, rng.randn(shape.iter().product()))?
            }
        };
        let bar = progress_bar();
        let mut show = |step: Step| {
            let megabytes = |bytes: u64| bytes as f64 / 1e6;
            let bytes = step.traffic.map_or(String::new(), |t| {
                let (up, down) = (megabytes(t.bytes_up), megabytes(t.bytes_down));
                format!(", {up:.1} MB up, {down:.1} MB down")
            });
            bar.set_length(step.of as u64);
            bar.set_position(step.done as u64);
            bar.set_message(format!("{:.2} s a step{bytes}", step.took.as_secs_f64()));
        };
        let sampling = &self.sampling;
        let latents = self
            .pipeline
            .sample(predictor, sampling, noise, &mut rng, &mut show);
        bar.finish_and_clear();
        latents
    }

    /// The picture's parameters, for the PNG.
    fn text(&self, index: usize, width: usize, height: usize) -> Vec<(&'static str, String)> {
        let a = &self.arguments;
        let scheduler = a
            .scheduler
            .map_or("the model's own".to_owned(), |s| s.to_string());
        vec![
            (
                "Software",
                concat!("lacuna ", env!("CARGO_PKG_VERSION")).to_owned(),
            ),
            ("prompt", a.prompt.clone()),
            ("negative_prompt", a.negative_prompt.clone()),
            ("seed", self.seed(index).to_string()),
            ("steps", a.steps.to_string()),
            ("guidance", a.guidance.to_string()),
            ("scheduler", scheduler),
            ("scheme", a.scheme.to_string()),
            ("size", format!("{width}x{height}")),
            ("model", self.pipeline.weights.digest().to_owned()),
        ]
    }
}

fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    // The template is a constant; a mistake in it only costs the style.
    if let Ok(style) = ProgressStyle::with_template("{bar:30} step {pos}/{len}, {msg}") {
        bar.set_style(style);
    }
    bar
}
