//! What is timed: a model's picture, or U-Net calls of random weights.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use burn::tensor::Device;
use clap::Args;
use lacuna_model::device::{self, DeviceChoice, OpenDevice};
use lacuna_model::host::OnDevice;
use lacuna_model::layers::Parameter;
use lacuna_model::survey::PROMPT_TOKENS;
use lacuna_model::unet::UNet;
use lacuna_model::weights::{Weights, list};
use lacuna_model::whole::{AddedConditioning, Conditioning, Whole};
use lacuna_wire::HostTensor;
use lacuna_worker::Model;
use serde::Serialize;
use tokio::task::spawn_blocking;

use super::case::Case;
use crate::error::{Error, Result};
use lacuna_orchestrator::arguments::model::{self, ModelArguments, unet_config};
use lacuna_orchestrator::arguments::sampling::{DEFAULT_GUIDANCE, parse_seed};
use lacuna_orchestrator::arguments::size::{PIXELS_PER_LATENT, PictureSize};
use lacuna_orchestrator::fleet::Fleet;
use lacuna_orchestrator::interrupt;
use lacuna_orchestrator::limits;
use lacuna_orchestrator::noise::TorchRng;
use lacuna_orchestrator::picture::Picture;
use lacuna_orchestrator::pipeline::{Pipeline, Sampling, Step, go_on};
use lacuna_orchestrator::schemes::{Finished, Predictor, Setting};

/// Which U-Net, and how it is called.
#[derive(Args, Clone, Debug)]
pub struct SubjectArguments {
    /// Whose calls.
    #[command(flatten)]
    pub unet: UNetArguments,
    #[command(flatten)]
    size: PictureSize,
    /// The older name of half of --size, in latents.
    #[arg(long, hide = true, conflicts_with_all = ["size", "height"])]
    rows: Option<usize>,
    /// The older name of half of --size, in latents.
    #[arg(long, hide = true, conflicts_with_all = ["size", "width"])]
    columns: Option<usize>,
    /// Random weights: batch entries of one call; guidance takes two.
    #[arg(long, default_value_t = 2, conflicts_with = "model")]
    batch: usize,
    /// Random weights: calls of one session, on samples that change slowly, as a sampler's do.
    #[arg(long, default_value_t = 3, conflicts_with = "model")]
    calls: usize,
    /// With --model: sampler steps of the picture.
    #[arg(
        long,
        default_value_t = 50,
        requires = "model",
        conflicts_with = "config"
    )]
    steps: usize,
    /// With --model: what to see.
    #[arg(
        long,
        requires = "model",
        conflicts_with = "config",
        default_value = "a large red circle above a small blue square on a yellow background"
    )]
    prompt: String,
    /// With --model: guidance scale; 1 or less turns guidance off [default: what the model recommends,
    /// else 7.5].
    #[arg(long, requires = "model", conflicts_with = "config")]
    guidance: Option<f32>,
    /// Of the noise; the weights, where they are random, are always the same.
    #[arg(long, default_value_t = 42, allow_negative_numbers = true, value_parser = parse_seed)]
    seed: u64,
}

/// Where a U-Net's weights come from, and where it is computed.
#[derive(Args, Clone, Debug)]
pub struct UNetArguments {
    /// sd15, sdxl, or a U-Net's config.json; its weights are random. SDXL's take 10 GB.
    #[arg(long, default_value = "sd15")]
    pub config: PathBuf,
    /// A diffusers model directory, such as assets/demo-model: times whole pictures in place of random weights.
    #[arg(short, long, conflicts_with = "config")]
    pub model: Option<PathBuf>,
    /// Weight file variant of the model, e.g. fp16.
    #[arg(long, requires = "model", conflicts_with = "config")]
    pub variant: Option<String>,
    /// auto, cpu or wgpu.
    #[arg(long, env = "LACUNA_DEVICE", default_value_t)]
    pub device: DeviceChoice,
    /// Accept a GPU that is emulated in software (llvmpipe).
    #[arg(long, env = "LACUNA_ALLOW_SOFTWARE")]
    pub allow_software: bool,
}

/// Pixels of a side of the picture whose latents random weights are called on, where nobody says.
const USUAL_SIDE: usize = 512;
/// Random weights are always of this seed, so that processes agree on them.
const WEIGHTS_SEED: u64 = 0;
/// Radians from one call's sample to the next: a sampler of 50 steps goes a quarter turn, from noise to latents.
const TURN: f32 = std::f32::consts::FRAC_PI_2 / 50.0;
/// Timesteps of the calls of random weights: the first, and how far apart they are.
const TIMESTEPS: [f64; 2] = [500.0, 20.0];

