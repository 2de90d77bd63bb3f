//! What the commands that make pictures share: the sampler's arguments, the model, the number of workers.

use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use shared::device::{self, OpenDevice, Precision};
use shared::host::HostTensor;
use shared::selftest;
use shared::unet::UNet;
use shared::weights::{Weights, list};
use tokio::task::spawn_blocking;

use super::ModelArguments;
use super::arguments::parse_seed;
use crate::error::{Error, Result};
use crate::noise::TorchRng;
use crate::pipeline::{Pipeline, Sampling};
use crate::schedulers::SchedulerKind;
use crate::schemes::Scheme;

/// Workers that are started here when nothing else is said.
const LOCAL_WORKERS: usize = 4;

/// Where neither the user nor the model says: what Stable Diffusion is mostly used with.
pub const DEFAULT_GUIDANCE: f32 = 7.5;

/// How pictures are sampled.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArguments {
    /// What not to see.
    #[arg(short, long, default_value = "", allow_hyphen_values = true)]
    pub negative_prompt: String,
    /// Sampler steps.
    #[arg(long, default_value_t = 50)]
    pub steps: usize,
    /// Guidance scale; 1 or less turns guidance off [default: what the model recommends in its
    /// generation_config.json, else 7.5].
    #[arg(long, allow_negative_numbers = true)]
    pub guidance: Option<f32>,
    /// Seed of the first picture; the next ones count on. The same noise as torch's CPU generator, for negative
    /// seeds too [default: generate draws one and prints it; eval takes 42].
    #[arg(short, long, allow_negative_numbers = true, value_parser = parse_seed)]
    pub seed: Option<u64>,
    /// Another scheduler than the model's own.
    #[arg(long)]
    pub scheduler: Option<SchedulerKind>,
}

impl SamplingArguments {
    /// What can be refused before anything is loaded.
    ///
    /// # Errors
    /// [`Error::Request`] for a guidance that is no number.
    pub fn check(&self) -> Result<()> {
        match self.guidance {
            Some(guidance) if !guidance.is_finite() => {
                let reason = format!("--guidance {guidance}: it must be a number");
                Err(Error::Request(reason))
            }
            _ => Ok(()),
        }
    }

    /// How a model's sampler goes that recommends the guidance scale `recommended`; `eta` is DDIM's.
    pub fn settle(&self, recommended: Option<f32>, eta: f32) -> Sampling {
        let guidance = self.guidance.or(recommended);
        Sampling {
            scheduler: self.scheduler,
            steps: self.steps,
            guidance: guidance.unwrap_or(DEFAULT_GUIDANCE),
            eta,
        }
    }
}

/// Noise `[1, C, H, W]` of `shape`, as torch draws it.
///
/// # Errors
/// None: the shape has as many numbers as are drawn.
pub fn draw_noise(rng: &mut TorchRng, shape: [usize; 4]) -> Result<HostTensor> {
    Ok(HostTensor::new(shape, rng.randn(shape.iter().product()))?)
}

/// The model must be a directory.
///
/// # Errors
/// [`Error::Request`], saying what to do.
pub fn check_model(arguments: &ModelArguments) -> Result<()> {
    if arguments.model.is_dir() {
        return Ok(());
    }
    Err(Error::Request(format!(
        "there is no model in {}; give --model a diffusers directory \
         (this repository's own is assets/demo-model)",
        arguments.model.display()
    )))
}

/// Opens the device and the model.
///
/// # Errors
/// Those of the device, its self-test and the model's files.
pub async fn load(arguments: &ModelArguments) -> anyhow::Result<(Arc<Pipeline>, OpenDevice)> {
    let arguments = arguments.clone();
    spawn_blocking(move || {
        let device = device::open(arguments.device, arguments.allow_software)?;
        // Not inside the macro: that evaluates nothing unless the line is logged.
        let report = selftest::run(&device, Precision::F32)?;
        tracing::debug!("self-test: {report}");
        let pipeline = Pipeline::open(
            &arguments.model,
            arguments.variant.as_deref(),
            &device.device,
        )
        .with_context(|| format!("cannot load the model {}", arguments.model.display()))?;
        Ok((Arc::new(pipeline), device))
    })
    .await?
}

/// Loads the whole U-Net, for where it is computed in this process.
///
/// # Errors
/// As [`Pipeline::check_room_for_unet`] and [`Pipeline::load_unet`].
pub async fn load_whole(pipeline: &Arc<Pipeline>) -> anyhow::Result<Weights> {
    pipeline.check_room_for_unet()?;
    let pipeline = pipeline.clone();
    Ok(spawn_blocking(move || pipeline.load_unet(&list(pipeline.unet()))).await??)
}

/// Workers to start in this process where nobody says how many: as many as is usual and latents of `rows`
/// have rows for.
pub fn default_workers(scheme: &dyn Scheme, unet: &UNet, rows: usize) -> usize {
    LOCAL_WORKERS.min(scheme.most_workers(unet, rows))
}
