//! A model on disk, and its parts.
//!
//! - [`dir`]: the folder layout of `diffusers`.
//! - [`one_file`]: the layout in which Stable Diffusion was published, all parts in one file.
//! - [`vocabulary`]: where a tokenizer is taken from that is in no such file.

pub mod dir;
pub mod one_file;
pub mod vocabulary;

use std::path::PathBuf;

use lacuna_model::unet::{Source, UNet, UNetConfig};
use lacuna_model::weights::{Adapter, AdapterFile, Checkpoint, DigestCache, Network, Stored};

use crate::error::{Error, Result};
use crate::family::Family;
use crate::schedulers::SchedulerConfig;
use crate::text::{ClipTextEncoder, ClipTextLayers, ClipTokenizer};
use crate::vae::{Vae, VaeLayers};
use dir::ModelDir;
use one_file::OneFile;

/// Where a model and its parts lie.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelFiles {
    /// A folder in the layout of diffusers, or one file.
    pub model: PathBuf,
    /// Weight file variant of a folder, `fp16` for example.
    pub variant: Option<String>,
    /// Of one file: a folder of the same kind, of which the configs and the tokenizers are taken.
    pub config: Option<PathBuf>,
    /// Of one file: where CLIP's vocabulary is.
    pub tokenizer: Option<PathBuf>,
    /// Another autoencoder: its folder, or its file.
    pub vae: Option<PathBuf>,
    /// Where the U-Net's digest may be found, or is kept.
    pub digests: Option<DigestCache>,
}

/// A model's parts, opened: nothing is loaded.
pub struct ModelParts {
    /// Which pipeline it is for.
    pub family: Family,
    /// Of the U-Net.
    pub unet_config: UNetConfig,
    /// The U-Net's weights.
    pub unet: Checkpoint,
    /// The autoencoder.
    pub vae: Stored<VaeLayers>,
    /// Tokenizers and text encoders, in the order in which the U-Net takes what they give.
    pub text: Vec<(ClipTokenizer, Stored<ClipTextLayers>)>,
    /// Whether no negative prompt means zeros in place of an empty text.
    pub zeros_for_no_prompt: bool,
    /// As read.
    pub scheduler: SchedulerConfig,
    /// The scheduler's class.
    pub scheduler_class: String,
    /// The guidance scale that its makers recommend, where they do.
    pub guidance_scale: Option<f32>,
    /// Whether the model knows only words that are one token each.
    pub whole_words: bool,
}

impl ModelFiles {
    /// Those of the folder or file `model`.
    pub fn of(model: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            ..Self::default()
        }
    }

    /// That nothing is said of it that is of the other layout, and so would be passed over.
    ///
    /// # Errors
    /// [`Error::Request`], naming the flag.
    pub fn check(&self) -> Result<()> {
        if self.model.is_file() && self.variant.is_some() {
            return Err(Error::Request(
                "--variant is for a model directory; a model in one file has no others".into(),
            ));
        }
        let one_file = [
            ("--model-config", &self.config),
            ("--tokenizer", &self.tokenizer),
        ];
        let given = one_file.into_iter().find(|(_, path)| path.is_some());
        match given.filter(|_| !self.model.is_file()) {
            Some((flag, _)) => Err(Error::Request(format!(
                "{flag} is for a model in one file; {} has its own",
                self.model.display()
            ))),
            None => Ok(()),
        }
    }

    /// Opens every part.
    ///
    /// # Errors
    /// Each names the file, key or tensor that is missing, damaged or not supported.
    pub fn open(&self) -> Result<ModelParts> {
        match self.model.is_file() {
            true => OneFile::open(self),
            false => self.open_dir(),
        }
    }

    /// Opens the U-Net alone, of a directory that may hold nothing else.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_unet(&self) -> Result<(UNetConfig, Checkpoint)> {
        let (config, checkpoint) = self.unet_source().files()?;
        Ok((config, checkpoint.with_digests(self.digests.clone())))
    }

    /// Where the U-Net lies.
    pub fn unet_source(&self) -> Source {
        match self.model.is_file() {
            true => Source::File {
                path: self.model.clone(),
                config: self.unet_config(),
            },
            false => Source::Folder {
                dir: self.model.join("unet"),
                variant: self.variant.clone(),
            },
        }
    }

    /// The U-Net, its config first, with what `adapters` change of it; and what they hold beside.
    ///
    /// # Errors
    /// As [`Self::open_unet`], [`AdapterFile::open_all`] and [`Stored::with_adapters`].
    pub fn open_adapted(
        &self,
        adapters: &[AdapterFile],
    ) -> Result<(UNetConfig, Stored<UNet>, Vec<Adapter>)> {
        let (config, checkpoint) = self.open_unet()?;
        let stored = Stored::new(config.build(), checkpoint)?;
        let mut adapters = AdapterFile::open_all(adapters)?;
        let own = Adapter::take_all(&mut adapters, Network::UNet);
        Ok((config, stored.with_adapters(own)?, adapters))
    }

    /// Of a model in one file: the config of the U-Net that it is not to tell itself.
    pub fn unet_config(&self) -> Option<PathBuf> {
        self.config.as_ref().map(|dir| dir.join("unet/config.json"))
    }

    fn open_dir(&self) -> Result<ModelParts> {
        let dir = ModelDir::open(&self.model)?;
        let variant = self.variant.as_deref();
        dir.check_variant(variant)?;
        let mut text = Vec::with_capacity(dir.text.len());
        for part in &dir.text {
            let stored = match part.pooling {
                false => ClipTextEncoder::open(&part.encoder, variant)?,
                true => ClipTextEncoder::open_pooling(&part.encoder, variant)?,
            };
            let tokenizer = match part.as_written {
                false => ClipTokenizer::load(&part.tokenizer)?,
                true => ClipTokenizer::load_as_written(&part.tokenizer)?,
            };
            text.push((tokenizer, stored));
        }
        let (unet_config, unet) = self.open_unet()?;
        Ok(ModelParts {
            family: dir.family,
            unet_config,
            unet,
            vae: match &self.vae {
                Some(vae) => one_file::open_vae(vae, dir.family)?,
                None => Vae::open(&dir.vae, variant)?,
            },
            text,
            zeros_for_no_prompt: dir.zeros_for_no_prompt,
            scheduler: dir.read_scheduler()?,
            scheduler_class: dir.scheduler_class,
            guidance_scale: dir.guidance_scale,
            whole_words: dir.whole_words,
        })
    }
}
