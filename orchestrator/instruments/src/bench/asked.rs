//! What is to be timed, as the command line says it.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use lacuna_model::device::{self, DeviceChoice, OpenDevice};
use lacuna_model::unet::UNet;
use lacuna_model::weights::{AdapterFile, Weights, random_digest};
use lacuna_worker::Model;

use crate::error::Result;
use lacuna_orchestrator::arguments::model::{self, ModelArguments, unet_config};
use lacuna_orchestrator::arguments::sampling::parse_seed;
use lacuna_orchestrator::arguments::size::{PIXELS_PER_LATENT, PictureSize};
use lacuna_orchestrator::limits;

/// Pixels of a side of the picture whose latents random weights are called on, where nobody says.
pub(super) const USUAL_SIDE: usize = 512;
/// Random weights are always of this seed, so that processes agree on them.
pub(super) const WEIGHTS_SEED: u64 = 0;

/// Which U-Net, and how it is called.
#[derive(Args, Clone, Debug)]
pub struct SubjectArguments {
    /// Whose calls.
    #[command(flatten)]
    pub unet: UNetArguments,
    #[command(flatten)]
    pub(super) size: PictureSize,
    /// The older name of half of --size, in latents.
    #[arg(long, hide = true, conflicts_with_all = ["size", "height"])]
    pub(super) rows: Option<usize>,
    /// The older name of half of --size, in latents.
    #[arg(long, hide = true, conflicts_with_all = ["size", "width"])]
    pub(super) columns: Option<usize>,
    /// Random weights: batch entries of one call; guidance takes two.
    #[arg(long, default_value_t = 2, conflicts_with = "model")]
    pub(super) batch: usize,
    /// Random weights: calls of one session, on samples that change slowly, as a sampler's do.
    #[arg(long, default_value_t = 3, conflicts_with = "model")]
    pub(super) calls: usize,
    /// With --model: sampler steps of the picture.
    #[arg(
        long,
        default_value_t = 50,
        requires = "model",
        conflicts_with = "config"
    )]
    pub(super) steps: usize,
    /// With --model: what to see.
    #[arg(
        long,
        requires = "model",
        conflicts_with = "config",
        default_value = "a large red circle above a small blue square on a yellow background"
    )]
    pub(super) prompt: String,
    /// With --model: guidance scale; 1 or less turns guidance off [default: what the model recommends,
    /// else 7.5].
    #[arg(long, requires = "model", conflicts_with = "config")]
    pub(super) guidance: Option<f32>,
    /// Of the noise; the weights, where they are random, are always the same.
    #[arg(long, default_value_t = 42, allow_negative_numbers = true, value_parser = parse_seed)]
    pub(super) seed: u64,
}

/// Where a U-Net's weights come from, and where it is computed.
#[derive(Args, Clone, Debug)]
pub struct UNetArguments {
    /// sd15, sdxl, or a U-Net's config.json; its weights are random. SDXL's take 10 GB.
    #[arg(long, default_value = "sd15")]
    pub config: PathBuf,
    /// A diffusers model directory, such as assets/demo-model, or a model's one file: times whole pictures in place of random
    /// weights.
    #[arg(short, long, conflicts_with = "config")]
    pub model: Option<PathBuf>,
    /// Weight file variant of the model, e.g. fp16.
    #[arg(long, requires = "model", conflicts_with = "config")]
    pub variant: Option<String>,
    /// Of a model in one file: a model directory of the same kind, whose configs are taken.
    #[arg(
        long,
        value_name = "DIR",
        requires = "model",
        conflicts_with = "config"
    )]
    pub model_config: Option<PathBuf>,
    /// Of a model in one file: CLIP's vocabulary, as generate takes it.
    #[arg(
        long,
        value_name = "PATH",
        requires = "model",
        conflicts_with = "config"
    )]
    pub tokenizer: Option<PathBuf>,
    /// Another autoencoder than the model's: its directory or its file.
    #[arg(
        long,
        value_name = "PATH",
        requires = "model",
        conflicts_with = "config"
    )]
    pub vae: Option<PathBuf>,
    /// A low-rank adapter (LoRA) of the model, as generate takes it; repeat it for several.
    #[arg(
        long,
        value_name = "FILE[:STRENGTH]",
        requires = "model",
        conflicts_with = "config"
    )]
    pub lora: Vec<AdapterFile>,
    /// auto, cpu, wgpu or cuda.
    #[arg(long, env = "LACUNA_DEVICE", default_value_t)]
    pub device: DeviceChoice,
    /// Accept a GPU that is emulated in software (llvmpipe).
    #[arg(long, env = "LACUNA_ALLOW_SOFTWARE")]
    pub allow_software: bool,
}

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
    pub(super) fn pixels(&self, pixels: usize) -> [Option<usize>; 2] {
        let [width, height] = self.size.sides();
        let of = |latents: Option<usize>| latents.map(|n| n.saturating_mul(pixels));
        [width.or(of(self.columns)), height.or(of(self.rows))]
    }
}

impl UNetArguments {
    pub(super) fn with_model(&self, model: PathBuf) -> ModelArguments {
        ModelArguments {
            model,
            variant: self.variant.clone(),
            model_config: self.model_config.clone(),
            tokenizer: self.tokenizer.clone(),
            vae: self.vae.clone(),
            lora: self.lora.clone(),
            embedding: Vec::new(),
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
            Some(model) => {
                let source = self.with_model(model.clone()).files()?.unet_source();
                Model::of_source(&source, &self.lora, &device.device)?
            }
            None => {
                let unet = self.read_config()?;
                let weights = Weights::random(&unet, WEIGHTS_SEED, &device.device)?;
                let digest = random_digest(&unet, WEIGHTS_SEED);
                Model::new(unet, weights, digest)
            }
        };
        Ok((model, device))
    }

    pub(super) fn read_config(&self) -> anyhow::Result<UNet> {
        let config = unet_config(&self.config, None, || self.config.clone());
        Ok(config.context("cannot read the U-Net's config")?.build())
    }
}
