//! Pictures of unfinished pictures, fast: what the sampler takes for the clean latents, by something cheaper than the VAE's decoder.
//!
//! - [`linear`]: a colour for each position, by a linear map that is fitted to the model's own VAE.
//! - [`tiny`]: a tiny autoencoder's decoder (TAESD), where one is given.

pub mod linear;
pub mod tiny;

use std::path::Path;

use lacuna_wire::HostTensor;

use crate::error::Result;
use crate::init_image::read::Pixels;
use crate::init_image::resize::resize;
use crate::output::write_whole;
use crate::picture::{Picture, encode_png};
use crate::pipeline::Pipeline;
use linear::Linear;
use tiny::Tiny;

/// Decodes latents to previews.
pub enum Preview {
    /// By a linear map.
    Linear(Linear),
    /// By a tiny autoencoder.
    Tiny(Tiny),
}

impl Preview {
    /// By the tiny autoencoder in `file`, or else by a linear map, for which the VAE's encoder is loaded.
    ///
    /// # Errors
    /// As [`Tiny::open`]; as [`Linear::fit`].
    pub fn of(pipeline: &Pipeline, file: Option<&Path>) -> Result<Self> {
        match file {
            Some(file) => Ok(Self::Tiny(Tiny::open(file, pipeline)?)),
            None => Ok(Self::Linear(Linear::fit(pipeline)?)),
        }
    }

    /// The U-Net's `latents` `[1, C, H, W]` as a picture, of the size that it gives them.
    ///
    /// # Errors
    /// [`crate::Error::Request`] where values are not finite.
    pub fn decode(&self, latents: HostTensor) -> Result<Picture> {
        Picture::from_decoded(match self {
            Self::Linear(linear) => linear.decode(latents)?,
            Self::Tiny(tiny) => tiny.decode(latents)?,
        })
    }

    /// Writes `latents` `[1, C, H, W]` as a PNG file of `width` x `height` pixels, which holds nothing else.
    ///
    /// # Errors
    /// As [`Self::decode`]; [`crate::Error::Output`].
    pub fn write(
        &self,
        path: &Path,
        latents: HostTensor,
        width: usize,
        height: usize,
    ) -> Result<()> {
        let picture = self.decode(latents)?;
        let pixels = Pixels {
            width: picture.width,
            height: picture.height,
            rgb: picture.to_rgb8(),
        };
        let pixels = resize(&pixels, width, height);
        let bytes = encode_png([width, height], png::ColorType::Rgb, &pixels.rgb, &[]);
        let bytes = bytes.map_err(|e| crate::Error::Output {
            path: path.to_owned(),
            reason: e.to_string(),
        })?;
        write_whole(path, &bytes)
    }
}
