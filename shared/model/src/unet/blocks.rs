//! The blocks between `conv_in` and `conv_out`: their layers, and each one's walk.

use super::Layer;
use crate::executor::Executor;
use crate::layers::{
    Attention, Conv2d, FeedForward, GroupNorm, LayerNorm, Linear, Parameter, Parameters,
};
use crate::parts::{Projection, Transformer, TransformerBlock};

/// `ResnetBlock2D`: two normalised convolutions with the timestep between them, and a shortcut.
#[derive(Clone, Debug, PartialEq)]
pub struct Resnet {
    /// Tensor prefix.
    pub name: String,
    /// Before the first convolution.
    pub norm1: GroupNorm,
    /// First convolution.
    pub conv1: Conv2d,
    /// The timestep's share of every channel.
    pub time_emb_proj: Linear,
    /// Before the second convolution.
    pub norm2: GroupNorm,
    /// Second convolution.
    pub conv2: Conv2d,
    /// A 1x1 convolution where input and output differ in channels.
    pub shortcut: Option<Conv2d>,
}

impl Resnet {
    pub(super) fn new(
        name: String,
        c_in: usize,
        c_out: usize,
        embedding: usize,
        groups: usize,
        eps: f64,
    ) -> Self {
        let norm = |kind: &str, channels| GroupNorm {
            name: format!("{name}.{kind}"),
            channels,
            groups,
            eps,
        };
        Self {
            norm1: norm("norm1", c_in),
            conv1: Conv2d::same(format!("{name}.conv1"), c_in, c_out, 3),
            time_emb_proj: Linear::new(format!("{name}.time_emb_proj"), embedding, c_out),
            norm2: norm("norm2", c_out),
            conv2: Conv2d::same(format!("{name}.conv2"), c_out, c_out, 3),
            shortcut: (c_in != c_out)
                .then(|| Conv2d::same(format!("{name}.conv_shortcut"), c_in, c_out, 1)),
            name,
        }
    }

    pub(super) fn forward<E: Executor>(
        &self,
        executor: &mut E,
        x: &E::Feature,
        embedding: &E::Embedding,
    ) -> Result<E::Feature, E::Error> {
        let h = executor.norm_conv(&self.norm1, &self.conv1, x)?;
        let h = executor.add_embedding(&self.time_emb_proj, h, embedding)?;
        let h = executor.norm_conv(&self.norm2, &self.conv2, &h)?;
        let out = match &self.shortcut {
            Some(conv) => {
                let shortcut = executor.conv(conv, x)?;
                executor.add(h, &shortcut)?
            }
            None => executor.add(h, x)?,
        };
        executor.observe(&self.name, &out)?;
        Ok(out)
    }
}

impl Resnet {
    fn layers(&self) -> Vec<Layer<'_>> {
        let main = [
            Layer::Norm(&self.norm1),
            Layer::Conv(&self.conv1),
            Layer::Norm(&self.norm2),
            Layer::Conv(&self.conv2),
        ];
        let shortcut = self.shortcut.iter().map(Layer::Conv);
        main.into_iter().chain(shortcut).collect()
    }
}

impl Parameters for Resnet {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        self.norm1.parameters(out);
        self.conv1.parameters(out);
        self.time_emb_proj.parameters(out);
        self.norm2.parameters(out);
        self.conv2.parameters(out);
        if let Some(conv) = &self.shortcut {
            conv.parameters(out);
        }
    }
}

impl TransformerBlock {
    fn new(name: &str, width: usize, context: usize, heads: usize) -> Self {
        let norm = |kind: &str| LayerNorm {
            name: format!("{name}.{kind}"),
            width,
            eps: 1e-5,
        };
        Self {
            norm1: norm("norm1"),
            attn1: Attention::new(format!("{name}.attn1"), width, width, heads),
            norm2: norm("norm2"),
            attn2: Attention::new(format!("{name}.attn2"), width, context, heads),
            norm3: norm("norm3"),
            ff: FeedForward::new(&format!("{name}.ff"), width),
        }
    }

    fn layers(&self) -> Vec<Layer<'_>> {
        let attentions = [&self.attn1, &self.attn2]
            .into_iter()
            .flat_map(|attention| {
                let linear = [
                    &attention.to_q,
                    &attention.to_k,
                    &attention.to_v,
                    &attention.to_out,
                ];
                std::iter::once(Layer::Attention(attention)).chain(linear.map(Layer::Linear))
            });
        let feed_forward = [&self.ff.up, &self.ff.down].map(Layer::Linear);
        attentions.chain(feed_forward).collect()
    }

    /// What follows the attentions.
    fn feed_forward<E: Executor>(
        &self,
        executor: &mut E,
        x: E::Tokens,
    ) -> Result<E::Tokens, E::Error> {
        let h = executor.layer_norm(&self.norm3, &x)?;
        let h = executor.feed_forward(&self.ff, &h)?;
        executor.add_tokens(x, &h)
    }
}

