//! The user's walk of the U-Net under `resident`: over bare shapes, for the features are the workers'.
//!
//! The conductor comes to every exchange when the workers do and leaves it to a [`Hub`]: one that
//! talks to workers, or one that counts what would travel.

use shared::exchange::{Exchange, Of};
use shared::executor::{Executor, attentions_apart, enter_apart};
use shared::layers::{Attention, Conv2d, FeedForward, GroupNorm, LayerNorm, Linear};
use shared::partition::Levels;
use shared::placement::{Latents, Placement, Prompt, SelfAttention};
use shared::survey::{Kind, Operation, Surveyor};
use shared::unet::{CONV_IN, CONV_OUT, TimeEmbedding, Transformer, TransformerBlock, UNet};

use super::layout::Layout;

/// Meets the workers at the exchanges.
pub trait Hub {
    /// Why an exchange fails.
    type Error: From<shared::Error>;

    /// All workers are at `exchange`.
    ///
    /// # Errors
    /// The hub's own.
    fn exchange(&mut self, exchange: &Exchange<'_>) -> Result<(), Self::Error>;

    /// The workers do `operation` at `level`, each on its rows.
    fn workers_do(&mut self, operation: &Operation, level: usize);

    /// The user does `operation`.
    fn user_does(&mut self, operation: &Operation);
}

/// Conducts one U-Net call after the other.
pub struct Conductor<H> {
    /// Where the exchanges happen.
    pub hub: H,
    placement: Placement,
    shapes: Surveyor,
    columns: Levels,
    batch: usize,
    level: usize,
    /// Tokens and width of the prompt's embedding, when the workers are still to be given it.
    unsent_prompt: Option<[usize; 2]>,
    /// Whether this is the first call.
    first: bool,
    /// Sizes of the timestep's embedding.
    embedding: [usize; 2],
}

impl<H: Hub> Conductor<H> {
    /// A conductor of `unet`.
    pub fn new(unet: &UNet, layout: &Layout, hub: H) -> Self {
        let Layout {
            placement, tokens, ..
        } = *layout;
        let [batch, _, columns] = layout.latents;
        let shared = placement.prompt == Prompt::Shared;
        Self {
            hub,
            placement,
            shapes: Surveyor::new(tokens),
            columns: Levels::new(columns, unet.levels()),
            batch,
            level: 0,
            unsent_prompt: shared.then_some([tokens, unet.context_width]),
            first: true,
            embedding: unet.embedding(batch),
        }
    }

    /// Conducts one call on latents of `rows` rows.
    ///
    /// # Errors
    /// Those of the hub.
    pub fn call(&mut self, unet: &UNet, rows: usize, timestep: f64) -> Result<(), H::Error> {
        self.level = 0;
        let sample = [self.batch, unet.in_channels, rows, self.columns.rows(0)];
        unet.forward(self, &sample, timestep)?;
        self.meet(Of::End {
            norm: &unet.conv_norm_out,
            conv_out: &unet.conv_out,
            latents: self.placement.latents,
        })?;
        self.first = false;
        Ok(())
    }

    /// How self-attention is done at this level.
    fn attention(&self) -> SelfAttention {
        self.placement.self_attention.at(self.level)
    }

    fn meet(&mut self, of: Of<'_>) -> Result<(), H::Error> {
        self.hub.exchange(&Exchange {
            of,
            batch: self.batch,
            columns: self.columns.rows(self.level),
            level: self.level,
            first: self.first,
        })
    }

    /// The shape that `operation` gives, which the workers do.
    fn remote<T>(
        &mut self,
        operation: impl FnOnce(&mut Surveyor) -> shared::Result<T>,
    ) -> Result<T, H::Error> {
        self.shared_out(operation, |_| true)
    }

    /// The shape that `operation` gives, done by the workers where `remote` says so, else by the user.
    /// Keys and values of the prompt are made once.
    fn shared_out<T>(
        &mut self,
        operation: impl FnOnce(&mut Surveyor) -> shared::Result<T>,
        remote: impl Fn(&Operation) -> bool,
    ) -> Result<T, H::Error> {
        let shape = operation(&mut self.shapes)?;
        for operation in self.shapes.take() {
            if !self.first && operation.makes_prompt_keys() {
                continue;
            }
            if remote(&operation) {
                self.hub.workers_do(&operation, self.level);
            } else {
                self.hub.user_does(&operation);
            }
        }
        Ok(shape)
    }
}

impl<H: Hub> Executor for Conductor<H> {
    type Feature = [usize; 4];
    type Tokens = [usize; 3];
    type Embedding = ();
    type Error = H::Error;

    fn embed_time(&mut self, layer: &TimeEmbedding, timestep: f64) -> Result<(), H::Error> {
        self.shared_out(|s| s.embed_time(layer, timestep), |_| false)
    }

    fn conv(&mut self, layer: &Conv2d, x: &[usize; 4]) -> Result<[usize; 4], H::Error> {
        if layer.name == CONV_IN {
            let prompt = self.unsent_prompt.take();
            let latents = self.placement.latents;
            self.meet(Of::Begin {
                conv_in: layer,
                latents,
                embedding: self.embedding,
                prompt,
            })?;
            return self.shared_out(|s| s.conv(layer, x), |_| latents == Latents::Shared);
        }
        if layer.kernel > 1 {
            self.meet(Of::Halo(layer))?;
        }
        if layer.stride == 2 {
            self.level += 1;
        }
        self.remote(|s| s.conv(layer, x))
    }

