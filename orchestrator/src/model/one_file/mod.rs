//! A model in one file, in the layout in which Stable Diffusion was published.
//!
//! Which model it is is told by its tensors: SDXL has two text encoders, of Stable Diffusion 2 the text encoder is
//! OpenCLIP's, of 1 it is CLIP's. The U-Net is read by [`original`], which workers have, too.
//!
//! - `text`: the text encoders.
//! - `vae`: the autoencoder.

mod text;
mod vae;

pub use vae::open_vae;

use lacuna_model::unet::{SampleSize, original};
use lacuna_model::weights::{Checkpoint, Stored};
use serde_json::{Value, json};

use super::dir::ModelDir;
use super::vocabulary;
use super::{ModelFiles, ModelParts};
use crate::error::{Error, Result};
use crate::family::Family;
use crate::schedulers::SchedulerConfig;
use crate::text::{ClipTextLayers, ClipTokenizer};
use crate::vae::VaeLayers;

/// Beginnings of what a file may hold beside the networks that are used.
const LEFT_OVER: [&str; 14] = [
    // Running averages of training, and what belongs to the training's loss.
    "model_ema.",
    "first_stage_model.loss.",
    "global_step",
    // The schedule, which the scheduler makes itself.
    "betas",
    "alphas_cumprod",
    "sqrt_",
    "log_one_minus_alphas_cumprod",
    "posterior_",
    "denoiser.sigmas",
    "logvar",
    "scale_factor",
    "lvlb_weights",
    // Markers, which are read.
    "v_pred",
    "ztsnr",
];

/// Rows and columns of the latents that Stable Diffusion 2 was trained for, where it predicts the velocity.
const VELOCITY_SIDE: usize = 96;

/// A model's one file while it is opened.
pub struct OneFile<'a> {
    files: &'a ModelFiles,
    checkpoint: Checkpoint,
    family: Family,
    /// Whether the text encoder is Stable Diffusion 2's.
    second: bool,
}

