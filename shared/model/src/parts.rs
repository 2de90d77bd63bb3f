//! Parts of several layers, without their weights: what an executor is asked for at a time beside single layers.

use crate::layers::{
    Attention, Conv2d, FeedForward, GroupNorm, LayerNorm, Linear, Parameter, Parameters,
};

/// The timestep's sinusoid and the two linear maps after it (Ho et al. 2020, appendix B), with
/// SDXL's added embedding of pooled text and picture sizes where the config asks for it.
#[derive(Clone, Debug, PartialEq)]
pub struct TimeEmbedding {
    /// Width of the sinusoid.
    pub channels: usize,
    /// Cosines before sines.
    pub flip_sin_to_cos: bool,
    /// Subtracted from the number of frequencies in the exponent.
    pub freq_shift: f64,
    /// First map.
    pub linear_1: Linear,
    /// Second map, after SiLU.
    pub linear_2: Linear,
    /// Of the guidance scale's embedding, added to the timestep's sinusoid: a model that was distilled with its guidance
    /// (Meng et al. 2023, section 3.1) takes the scale as an input.
    pub guidance: Option<Linear>,
    /// SDXL's second input.
    pub added: Option<AddedEmbedding>,
}

/// SDXL's `text_time`: pooled text beside the sinusoids of six sizes, through two linear maps.
#[derive(Clone, Debug, PartialEq)]
pub struct AddedEmbedding {
    /// Width of each size's sinusoid.
    pub channels: usize,
    /// First map.
    pub linear_1: Linear,
    /// Second map, after SiLU.
    pub linear_2: Linear,
}

impl TimeEmbedding {
    /// The sinusoid of one number, `[channels]`, in f32 as the reference computes it.
    pub fn sinusoid(&self, value: f64, channels: usize) -> Vec<f32> {
        let half = channels / 2;
        let scale = -(10_000f64.ln()) as f32;
        let angle = |i: usize| {
            let exponent = scale * i as f32 / (half as f64 - self.freq_shift) as f32;
            value as f32 * exponent.exp()
        };
        let sines = (0..half).map(|i| angle(i).sin());
        let cosines = (0..half).map(|i| angle(i).cos());
        let mut out: Vec<f32> = if self.flip_sin_to_cos {
            cosines.chain(sines).collect()
        } else {
            sines.chain(cosines).collect()
        };
        out.resize(channels, 0.0);
        out
    }

    /// The embedding of a guidance scale, `[channels]`, in f32 as the reference's pipelines compute it
    /// (`get_guidance_scale_embedding` of the scale less 1).
    pub fn guidance_embedding(scale: f32, channels: usize) -> Vec<f32> {
        let half = channels / 2;
        let step = (10_000f64.ln() / (half as f64 - 1.0)) as f32;
        let value = (scale - 1.0) * 1000.0;
        let angle = |i: usize| value * (-step * i as f32).exp();
        let sines = (0..half).map(|i| angle(i).sin());
        let cosines = (0..half).map(|i| angle(i).cos());
        let mut out: Vec<f32> = sines.chain(cosines).collect();
        out.resize(channels, 0.0);
        out
    }
}

impl Parameters for TimeEmbedding {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        self.linear_1.parameters(out);
        self.linear_2.parameters(out);
        if let Some(guidance) = &self.guidance {
            guidance.parameters(out);
        }
        if let Some(added) = &self.added {
            added.linear_1.parameters(out);
            added.linear_2.parameters(out);
        }
    }
}

/// `BasicTransformerBlock`: self-attention, cross-attention and feed-forward, each normalised and
/// added to its input.
#[derive(Clone, Debug, PartialEq)]
pub struct TransformerBlock {
    /// Before the self-attention.
    pub norm1: LayerNorm,
    /// Self-attention.
    pub attn1: Attention,
    /// Before the cross-attention.
    pub norm2: LayerNorm,
    /// Cross-attention.
    pub attn2: Attention,
    /// Before the feed-forward.
    pub norm3: LayerNorm,
    /// Feed-forward.
    pub ff: FeedForward,
}

impl Parameters for TransformerBlock {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        self.norm1.parameters(out);
        self.attn1.parameters(out);
        self.norm2.parameters(out);
        self.attn2.parameters(out);
        self.norm3.parameters(out);
        self.ff.parameters(out);
    }
}

/// The map into or out of a transformer's width: a 1x1 convolution before the pixels become
/// tokens (SD 1.x), or a linear map after (SD 2.x, SDXL).
#[derive(Clone, Debug, PartialEq)]
pub enum Projection {
    /// Over the feature map.
    Conv(Conv2d),
    /// Over the tokens.
    Linear(Linear),
}

impl Projection {
    /// Width of what it gives.
    pub fn width(&self) -> usize {
        match self {
            Self::Conv(conv) => conv.c_out,
            Self::Linear(linear) => linear.d_out,
        }
    }
}

impl Parameters for Projection {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        match self {
            Self::Conv(conv) => conv.parameters(out),
            Self::Linear(linear) => linear.parameters(out),
        }
    }
}

/// `Transformer2DModel`: the pixels as tokens through transformer blocks, added to the input.
#[derive(Clone, Debug, PartialEq)]
pub struct Transformer {
    /// Tensor prefix.
    pub name: String,
    /// First normalisation; its `eps` is fixed in the reference.
    pub norm: GroupNorm,
    /// Into the blocks' width.
    pub proj_in: Projection,
    /// One or more.
    pub blocks: Vec<TransformerBlock>,
    /// Back to the feature's channels.
    pub proj_out: Projection,
}

impl Parameters for Transformer {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        self.norm.parameters(out);
        self.proj_in.parameters(out);
        for block in &self.blocks {
            block.parameters(out);
        }
        self.proj_out.parameters(out);
    }
}
