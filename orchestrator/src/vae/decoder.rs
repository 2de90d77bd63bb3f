//! Latents to pictures.

use burn::tensor::Tensor;
use lacuna_model::error::Result;
use lacuna_model::layers::{Conv2d, GroupNorm, Parameter, Parameters};
use lacuna_model::ops;

use super::Observer;
use super::bands::{Bands, Map};
use super::blocks::{Level, Middle, Norms, Resnet};
use super::config::VaeConfig;

/// From coarse to fine.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Decoder {
    pub conv_in: Conv2d,
    middle: Middle,
    /// Each convolution comes after rows and columns are doubled.
    levels: Vec<Level>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    pub(super) fn new(config: &VaeConfig) -> Self {
        let channels: Vec<usize> = config.decoder.channels.iter().rev().copied().collect();
        let (coarse, fine) = (channels[0], channels[channels.len() - 1]);
        let norms = Norms {
            groups: config.norm_num_groups,
        };
        let levels = channels.iter().enumerate().map(|(i, &width)| {
            let name = format!("decoder.up_blocks.{i}");
            let from = channels[i.saturating_sub(1)];
            Level {
                resnets: Resnet::row(&name, config.decoder.layers + 1, from, width, norms),
                change: (i + 1 < channels.len())
                    .then(|| Conv2d::same(format!("{name}.upsamplers.0.conv"), width, width, 3)),
                name,
            }
        });
        Self {
            conv_in: Conv2d::same("decoder.conv_in", config.latent_channels, coarse, 3),
            middle: Middle::new(
                "decoder.mid_block",
                coarse,
                config.mid_block_add_attention,
                norms,
            ),
            levels: levels.collect(),
            conv_norm_out: norms.norm("decoder.conv_norm_out", fine),
            conv_out: Conv2d::same("decoder.conv_out", fine, config.out_channels, 3),
        }
    }

    /// Channels at the picture's own size.
    pub(super) fn finest_channels(&self) -> usize {
        self.conv_out.c_in
    }

    /// Number of times that rows and columns are doubled.
    pub(super) fn doublings(&self) -> usize {
        self.levels
            .iter()
            .filter(|level| level.change.is_some())
            .count()
    }

    pub(super) fn forward(
        &self,
        bands: Bands<'_>,
        x: Tensor<4>,
        observe: Observer,
    ) -> Result<Tensor<4>> {
        let x = ops::conv2d(bands.weights, &self.conv_in, x)?;
        let x = self.middle.forward(bands, x)?;
        observe("decoder.mid_block", &x);
        let mut x = Map::Held(x);
        for level in &self.levels {
            let y = level.resnets(bands, x)?;
            x = match &level.change {
                Some(conv) => bands.through(y, true, conv)?,
                None => Map::Held(y),
            };
            if let Some(x) = x.held() {
                observe(&level.name, x);
            }
        }
        bands.normed_conv(&x, &self.conv_norm_out, &self.conv_out, None)
    }
}

impl Parameters for Decoder {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        self.conv_in.parameters(out);
        self.middle.parameters(out);
        for level in &self.levels {
            level.parameters(out);
        }
        self.conv_norm_out.parameters(out);
        self.conv_out.parameters(out);
    }
}
