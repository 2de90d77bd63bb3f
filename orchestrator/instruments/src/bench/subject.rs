//! What is timed: a model's picture, or U-Net calls of random weights.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::Device;
use lacuna_model::device::{self, OpenDevice};
use lacuna_model::host::OnDevice;
use lacuna_model::survey::PROMPT_TOKENS;
use lacuna_model::weights::Weights;
use lacuna_model::whole::{AddedConditioning, Conditioning, Guidance};
use lacuna_wire::HostTensor;
use serde::Serialize;
use tokio::task::spawn_blocking;

use super::asked::{SubjectArguments, UNetArguments, USUAL_SIDE, WEIGHTS_SEED};
use super::case::Case;
use crate::error::{Error, Result};
use lacuna_orchestrator::arguments::model::{self};
use lacuna_orchestrator::arguments::size::PIXELS_PER_LATENT;
use lacuna_orchestrator::fleet::config::FleetConfig;
use lacuna_orchestrator::generator::denoiser::{Accounts, Denoiser};
use lacuna_orchestrator::generator::failover::OnLoss;
use lacuna_orchestrator::generator::{Event, Generator, Request};
use lacuna_orchestrator::interrupt;
use lacuna_orchestrator::limits;
use lacuna_orchestrator::noise::TorchRng;
use lacuna_orchestrator::pipeline::{Pipeline, Sampling, Step};
use lacuna_orchestrator::schemes::Setting;
use lacuna_orchestrator::text::Prompt;
use lacuna_orchestrator::unet_source::UNetSource;

/// Radians from one call's sample to the next: a sampler of 50 steps goes a quarter turn, from noise to latents.
const TURN: f32 = std::f32::consts::FRAC_PI_2 / 50.0;
/// Timesteps of the calls of random weights: the first, and how far apart they are.
const TIMESTEPS: [f64; 2] = [500.0, 20.0];
/// Random weights that take the guidance scale as an input are given this one.
const GUIDANCE: f32 = 5.0;

/// What every session computes: the same calls from the same noise.
pub struct Subject {
    /// Batch, rows and columns of the latents.
    pub latents: [usize; 3],
    /// U-Net calls of a session; sampler steps with a model.
    pub calls: usize,
    /// The U-Net.
    pub unet: Arc<UNetSource>,
    /// All weights, where workers in this process share them.
    pub whole: Option<Weights>,
    source: Source,
}

/// Where the samples of the calls come from.
enum Source {
    /// The sampler, from noise to a picture.
    Picture {
        pipeline: Arc<Pipeline>,
        sampling: Sampling,
        request: Box<Request>,
    },
    /// From one noise towards the other, `[B, C, H, W]` each.
    Calls {
        conditioning: Box<Conditioning>,
        noises: [HostTensor; 2],
    },
}