impl Projection {
    fn layer(&self) -> Layer<'_> {
        match self {
            Self::Conv(conv) => Layer::Conv(conv),
            Self::Linear(linear) => Layer::Linear(linear),
        }
    }
}

/// What every transformer of one stage has in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct TransformerShape {
    pub channels: usize,
    pub context: usize,
    pub heads: usize,
    pub depth: usize,
    pub groups: usize,
    pub linear_projection: bool,
}

impl Transformer {
    pub(super) fn new(name: String, shape: TransformerShape) -> Self {
        let channels = shape.channels;
        // Heads that do not divide the channels leave a narrower inside, as in the reference.
        let width = channels / shape.heads * shape.heads;
        let project = |kind: &str, from, to| {
            let name = format!("{name}.{kind}");
            if shape.linear_projection {
                Projection::Linear(Linear::new(name, from, to))
            } else {
                Projection::Conv(Conv2d::same(name, from, to, 1))
            }
        };
        Self {
            norm: GroupNorm {
                name: format!("{name}.norm"),
                channels,
                groups: shape.groups,
                eps: 1e-6,
            },
            proj_in: project("proj_in", channels, width),
            blocks: (0..shape.depth)
                .map(|i| {
                    let name = format!("{name}.transformer_blocks.{i}");
                    TransformerBlock::new(&name, width, shape.context, shape.heads)
                })
                .collect(),
            proj_out: project("proj_out", width, channels),
            name,
        }
    }

    pub(super) fn forward<E: Executor>(
        &self,
        executor: &mut E,
        x: E::Feature,
    ) -> Result<E::Feature, E::Error> {
        let mut tokens = executor.enter(self, &x)?;
        for (i, block) in self.blocks.iter().enumerate() {
            if i > 0 {
                tokens = executor.attentions(block, tokens)?;
            }
            tokens = block.feed_forward(executor, tokens)?;
        }
        let h = match &self.proj_out {
            Projection::Conv(conv) => {
                let h = executor.to_feature(tokens, &x)?;
                executor.conv(conv, &h)?
            }
            Projection::Linear(linear) => {
                let tokens = executor.linear(linear, &tokens)?;
                executor.to_feature(tokens, &x)?
            }
        };
        let out = executor.add(h, &x)?;
        executor.observe(&self.name, &out)?;
        Ok(out)
    }
}

impl Transformer {
    fn layers(&self) -> Vec<Layer<'_>> {
        let blocks = self.blocks.iter().flat_map(TransformerBlock::layers);
        [Layer::Norm(&self.norm), self.proj_in.layer()]
            .into_iter()
            .chain(blocks)
            .chain([self.proj_out.layer()])
            .collect()
    }
}

/// One level of the way down or up, or the middle: resnets, each with a transformer or none, and
/// the convolution that changes the size.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Tensor prefix.
    pub name: String,
    /// In order.
    pub resnets: Vec<Resnet>,
    /// One after each resnet, but none after the middle's last and none at levels without.
    pub transformers: Vec<Transformer>,
    /// The convolution of the down- or upsampler.
    pub resample: Option<Conv2d>,
}

impl Stage {
    /// Each resnet with the transformer after it.
    pub fn pairs(&self) -> impl Iterator<Item = (&Resnet, Option<&Transformer>)> {
        self.resnets
            .iter()
            .enumerate()
            .map(|(i, resnet)| (resnet, self.transformers.get(i)))
    }

    /// Name of the down- or upsampler in the reference library.
    pub(super) fn resample_name(&self) -> String {
        let name = self.resample.as_ref().map_or("", |conv| &conv.name);
        name.strip_suffix(".conv").unwrap_or(name).to_owned()
    }

    pub(super) fn layers(&self) -> impl Iterator<Item = Layer<'_>> {
        self.pairs()
            .flat_map(|(resnet, transformer)| {
                resnet
                    .layers()
                    .into_iter()
                    .chain(transformer.into_iter().flat_map(Transformer::layers))
            })
            .chain(self.resample.iter().map(Layer::Conv))
    }
}

impl Parameters for Stage {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        for resnet in &self.resnets {
            resnet.parameters(out);
        }
        for transformer in &self.transformers {
            transformer.parameters(out);
        }
        if let Some(conv) = &self.resample {
            conv.parameters(out);
        }
    }
}
