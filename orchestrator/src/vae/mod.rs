//! The autoencoder between pictures and latents (`AutoencoderKL`, `AsymmetricAutoencoderKL`).
//!
//! - [`config`](VaeConfig): `vae/config.json` to layers.
//! - `bands`: large maps, a band of rows at a time.
//! - `blocks`: what both directions are made of.
//! - `encoder`, `decoder`: the two directions.

mod bands;
mod blocks;
mod config;
mod decoder;
mod encoder;

pub use config::{ASYMMETRIC, VaeConfig, WITHOUT_EFFECT};

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use lacuna_model::layers::{Conv2d, Parameter, Parameters};
use lacuna_model::ops;
use lacuna_model::weights::{Checkpoint, Library, Stored, Weights};

use crate::error::Result;
use bands::{Bands, Bounds};
use decoder::Decoder;
use encoder::Encoder;

/// Called with a block's name in the reference library and its output, where that is held as a whole.
pub type Observer<'a> = &'a mut dyn FnMut(&str, &Tensor<4>);

/// The autoencoder's layers.
#[derive(Clone, Debug, PartialEq)]
pub struct VaeLayers {
    encoder: Encoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    decoder: Decoder,
    scaling_factor: f64,
    /// Mean and standard deviation of each of the latents' channels.
    mean_std: Option<[Vec<f32>; 2]>,
    asymmetric: bool,
}

impl VaeLayers {
    /// What the U-Net's latents are multiples of: divide by it before [`Vae::decode`], multiply by it
    /// after [`Vae::encode`].
    pub fn scaling_factor(&self) -> f64 {
        self.scaling_factor
    }

    /// What [`Vae::decode`] takes of the U-Net's latents `[B, C, H, W]`, as Stable Diffusion's pipeline makes it.
    pub fn unscaled(&self, latents: Tensor<4>) -> Tensor<4> {
        latents / self.scaling_factor
    }

    /// The same as SDXL's pipeline makes it: by each channel's mean and standard deviation where the config has them.
    pub fn unnormalised(&self, latents: Tensor<4>) -> Tensor<4> {
        let Some(mean_std) = &self.mean_std else {
            return self.unscaled(latents);
        };
        let device = latents.device();
        let [mean, std] = mean_std.each_ref().map(|values| {
            let values = TensorData::new(values.clone(), [1, values.len(), 1, 1]);
            Tensor::<4>::from_data(values, &device)
        });
        latents * std / self.scaling_factor + mean
    }

    /// The inverse of [`Self::unscaled`], on latents `[1, C, H, W]`, in place.
    pub fn scale(&self, latents: &mut [f32]) {
        let factor = self.scaling_factor as f32;
        latents.iter_mut().for_each(|x| *x *= factor);
    }

    /// The inverse of [`Self::unnormalised`], on latents `[1, C, H, W]`, in place.
    pub fn normalise(&self, latents: &mut [f32]) {
        let Some([mean, std]) = &self.mean_std else {
            return self.scale(latents);
        };
        let factor = self.scaling_factor as f32;
        let channel = latents.len() / mean.len();
        let channels = latents.chunks_exact_mut(channel.max(1));
        for (values, (mean, std)) in channels.zip(mean.iter().zip(std)) {
            values
                .iter_mut()
                .for_each(|x| *x = (*x - mean) * factor / std);
        }
    }

    /// Whether the reference shows its decoder a picture of which a part is kept ([`ASYMMETRIC`]), which is not done here.
    pub fn wants_what_is_kept(&self) -> bool {
        self.asymmetric
    }

    /// Channels of the pictures that are encoded.
    pub fn picture_channels(&self) -> usize {
        self.encoder.conv_in.c_in
    }

    /// Channels of the latents.
    pub fn latent_channels(&self) -> usize {
        self.decoder.conv_in.c_in
    }

    /// Rows (and columns) of the picture for each row of the latents.
    pub fn pixels_per_latent(&self) -> usize {
        1 << self.decoder.doublings()
    }

    /// Bytes that decoding a picture of so many pixels takes at least: the last convolution's input, and what that
    /// was made of.
    pub fn least_memory(&self, pixels: usize) -> usize {
        let each = 2 * size_of::<f32>() * self.decoder.finest_channels();
        pixels.saturating_mul(each)
    }

    /// The parameters that [`Vae::encode`] takes.
    pub fn of_encoding(&self) -> Vec<Parameter> {
        let mut out = Vec::new();
        self.encoder.parameters(&mut out);
        if let Some(conv) = &self.quant_conv {
            conv.parameters(&mut out);
        }
        out
    }

