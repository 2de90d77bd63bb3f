//! The one sequence of a step under the scheme `resident`: which exchange comes when, at which level, and who
//! computes what between two of them.
//!
//! Workers walk it over the rows that they have, the user over bare shapes, for the features are the workers':
//! both are a [`Party`], and come to the same exchanges because the [`Script`] is the same.

use lacuna_model::executor::{Executor, attentions_apart, enter_apart};
use lacuna_model::layers::{Attention, Conv2d, FeedForward, GroupNorm, LayerNorm, Linear};
use lacuna_model::partition::Levels;
use lacuna_model::unet::{CONV_IN, CONV_OUT, TimeEmbedding, Transformer, TransformerBlock, UNet};

use crate::exchange::{Exchange, Of};
use crate::placement::{Latents, Placement, Prompt, SelfAttention};

/// Where in the walk an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Level of the feature map that comes of it.
    pub level: usize,
    /// Whether this is the session's first step.
    pub first: bool,
}

/// A feature map of a party.
pub type Feature<P> = <<P as Party>::Local as Executor>::Feature;

/// A sequence of tokens of a party.
pub type Tokens<P> = <<P as Party>::Local as Executor>::Tokens;

/// The embedding of a timestep of a party.
pub type Embedding<P> = <<P as Party>::Local as Executor>::Embedding;

/// Who walks the script: it has tensors, or only their shapes. A method fails for the party's own reasons.
pub trait Party {
    /// Does what needs no other row.
    type Local: Executor<Error = lacuna_model::Error>;
    /// Why something fails.
    type Error: From<lacuna_model::Error>;

    /// A step begins: the latents or, where the user keeps them and this is a worker, what the first
    /// convolution made of them.
    fn begin(&mut self, at: &Exchange<'_>) -> Result<Feature<Self>, Self::Error>;

    /// The step ends with `y`: the prediction or, where the user keeps that and this is a worker, what the last
    /// normalisation is to be done on.
    fn end(&mut self, at: &Exchange<'_>, y: Feature<Self>) -> Result<(), Self::Error>;

    /// The embedding of the timestep, which the user makes.
    fn embed_time(
        &mut self,
        layer: &TimeEmbedding,
        timestep: f64,
    ) -> Result<Embedding<Self>, Self::Error>;

    /// What every worker does on its own rows.
    fn alone<T>(
        &mut self,
        place: Place,
        work: impl FnOnce(&mut Self::Local) -> lacuna_model::Result<T>,
    ) -> Result<T, Self::Error>;

    /// What the user does before a step begins or after it has ended, on `x`; workers pass `x` on.
    fn users(
        &mut self,
        place: Place,
        x: &Feature<Self>,
        work: impl FnOnce(&mut Self::Local) -> lacuna_model::Result<Feature<Self>>,
    ) -> Result<Feature<Self>, Self::Error>;

    /// The first convolution by the workers, whose edge rows came with the step's beginning.
    fn first_conv(
        &mut self,
        place: Place,
        conv: &Conv2d,
        x: &Feature<Self>,
    ) -> Result<Feature<Self>, Self::Error>;

    /// A convolution that needs the neighbours' edge rows; the output is at `place`.
    fn conv(
        &mut self,
        at: &Exchange<'_>,
        place: Place,
        conv: &Conv2d,
        x: &Feature<Self>,
    ) -> Result<Feature<Self>, Self::Error>;

    /// Group normalisation, and SiLU if `silu`.
    fn norm(
        &mut self,
        at: &Exchange<'_>,
        norm: &GroupNorm,
        x: &Feature<Self>,
        silu: bool,
    ) -> Result<Feature<Self>, Self::Error>;

    /// `conv(silu(norm(x)))` in one exchange.
    fn norm_conv(
        &mut self,
        at: &Exchange<'_>,
        norm: &GroupNorm,
        conv: &Conv2d,
        x: &Feature<Self>,
    ) -> Result<Feature<Self>, Self::Error>;

    /// A transformer up to its first block's attentions, by the user.
    fn enter(
        &mut self,
        at: &Exchange<'_>,
        transformer: &Transformer,
        x: &Feature<Self>,
    ) -> Result<Tokens<Self>, Self::Error>;

    /// Both attentions of a block, by the user.
    fn paired(
        &mut self,
        at: &Exchange<'_>,
        block: &TransformerBlock,
        x: Tokens<Self>,
    ) -> Result<Tokens<Self>, Self::Error>;

    /// Self-attention by the user, or over everybody's keys.
    fn self_attention(
        &mut self,
        at: &Exchange<'_>,
        layer: &Attention,
        how: SelfAttention,
        x: &Tokens<Self>,
    ) -> Result<Tokens<Self>, Self::Error>;

    /// Self-attention by tiles: they are dealt, and what came of them is merged.
    fn tiled(
        &mut self,
        dealt: &Exchange<'_>,
        merged: &Exchange<'_>,
        layer: &Attention,
        x: &Tokens<Self>,
    ) -> Result<Tokens<Self>, Self::Error>;

    /// Cross-attention by the user.
    fn cross_attention(
        &mut self,
        at: &Exchange<'_>,
        layer: &Attention,
        x: &Tokens<Self>,
    ) -> Result<Tokens<Self>, Self::Error>;

    /// [`Executor::observe`].
    fn observe(&mut self, _block: &str, _x: &Feature<Self>) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// What a session's steps have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Who does what.
    pub placement: Placement,
    /// Batch entries.
    pub batch: usize,
    /// Columns of the latents.
    pub columns: usize,
    /// Tokens of the prompt.
    pub tokens: usize,
}

/// Walks a U-Net for a party, one step after the other.
#[derive(Debug)]
pub struct Script<P> {
    /// Who walks.
    pub party: P,
    placement: Placement,
    batch: usize,
    columns: Levels,
    /// Level of the feature map that the walk is at.
    level: usize,
    /// Tokens and width of the prompt's embedding, while workers are still to be given it.
    unsent_prompt: Option<[usize; 2]>,
    /// Whether this is the session's first step.
    first: bool,
}

impl<P: Party> Script<P> {
    /// A walk of `unet` by `party` that has not begun.
    pub fn new(unet: &UNet, terms: Terms, party: P) -> Self {
        let shared = terms.placement.prompt == Prompt::Shared;
        Self {
            party,
            placement: terms.placement,
            batch: terms.batch,
            columns: Levels::new(terms.columns, unet.levels()),
            level: 0,
            unsent_prompt: shared.then_some([terms.tokens, unet.context_width]),
            first: true,
        }
    }

    /// Walks one step.
    ///
    /// # Errors
    /// Those of the party.
    pub fn step(&mut self, unet: &UNet, timestep: f64) -> Result<(), P::Error> {
        self.level = 0;
        let latents = self.placement.latents;
        let prompt = self.unsent_prompt.take();
        let begin = self.exchange(Of::Begin {
            conv_in: &unet.conv_in,
            latents,
            embedding: unet.embedding(self.batch),
            prompt,
        });
        let x = self.party.begin(&begin)?;
        let y = unet.forward(self, &x, timestep)?;
        let end = self.exchange(Of::End {
            norm: &unet.conv_norm_out,
            conv_out: &unet.conv_out,
            latents,
        });
        self.party.end(&end, y)?;
        self.first = false;
        Ok(())
    }

    fn place(&self) -> Place {
        Place {
            level: self.level,
            first: self.first,
        }
    }

    fn exchange<'a>(&self, of: Of<'a>) -> Exchange<'a> {
        Exchange {
            of,
            batch: self.batch,
            columns: self.columns.rows(self.level),
            level: self.level,
            first: self.first,
        }
    }

