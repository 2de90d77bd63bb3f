//! How good pictures are: against a reference, picture by picture or as a set.
//!
//! Of a pair of pictures:
//! - [`psnr`]: peak signal-to-noise ratio.
//! - [`ssim`]: structural similarity.
//! - [`lpips`]: learned perceptual distance, by AlexNet or VGG.
//!
//! Of a picture and its prompt:
//! - [`clip_score`]: how well they fit, by CLIP.
//!
//! Of two sets of pictures, by their features:
//! - [`inception`]: the network that FID takes features from; [`demo`]: one for the demo model's pictures.
//! - [`sets`]: the features of many pictures.
//! - [`frechet`]: Fréchet distance, from statistics that merge.
//! - [`kid`]: kernel distance.
//!
//! What they share:
//! - [`decode`]: PNG and JPEG files.
//! - [`resize`]: resizing as Pillow and torch do it.
//! - `network`: what the two networks are made of.
//! - [`folder`]: which pictures there are, and which belong together.
//! - [`metric`]: the metrics by name; [`networks`]: what each takes, as arguments say it.
//! - [`comparison`]: the pictures of two sides by all of them.
//! - [`measure`]: many files in bounded memory, with the bad ones named.

pub mod clip_score;
pub mod comparison;
pub mod decode;
pub mod demo;
pub mod folder;
pub mod frechet;
pub mod inception;
pub mod kid;
pub mod lpips;
pub mod measure;
pub mod metric;
mod network;
pub mod networks;
pub mod psnr;
pub mod resize;
pub mod sets;
pub mod ssim;

use crate::error::{Error, Result};
use decode::Rgb8;

/// A pair of pictures has one size.
fn same_size(a: &Rgb8, b: &Rgb8) -> Result<()> {
    let sizes = [a, b].map(|picture| [picture.width, picture.height]);
    if sizes[0] == sizes[1] {
        return Ok(());
    }
    Err(Error::Sizes(sizes))
}