    /// The parameters that [`Vae::decode`] takes.
    pub fn of_decoding(&self) -> Vec<Parameter> {
        let mut out = Vec::new();
        if let Some(conv) = &self.post_quant_conv {
            conv.parameters(&mut out);
        }
        self.decoder.parameters(&mut out);
        out
    }
}

impl VaeConfig {
    /// The layers that the config describes.
    pub fn build(&self) -> VaeLayers {
        let latents = self.latent_channels;
        VaeLayers {
            encoder: Encoder::new(self),
            quant_conv: self
                .use_quant_conv
                .then(|| Conv2d::same("quant_conv", 2 * latents, 2 * latents, 1)),
            post_quant_conv: self
                .use_post_quant_conv
                .then(|| Conv2d::same("post_quant_conv", latents, latents, 1)),
            decoder: Decoder::new(self),
            scaling_factor: self.scaling_factor,
            mean_std: self.latents_mean_std.clone(),
            asymmetric: self.asymmetric,
        }
    }
}

impl Parameters for VaeLayers {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        out.extend(self.of_encoding());
        out.extend(self.of_decoding());
    }
}

/// What the encoder says about a picture: a normal distribution for each latent, `[B, C, H, W]`.
#[derive(Clone, Debug)]
pub struct Posterior {
    /// Means: the latents where no noise is wanted.
    pub mean: Tensor<4>,
    /// Logarithms of the variances, as the network gives them (the reference clamps to -30..20
    /// before it draws).
    pub log_variance: Tensor<4>,
}

/// The autoencoder with its weights on a device.
#[derive(Clone, Debug)]
pub struct Vae {
    layers: VaeLayers,
    weights: Weights,
    bounds: Bounds,
}

impl Vae {
    /// Opens `dir/config.json` and the weights beside it, and checks that they fit; `variant` as in
    /// [`Checkpoint::open`]. Nothing is loaded.
    ///
    /// # Errors
    /// Any [`lacuna_model::Error`] of reading configs and weights, naming the key or tensor.
    pub fn open(dir: &Path, variant: Option<&str>) -> Result<Stored<VaeLayers>> {
        let config = VaeConfig::from_file(&dir.join("config.json"))?;
        Self::stored(&config, Checkpoint::open(dir, Library::Diffusers, variant)?)
    }

    /// The autoencoder of `config` with the weights of `checkpoint`, in the names of the reference.
    ///
    /// # Errors
    /// As [`Stored::new`].
    pub fn stored(config: &VaeConfig, mut checkpoint: Checkpoint) -> Result<Stored<VaeLayers>> {
        let layers = config.build();
        checkpoint.adapt(|name, shape| {
            // What a picture of which a part is kept would be shown to the decoder by.
            let used = !name.starts_with("decoder.condition_encoder.");
            used.then(|| modern_attention(name, shape))
        });
        Ok(Stored::new(layers, checkpoint)?)
    }

    /// Loads what [`Self::open`] opens.
    ///
    /// # Errors
    /// As there, and as [`Weights::load_part`].
    pub fn load(dir: &Path, variant: Option<&str>, device: &Device) -> Result<Self> {
        let stored = Self::open(dir, variant)?;
        Ok(Self::of(stored.layers().clone(), stored.load(device)?))
    }

    /// Loads of what [`Self::open`] opened the part that decodes; to encode is then an error.
    ///
    /// # Errors
    /// As [`Weights::load_part`].
    pub fn load_decoder(stored: &Stored<VaeLayers>, device: &Device) -> Result<Self> {
        let layers = stored.layers().clone();
        let weights = stored.load_part(&layers.of_decoding(), device)?;
        Ok(Self::of(layers, weights))
    }

    /// Loads of it the part that encodes; to decode is then an error.
    ///
    /// # Errors
    /// As [`Weights::load_part`].
    pub fn load_encoder(stored: &Stored<VaeLayers>, device: &Device) -> Result<Self> {
        let layers = stored.layers().clone();
        let weights = stored.load_part(&layers.of_encoding(), device)?;
        Ok(Self::of(layers, weights))
    }

    /// The autoencoder with weights that are loaded.
    pub fn of(layers: VaeLayers, weights: Weights) -> Self {
        Self {
            bounds: Bounds::of(&weights),
            layers,
            weights,
        }
    }