    fn group_norm(&mut self, layer: &GroupNorm, x: &[usize; 4]) -> Result<[usize; 4], H::Error> {
        self.meet(Of::Norm(layer))?;
        Ok(*x)
    }

    fn group_norm_silu(
        &mut self,
        layer: &GroupNorm,
        x: &[usize; 4],
    ) -> Result<[usize; 4], H::Error> {
        self.group_norm(layer, x)
    }

    fn norm_conv(
        &mut self,
        norm: &GroupNorm,
        conv: &Conv2d,
        x: &[usize; 4],
    ) -> Result<[usize; 4], H::Error> {
        if conv.name == CONV_OUT && self.placement.latents == Latents::Hidden {
            return self.shared_out(|s| s.norm_conv(norm, conv, x), |_| false);
        }
        self.meet(Of::NormConv(norm, conv))?;
        self.remote(|s| s.conv(conv, x))
    }

    fn add_embedding(
        &mut self,
        project: &Linear,
        x: [usize; 4],
        embedding: &(),
    ) -> Result<[usize; 4], H::Error> {
        self.remote(|s| s.add_embedding(project, x, embedding))
    }

    fn add(&mut self, a: [usize; 4], b: &[usize; 4]) -> Result<[usize; 4], H::Error> {
        self.remote(|s| s.add(a, b))
    }

    fn concat(&mut self, a: [usize; 4], b: [usize; 4]) -> Result<[usize; 4], H::Error> {
        self.remote(|s| s.concat(a, b))
    }

    fn upsample(&mut self, x: &[usize; 4], like: &[usize; 4]) -> Result<[usize; 4], H::Error> {
        self.level = self.level.saturating_sub(1);
        self.remote(|s| s.upsample(x, like))
    }

    fn to_tokens(&mut self, x: &[usize; 4]) -> Result<[usize; 3], H::Error> {
        self.remote(|s| s.to_tokens(x))
    }

    fn to_feature(&mut self, x: [usize; 3], like: &[usize; 4]) -> Result<[usize; 4], H::Error> {
        self.remote(|s| s.to_feature(x, like))
    }

    fn linear(&mut self, layer: &Linear, x: &[usize; 3]) -> Result<[usize; 3], H::Error> {
        self.remote(|s| s.linear(layer, x))
    }

    fn layer_norm(&mut self, layer: &LayerNorm, x: &[usize; 3]) -> Result<[usize; 3], H::Error> {
        self.remote(|s| s.layer_norm(layer, x))
    }

    fn enter(&mut self, transformer: &Transformer, x: &[usize; 4]) -> Result<[usize; 3], H::Error> {
        if self.attention() != SelfAttention::Fused {
            return enter_apart(self, transformer, x);
        }
        self.meet(Of::Enter(transformer))?;
        self.shared_out(|s| s.enter(transformer, x), |_| false)
    }

    fn attentions(
        &mut self,
        block: &TransformerBlock,
        x: [usize; 3],
    ) -> Result<[usize; 3], H::Error> {
        if !self.attention().pairs() {
            return attentions_apart(self, block, x);
        }
        self.meet(Of::Paired(block))?;
        self.shared_out(|s| s.attentions(block, x), |_| false)
    }

    fn self_attention(
        &mut self,
        layer: &Attention,
        x: &[usize; 3],
    ) -> Result<[usize; 3], H::Error> {
        let how = self.attention();
        if how == SelfAttention::Tiled {
            self.meet(Of::Tiles(layer))?;
            self.meet(Of::Merge(layer))?;
        } else {
            self.meet(Of::SelfAttention(layer, how))?;
        }
        self.shared_out(
            |s| s.self_attention(layer, x),
            |operation| match how {
                SelfAttention::Paired | SelfAttention::Fused | SelfAttention::Tokens => false,
                SelfAttention::Qkv => operation.kind == Kind::Linear,
                // Turning and merging is not the U-Net's work, and little beside it.
                SelfAttention::Tiled | SelfAttention::Broadcast => true,
            },
        )
    }

    fn cross_attention(
        &mut self,
        layer: &Attention,
        x: &[usize; 3],
    ) -> Result<[usize; 3], H::Error> {
        let prompt = self.placement.prompt;
        if prompt == Prompt::Hidden {
            self.meet(Of::CrossAttention(layer))?;
        }
        self.shared_out(
            |s| s.cross_attention(layer, x),
            |operation| match prompt {
                Prompt::Shared => true,
                Prompt::Hidden => operation.kind == Kind::Linear && !operation.makes_prompt_keys(),
            },
        )
    }

    fn feed_forward(
        &mut self,
        layer: &FeedForward,
        x: &[usize; 3],
    ) -> Result<[usize; 3], H::Error> {
        self.remote(|s| s.feed_forward(layer, x))
    }

    fn add_tokens(&mut self, a: [usize; 3], b: &[usize; 3]) -> Result<[usize; 3], H::Error> {
        self.remote(|s| s.add_tokens(a, b))
    }
}
