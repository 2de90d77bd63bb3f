//! Pictures to latents.

use burn::tensor::Tensor;
use lacuna_model::error::Result;
use lacuna_model::layers::{Conv2d, GroupNorm, Parameter, Parameters};

use super::Observer;
use super::bands::{Bands, Map};
use super::blocks::{Level, Middle, Norms, Resnet};
use super::config::VaeConfig;

/// From fine to coarse.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Encoder {
    pub conv_in: Conv2d,
    /// Each convolution halves rows and columns.
    levels: Vec<Level>,
    middle: Middle,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    pub(super) fn new(config: &VaeConfig) -> Self {
        let channels = &config.encoder.channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let norms = Norms {
            groups: config.norm_num_groups,
        };
        let levels = channels.iter().enumerate().map(|(i, &width)| {
            let name = format!("encoder.down_blocks.{i}");
            let from = channels[i.saturating_sub(1)];
            Level {
                resnets: Resnet::row(&name, config.encoder.layers, from, width, norms),
                change: (i + 1 < channels.len()).then(|| Conv2d {
                    stride: 2,
                    padding: 0,
                    ..Conv2d::same(format!("{name}.downsamplers.0.conv"), width, width, 3)
                }),
                name,
            }
        });
        Self {
            conv_in: Conv2d::same("encoder.conv_in", config.in_channels, first, 3),
            levels: levels.collect(),
            middle: Middle::new(
                "encoder.mid_block",
                last,
                config.mid_block_add_attention,
                norms,
            ),
            conv_norm_out: norms.norm("encoder.conv_norm_out", last),
            conv_out: Conv2d::same("encoder.conv_out", last, 2 * config.latent_channels, 3),
        }
    }

    pub(super) fn forward(
        &self,
        bands: Bands<'_>,
        x: Tensor<4>,
        observe: Observer,
    ) -> Result<Tensor<4>> {
        let mut x = bands.through(x, false, &self.conv_in)?;
        for level in &self.levels {
            let mut y = level.resnets(bands, x)?;
            if let Some(conv) = &level.change {
                y = bands.halved(y, conv)?;
            }
            observe(&level.name, &y);
            x = Map::Held(y);
        }
        let x = self.middle.forward(bands, bands.hold(x)?)?;
        observe("encoder.mid_block", &x);
        bands.normed_conv(&Map::Held(x), &self.conv_norm_out, &self.conv_out, None)
    }
}

impl Parameters for Encoder {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        self.conv_in.parameters(out);
        for level in &self.levels {
            level.parameters(out);
        }
        self.middle.parameters(out);
        self.conv_norm_out.parameters(out);
        self.conv_out.parameters(out);
    }
}
