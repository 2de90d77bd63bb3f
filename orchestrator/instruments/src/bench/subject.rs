//! What is timed: a model's picture, or U-Net calls of random weights.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::Device;
use lacuna_model::device::{self, OpenDevice};
use lacuna_model::host::OnDevice;
use lacuna_model::layers::Parameter;
use lacuna_model::survey::PROMPT_TOKENS;
use lacuna_model::unet::UNet;
use lacuna_model::weights::{Weights, list};
use lacuna_model::whole::{AddedConditioning, Conditioning, Whole};
use lacuna_wire::HostTensor;
use serde::Serialize;
use tokio::task::spawn_blocking;

use super::asked::{SubjectArguments, UNetArguments, USUAL_SIDE, WEIGHTS_SEED};
use super::case::Case;
use crate::error::{Error, Result};
use lacuna_orchestrator::arguments::model::{self};
use lacuna_orchestrator::arguments::sampling::DEFAULT_GUIDANCE;
use lacuna_orchestrator::arguments::size::PIXELS_PER_LATENT;
use lacuna_orchestrator::fleet::Fleet;
use lacuna_orchestrator::interrupt;
use lacuna_orchestrator::limits;
use lacuna_orchestrator::noise::TorchRng;
use lacuna_orchestrator::picture::Picture;
use lacuna_orchestrator::pipeline::{Pipeline, Sampling, Step, go_on};
use lacuna_orchestrator::schemes::{Finished, Predictor, Setting};

/// Radians from one call's sample to the next: a sampler of 50 steps goes a quarter turn, from noise to latents.
const TURN: f32 = std::f32::consts::FRAC_PI_2 / 50.0;
/// Timesteps of the calls of random weights: the first, and how far apart they are.
const TIMESTEPS: [f64; 2] = [500.0, 20.0];

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
