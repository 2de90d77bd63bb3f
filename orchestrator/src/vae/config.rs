//! `vae/config.json` to layers.

use std::path::Path;

use lacuna_model::config::{ConfigReader, WithoutEffect};
use serde_json::json;

use crate::error::Result;

/// Keys of the class that never change the picture.
pub const WITHOUT_EFFECT: WithoutEffect = &[
    ("force_upcast", "the decoder runs in f32 already"),
    ("sample_size", "only sizes tiles, which are off"),
    ("shift_factor", "no pipeline of these U-Nets reads it"),
];

/// The class whose two directions are of different sizes.
pub const ASYMMETRIC: &str = "AsymmetricAutoencoderKL";

/// What of `vae/config.json` changes the picture.
#[derive(Clone, Debug, PartialEq)]
pub struct VaeConfig {
    /// What the U-Net's latents are multiples of.
    pub scaling_factor: f64,
    /// Mean and standard deviation of each of the latents' channels, which SDXL's pipeline reads.
    pub(super) latents_mean_std: Option<[Vec<f32>; 2]>,
    pub(super) in_channels: usize,
    pub(super) out_channels: usize,
    pub(super) latent_channels: usize,
    pub(super) encoder: WayConfig,
    pub(super) decoder: WayConfig,
    /// Whether it is an `AsymmetricAutoencoderKL` (Zhu et al. 2023): its decoder is larger than its encoder, and may be shown a picture
    /// of which a part is kept, which is not done here.
    pub(super) asymmetric: bool,
    pub(super) norm_num_groups: usize,
    pub(super) mid_block_add_attention: bool,
    pub(super) use_quant_conv: bool,
    pub(super) use_post_quant_conv: bool,
}

/// One direction.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct WayConfig {
    /// From fine to coarse.
    pub(super) channels: Vec<usize>,
    /// Of a level of the encoder; the decoder has one more.
    pub(super) layers: usize,
}

impl WayConfig {
    /// The encoder's and the decoder's, which are one but for an `asymmetric` autoencoder.
    fn read_both(keys: &mut ConfigReader, asymmetric: bool) -> Result<[Self; 2]> {
        let mut read = |channels: &'static str, layers: &'static str| -> Result<_> {
            let way = Self {
                channels: keys.or(channels, vec![64])?,
                layers: keys.or(layers, 1)?,
            };
            keys.check_layers(layers, &[way.layers])?;
            Ok((channels, way))
        };
        let [(down_key, down), (up_key, up)] = match asymmetric {
            false => {
                let both = read("block_out_channels", "layers_per_block")?;
                [both.clone(), both]
            }
            true => [
                read("down_block_out_channels", "layers_per_down_block")?,
                read("up_block_out_channels", "layers_per_up_block")?,
            ],
        };
        down.check_kinds(keys, down_key, ["down_block_types", "DownEncoderBlock2D"])?;
        up.check_kinds(keys, up_key, ["up_block_types", "UpDecoderBlock2D"])?;
        Ok([down, up])
    }

