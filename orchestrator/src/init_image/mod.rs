//! Pictures that are made from pictures: image to image (Meng et al. 2021, SDEdit, <https://arxiv.org/abs/2108.01073>), and
//! inpainting, as the reference's pipelines do them.
//!
//! - [`mod@read`]: the files.
//! - [`mod@resize`]: to the size that is made.
//! - here: what the sampler begins with, and the order in which the generator of noise is asked.
//!
//! The picture, its mask and what the VAE makes of them stay on this machine; what workers see of features that are computed from them
//! is up to the scheme.

pub mod read;
pub mod resize;

use std::path::Path;

use lacuna_wire::HostTensor;

use crate::error::{Error, Result};
use crate::noise::TorchRng;
use crate::pipeline::{FromImage, Latents, Origin, Pipeline};
use read::{Pixels, read};
use resize::resize;

/// A picture without `--size` that has so many times the pixels that the model makes asks for one.
const LARGER: usize = 4;

/// The files, as they are.
#[derive(Clone, Debug)]
pub struct Given {
    image: Pixels,
    mask: Option<Pixels>,
    from: FromImage,
    /// Of both.
    digests: Digests,
}

/// Tell one picture from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digests {
    /// Of the picture.
    pub image: String,
    /// Of the mask.
    pub mask: Option<String>,
}

impl Given {
    /// Reads the picture in `image`, of which `mask` is white where it is to be painted anew, and which is to be changed with
    /// this `strength`.
    ///
    /// # Errors
    /// As [`fn@read`].
    pub fn read(image: &Path, mask: Option<&Path>, strength: f64) -> Result<Self> {
        let (image, mask) = (read(image)?, mask.map(read).transpose()?);
        Ok(Self {
            digests: Digests {
                image: image.digest(),
                mask: mask.as_ref().map(Pixels::digest),
            },
            from: FromImage {
                strength,
                masked: mask.is_some(),
            },
            image,
            mask,
        })
    }

    /// How far the picture that is made may go from this one.
    pub fn from(&self) -> FromImage {
        self.from
    }

    /// Whether its mask leaves nothing to be painted anew.
    pub fn keeps_all(&self) -> bool {
        let mask = self.mask.as_ref();
        mask.is_some_and(|mask| !painted(mask).contains(&true))
    }

    /// Tell the picture and its mask from others.
    pub fn digests(&self) -> &Digests {
        &self.digests
    }

    /// Columns and rows of what is made by `pipeline` where nobody says: the picture's own, but for what no latents make.
    ///
    /// # Errors
    /// [`Error::Request`] where it is so large that nobody can have meant that.
    pub fn size(&self, pipeline: &Pipeline) -> Result<[usize; 2]> {
        let pixels = pipeline.pixels_per_latent();
        let (width, height) = (self.image.width, self.image.height);
        let size = [width, height].map(|side| (side / pixels * pixels).max(pixels));
        // A model that names no size is asked for one by nobody.
        let Ok([_, _, rows, columns]) = pipeline.latent_shape(None, None) else {
            return Ok(size);
        };
        let own = rows * columns * pixels * pixels;
        if width * height <= LARGER * own {
            return Ok(size);
        }
        let shrink = (own as f64 / (width as f64 * height as f64)).sqrt();
        let [width, height] = size.map(|side| {
            let latents = (side as f64 * shrink / pixels as f64).round() as usize;
            latents.max(1) * pixels
        });
        Err(Error::Request(format!(
            "--init-image is {} x {} pixels, the model is made for {own}; say how large the picture is to be, such as --size {width}x{height}",
            self.image.width, self.image.height
        )))
    }
}

/// What pictures begin with: latents, of which each picture draws its own.
pub struct InitImage {
    from: FromImage,
    /// `[1, C, H, W]`.
    shape: [usize; 4],
    /// Of the picture; none where nothing of it is begun with or put back.
    image: Option<Latents>,
    /// Under a mask.
    inpainting: Option<Inpainting>,
}

/// What is kept under a mask.
struct Inpainting {
    /// 1 where the picture is painted anew, else 0, `[H, W]`.
    mask: Vec<f32>,
    /// Of the picture, grey where it is painted anew, for a U-Net that takes these.
    masked: Option<Latents>,
}