impl SubjectArguments {
    /// What can be refused before anything is loaded.
    pub fn check(&self) -> Result<()> {
        for (flag, value) in [
            ("--rows", self.rows),
            ("--columns", self.columns),
            ("--batch", Some(self.batch)),
            ("--calls", Some(self.calls)),
            ("--steps", Some(self.steps)),
        ] {
            value.map_or(Ok(()), |n| limits::check(flag, n, limits::COUNT))?;
        }
        // A model's own pixels per latent are known once it is read, and are no fewer.
        let [columns, rows] = self
            .pixels(1)
            .map(|side| side.map_or(1, |n| n.div_ceil(PIXELS_PER_LATENT)));
        limits::check_latents("--batch and --size", [self.batch, rows, columns])?;
        match &self.unet.model {
            Some(model) => Ok(model::check_model(&self.unet.with_model(model.clone()))?),
            None => Ok(()),
        }
    }

    /// Columns and rows of the picture in pixels, where they are given; latents are of `pixels` each.
    fn pixels(&self, pixels: usize) -> [Option<usize>; 2] {
        let [width, height] = self.size.sides();
        let of = |latents: Option<usize>| latents.map(|n| n.saturating_mul(pixels));
        [width.or(of(self.columns)), height.or(of(self.rows))]
    }
}

impl UNetArguments {
    fn with_model(&self, model: PathBuf) -> ModelArguments {
        ModelArguments {
            model,
            variant: self.variant.clone(),
            device: self.device,
            allow_software: self.allow_software,
        }
    }

    /// The U-Net alone, with the device it is on: what a worker holds.
    ///
    /// # Errors
    /// A config, weights or a device that cannot be had.
    pub fn load(&self) -> anyhow::Result<(Model, OpenDevice)> {
        let device = device::open(self.device, self.allow_software)?;
        let model = match &self.model {
            Some(dir) => Model::load(&dir.join("unet"), self.variant.as_deref(), &device.device)?,
            None => {
                let unet = self.read_config()?;
                let weights = Weights::random(&unet, WEIGHTS_SEED, &device.device)?;
                Model::new(unet, weights)
            }
        };
        Ok((model, device))
    }

    fn read_config(&self) -> anyhow::Result<UNet> {
        let config = unet_config(&self.config, || self.config.clone());
        Ok(config.context("cannot read the U-Net's config")?.build())
    }
}

/// What every session computes: the same calls from the same noise.
pub struct Subject {
    /// Batch, rows and columns of the latents.
    pub latents: [usize; 3],
    /// U-Net calls of a session; sampler steps with a model.
    pub calls: usize,
    /// All weights, where workers in this process share them.
    pub whole: Option<Weights>,
    conditioning: Conditioning,
    source: Source,
}

/// Where the samples of the calls come from.
enum Source {
    /// The sampler, from `noise` to a picture.
    Picture {
        pipeline: Arc<Pipeline>,
        sampling: Sampling,
        noise: HostTensor,
        /// Goes on behind the noise.
        rng: Box<TorchRng>,
    },
    /// From one noise towards the other, `[B, C, H, W]` each.
    Calls {
        unet: Box<UNet>,
        /// Of the random weights.
        digest: String,
        device: Device,
        noises: [HostTensor; 2],
    },
}

/// One session.
pub struct Session {
    /// After every call.
    pub steps: Vec<Step>,
    /// What came of it.
    pub output: Output,
    /// The account, with the workers' sessions still open.
    pub finished: Finished,
}

/// What a session gives, to be held against another scheme's.
pub struct Output {
    /// 8-bit RGB of the picture, or the last call's prediction.
    pub values: Vec<f32>,
    /// The range that PSNR is of; none means the range that the values of the reference have.
    pub range: Option<f32>,
}

/// The subject, as `--json` tells it.
#[derive(Serialize)]
pub struct Description {
    /// The model's directory, or the config whose weights are random.
    pub path: PathBuf,
    /// Whether the weights are random: then the calls are of slowly changing noise, and quality is that
    /// of the last prediction; else that of the picture.
    pub random_weights: bool,
    /// Batch entries of one U-Net call.
    pub batch: usize,
    /// Rows of the latents.
    pub latent_rows: usize,
    /// Columns of the latents.
    pub latent_columns: usize,
    /// U-Net calls of a session; sampler steps of the picture.
    pub calls: usize,
    /// [`Weights::digest`].
    pub weights: String,
}