    /// How self-attention is done at this level.
    fn attention(&self) -> SelfAttention {
        self.placement.self_attention.at(self.level)
    }

    /// Whether the user does `layer`, the first or the last convolution.
    fn is_the_users(&self, layer: &Conv2d) -> bool {
        let ends = [CONV_IN, CONV_OUT];
        self.placement.latents == Latents::Hidden && ends.contains(&layer.name.as_str())
    }
}

impl<P: Party> Executor for Script<P> {
    type Feature = Feature<P>;
    type Tokens = Tokens<P>;
    type Embedding = Embedding<P>;
    type Error = P::Error;

    fn embed_time(
        &mut self,
        layer: &TimeEmbedding,
        timestep: f64,
    ) -> Result<Embedding<P>, P::Error> {
        self.party.embed_time(layer, timestep)
    }

    fn conv(&mut self, layer: &Conv2d, x: &Feature<P>) -> Result<Feature<P>, P::Error> {
        let place = self.place();
        if self.is_the_users(layer) {
            return self.party.users(place, x, |local| local.conv(layer, x));
        }
        if layer.name == CONV_IN {
            return self.party.first_conv(place, layer, x);
        }
        if layer.kernel == 1 {
            return self.party.alone(place, |local| local.conv(layer, x));
        }
        let at = self.exchange(Of::Halo(layer));
        if layer.stride == 2 {
            self.level += 1;
        }
        self.party.conv(&at, self.place(), layer, x)
    }

    fn group_norm(&mut self, layer: &GroupNorm, x: &Feature<P>) -> Result<Feature<P>, P::Error> {
        let at = self.exchange(Of::Norm(layer));
        self.party.norm(&at, layer, x, false)
    }