impl InitImage {
    /// Encodes what is `given` for a picture with latents of `shape` `[1, C, H, W]`. The VAE's encoder is loaded for it.
    ///
    /// # Errors
    /// As [`Pipeline::encode_image`].
    pub fn encode(pipeline: &Pipeline, given: Given, shape: [usize; 4]) -> Result<Self> {
        let Given {
            image, mask, from, ..
        } = given;
        let [_, _, rows, columns] = shape;
        let pixels = pipeline.pixels_per_latent();
        let (height, width) = (rows * pixels, columns * pixels);
        let picture = values(&resize(&image, width, height));
        let wide = pipeline.takes_mask();
        let inpainting = mask.map(|mask| {
            let painted = painted(&resize(&mask, width, height));
            // As the reference scales it: of each patch the pixel at the upper left.
            let at = |i: usize| painted[(i / columns * width + i % columns) * pixels];
            let masked = wide.then(|| {
                let channels = picture.chunks_exact(painted.len());
                let grey = |channel: &[f32]| -> Vec<f32> {
                    let pairs = channel.iter().zip(&painted);
                    pairs
                        .map(|(x, painted)| if *painted { 0.0 } else { *x })
                        .collect()
                };
                channels.flat_map(grey).collect::<Vec<f32>>()
            });
            let mask = (0..rows * columns).map(|i| f32::from(u8::from(at(i))));
            (mask.collect::<Vec<f32>>(), masked)
        });
        let encode = |picture: Vec<f32>| {
            pipeline.encode_image(HostTensor::new([1, 3, height, width], picture)?)
        };
        let inpainting = match inpainting {
            None => None,
            Some((mask, masked)) => Some(Inpainting {
                mask,
                masked: masked.map(encode).transpose()?,
            }),
        };
        let needed = !wide || !from.begins_with_noise();
        Ok(Self {
            from,
            shape,
            image: needed.then(|| encode(picture)).transpose()?,
            inpainting,
        })
    }

    /// What one picture begins with: its noise `[1, C, H, W]` of standard deviation 1, which is drawn where none is `given`, and the
    /// rest. `rng` is asked in the reference's order: for the picture's latents, the noise, and the masked picture's
    /// latents, which it draws also for U-Nets that do not take them.
    ///
    /// # Errors
    /// None: shapes have as many numbers as are drawn.
    pub fn draw(
        &self,
        pipeline: &Pipeline,
        rng: &mut TorchRng,
        given: Option<HostTensor>,
    ) -> Result<(HostTensor, Origin)> {
        let numbers = self.shape.iter().product();
        let latents = self.image.as_ref().map(|image| pipeline.draw(image, rng));
        let noise = match given {
            Some(noise) => noise,
            None => HostTensor::new(self.shape, rng.randn(numbers))?,
        };
        let (mut mask, mut beside) = (None, Vec::new());
        if let Some(inpainting) = &self.inpainting {
            match &inpainting.masked {
                Some(masked) => {
                    beside.clone_from(&inpainting.mask);
                    beside.extend(pipeline.draw(masked, rng));
                }
                None => {
                    rng.randn(numbers);
                    mask = Some(inpainting.mask.clone());
                }
            }
        }
        let origin = Origin {
            noise_alone: self.from.begins_with_noise(),
            latents,
            mask,
            beside,
        };
        Ok((noise, origin))
    }
}

/// Values in -1..1, `[3, height, width]`.
fn values(pixels: &Pixels) -> Vec<f32> {
    let value = |byte: &u8| 2.0 * (f32::from(*byte) / 255.0) - 1.0;
    let colour = |c: usize| pixels.rgb.iter().skip(c).step_by(3).map(value);
    (0..3).flat_map(colour).collect()
}

/// Where a mask is nearer to white than to black, by the luma of ITU-R 601 as Pillow rounds it.
fn painted(pixels: &Pixels) -> Vec<bool> {
    let luma = |[r, g, b]: &[u8; 3]| {
        let [r, g, b] = [r, g, b].map(|c| u32::from(*c));
        (19_595 * r + 38_470 * g + 7_471 * b + 0x8000) >> 16
    };
    let triples = pixels.rgb.as_chunks::<3>().0.iter();
    triples.map(|rgb| luma(rgb) > 127).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_that_is_nowhere_white_keeps_all() {
        let pixels = |rgb: [u8; 6]| Pixels {
            width: 2,
            height: 1,
            rgb: rgb.into(),
        };
        let keeps_all = |mask: Option<Pixels>| {
            let image = pixels([9; 6]);
            let given = Given {
                digests: Digests {
                    image: image.digest(),
                    mask: mask.as_ref().map(Pixels::digest),
                },
                from: FromImage {
                    strength: 1.0,
                    masked: mask.is_some(),
                },
                image,
                mask,
            };
            given.keeps_all()
        };
        assert!(keeps_all(Some(pixels([127; 6]))));
        assert!(!keeps_all(Some(pixels([0, 0, 0, 255, 255, 255]))));
        assert!(!keeps_all(None));
    }
}