impl Subject {
    /// Opens the model or the config; with all weights where workers in this process `share` them.
    ///
    /// # Errors
    /// A file or device that cannot be had, or sizes that do not fit the model.
    pub async fn open(
        arguments: &SubjectArguments,
        share: bool,
    ) -> anyhow::Result<(Arc<Self>, OpenDevice)> {
        let rng = TorchRng::new(arguments.seed);
        let (mut subject, device) = match &arguments.unet.model {
            Some(model) => {
                let model = arguments.unet.with_model(model.clone());
                let (pipeline, device) = model::load(&model).await?;
                let arguments = arguments.clone();
                let subject = spawn_blocking(move || Self::picture(&arguments, pipeline, rng));
                (subject.await??, device)
            }
            None => {
                let arguments = arguments.clone();
                let made = spawn_blocking(move || {
                    let device =
                        device::open(arguments.unet.device, arguments.unet.allow_software)?;
                    let subject = Self::random(&arguments, &device.device, rng)?;
                    Ok::<_, anyhow::Error>((subject, device))
                });
                made.await??
            }
        };
        let loaded = spawn_blocking(move || {
            if share {
                subject.whole = Some(subject.load_part(&list(subject.unet()))?);
            }
            Ok::<_, Error>(subject)
        });
        Ok((Arc::new(loaded.await??), device))
    }

    fn picture(
        arguments: &SubjectArguments,
        pipeline: Arc<Pipeline>,
        mut rng: TorchRng,
    ) -> Result<Self> {
        let [width, height] = arguments.pixels(pipeline.pixels_per_latent());
        let shape = pipeline.latent_shape(width, height)?;
        let guidance = arguments.guidance.or(pipeline.guidance_scale);
        let sampling = Sampling {
            scheduler: None,
            steps: arguments.steps,
            guidance: guidance.unwrap_or(DEFAULT_GUIDANCE),
            eta: 0.0,
        };
        pipeline.check_sampling(&sampling)?;
        let context = pipeline.encode(&arguments.prompt, "", sampling.guided())?;
        let [_, _, rows, columns] = shape;
        let noise = HostTensor::new(shape, rng.randn(shape.iter().product()))?;
        Ok(Self {
            latents: [sampling.batch(), rows, columns],
            calls: arguments.steps,
            whole: None,
            conditioning: Conditioning {
                context,
                added: None,
            },
            source: Source::Picture {
                pipeline,
                sampling,
                noise,
                rng: Box::new(rng),
            },
        })
    }

    fn random(
        arguments: &SubjectArguments,
        device: &Device,
        mut rng: TorchRng,
    ) -> anyhow::Result<Self> {
        let unet = arguments.unet.read_config()?;
        let none = Weights::random_part(&unet, &[], WEIGHTS_SEED, device)?;
        let mut noise = |shape: &[usize]| HostTensor::new(shape, rng.randn(shape.iter().product()));
        let sides = arguments.pixels(PIXELS_PER_LATENT);
        let [width, height] = sides.map(|side| side.unwrap_or(USUAL_SIDE));
        for (flag, side) in [("--width", width), ("--height", height)] {
            limits::check_side(flag, side, PIXELS_PER_LATENT)?;
        }
        let [columns, rows] = [width, height].map(|side| side / PIXELS_PER_LATENT);
        let b = arguments.batch;
        let latents = [b, rows, columns];
        let sample = [b, unet.in_channels, rows, columns];
        let noises = [noise(&sample)?, noise(&sample)?];
        let context = noise(&[b, PROMPT_TOKENS, unet.context_width])?;
        let added = match &unet.time.added {
            None => None,
            Some(layer) => {
                // Eight pixels for each row of latents, nothing cut off: what SDXL is told of most pictures.
                let [height, width] = [rows, columns].map(|n| 8.0 * n as f32);
                let sizes = [height, width, 0.0, 0.0, height, width];
                let pooled = layer
                    .linear_1
                    .d_in
                    .saturating_sub(sizes.len() * layer.channels);
                let pooled = noise(&[b, pooled])?.into_device(device)?;
                Some(AddedConditioning {
                    pooled,
                    sizes: vec![sizes; b],
                })
            }
        };
        Ok(Self {
            latents,
            calls: arguments.calls,
            whole: None,
            conditioning: Conditioning {
                context: context.into_device(device)?,
                added,
            },
            source: Source::Calls {
                unet: Box::new(unet),
                digest: none.digest().to_owned(),
                device: device.clone(),
                noises,
            },
        })
    }

    /// The U-Net's layers.
    pub fn unet(&self) -> &UNet {
        match &self.source {
            Source::Picture { pipeline, .. } => pipeline.unet(),
            Source::Calls { unet, .. } => unet,
        }
    }

    /// [`Weights::digest`].
    pub fn digest(&self) -> &str {
        match &self.source {
            Source::Picture { pipeline, .. } => pipeline.digest(),
            Source::Calls { digest, .. } => digest,
        }
    }