/// One session.
pub struct Session {
    /// After every call.
    pub steps: Vec<Step>,
    /// What came of it.
    pub output: Output,
    /// What was done, here and by the workers.
    pub accounts: Accounts,
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
    /// [`UNetSource::digest`].
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
                subject.whole = Some(subject.unet.load_all()?);
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
        let sampling = pipeline.sampling(arguments.steps, arguments.guidance);
        pipeline.check_sampling(&sampling)?;
        let context = pipeline.encode(&Prompt::new(&arguments.prompt), &sampling, shape)?;
        let [_, _, rows, columns] = shape;
        let noise = HostTensor::new(shape, rng.randn(shape.iter().product()))?;
        Ok(Self {
            latents: [sampling.batch(), rows, columns],
            calls: arguments.steps,
            unet: pipeline.source().clone(),
            whole: None,
            source: Source::Picture {
                pipeline,
                sampling,
                request: Box::new(Request::new(context, noise, rng)),
            },
        })
    }

    fn random(
        arguments: &SubjectArguments,
        device: &Device,
        mut rng: TorchRng,
    ) -> anyhow::Result<Self> {
        let unet = arguments.unet.read_config()?;
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
        let conditioning = Conditioning {
            context: context.into_device(device)?,
            added,
            guidance: (unet.time.guidance.is_some()).then_some(Guidance::Scale(GUIDANCE)),
        };
        Ok(Self {
            latents,
            calls: arguments.calls,
            unet: Arc::new(UNetSource::random(unet, WEIGHTS_SEED, device)),
            whole: None,
            source: Source::Calls {
                conditioning: Box::new(conditioning),
                noises,
            },
        })
    }

    /// `case` for this subject.
    pub fn setting(&self, case: &Case) -> Setting {
        let context = match &self.source {
            Source::Picture { request, .. } => &request.conditioning.context,
            Source::Calls { conditioning, .. } => &conditioning.context,
        };
        let [_, tokens, _] = context.dims();
        case.setting(&self.unet, self.latents, tokens)
    }

    /// That workers in processes of their own, which hold the adapters, can be asked in each of the `cases`.
    ///
    /// # Errors
    /// [`Error::Request`] for one in which adapters stay with the user.
    pub fn check_separate(&self, cases: &[Case]) -> Result<()> {
        for case in cases {
            let setting = self.setting(case);
            let apart = setting.scheme.apart(self.unet.layers(), &setting.sizes)?;
            if self.unet.is_adapted() && apart.is_some() {
                return Err(Error::Request(format!(
                    "--separate: under {} adapters (--lora) stay with you, and these workers hold them; leave one of both out",
                    setting.scheme.name()
                )));
            }
        }
        Ok(())
    }

    /// One session of `calls` calls, or sampler steps, on the workers of `fleet` if there are any; blocks for as long
    /// as it takes. It ends when a worker is lost: with another, its times would be another row's.
    ///
    /// # Errors
    /// Those of the scheme and the device.
    pub fn run(
        &self,
        setting: Setting,
        fleet: Option<FleetConfig>,
        calls: usize,
    ) -> Result<Session> {
        let whole = self.whole.clone();
        match &self.source {
            Source::Picture {
                pipeline,
                sampling,
                request,
            } => {
                let sampling = Sampling {
                    steps: calls,
                    ..sampling.clone()
                };
                let generator = Generator::new(pipeline.clone(), sampling, setting, whole, fleet);
                picture(&generator.on_loss(OnLoss::End), *request.clone())
            }
            Source::Calls {
                conditioning,
                noises,
            } => {
                let denoiser = Denoiser::new(self.unet.clone(), setting, whole, fleet);
                let denoiser = denoiser.on_loss(OnLoss::End);
                call(&denoiser, (**conditioning).clone(), noises, calls)
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
            weights: self.unet.digest().to_owned(),
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

/// A session of a picture.
fn picture(generator: &Generator, request: Request) -> Result<Session> {
    let mut steps = Vec::new();
    let made = generator.picture(request, &mut |event| {
        if let Event::Step(step, _) = event {
            steps.push(step);
        }
        ControlFlow::Continue(())
    })?;
    let bytes = made.picture.to_rgb8();
    Ok(Session {
        steps,
        output: Output {
            values: bytes.into_iter().map(f32::from).collect(),
            range: Some(255.0),
        },
        accounts: generator.denoiser.accounts().clone(),
    })
}

/// A session of `calls` calls from one noise towards the other.
fn call(
    denoiser: &Denoiser,
    conditioning: Conditioning,
    noises: &[HostTensor; 2],
    calls: usize,
) -> Result<Session> {
    let mut steps = Vec::with_capacity(calls);
    let last = denoiser.predict(denoiser.weights()?, conditioning, |predictor| {
        let mut prediction = HostTensor::zeros([0]);
        for call in 0..calls {
            interrupt::check()?;
            let sample = between(noises, TURN * call as f32)?;
            let start = Instant::now();
            let timestep = (TIMESTEPS[0] - TIMESTEPS[1] * call as f64).max(0.0);
            prediction = predictor.predict(sample, timestep)?;
            steps.push(Step {
                done: call + 1,
                of: calls,
                took: start.elapsed(),
                traffic: predictor.traffic(),
            });
        }
        Ok(prediction)
    })?;
    Ok(Session {
        steps,
        output: Output {
            values: last.data,
            range: None,
        },
        accounts: denoiser.accounts().clone(),
    })
}

/// `cos(angle) a + sin(angle) b`: as much noise as each.
fn between([a, b]: &[HostTensor; 2], angle: f32) -> Result<HostTensor, lacuna_wire::Error> {
    let (sin, cos) = angle.sin_cos();
    let pairs = a.data.iter().zip(&b.data);
    let data = pairs.map(|(a, b)| cos * a + sin * b).collect();
    HostTensor::new(a.shape.clone(), data)
}
