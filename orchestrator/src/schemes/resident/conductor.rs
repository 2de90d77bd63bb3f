//! The user's walk of the U-Net under `resident`: over bare shapes, for the features are the workers'.
//!
//! It follows the script that the workers follow ([`lacuna_protocol::script`]), comes to every exchange when they do, and
//! leaves it to a [`Hub`]: one that talks to workers, or one that counts what would travel.

use lacuna_model::executor::Executor;
use lacuna_model::layers::{Attention, Conv2d, GroupNorm};
use lacuna_model::survey::{Kind, Operation, Surveyor};
use lacuna_model::unet::{TimeEmbedding, Transformer, TransformerBlock, UNet};
use lacuna_protocol::exchange::{Exchange, Of};
use lacuna_protocol::placement::SelfAttention;
use lacuna_protocol::script::{Party, Place, Script, Terms};

use super::layout::Layout;

/// Meets the workers at the exchanges.
pub trait Hub {
    /// Why an exchange fails.
    type Error: From<lacuna_model::Error>;

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
pub type Conductor<H> = Script<Shapes<H>>;

/// A conductor of `unet` with `hub`.
pub fn conductor<H: Hub>(unet: &UNet, layout: &Layout, hub: H) -> Conductor<H> {
    let [batch, rows, columns] = layout.latents;
    let terms = Terms {
        placement: layout.placement,
        batch,
        columns,
        tokens: layout.tokens,
    };
    let shapes = Shapes {
        hub,
        rows,
        surveyor: Surveyor::new(batch, layout.tokens),
    };
    Script::new(unet, terms, shapes)
}

/// The party that has only the shapes of the whole picture.
pub struct Shapes<H> {
    /// Where the exchanges happen.
    pub hub: H,
    /// Of the latents.
    rows: usize,
    surveyor: Surveyor,
}

impl<H: Hub> Shapes<H> {
    /// The shape that `work` gives, of which the workers do what `workers` says, and the user the rest. Keys and
    /// values of the prompt are made once.
    fn shared_out<T>(
        &mut self,
        place: Place,
        work: impl FnOnce(&mut Surveyor) -> lacuna_model::Result<T>,
        workers: impl Fn(&Operation) -> bool,
    ) -> Result<T, H::Error> {
        let shape = work(&mut self.surveyor)?;
        for operation in self.surveyor.take() {
            if !place.first && operation.makes_prompt_keys() {
                continue;
            }
            if workers(&operation) {
                self.hub.workers_do(&operation, place.level);
            } else {
                self.hub.user_does(&operation);
            }
        }
        Ok(shape)
    }
}

fn place(at: &Exchange<'_>) -> Place {
    Place {
        level: at.level,
        first: at.first,
    }
}

impl<H: Hub> Party for Shapes<H> {
    type Local = Surveyor;
    type Error = H::Error;

    fn begin(&mut self, at: &Exchange<'_>) -> Result<[usize; 4], H::Error> {
        self.hub.exchange(at)?;
        let channels = match at.of {
            Of::Begin { conv_in, .. } => conv_in.c_in,
            _ => 0,
        };
        Ok([at.batch, channels, self.rows, at.columns])
    }

    fn end(&mut self, at: &Exchange<'_>, _: [usize; 4]) -> Result<(), H::Error> {
        self.hub.exchange(at)
    }

    fn embed_time(&mut self, layer: &TimeEmbedding, timestep: f64) -> Result<usize, H::Error> {
        let place = Place {
            level: 0,
            first: true,
        };
        self.shared_out(place, |s| s.embed_time(layer, timestep), |_| false)
    }

    fn alone<T>(
        &mut self,
        place: Place,
        work: impl FnOnce(&mut Surveyor) -> lacuna_model::Result<T>,
    ) -> Result<T, H::Error> {
        self.shared_out(place, work, |_| true)
    }

    fn users(
        &mut self,
        place: Place,
        _: &[usize; 4],
        work: impl FnOnce(&mut Surveyor) -> lacuna_model::Result<[usize; 4]>,
    ) -> Result<[usize; 4], H::Error> {
        self.shared_out(place, work, |_| false)
    }

    fn first_conv(
        &mut self,
        place: Place,
        conv: &Conv2d,
        x: &[usize; 4],
    ) -> Result<[usize; 4], H::Error> {
        self.alone(place, |s| s.conv(conv, x))
    }

    fn conv(
        &mut self,
        at: &Exchange<'_>,
        place: Place,
        conv: &Conv2d,
        x: &[usize; 4],
    ) -> Result<[usize; 4], H::Error> {
        self.hub.exchange(at)?;
        self.alone(place, |s| s.conv(conv, x))
    }

    fn norm(
        &mut self,
        at: &Exchange<'_>,
        _: &GroupNorm,
        x: &[usize; 4],
        _: bool,
    ) -> Result<[usize; 4], H::Error> {
        self.hub.exchange(at)?;
        Ok(*x)
    }

    fn norm_conv(
        &mut self,
        at: &Exchange<'_>,
        _: &GroupNorm,
        conv: &Conv2d,
        x: &[usize; 4],
    ) -> Result<[usize; 4], H::Error> {
        self.hub.exchange(at)?;
        self.alone(place(at), |s| s.conv(conv, x))
    }

    fn enter(
        &mut self,
        at: &Exchange<'_>,
        transformer: &Transformer,
        x: &[usize; 4],
    ) -> Result<[usize; 3], H::Error> {
        self.hub.exchange(at)?;
        self.shared_out(place(at), |s| s.enter(transformer, x), |_| false)
    }

    fn paired(
        &mut self,
        at: &Exchange<'_>,
        block: &TransformerBlock,
        x: [usize; 3],
    ) -> Result<[usize; 3], H::Error> {
        self.hub.exchange(at)?;
        self.shared_out(place(at), |s| s.attentions(block, x), |_| false)
    }

    fn self_attention(
        &mut self,
        at: &Exchange<'_>,
        layer: &Attention,
        how: SelfAttention,
        x: &[usize; 3],
    ) -> Result<[usize; 3], H::Error> {
        self.hub.exchange(at)?;
        self.shared_out(
            place(at),
            |s| s.self_attention(layer, x),
            |operation| match how {
                SelfAttention::Paired | SelfAttention::Fused | SelfAttention::Tokens => false,
                SelfAttention::Qkv => operation.kind == Kind::Linear,
                SelfAttention::Tiled | SelfAttention::Broadcast => true,
            },
        )
    }

    fn tiled(
        &mut self,
        dealt: &Exchange<'_>,
        merged: &Exchange<'_>,
        layer: &Attention,
        x: &[usize; 3],
    ) -> Result<[usize; 3], H::Error> {
        self.hub.exchange(dealt)?;
        self.hub.exchange(merged)?;
        // Turning and merging is not the U-Net's work, and little beside it.
        self.alone(place(merged), |s| s.self_attention(layer, x))
    }

    fn cross_attention(
        &mut self,
        at: &Exchange<'_>,
        layer: &Attention,
        x: &[usize; 3],
    ) -> Result<[usize; 3], H::Error> {
        self.hub.exchange(at)?;
        self.shared_out(
            place(at),
            |s| s.cross_attention(layer, x),
            |operation| operation.kind == Kind::Linear && !operation.makes_prompt_keys(),
        )
    }
}
