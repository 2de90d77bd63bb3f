//! `UNet2DConditionModel` of SD 1.x, SD 2.x and SDXL: its layers, and the one walk over them.
//!
//! A [`UNet`] holds no weights. It is built from the config alone, lists the tensors that it needs
//! ([`Parameters`]) and walks its blocks over any [`Executor`](crate::executor::Executor): `walk`.

mod blocks;
mod config;
mod keys;
pub mod original;
mod source;
mod walk;

pub use blocks::{Resnet, Stage};
pub use config::UNetConfig;
pub use keys::{SampleSize, WITHOUT_EFFECT};
pub use source::Source;
pub use walk::{Descent, Residuals};

pub use crate::parts::{AddedEmbedding, Projection, TimeEmbedding, Transformer, TransformerBlock};

use crate::layers::{Attention, Conv2d, GroupNorm, Linear, Parameter, Parameters};

/// Name of the first convolution. It sees the noisy latents, so it stays with the user.
pub const CONV_IN: &str = "conv_in";
/// Name of the last convolution.
pub const CONV_OUT: &str = "conv_out";

/// The U-Net: noisy latents and a timestep in, the prediction of the noise (`eps`, or `v`) out.
#[derive(Clone, Debug, PartialEq)]
pub struct UNet {
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Width of a prompt token.
    pub context_width: usize,
    /// Timestep.
    pub time: TimeEmbedding,
    /// First convolution.
    pub conv_in: Conv2d,
    /// From fine to coarse; every feature map is kept for the way up.
    pub down: Vec<Stage>,
    /// At the coarsest level.
    pub mid: Stage,
    /// From coarse to fine.
    pub up: Vec<Stage>,
    /// Last normalisation.
    pub conv_norm_out: GroupNorm,
    /// Last convolution.
    pub conv_out: Conv2d,
}

impl UNet {
    /// Channels of the latents, which the prediction is of. An inpainting model takes more channels in: a mask and a
    /// masked picture.
    pub fn latent_channels(&self) -> usize {
        self.out_channels
    }

    /// Sizes of the embedding of a timestep: the same for all of a batch, or one for each entry where
    /// the model is told of each picture's size.
    pub fn embedding(&self, batch: usize) -> [usize; 2] {
        let rows = if self.time.added.is_some() { batch } else { 1 };
        [rows, self.time.linear_2.d_out]
    }

    /// Number of levels: sizes that feature maps have, each half the one before.
    pub fn levels(&self) -> usize {
        1 + self
            .down
            .iter()
            .filter(|stage| stage.resample.is_some())
            .count()
    }

    /// The level that a layer computes at, from its tensor prefix; what is outside of the blocks is of the finest.
    pub fn level_of(&self, layer: &str) -> usize {
        let within = |stage: &&Stage| {
            let rest = layer.strip_prefix(stage.name.as_str());
            rest.is_some_and(|rest| rest.starts_with('.'))
        };
        let coarsest = self.down.len().saturating_sub(1);
        let down = self.down.iter().position(|stage| within(&stage));
        let up = || self.up.iter().position(|stage| within(&stage));
        match down.or_else(|| up().map(|i| coarsest.saturating_sub(i))) {
            Some(level) => level,
            None if within(&&self.mid) => coarsest,
            None => 0,
        }
    }

    /// The attentions to the prompt, in the order of the blocks.
    pub fn cross_attentions(&self) -> impl Iterator<Item = &Attention> {
        let stages = self.down.iter().chain([&self.mid]).chain(&self.up);
        let transformers = stages.flat_map(|stage| &stage.transformers);
        transformers.flat_map(|transformer| transformer.blocks.iter().map(|block| &block.attn2))
    }

    /// Every layer that can be given to a worker, in the order of the blocks.
    pub fn layers(&self) -> impl Iterator<Item = Layer<'_>> {
        let stages = self.down.iter().chain([&self.mid]).chain(&self.up);
        std::iter::once(Layer::Conv(&self.conv_in))
            .chain(stages.flat_map(Stage::layers))
            .chain([
                Layer::Norm(&self.conv_norm_out),
                Layer::Conv(&self.conv_out),
            ])
    }
}

/// A layer of some kind, by reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layer<'a> {
    /// A convolution.
    Conv(&'a Conv2d),
    /// A group normalisation.
    Norm(&'a GroupNorm),
    /// A self- or cross-attention.
    Attention(&'a Attention),
    /// A linear map of tokens, those of attentions among them.
    Linear(&'a Linear),
}

impl Layer<'_> {
    /// The layer's tensor prefix.
    pub fn name(&self) -> &str {
        match self {
            Self::Conv(conv) => &conv.name,
            Self::Norm(norm) => &norm.name,
            Self::Attention(attention) => &attention.name,
            Self::Linear(linear) => &linear.name,
        }
    }
}

impl Parameters for UNet {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        self.time.parameters(out);
        self.conv_in.parameters(out);
        for stage in self.down.iter().chain([&self.mid]).chain(&self.up) {
            stage.parameters(out);
        }
        self.conv_norm_out.parameters(out);
        self.conv_out.parameters(out);
    }

    fn aliases(&self) -> Vec<(String, String)> {
        original::aliases(self)
    }

    fn arithmetic(&self) -> String {
        let GroupNorm { groups, eps, .. } = &self.conv_norm_out;
        let TimeEmbedding {
            flip_sin_to_cos,
            freq_shift,
            added,
            ..
        } = &self.time;
        let sizes = added.as_ref().map_or(0, |added| added.channels);
        let stages = self.down.iter().chain([&self.mid]).chain(&self.up);
        let transformers = stages.flat_map(|stage| &stage.transformers);
        let heads = transformers.map(|t| t.blocks.first().map_or(0, |block| block.attn1.heads));
        let heads: Vec<String> = heads.map(|n| n.to_string()).collect();
        format!(
            "groups {groups}, eps {eps:e}, cosines first {flip_sin_to_cos}, shift {freq_shift:e}, sizes {sizes}, \
             heads {}",
            heads.join(" ")
        )
    }
}
