//! What both directions are made of: resnets, the middle's attention, and the middle itself.

use burn::tensor::Tensor;
use lacuna_model::error::Result;
use lacuna_model::layers::{Attention, Conv2d, GroupNorm, Linear, Parameter, Parameters};
use lacuna_model::ops;
use lacuna_model::weights::Weights;

use super::bands::{Bands, Map};

/// The normalisations of one autoencoder, all alike but for name and channels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Norms {
    pub groups: usize,
}

impl Norms {
    pub(super) fn norm(self, name: impl Into<String>, channels: usize) -> GroupNorm {
        GroupNorm {
            name: name.into(),
            channels,
            groups: self.groups,
            eps: 1e-6,
        }
    }
}

/// `ResnetBlock2D` without a timestep: two normalised convolutions and a shortcut.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

impl Resnet {
    pub(super) fn new(name: &str, c_in: usize, c_out: usize, norms: Norms) -> Self {
        Self {
            norm1: norms.norm(format!("{name}.norm1"), c_in),
            conv1: Conv2d::same(format!("{name}.conv1"), c_in, c_out, 3),
            norm2: norms.norm(format!("{name}.norm2"), c_out),
            conv2: Conv2d::same(format!("{name}.conv2"), c_out, c_out, 3),
            shortcut: (c_in != c_out)
                .then(|| Conv2d::same(format!("{name}.conv_shortcut"), c_in, c_out, 1)),
        }
    }

    /// A row of `count` resnets, `name.resnets.0` and on; the first changes the channels.
    pub(super) fn row(
        name: &str,
        count: usize,
        c_in: usize,
        c_out: usize,
        norms: Norms,
    ) -> Vec<Self> {
        (0..count)
            .map(|i| {
                let from = if i == 0 { c_in } else { c_out };
                Self::new(&format!("{name}.resnets.{i}"), from, c_out, norms)
            })
            .collect()
    }

    pub(super) fn forward(&self, bands: Bands<'_>, x: Map<'_>) -> Result<Tensor<4>> {
        let h = bands.normed_conv(&x, &self.norm1, &self.conv1, None)?;
        let added = Some((&x, self.shortcut.as_ref()));
        bands.normed_conv(&Map::Held(h), &self.norm2, &self.conv2, added)
    }
}

impl Parameters for Resnet {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        self.norm1.parameters(out);
        self.conv1.parameters(out);
        self.norm2.parameters(out);
        self.conv2.parameters(out);
        if let Some(conv) = &self.shortcut {
            conv.parameters(out);
        }
    }
}

/// A level of either direction: resnets at one size, and a convolution that goes with the change to the next.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Level {
    pub name: String,
    pub resnets: Vec<Resnet>,
    /// None at the last level.
    pub change: Option<Conv2d>,
}

impl Level {
    /// All resnets, one after the other.
    pub(super) fn resnets(&self, bands: Bands<'_>, x: Map<'_>) -> Result<Tensor<4>> {
        let Some((first, rest)) = self.resnets.split_first() else {
            return bands.hold(x);
        };
        let x = first.forward(bands, x)?;
        let mut rest = rest.iter();
        rest.try_fold(x, |x, resnet| resnet.forward(bands, Map::Held(x)))
    }
}

impl Parameters for Level {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        for resnet in &self.resnets {
            resnet.parameters(out);
        }
        if let Some(conv) = &self.change {
            conv.parameters(out);
        }
    }
}

/// Self-attention of the pixels, in one head, added to its input.
#[derive(Clone, Debug, PartialEq)]
struct PixelAttention {
    norm: GroupNorm,
    attention: Attention,
}

impl PixelAttention {
    fn new(name: String, channels: usize, norms: Norms) -> Self {
        let project = |kind: &str| Linear::new(format!("{name}.{kind}"), channels, channels);
        Self {
            norm: norms.norm(format!("{name}.group_norm"), channels),
            attention: Attention {
                heads: 1,
                to_q: project("to_q"),
                to_k: project("to_k"),
                to_v: project("to_v"),
                to_out: project("to_out.0"),
                name,
            },
        }
    }

    fn forward(&self, weights: &Weights, x: Tensor<4>) -> Result<Tensor<4>> {
        let [b, c, h, w] = x.dims();
        let layer = &self.attention;
        let normed = ops::group_norm(weights, &self.norm, x.clone(), false)?;
        let tokens = normed.reshape([b, c, h * w]).swap_dims(1, 2);
        let q = ops::linear(weights, &layer.to_q, tokens.clone())?;
        let k = ops::linear(weights, &layer.to_k, tokens.clone())?;
        let v = ops::linear(weights, &layer.to_v, tokens)?;
        let tokens = ops::attention(q, k, v, layer.heads, false);
        let tokens = ops::linear(weights, &layer.to_out, tokens)?;
        Ok(tokens.swap_dims(1, 2).reshape([b, c, h, w]) + x)
    }
}

/// `UNetMidBlock2D`, at the coarsest level: two resnets with attention between them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Middle {
    before: Resnet,
    attention: Option<PixelAttention>,
    after: Resnet,
}

impl Middle {
    pub(super) fn new(name: &str, channels: usize, attention: bool, norms: Norms) -> Self {
        let resnet =
            |i: usize| Resnet::new(&format!("{name}.resnets.{i}"), channels, channels, norms);
        Self {
            before: resnet(0),
            attention: attention
                .then(|| PixelAttention::new(format!("{name}.attentions.0"), channels, norms)),
            after: resnet(1),
        }
    }

    pub(super) fn forward(&self, bands: Bands<'_>, x: Tensor<4>) -> Result<Tensor<4>> {
        let x = self.before.forward(bands, Map::Held(x))?;
        let x = match &self.attention {
            Some(attention) => attention.forward(bands.weights, x)?,
            None => x,
        };
        self.after.forward(bands, Map::Held(x))
    }
}

impl Parameters for Middle {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        self.before.parameters(out);
        if let Some(attention) = &self.attention {
            attention.norm.parameters(out);
            attention.attention.parameters(out);
        }
        self.after.parameters(out);
    }
}
