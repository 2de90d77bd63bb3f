//! What the U-Net asks for, operation by operation.
//!
//! The U-Net is written once and knows neither where a feature map lives nor who computes on it. An
//! executor does: the whole tensor on one device, a tensor whose
//! layers are cut and sent to workers (the `ppidm` scheme), one worker's rows, or a bare shape for
//! counting. The prompt belongs to the executor too, so that the walk never sees it.

use crate::error::Error;
use crate::layers::{Attention, Conv2d, FeedForward, GroupNorm, LayerNorm, Linear};
use crate::parts::{Projection, TimeEmbedding, Transformer, TransformerBlock};

/// Computes the operations of a U-Net over its own idea of a feature map.
///
/// Only [`Self::norm_conv`], [`Self::upsample_conv`], [`Self::enter`] and [`Self::attentions`] have bodies: they are
/// compositions that an executor may do in one exchange, by overriding them.
pub trait Executor {
    /// A feature map, `[B, C, H, W]`. Cloning is cheap.
    type Feature: Clone;
    /// The same as a sequence, `[B, T, C]` with `T = H W`. Cloning is cheap.
    type Tokens: Clone;
    /// The embedding of the timestep, `[1, D]`.
    type Embedding;
    /// Why an operation fails.
    type Error: From<Error>;

    /// The embedding of `timestep` (in training steps; fractional for some samplers).
    fn embed_time(
        &mut self,
        layer: &TimeEmbedding,
        timestep: f64,
    ) -> Result<Self::Embedding, Self::Error>;

    /// A convolution.
    fn conv(&mut self, layer: &Conv2d, x: &Self::Feature) -> Result<Self::Feature, Self::Error>;

    /// Group normalisation alone, as a transformer begins with.
    fn group_norm(
        &mut self,
        layer: &GroupNorm,
        x: &Self::Feature,
    ) -> Result<Self::Feature, Self::Error>;

    /// Group normalisation followed by SiLU.
    fn group_norm_silu(
        &mut self,
        layer: &GroupNorm,
        x: &Self::Feature,
    ) -> Result<Self::Feature, Self::Error>;

    /// `conv(silu(norm(x)))`: half a residual block.
    fn norm_conv(
        &mut self,
        norm: &GroupNorm,
        conv: &Conv2d,
        x: &Self::Feature,
    ) -> Result<Self::Feature, Self::Error> {
        let h = self.group_norm_silu(norm, x)?;
        self.conv(conv, &h)
    }

    /// `x + project(silu(embedding))`, the same for every pixel.
    fn add_embedding(
        &mut self,
        project: &Linear,
        x: Self::Feature,
        embedding: &Self::Embedding,
    ) -> Result<Self::Feature, Self::Error>;

    /// `a + b`.
    fn add(&mut self, a: Self::Feature, b: &Self::Feature) -> Result<Self::Feature, Self::Error>;

    /// Channels of `a`, then channels of `b`.
    fn concat(&mut self, a: Self::Feature, b: Self::Feature) -> Result<Self::Feature, Self::Error>;

    /// Every row and column twice, cut to the rows and columns of `like` (one less when odd).
    fn upsample(
        &mut self,
        x: &Self::Feature,
        like: &Self::Feature,
    ) -> Result<Self::Feature, Self::Error>;

    /// A convolution of what [`Self::upsample`] gives: the way to a finer level.
    fn upsample_conv(
        &mut self,
        conv: &Conv2d,
        x: &Self::Feature,
        like: &Self::Feature,
    ) -> Result<Self::Feature, Self::Error> {
        let x = self.upsample(x, like)?;
        self.conv(conv, &x)
    }

    /// `[B, C, H, W] -> [B, H W, C]`.
    fn to_tokens(&mut self, x: &Self::Feature) -> Result<Self::Tokens, Self::Error>;

    /// `[B, H W, C] -> [B, C, H, W]` with the rows and columns of `like`.
    fn to_feature(
        &mut self,
        x: Self::Tokens,
        like: &Self::Feature,
    ) -> Result<Self::Feature, Self::Error>;

    /// A linear map of every token.
    fn linear(&mut self, layer: &Linear, x: &Self::Tokens) -> Result<Self::Tokens, Self::Error>;

    /// Layer normalisation of every token.
    fn layer_norm(
        &mut self,
        layer: &LayerNorm,
        x: &Self::Tokens,
    ) -> Result<Self::Tokens, Self::Error>;

    /// Attention of the tokens to each other, projections included.
    fn self_attention(
        &mut self,
        layer: &Attention,
        x: &Self::Tokens,
    ) -> Result<Self::Tokens, Self::Error>;

    /// Attention of the tokens to the prompt that the executor holds, projections included.
    fn cross_attention(
        &mut self,
        layer: &Attention,
        x: &Self::Tokens,
    ) -> Result<Self::Tokens, Self::Error>;

    /// The gated feed-forward of every token.
    fn feed_forward(
        &mut self,
        layer: &FeedForward,
        x: &Self::Tokens,
    ) -> Result<Self::Tokens, Self::Error>;

    /// `a + b`.
    fn add_tokens(
        &mut self,
        a: Self::Tokens,
        b: &Self::Tokens,
    ) -> Result<Self::Tokens, Self::Error>;

    /// A transformer up to its first block's attentions: normalisation, projection, tokens, and those
    /// attentions.
    fn enter(
        &mut self,
        transformer: &Transformer,
        x: &Self::Feature,
    ) -> Result<Self::Tokens, Self::Error> {
        enter_apart(self, transformer, x)
    }

    /// Both attentions of a transformer block with their norms and residuals.
    fn attentions(
        &mut self,
        block: &TransformerBlock,
        x: Self::Tokens,
    ) -> Result<Self::Tokens, Self::Error> {
        attentions_apart(self, block, x)
    }

    /// Called with each block's output under the block's name in the reference library, for those
    /// who compare or record activations.
    fn observe(&mut self, _block: &str, _x: &Self::Feature) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// [`Executor::enter`] one operation after the other.
///
/// # Errors
/// Those of the executor.
pub fn enter_apart<E: Executor + ?Sized>(
    executor: &mut E,
    transformer: &Transformer,
    x: &E::Feature,
) -> Result<E::Tokens, E::Error> {
    let h = executor.group_norm(&transformer.norm, x)?;
    let tokens = match &transformer.proj_in {
        Projection::Conv(conv) => {
            let h = executor.conv(conv, &h)?;
            executor.to_tokens(&h)?
        }
        Projection::Linear(linear) => {
            let tokens = executor.to_tokens(&h)?;
            executor.linear(linear, &tokens)?
        }
    };
    match transformer.blocks.first() {
        Some(block) => executor.attentions(block, tokens),
        None => Ok(tokens),
    }
}

/// [`Executor::attentions`] one operation after the other.
///
/// # Errors
/// Those of the executor.
pub fn attentions_apart<E: Executor + ?Sized>(
    executor: &mut E,
    block: &TransformerBlock,
    x: E::Tokens,
) -> Result<E::Tokens, E::Error> {
    let h = executor.layer_norm(&block.norm1, &x)?;
    let h = executor.self_attention(&block.attn1, &h)?;
    let x = executor.add_tokens(x, &h)?;
    let h = executor.layer_norm(&block.norm2, &x)?;
    let h = executor.cross_attention(&block.attn2, &h)?;
    executor.add_tokens(x, &h)
}