    fn group_norm_silu(
        &mut self,
        layer: &GroupNorm,
        x: &Feature<P>,
    ) -> Result<Feature<P>, P::Error> {
        let at = self.exchange(Of::Norm(layer));
        self.party.norm(&at, layer, x, true)
    }

    fn norm_conv(
        &mut self,
        norm: &GroupNorm,
        conv: &Conv2d,
        x: &Feature<P>,
    ) -> Result<Feature<P>, P::Error> {
        if self.is_the_users(conv) {
            let place = self.place();
            return self
                .party
                .users(place, x, |local| local.norm_conv(norm, conv, x));
        }
        let at = self.exchange(Of::NormConv(norm, conv));
        self.party.norm_conv(&at, norm, conv, x)
    }

    fn add_embedding(
        &mut self,
        project: &Linear,
        x: Feature<P>,
        embedding: &Embedding<P>,
    ) -> Result<Feature<P>, P::Error> {
        let place = self.place();
        self.party
            .alone(place, |local| local.add_embedding(project, x, embedding))
    }

    fn add(&mut self, a: Feature<P>, b: &Feature<P>) -> Result<Feature<P>, P::Error> {
        let place = self.place();
        self.party.alone(place, |local| local.add(a, b))
    }

    fn concat(&mut self, a: Feature<P>, b: Feature<P>) -> Result<Feature<P>, P::Error> {
        let place = self.place();
        self.party.alone(place, |local| local.concat(a, b))
    }

    fn upsample(&mut self, x: &Feature<P>, like: &Feature<P>) -> Result<Feature<P>, P::Error> {
        self.level = self.level.saturating_sub(1);
        let place = self.place();
        self.party.alone(place, |local| local.upsample(x, like))
    }

    fn to_tokens(&mut self, x: &Feature<P>) -> Result<Tokens<P>, P::Error> {
        let place = self.place();
        self.party.alone(place, |local| local.to_tokens(x))
    }

    fn to_feature(&mut self, x: Tokens<P>, like: &Feature<P>) -> Result<Feature<P>, P::Error> {
        let place = self.place();
        self.party.alone(place, |local| local.to_feature(x, like))
    }

    fn linear(&mut self, layer: &Linear, x: &Tokens<P>) -> Result<Tokens<P>, P::Error> {
        let place = self.place();
        self.party.alone(place, |local| local.linear(layer, x))
    }

    fn layer_norm(&mut self, layer: &LayerNorm, x: &Tokens<P>) -> Result<Tokens<P>, P::Error> {
        let place = self.place();
        self.party.alone(place, |local| local.layer_norm(layer, x))
    }

    fn self_attention(&mut self, layer: &Attention, x: &Tokens<P>) -> Result<Tokens<P>, P::Error> {
        match self.attention() {
            SelfAttention::Tiled => {
                let dealt = self.exchange(Of::Tiles(layer));
                let merged = self.exchange(Of::Merge(layer));
                self.party.tiled(&dealt, &merged, layer, x)
            }
            how => {
                let at = self.exchange(Of::SelfAttention(layer, how));
                self.party.self_attention(&at, layer, how, x)
            }
        }
    }

    fn cross_attention(&mut self, layer: &Attention, x: &Tokens<P>) -> Result<Tokens<P>, P::Error> {
        match self.placement.prompt {
            Prompt::Shared => {
                let place = self.place();
                self.party
                    .alone(place, |local| local.cross_attention(layer, x))
            }
            Prompt::Hidden => {
                let at = self.exchange(Of::CrossAttention(layer));
                self.party.cross_attention(&at, layer, x)
            }
        }
    }

    fn feed_forward(&mut self, layer: &FeedForward, x: &Tokens<P>) -> Result<Tokens<P>, P::Error> {
        let place = self.place();
        self.party
            .alone(place, |local| local.feed_forward(layer, x))
    }

    fn add_tokens(&mut self, a: Tokens<P>, b: &Tokens<P>) -> Result<Tokens<P>, P::Error> {
        let place = self.place();
        self.party.alone(place, |local| local.add_tokens(a, b))
    }

    fn enter(&mut self, transformer: &Transformer, x: &Feature<P>) -> Result<Tokens<P>, P::Error> {
        if self.attention() != SelfAttention::Fused {
            return enter_apart(self, transformer, x);
        }
        let at = self.exchange(Of::Enter(transformer));
        self.party.enter(&at, transformer, x)
    }

    fn attentions(
        &mut self,
        block: &TransformerBlock,
        x: Tokens<P>,
    ) -> Result<Tokens<P>, P::Error> {
        if !self.attention().pairs() {
            return attentions_apart(self, block, x);
        }
        let at = self.exchange(Of::Paired(block));
        self.party.paired(&at, block, x)
    }

    fn observe(&mut self, block: &str, x: &Feature<P>) -> Result<(), P::Error> {
        self.party.observe(block, x)
    }
}