impl OneFile<'_> {
    /// Opens every part of the file `files.model`.
    ///
    /// # Errors
    /// Each names the file, key or tensor that is missing, damaged or not supported.
    pub fn open(files: &ModelFiles) -> Result<ModelParts> {
        let path = &files.model;
        if path
            .extension()
            .is_none_or(|ending| ending != "safetensors")
        {
            return Err(Error::Input {
                path: path.clone(),
                reason: "a model in one file is a .safetensors file; of a .ckpt or .bin, whose reading may run code, make one \
                         with safetensors' own convert.py, or take the model's folder"
                    .into(),
            });
        }
        let checkpoint = Checkpoint::open_file(path)?;
        let has = |start: &str| checkpoint.names().any(|name| name.starts_with(start));
        let second = has(text::OPEN_CLIP);
        let one = OneFile {
            files,
            family: match has(text::XL_SECOND) {
                true => Family::StableDiffusionXl,
                false => Family::StableDiffusion,
            },
            second,
            checkpoint,
        };
        one.parts()
    }

    fn parts(&self) -> Result<ModelParts> {
        // First, as it says best what a file is not.
        let (mut unet_config, unet) = self.files.open_unet()?;
        if self.files.config.is_none() && self.second && self.predicts_velocity() {
            unet_config.sample_size = Some(SampleSize::Square(VELOCITY_SIDE));
        }
        self.name_strays();
        let dir = self
            .files
            .config
            .as_deref()
            .map(ModelDir::open)
            .transpose()?;
        let family = match &dir {
            None => self.family,
            Some(dir) => {
                let xl = |family| family == Family::StableDiffusionXl;
                if xl(dir.family) != xl(self.family) {
                    return Err(Error::Request(format!(
                        "--model-config: it is of {}, {} is of {}",
                        dir.family,
                        self.files.model.display(),
                        self.family
                    )));
                }
                // Of models that take their guidance as an input, the tensors are Stable Diffusion's.
                dir.family
            }
        };
        let (scheduler, scheduler_class) = match &dir {
            Some(dir) => (dir.read_scheduler()?, dir.scheduler_class.clone()),
            None => {
                let (mut config, class) = self.published_scheduler();
                if self.predicts_velocity() {
                    config["prediction_type"] = json!("v_prediction");
                }
                if self.has("ztsnr") {
                    config["rescale_betas_zero_snr"] = json!(true);
                    config["timestep_spacing"] = json!("trailing");
                }
                let config = SchedulerConfig::from_value(config)?;
                (config, class.to_owned())
            }
        };
        Ok(ModelParts {
            family,
            text: self.text(dir.as_ref())?,
            vae: match &self.files.vae {
                Some(vae) => open_vae(vae, family)?,
                None => self.vae(dir.as_ref())?,
            },
            zeros_for_no_prompt: match &dir {
                Some(dir) => dir.zeros_for_no_prompt,
                None => self.family == Family::StableDiffusionXl,
            },
            scheduler,
            scheduler_class,
            guidance_scale: dir.as_ref().and_then(|dir| dir.guidance_scale),
            whole_words: dir.as_ref().is_some_and(|dir| dir.whole_words),
            unet_config,
            unet,
        })
    }

    fn has(&self, name: &str) -> bool {
        self.checkpoint.shape(name).is_some()
    }

    /// Whether the model predicts the velocity, by the marker that its makers put into the file; of Stable Diffusion 2 by
    /// the number of its training steps, as older versions of the reference have it.
    fn predicts_velocity(&self) -> bool {
        let base = self.checkpoint.whole_number("global_step") == Some(875_000);
        self.has("v_pred") || (self.second && !base)
    }

    /// The published scheduler of the model, but for what it predicts.
    fn published_scheduler(&self) -> (Value, &'static str) {
        let mut config = json!({
            "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
            "num_train_timesteps": 1000, "clip_sample": false, "set_alpha_to_one": false,
        });
        match (self.family, self.second) {
            (Family::StableDiffusionXl, _) => {
                config["timestep_spacing"] = json!("leading");
                config["interpolation_type"] = json!("linear");
                (config, "EulerDiscreteScheduler")
            }
            (_, true) => (config, "DDIMScheduler"),
            (_, false) => {
                config["skip_prk_steps"] = json!(true);
                (config, "PNDMScheduler")
            }
        }
    }

    /// Warns of tensors that are of nothing known.
    fn name_strays(&self) {
        let known = [
            original::PREFIX,
            vae::PREFIX,
            text::CLIP,
            text::OPEN_CLIP,
            text::XL_FIRST,
            text::XL_SECOND,
        ];
        let is_known = |name: &&str| {
            known
                .iter()
                .chain(&LEFT_OVER)
                .any(|start| name.starts_with(start))
        };
        let mut strays = self.checkpoint.names().filter(|name| !is_known(name));
        if let Some(first) = strays.next() {
            let path = self.files.model.display();
            let others = strays.count();
            tracing::warn!("{path}: not read, as nothing known: {first}, and {others} others");
        }
    }

    fn text(&self, dir: Option<&ModelDir>) -> Result<Vec<(ClipTokenizer, Stored<ClipTextLayers>)>> {
        let encoders: &[text::Encoder] = match (self.family, self.second) {
            (Family::StableDiffusionXl, _) => &text::XL,
            (_, true) => &text::SECOND,
            (_, false) => &text::FIRST,
        };
        let has = |start| self.checkpoint.names().any(|name| name.starts_with(start));
        if let Some(lacking) = encoders.iter().find(|encoder| !has(encoder.prefix)) {
            return Err(Error::Request(format!(
                "{} has no text encoder in it (tensors {}*): take a file with all parts, or the model's folder",
                self.files.model.display(),
                lacking.prefix
            )));
        }
        let paddings: Vec<&str> = encoders.iter().map(|encoder| encoder.padding).collect();
        let tokenizers = vocabulary::tokenizers(self.files, &paddings)?;
        let mut all = Vec::with_capacity(encoders.len());
        for (i, (tokenizer, encoder)) in tokenizers.into_iter().zip(encoders).enumerate() {
            let part = dir.and_then(|dir| dir.text.get(i));
            let config = part.map(|part| part.encoder.join("config.json"));
            let path = &self.files.model;
            let stored = encoder.stored(self.again()?, path, config.as_deref())?;
            let (has, wants) = (tokenizer.tokens(), stored.layers().vocabulary());
            if has != wants {
                return Err(Error::Request(format!(
                    "the tokenizer taken for {} has {has} tokens, its text encoder {} {wants}: it is of another model. Give \
                     --tokenizer",
                    path.display(),
                    i + 1
                )));
            }
            all.push((tokenizer, stored));
        }
        Ok(all)
    }

    /// The file again, for another part.
    fn again(&self) -> Result<Checkpoint> {
        Ok(Checkpoint::open_file(&self.files.model)?)
    }

    fn vae(&self, dir: Option<&ModelDir>) -> Result<Stored<VaeLayers>> {
        let has = |name: &str| name.starts_with(vae::PREFIX);
        if !self.checkpoint.names().any(has) {
            return Err(Error::Request(format!(
                "{} has no autoencoder in it (tensors {}*): give one by --vae",
                self.files.model.display(),
                vae::PREFIX
            )));
        }
        let config = dir.map(|dir| dir.vae.join("config.json"));
        vae::stored_vae(
            self.again()?,
            original::told_by_tensors(&self.files.model),
            config.as_deref(),
            self.family,
        )
    }
}