    /// The same that computes feature maps of `bands` bytes and more in bands of `band` bytes, and computes those of `held` bytes and more
    /// again where they are needed, rather than to hold them. Otherwise it chooses by the device.
    pub fn bounded(self, bands: usize, held: usize, band: usize) -> Self {
        Self {
            bounds: Bounds { bands, held, band },
            ..self
        }
    }

    fn bands(&self) -> Bands<'_> {
        Bands {
            weights: &self.weights,
            bounds: self.bounds,
        }
    }

    /// Latents `[B, C, H, W]`, already divided by the scaling factor, to pictures
    /// `[B, out_channels, rows, columns]` in about -1..1.
    ///
    /// # Errors
    /// [`lacuna_wire::Error::WrongShape`] for another number of channels.
    pub fn decode(&self, latents: Tensor<4>) -> Result<Tensor<4>> {
        self.decode_observed(latents, &mut |_, _| {})
    }

    /// [`Self::decode`], with each block's output shown to `observe`.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn decode_observed(&self, latents: Tensor<4>, observe: Observer) -> Result<Tensor<4>> {
        check_channels("latents", &latents, self.layers.latent_channels())?;
        let z = match &self.layers.post_quant_conv {
            Some(conv) => ops::conv2d(&self.weights, conv, latents)?,
            None => latents,
        };
        Ok(self.layers.decoder.forward(self.bands(), z, observe)?)
    }

    /// Pictures `[B, in_channels, rows, columns]` in -1..1 to distributions of latents, not yet multiplied
    /// by the scaling factor.
    ///
    /// # Errors
    /// [`lacuna_wire::Error::WrongShape`] for another number of channels.
    pub fn encode(&self, picture: Tensor<4>) -> Result<Posterior> {
        self.encode_observed(picture, &mut |_, _| {})
    }

    /// [`Self::encode`], with each block's output shown to `observe`.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_observed(&self, picture: Tensor<4>, observe: Observer) -> Result<Posterior> {
        check_channels("picture", &picture, self.layers.encoder.conv_in.c_in)?;
        let encoder = &self.layers.encoder;
        let h = encoder.forward(self.bands(), picture, observe)?;
        let h = match &self.layers.quant_conv {
            Some(conv) => ops::conv2d(&self.weights, conv, h)?,
            None => h,
        };
        let channels = h.dims()[1] / 2;
        Ok(Posterior {
            mean: h.clone().narrow(1, 0, channels),
            log_variance: h.narrow(1, channels, channels),
        })
    }
}

fn check_channels(name: &str, x: &Tensor<4>, channels: usize) -> Result<(), lacuna_model::Error> {
    let [b, c, h, w] = x.dims();
    if c == channels {
        return Ok(());
    }
    Err(lacuna_wire::Error::WrongShape {
        name: name.into(),
        want: vec![b, channels, h, w],
        got: vec![b, c, h, w],
    })?
}

/// The names of an attention's projections today, for those of files from before 2023, which also
/// stored them as 1x1 convolutions.
fn modern_attention(name: &str, shape: &mut Vec<usize>) -> String {
    let Some((block, tensor)) = name.split_once(".attentions.0.") else {
        return name.to_owned();
    };
    let Some((layer, kind)) = tensor.rsplit_once('.') else {
        return name.to_owned();
    };
    let layer = match layer {
        "query" => "to_q",
        "key" => "to_k",
        "value" => "to_v",
        "proj_attn" => "to_out.0",
        same => same,
    };
    if let [_, _, 1, 1] = shape[..] {
        shape.truncate(2);
    }
    format!("{block}.attentions.0.{layer}.{kind}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_attention_names_and_shapes_become_modern() {
        let renamed = |name: &str, shape: &[usize]| {
            let mut shape = shape.to_vec();
            (modern_attention(name, &mut shape), shape)
        };
        assert_eq!(
            renamed(
                "decoder.mid_block.attentions.0.proj_attn.weight",
                &[8, 8, 1, 1]
            ),
            (
                "decoder.mid_block.attentions.0.to_out.0.weight".into(),
                vec![8, 8]
            )
        );
        assert_eq!(
            renamed("encoder.mid_block.attentions.0.query.bias", &[8]),
            ("encoder.mid_block.attentions.0.to_q.bias".into(), vec![8])
        );
        // A shortcut is a 1x1 convolution for good.
        assert_eq!(
            renamed(
                "decoder.up_blocks.1.resnets.0.conv_shortcut.weight",
                &[8, 16, 1, 1]
            ),
            (
                "decoder.up_blocks.1.resnets.0.conv_shortcut.weight".into(),
                vec![8, 16, 1, 1]
            )
        );
    }
}
