//! `unet/config.json` to layers.

use std::path::Path;

use serde_json::{Value, json};

use super::blocks::{Resnet, Stage, TransformerShape};
use super::keys::{
    Depth, Middle, SampleSize, read_added, read_depths, read_kinds, read_middle, read_size,
    refuse_the_rest,
};
use super::{AddedEmbedding, CONV_IN, CONV_OUT, TimeEmbedding, UNet};
use crate::config::ConfigReader;
use crate::error::Result;
use crate::layers::{Conv2d, GroupNorm, Linear};
use crate::parts::Transformer;

/// What of `unet/config.json` changes the picture.
#[derive(Clone, Debug, PartialEq)]
pub struct UNetConfig {
    /// The size of the latents that the model was made for.
    pub sample_size: Option<SampleSize>,
    /// `_diffusers_version`: the library that wrote the file. The reference's pipeline reads some keys
    /// of old files otherwise.
    pub diffusers_version: Option<String>,
    in_channels: usize,
    out_channels: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
    /// For each level, from fine to coarse: whether its way down has attention.
    down_attention: Vec<bool>,
    /// For each level, from coarse to fine: whether its way up has attention.
    up_attention: Vec<bool>,
    middle: Middle,
    block_out_channels: Vec<usize>,
    layers_per_block: Vec<usize>,
    norm_num_groups: usize,
    norm_eps: f64,
    cross_attention_dim: Vec<usize>,
    /// From fine to coarse.
    down_depths: Vec<Depth>,
    /// From coarse to fine.
    up_depths: Vec<Depth>,
    /// The reference's `attention_head_dim`, which means the number of heads.
    heads: Vec<usize>,
    use_linear_projection: bool,
    time_embedding_dim: usize,
    conv_in_kernel: usize,
    conv_out_kernel: usize,
    /// Widths of SDXL's added embedding: one size's sinusoid, and all inputs together.
    added: Option<(usize, usize)>,
    /// Width of the guidance scale's embedding, where it is an input.
    time_cond_proj_dim: Option<usize>,
}

/// Most levels: each has half of the rows of the one before, and latents have less than 2^16.
const MOST_LEVELS: usize = 16;

