//! Sizes of a picture and of its latents.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use lacuna_model::survey::{MOST_PROMPT_TOKENS, PROMPT_TOKENS};
use lacuna_model::unet::{SampleSize, UNet, UNetConfig};

use super::model::{resolve, unet_config};
use crate::error::{Error, Result};
use crate::family::Family;
use crate::limits;
use crate::model::ModelFiles;
use crate::model::dir::recommended_guidance;
use crate::vae::VaeConfig;

/// Pixels for each row of latents of every Stable Diffusion.
pub const PIXELS_PER_LATENT: usize = 8;

/// The size of a picture.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct PictureSize {
    /// Columns x rows of the picture, in pixels [default: the model's own; of bench's random weights 512x512].
    #[arg(long, value_name = "WxH", value_parser = parse_size)]
    size: Option<[usize; 2]>,
    /// The older name of half of --size.
    #[arg(long, hide = true, conflicts_with = "size")]
    width: Option<usize>,
    /// The older name of half of --size.
    #[arg(long, hide = true, conflicts_with = "size")]
    height: Option<usize>,
}

impl PictureSize {
    /// Columns and rows, where they are given.
    pub fn sides(&self) -> [Option<usize>; 2] {
        match self.size {
            Some(size) => size.map(Some),
            None => [self.width, self.height],
        }
    }
}

/// A picture's size from the model's config alone.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct SizeArguments {
    /// sd15, sdxl, a diffusers model directory (unet/config.json and vae/config.json of it are read), a model's one file, or
    /// hf:OWNER/NAME of the hub's cache.
    #[arg(short, long, env = "LACUNA_MODEL", default_value = "sd15")]
    pub model: PathBuf,
    /// Of a model in one file: a model directory of the same kind, whose configs are taken [default: what the file's tensors
    /// tell].
    #[arg(long, value_name = "DIR", env = "LACUNA_MODEL_CONFIG")]
    pub model_config: Option<PathBuf>,
    /// Columns and rows of the picture.
    #[command(flatten)]
    pub size: PictureSize,
    /// Pixels of the picture for each row of the latents [default: what the model's VAE makes of one, 8 where it
    /// has none].
    #[arg(long)]
    pub pixels_per_latent: Option<usize>,
    /// Guidance scale; 1 or less turns guidance off, and halves the work [default: what the model recommends in its
    /// generation_config.json, else 7.5].
    #[arg(long, conflicts_with = "batch", allow_negative_numbers = true)]
    pub guidance: Option<f32>,
    /// Batch entries of one call, in place of what guidance takes: two, or one without it [default: of cost 1, where
    /// no --guidance is given].
    #[arg(long)]
    pub batch: Option<usize>,
    /// Tokens of the prompt: 77 for each chunk that it takes.
    #[arg(long, value_name = "N", default_value_t = PROMPT_TOKENS)]
    pub prompt_tokens: usize,
}

impl SizeArguments {
    /// Tokens of the prompt.
    ///
    /// # Errors
    /// [`Error::Request`] where no worker takes so many.
    pub fn tokens(&self) -> Result<usize> {
        limits::check("--prompt-tokens", self.prompt_tokens, MOST_PROMPT_TOKENS)?;
        Ok(self.prompt_tokens)
    }

    fn files(&self) -> Result<ModelFiles> {
        let files = ModelFiles {
            config: self.model_config.clone(),
            ..ModelFiles::of(resolve(&self.model)?)
        };
        files.check()?;
        Ok(files)
    }

    /// The folder that has the configs beside the U-Net's, the scheduler's and so on.
    fn folder(&self) -> Result<PathBuf> {
        let files = self.files()?;
        Ok(files.config.unwrap_or(files.model))
    }

    fn config(&self) -> anyhow::Result<UNetConfig> {
        let files = self.files()?;
        let config = unet_config(&files.model, files.unet_config().as_deref(), || {
            files.model.join("unet/config.json")
        });
        config.with_context(|| {
            format!(
                "cannot read the U-Net's config of {} (--model takes sd15, sdxl, a model's directory or its one file)",
                self.model.display()
            )
        })
    }