    fn load_part(&self, parameters: &[Parameter]) -> Result<Weights> {
        match &self.source {
            Source::Picture { pipeline, .. } => Ok(pipeline.load_unet(parameters)?),
            Source::Calls { unet, device, .. } => {
                let part = Weights::random_part(&**unet, parameters, WEIGHTS_SEED, device);
                Ok(part?)
            }
        }
    }

    /// The weights of the user's part.
    fn own_weights(&self, setting: &Setting) -> Result<Weights> {
        match &self.whole {
            Some(weights) => Ok(weights.clone()),
            None => self.load_part(&setting.user_parameters(self.unet())?),
        }
    }

    /// `case` for this subject.
    pub fn setting(&self, case: &Case) -> Setting {
        let [_, tokens, _] = self.conditioning.context.dims();
        case.setting(self.unet(), self.latents, tokens)
    }

    /// One session of `calls` calls, or sampler steps; blocks for as long as it takes.
    ///
    /// # Errors
    /// Those of the scheme and the device.
    pub fn run(&self, setting: Setting, fleet: Option<Fleet>, calls: usize) -> Result<Session> {
        let whole = Whole::new(self.own_weights(&setting)?, self.conditioning.clone());
        let mut predictor = setting.predictor(self.unet(), whole, fleet)?;
        let mut steps = Vec::with_capacity(calls);
        let mut watch = |step| {
            steps.push(step);
            ControlFlow::Continue(())
        };
        let last = self.sample(&mut *predictor, calls, &mut watch)?;
        // The weights go before the picture is decoded, as `generate` does it.
        let finished = predictor.finish();
        let output = match &self.source {
            Source::Picture { pipeline, .. } => Output {
                values: bytes_of(&pipeline.decode(last)?),
                range: Some(255.0),
            },
            Source::Calls { .. } => Output {
                values: last.data,
                range: None,
            },
        };
        Ok(Session {
            steps,
            output,
            finished,
        })
    }

    /// The latents at the end, or the last call's prediction.
    fn sample(
        &self,
        predictor: &mut dyn Predictor,
        calls: usize,
        watch: &mut dyn FnMut(Step) -> ControlFlow<()>,
    ) -> Result<HostTensor> {
        match &self.source {
            Source::Picture {
                pipeline,
                sampling,
                noise,
                rng,
            } => {
                let sampling = Sampling {
                    steps: calls,
                    ..sampling.clone()
                };
                let (noise, mut rng) = (noise.clone(), rng.clone());
                Ok(pipeline.sample(predictor, &sampling, noise, &mut rng, watch)?)
            }
            Source::Calls { noises, .. } => {
                let mut prediction = HostTensor::zeros([0]);
                for call in 0..calls {
                    interrupt::check()?;
                    let sample = between(noises, TURN * call as f32)?;
                    let start = Instant::now();
                    let timestep = (TIMESTEPS[0] - TIMESTEPS[1] * call as f64).max(0.0);
                    prediction = predictor.predict(sample, timestep)?;
                    go_on(watch(Step {
                        done: call + 1,
                        of: calls,
                        took: start.elapsed(),
                        traffic: predictor.traffic(),
                    }))?;
                }
                Ok(prediction)
            }
        }
    }

    /// What it is, in words and numbers.
    pub fn describe(&self, arguments: &SubjectArguments) -> Description {
        let UNetArguments { model, config, .. } = &arguments.unet;
        let [batch, latent_rows, latent_columns] = self.latents;
        Description {
            path: model.as_ref().unwrap_or(config).clone(),
            random_weights: model.is_none(),
            batch,
            latent_rows,
            latent_columns,
            calls: self.calls,
            weights: self.digest().to_owned(),
        }
    }
}

impl Description {
    /// The subject in a few words.
    pub fn title(&self) -> String {
        let (rows, columns, calls) = (self.latent_rows, self.latent_columns, self.calls);
        let what = match self.random_weights {
            true => format!("random weights, {calls} calls"),
            false => format!("a picture of {calls} steps"),
        };
        let path = self.path.display();
        let batch = self.batch;
        format!("{path}, {what}, latents {columns}x{rows}, batch {batch}")
    }
}

fn bytes_of(picture: &Picture) -> Vec<f32> {
    picture.to_rgb8().into_iter().map(f32::from).collect()
}

/// `cos(angle) a + sin(angle) b`: as much noise as each.
fn between([a, b]: &[HostTensor; 2], angle: f32) -> Result<HostTensor> {
    let (sin, cos) = angle.sin_cos();
    let pairs = a.data.iter().zip(&b.data);
    let data = pairs.map(|(a, b)| cos * a + sin * b).collect();
    Ok(HostTensor::new(a.shape.clone(), data)?)
}