impl UNetConfig {
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
        let defaults = [320, 640, 1280, 1280].to_vec();
        let block_out_channels: Vec<usize> = keys.or("block_out_channels", defaults)?;
        let levels = block_out_channels.len();
        let down_attention = read_kinds(
            &mut keys,
            "down_block_types",
            ["CrossAttnDownBlock2D", "DownBlock2D"],
            [true, true, true, false],
        )?;
        let up_attention = read_kinds(
            &mut keys,
            "up_block_types",
            ["CrossAttnUpBlock2D", "UpBlock2D"],
            [false, true, true, true],
        )?;
        if levels == 0 || down_attention.len() != levels || up_attention.len() != levels {
            let value = json!(block_out_channels);
            let hint = "as many as there are down_block_types and up_block_types";
            return Err(keys.unsupported("block_out_channels", &value, hint));
        }
        if levels > MOST_LEVELS {
            let hint = format!("at most {MOST_LEVELS} levels");
            return Err(keys.unsupported("block_out_channels", &json!(levels), &hint));
        }
        let own_width = 4 * block_out_channels[0];
        let time_embedding_dim = keys.optional("time_embedding_dim")?.unwrap_or(own_width);
        let added = read_added(&mut keys)?;
        let layers_per_block = keys.per_block("layers_per_block", levels, 2)?;
        keys.check_layers("layers_per_block", &layers_per_block)?;
        let [down_depths, up_depths] = read_depths(&mut keys, &layers_per_block)?;
        let config = Self {
            sample_size: read_size(&mut keys)?,
            diffusers_version: keys.optional("_diffusers_version")?,
            middle: read_middle(&mut keys)?,
            in_channels: keys.or("in_channels", 4)?,
            out_channels: keys.or("out_channels", 4)?,
            flip_sin_to_cos: keys.flag("flip_sin_to_cos", true)?,
            freq_shift: keys.or("freq_shift", 0.0)?,
            down_attention,
            up_attention,
            layers_per_block,
            down_depths,
            up_depths,
            norm_num_groups: keys.or("norm_num_groups", 32)?,
            norm_eps: keys.or("norm_eps", 1e-5)?,
            cross_attention_dim: keys.per_block("cross_attention_dim", levels, 1280)?,
            heads: keys.per_block("attention_head_dim", levels, 8)?,
            use_linear_projection: keys.flag("use_linear_projection", false)?,
            time_embedding_dim,
            conv_in_kernel: keys.or("conv_in_kernel", 3)?,
            conv_out_kernel: keys.or("conv_out_kernel", 3)?,
            block_out_channels,
            added,
            time_cond_proj_dim: keys.optional("time_cond_proj_dim")?,
        };
        refuse_the_rest(&mut keys)?;
        config.check(&keys)?;
        keys.finish();
        Ok(config)
    }

    /// Divisions that the layers rely on.
    fn check(&self, keys: &ConfigReader) -> Result<()> {
        let groups = self.norm_num_groups;
        let refuse = |key: &str, value: Value, hint: &str| Err(keys.unsupported(key, &value, hint));
        if groups == 0
            || self
                .block_out_channels
                .iter()
                .any(|c| *c == 0 || c % groups != 0)
        {
            let hint = "it must divide every value of block_out_channels";
            return refuse("norm_num_groups", json!(groups), hint);
        }
        if !(self.norm_eps.is_finite() && self.norm_eps > 0.0) {
            return refuse("norm_eps", json!(self.norm_eps), "a number above zero");
        }
        let too_many = self
            .heads
            .iter()
            .zip(&self.block_out_channels)
            .any(|(h, c)| *h == 0 || h > c);
        if too_many {
            let hint = "it is the number of heads: from 1 to the block's channels";
            return refuse("attention_head_dim", json!(self.heads), hint);
        }
        if self.cross_attention_dim.windows(2).any(|w| w[0] != w[1]) {
            let hint = "one width for all blocks";
            return refuse("cross_attention_dim", json!(self.cross_attention_dim), hint);
        }
        let kernels = [
            ("conv_in_kernel", self.conv_in_kernel),
            ("conv_out_kernel", self.conv_out_kernel),
        ];
        for (key, kernel) in kernels {
            // The edges of strips are those of 3x3 kernels; nobody publishes others.
            if kernel != 3 {
                return refuse(key, json!(kernel), "only 3 is");
            }
        }
        match self.time_cond_proj_dim {
            Some(width) if width < 4 => {
                let hint = "at least 4: sines and cosines of two frequencies";
                refuse("time_cond_proj_dim", json!(width), hint)
            }
            _ => Ok(()),
        }
    }

    /// The layers that the config describes.
    pub fn build(&self) -> UNet {
        let channels = &self.block_out_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let levels = channels.len();
        let embedding = self.time_embedding_dim;
        let resnet = |name: String, c_in, c_out| {
            Resnet::new(
                name,
                c_in,
                c_out,
                embedding,
                self.norm_num_groups,
                self.norm_eps,
            )
        };
        let transformer = |name: String, level: usize, depth: usize| {
            Transformer::new(
                name,
                TransformerShape {
                    channels: channels[level],
                    context: self.cross_attention_dim[level],
                    heads: self.heads[level],
                    depth,
                    groups: self.norm_num_groups,
                    linear_projection: self.use_linear_projection,
                },
            )
        };

        let down = (0..levels).map(|level| {
            let name = format!("down_blocks.{level}");
            let (before, width) = (channels[level.saturating_sub(1)], channels[level]);
            let layers = self.layers_per_block[level];
            let attentions = if self.down_attention[level] {
                layers
            } else {
                0
            };
            Stage {
                resnets: (0..layers)
                    .map(|i| {
                        let c_in = if i == 0 { before } else { width };
                        resnet(format!("{name}.resnets.{i}"), c_in, width)
                    })
                    .collect(),
                transformers: (0..attentions)
                    .map(|i| {
                        let depth = self.down_depths[level].of(i);
                        transformer(format!("{name}.attentions.{i}"), level, depth)
                    })
                    .collect(),
                resample: (level + 1 < levels).then(|| Conv2d {
                    stride: 2,
                    ..Conv2d::same(format!("{name}.downsamplers.0.conv"), width, width, 3)
                }),
                name,
            }
        });

        let (resnets, transformers) = match self.middle {
            Middle::None => (0, 0),
            Middle::Plain => (1, 0),
            Middle::Attention => (2, 1),
        };
        let mid = Stage {
            name: "mid_block".into(),
            resnets: (0..resnets)
                .map(|i| resnet(format!("mid_block.resnets.{i}"), last, last))
                .collect(),
            transformers: (0..transformers)
                .map(|i| {
                    let depth = self.down_depths[levels - 1].of(i);
                    transformer(format!("mid_block.attentions.{i}"), levels - 1, depth)
                })
                .collect(),
            resample: None,
        };

        let up = (0..levels).map(|i| {
            let name = format!("up_blocks.{i}");
            let level = levels - 1 - i;
            let width = channels[level];
            let below = channels[(level + 1).min(levels - 1)];
            let layers = self.layers_per_block[level] + 1;
            let attentions = if self.up_attention[i] { layers } else { 0 };
            Stage {
                resnets: (0..layers)
                    .map(|j| {
                        let from = if j == 0 { below } else { width };
                        // The last skip of a level comes from before its first resnet.
                        let skip = if j + 1 == layers {
                            channels[level.saturating_sub(1)]
                        } else {
                            width
                        };
                        resnet(format!("{name}.resnets.{j}"), from + skip, width)
                    })
                    .collect(),
                transformers: (0..attentions)
                    .map(|j| {
                        let depth = self.up_depths[i].of(j);
                        transformer(format!("{name}.attentions.{j}"), level, depth)
                    })
                    .collect(),
                resample: (level > 0)
                    .then(|| Conv2d::same(format!("{name}.upsamplers.0.conv"), width, width, 3)),
                name,
            }
        });

        UNet {
            in_channels: self.in_channels,
            out_channels: self.out_channels,
            context_width: self.cross_attention_dim[0],
            time: TimeEmbedding {
                channels: first,
                flip_sin_to_cos: self.flip_sin_to_cos,
                freq_shift: self.freq_shift,
                linear_1: Linear::new("time_embedding.linear_1", first, embedding),
                linear_2: Linear::new("time_embedding.linear_2", embedding, embedding),
                guidance: self.time_cond_proj_dim.map(|width| {
                    Linear::new("time_embedding.cond_proj", width, first).without_bias()
                }),
                added: self.added.map(|(channels, input)| AddedEmbedding {
                    channels,
                    linear_1: Linear::new("add_embedding.linear_1", input, embedding),
                    linear_2: Linear::new("add_embedding.linear_2", embedding, embedding),
                }),
            },
            conv_in: Conv2d::same(CONV_IN, self.in_channels, first, self.conv_in_kernel),
            down: down.collect(),
            mid,
            up: up.collect(),
            conv_norm_out: GroupNorm {
                name: "conv_norm_out".into(),
                channels: first,
                groups: self.norm_num_groups,
                eps: self.norm_eps,
            },
            conv_out: Conv2d::same(CONV_OUT, first, self.out_channels, self.conv_out_kernel),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::Parameters;
    use crate::unet::Layer;

    fn read(value: Value) -> Result<UNetConfig> {
        UNetConfig::read(ConfigReader::new("unet/config.json", value)?)
    }

    #[test]
    fn the_defaults_are_stable_diffusion_1_by_count_of_parameters() {
        let unet = read(json!({"cross_attention_dim": 768})).unwrap().build();
        let mut parameters = Vec::new();
        unet.parameters(&mut parameters);
        let count: usize = parameters
            .iter()
            .map(|p| p.shape.iter().product::<usize>())
            .sum();
        assert_eq!(count, 859_520_964);
        assert_eq!(parameters.len(), 686);
        let split = unet
            .layers()
            .filter(|l| matches!(l, Layer::Conv(c) if c.kernel == 3 && c.name != CONV_IN))
            .count();
        assert_eq!(split, 51, "the paper's table counts 51 convolutions");
    }

    #[test]
    fn every_unsupported_value_is_an_error_that_names_its_key() {
        for (key, value) in [
            ("act_fn", json!("gelu")),
            (
                "down_block_types",
                json!([
                    "SkipDownBlock2D",
                    "DownBlock2D",
                    "DownBlock2D",
                    "DownBlock2D"
                ]),
            ),
            ("num_class_embeds", json!(10)),
            ("downsample_padding", json!(0)),
            ("norm_num_groups", json!(7)),
            ("attention_head_dim", json!([8, 8])),
            ("conv_in_kernel", json!(4)),
            ("only_cross_attention", json!([false, true])),
            ("center_input_sample", json!(true)),
            ("center_input_sample", json!([false])),
            ("conv_in_kernel", json!(null)),
            ("cross_attention_dim", json!(null)),
            ("up_block_types", json!(null)),
            ("quantization_config", json!({"bits": 4})),
        ] {
            let error = read(json!({key: value})).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn a_size_is_a_number_or_rows_and_columns() {
        let size = |value| read(json!({"sample_size": value})).unwrap().sample_size;
        assert_eq!(size(json!(64)), Some(SampleSize::Square(64)));
        assert_eq!(size(json!([96, 64])), Some(SampleSize::Sides([96, 64])));
        assert_eq!(SampleSize::Square(64).sides(), [64, 64]);
        assert_eq!(size(json!(null)), None);
        assert!(read(json!({"sample_size": "64"})).is_err());
    }

    #[test]
    fn nulls_are_none_or_off() {
        let none = json!({"num_class_embeds": null, "time_embedding_dim": null,
            "only_cross_attention": null, "class_embeddings_concat": null});
        assert_eq!(read(none).unwrap(), read(json!({})).unwrap());
        let off = read(json!({"flip_sin_to_cos": null})).unwrap();
        assert_eq!(off, read(json!({"flip_sin_to_cos": false})).unwrap());
    }

    #[test]
    fn without_a_middle_block_there_is_none() {
        let unet = |value| read(value).unwrap().build();
        let (none, whole) = (unet(json!({"mid_block_type": null})), unet(json!({})));
        assert_eq!(none.mid.layers().count(), 0);
        let call = |unet: &UNet| crate::survey::survey(unet, [1, 16, 16], 77).unwrap();
        let (none, whole) = (call(&none), call(&whole));
        let middle = |o: &&crate::survey::Operation| o.layer.starts_with("mid_block");
        assert_eq!(none.iter().filter(middle).count(), 0);
        assert_eq!(
            none.len(),
            whole.len() - whole.iter().filter(middle).count()
        );
    }

    #[test]
    fn keys_that_the_class_does_not_have_are_ignored() {
        // Of a running average in training.
        let strays = json!({"decay": 0.9999, "optimization_step": 100, "inv_gamma": 1.0,
            "frobnicate": [1, 2]});
        assert_eq!(read(strays).unwrap(), read(json!({})).unwrap());
    }
}