    /// The U-Net's layers.
    ///
    /// # Errors
    /// Those of the config file.
    pub fn unet(&self) -> anyhow::Result<UNet> {
        Ok(self.config()?.build())
    }

    /// Pixels of the picture for each row of the latents.
    ///
    /// # Errors
    /// [`Error::Request`] for a number that is off; those of the VAE's config.
    pub fn pixels(&self) -> Result<usize> {
        if let Some(pixels) = self.pixels_per_latent {
            limits::check("--pixels-per-latent", pixels, limits::SIDE)?;
            return Ok(pixels);
        }
        let file = self.folder()?.join("vae/config.json");
        match file.is_file() {
            true => Ok(VaeConfig::from_file(&file)?.build().pixels_per_latent()),
            false => Ok(PIXELS_PER_LATENT),
        }
    }

    /// Batch entries of a call with the guidance scale that is given, or with the one that a picture of the model would
    /// have.
    ///
    /// # Errors
    /// [`Error::Request`] for a scale that is no number; those of the model's file.
    pub fn guided_batch(&self) -> Result<usize> {
        let guidance = match self.guidance {
            Some(guidance) if !guidance.is_finite() => {
                let reason = format!("--guidance {guidance}: it must be a number");
                return Err(Error::Request(reason));
            }
            Some(guidance) => Some(guidance),
            None => recommended_guidance(&self.folder()?)?,
        };
        let guidance = guidance.unwrap_or(Family::StableDiffusion.usual_guidance());
        // A model that takes the scale as an input is called once.
        let embedded =
            || matches!(self.config(), Ok(config) if config.build().time.guidance.is_some());
        Ok(if guidance > 1.0 && !embedded() { 2 } else { 1 })
    }

    /// Batch, rows and columns of the latents, with `usual` entries where nobody says how many.
    ///
    /// # Errors
    /// [`Error::Request`] when no latents have that size.
    pub fn latents(&self, usual: usize) -> anyhow::Result<[usize; 3]> {
        let pixels = self.pixels()?;
        let [width, height] = self.size.sides();
        let own = self.config()?.sample_size.map(SampleSize::sides);
        let side = |flag: &str, given: Option<usize>, own: Option<usize>| match (given, own) {
            (Some(side), _) => {
                limits::check_side(flag, side, pixels)?;
                Ok(side / pixels)
            }
            (None, Some(own)) => Ok(own),
            (None, None) => Err(Error::Request(
                "the model names no size; give --size".into(),
            )),
        };
        let rows = side("--height", height, own.map(|[rows, _]| rows))?;
        let columns = side("--width", width, own.map(|[_, columns]| columns))?;
        let batch = self.batch.unwrap_or(usual);
        limits::check("--batch", batch, limits::COUNT)?;
        let latents = [batch, rows, columns];
        limits::check_latents("--batch and --size", latents)?;
        Ok(latents)
    }
}

/// Columns and rows, as `512x768` says them.
///
/// # Errors
/// A line that says how they are written.
pub fn parse_size(text: &str) -> std::result::Result<[usize; 2], String> {
    let sides = text
        .split_once(['x', 'X', '\u{d7}'])
        .and_then(|(width, height)| {
            Some([width.trim().parse().ok()?, height.trim().parse().ok()?])
        });
    sides.ok_or_else(|| "columns x rows in pixels, such as 512x768".into())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        size: PictureSize,
    }

    #[test]
    fn older_names_mean_what_they_meant() {
        let line = |words: &str| Line::try_parse_from(["x"].into_iter().chain(words.split(' ')));
        let sides = |words: &str| line(words).unwrap().size.sides();
        assert_eq!(sides("--size 512x768"), [Some(512), Some(768)]);
        assert_eq!(sides("--width 512 --height 768"), [Some(512), Some(768)]);
        assert_eq!(sides("--height 8"), [None, Some(8)]);
        assert!(line("--size 8x8 --width 8").is_err());
    }
}