    /// That all of its blocks are of the one kind there is.
    fn check_kinds(
        &self,
        keys: &mut ConfigReader,
        channels: &str,
        [key, kind]: [&'static str; 2],
    ) -> Result<()> {
        let kinds: Vec<String> = keys.or(key, vec![kind.to_owned()])?;
        if let Some(other) = kinds.iter().find(|k| *k != kind) {
            let hint = format!("only {kind} is");
            return Err(keys.unsupported(key, &json!(other), &hint).into());
        }
        let levels = self.channels.len();
        if kinds.len() != levels {
            let hint = format!("one for each of the {levels} {channels}");
            return Err(keys.unsupported(key, &json!(kinds), &hint).into());
        }
        Ok(())
    }
}

impl VaeConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// Any error of [`ConfigReader`]; each names the key.
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::read(ConfigReader::from_file(path)?)
    }

    /// Reads a config.
    ///
    /// # Errors
    /// As [`Self::from_file`].
    pub fn read(mut keys: ConfigReader) -> Result<Self> {
        let latent_channels = keys.or("latent_channels", 4)?;
        let class: Option<String> = keys.optional("_class_name")?;
        let asymmetric = class.as_deref() == Some(ASYMMETRIC);
        let [encoder, decoder] = WayConfig::read_both(&mut keys, asymmetric)?;
        let config = Self {
            latents_mean_std: read_mean_std(&mut keys, latent_channels)?,
            scaling_factor: keys.or("scaling_factor", 0.18215)?,
            in_channels: keys.or("in_channels", 3)?,
            out_channels: keys.or("out_channels", 3)?,
            latent_channels,
            encoder,
            decoder,
            asymmetric,
            norm_num_groups: keys.or("norm_num_groups", 32)?,
            mid_block_add_attention: keys.flag("mid_block_add_attention", true)?,
            use_quant_conv: keys.flag("use_quant_conv", true)?,
            use_post_quant_conv: keys.flag("use_post_quant_conv", true)?,
        };
        config.check(&keys)?;
        keys.only("act_fn", &[json!("silu"), json!("swish")])?;
        keys.only("quantization_config", &[])?;
        keys.ignore(WITHOUT_EFFECT);
        keys.finish();
        Ok(config)
    }

    /// Divisions that the layers rely on.
    fn check(&self, keys: &ConfigReader) -> Result<()> {
        let groups = self.norm_num_groups;
        let refused = |c: &usize| *c == 0 || !c.is_multiple_of(groups);
        let mut channels = self.encoder.channels.iter().chain(&self.decoder.channels);
        if groups == 0 || channels.any(refused) {
            let hint = "it must divide every value of block_out_channels";
            return Err(keys
                .unsupported("norm_num_groups", &json!(groups), hint)
                .into());
        }
        for (key, size) in [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("latent_channels", self.latent_channels),
        ] {
            if size == 0 {
                return Err(keys.unsupported(key, &json!(size), "at least 1").into());
            }
        }
        if self.out_channels > 4 {
            let hint = "a picture has 1 to 4 channels: grey or RGB, with alpha or without";
            let value = json!(self.out_channels);
            return Err(keys.unsupported("out_channels", &value, hint).into());
        }
        if !(self.scaling_factor.is_finite() && self.scaling_factor > 0.0) {
            let value = json!(self.scaling_factor);
            return Err(keys
                .unsupported("scaling_factor", &value, "a positive number")
                .into());
        }
        Ok(())
    }
}

/// `latents_mean` and `latents_std`; like the reference, nothing where one of them is missing.
fn read_mean_std(keys: &mut ConfigReader, channels: usize) -> Result<Option<[Vec<f32>; 2]>> {
    let mut read = |key: &str, least: f32| -> Result<Option<Vec<f32>>> {
        let Some(values) = keys.optional::<Vec<f32>>(key)? else {
            return Ok(None);
        };
        let refused = |value: &f32| !(value.is_finite() && *value >= least);
        if values.len() != channels || values.iter().any(refused) {
            let above = if least > 0.0 { " above zero" } else { "" };
            let hint = format!("a number{above} for each of the {channels} latent_channels");
            return Err(keys.unsupported(key, &json!(values), &hint).into());
        }
        Ok(Some(values))
    };
    let mean = read("latents_mean", f32::MIN)?;
    let std = read("latents_std", f32::MIN_POSITIVE)?;
    Ok(mean.zip(std).map(|(mean, std)| [mean, std]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacuna_model::weights::list;
    use serde_json::Value;

    fn read(value: Value) -> Result<VaeConfig> {
        VaeConfig::read(ConfigReader::new("vae/config.json", value)?)
    }

    /// SD 1.5's autoencoder as published.
    fn published() -> Value {
        json!({
            "_class_name": "AutoencoderKL", "act_fn": "silu",
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": vec!["DownEncoderBlock2D"; 4],
            "up_block_types": vec!["UpDecoderBlock2D"; 4],
            "in_channels": 3, "latent_channels": 4, "layers_per_block": 2,
            "norm_num_groups": 32, "out_channels": 3, "sample_size": 512
        })
    }

    #[test]
    fn the_published_autoencoder_by_count_of_parameters() {
        let parameters = list(&read(published()).unwrap().build());
        let count: usize = parameters
            .iter()
            .map(|p| p.shape.iter().product::<usize>())
            .sum();
        assert_eq!((parameters.len(), count), (248, 83_653_863));
    }

    #[test]
    fn every_unsupported_value_is_an_error_that_names_its_key() {
        for (key, value) in [
            ("act_fn", json!("mish")),
            ("out_channels", json!(5)),
            ("quantization_config", json!({"bits": 4})),
            ("latent_channels", json!(null)),
            ("down_block_types", json!(["AttnDownEncoderBlock2D"])),
            ("up_block_types", json!(["UpDecoderBlock2D"])),
            ("norm_num_groups", json!(48)),
            ("scaling_factor", json!(0)),
            ("layers_per_block", json!(0)),
            ("block_out_channels", json!([])),
        ] {
            let mut config = published();
            config[key] = value;
            let error = read(config).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn keys_that_nobody_reads_change_nothing() {
        let mut config = published();
        config["temporal_compression"] = json!(4);
        for (key, _) in WITHOUT_EFFECT {
            config[*key] = json!([0.5, 2.0]);
        }
        assert_eq!(read(config).unwrap(), read(published()).unwrap());
    }
}
