//! The party of [`lacuna_protocol::script`] that has the tensors of one worker's rows.
//!
//! A strip keeps its rows of every feature map for a whole step and asks for what lies outside at
//! the exchanges of [`lacuna_protocol::exchange`]. It knows no other worker and, unless the placement says
//! so, no prompt.

use std::collections::HashMap;

use burn::tensor::Tensor;
use lacuna_kernels::stats::Moments;
use lacuna_model::executor::Executor;
use lacuna_model::host::OnDevice;
use lacuna_model::layers::{Attention, Conv2d, GroupNorm};
use lacuna_model::ops;
use lacuna_model::partition::Levels;
use lacuna_model::unet::{TimeEmbedding, Transformer, TransformerBlock, UNet};
use lacuna_model::weights::Weights;
use lacuna_model::whole::{Conditioning, Whole};
use lacuna_protocol::exchange::{Assignment, Exchange, Item, Seat, Tensors, accept, take};
use lacuna_protocol::placement::SelfAttention;
use lacuna_protocol::script::{Party, Place, Script, Terms};
use lacuna_protocol::statistics;
use lacuna_protocol::{Error, Result};
use lacuna_wire::HostTensor;
use lacuna_wire::{Codec, Payload};

/// What a message brings: the label of the exchange that it is of, and its tensors.
pub type Incoming = (String, HashMap<String, Payload>);

/// The world beyond a strip.
pub trait Outside {
    /// Waits for the first message.
    ///
    /// # Errors
    /// [`Error::Closed`] when none will come.
    fn wait(&mut self) -> Result<Incoming>;

    /// Hands out what is due at the exchange `at` and waits for the next message.
    ///
    /// # Errors
    /// As [`Self::wait`].
    fn exchange(&mut self, at: String, out: HashMap<String, Payload>) -> Result<Incoming>;

    /// Called with each block's output: [`Party::observe`] of the strip. A worker that serves looks
    /// away; `lacuna audit`, which walks a strip again in its own process, keeps it.
    ///
    /// # Errors
    /// Those of the device that does not give the feature map back.
    fn observe(&mut self, _block: &str, _x: &Tensor<4>) -> Result<()> {
        Ok(())
    }
}

/// Computes step after step over one strip until `outside` says no more.
///
/// # Errors
/// [`Error::Closed`], which is how it ends; else what went wrong.
pub fn run(
    unet: &UNet,
    weights: Weights,
    assignment: Assignment,
    outside: impl Outside,
) -> Result<()> {
    let terms = Terms {
        placement: assignment.placement,
        batch: assignment.batch,
        columns: assignment.columns,
        tokens: assignment.tokens,
    };
    let strip = Strip {
        whole: Whole::without_prompt(weights),
        rows: Levels::new(assignment.rows, unet.levels()),
        begun: None,
        next: None,
        incoming: Codec::default(),
        outgoing: Codec::default(),
        assignment,
        outside,
    };
    let mut script = Script::new(unet, terms, strip);
    loop {
        // The user knows the timestep, and sends its embedding.
        script.step(unet, 0.0)?;
    }
}

/// A step's input beside the latents.
struct Begun {
    /// Of the timestep, `[1, D]`.
    embedding: Tensor<2>,
    /// Rows of the latents above and below the strip.
    halo: Halo,
    /// The strip's place among the latents' rows.
    seat: Seat,
}

/// Rows next to a strip; none where the picture ends.
type Halo = [Option<Tensor<4>>; 2];

/// Something to hand out, not yet in its number type.
enum Handed {
    Features(HostTensor),
    Statistics(Vec<Moments>),
}

/// The party that has the tensors of one strip.
struct Strip<O> {
    whole: Whole,
    assignment: Assignment,
    rows: Levels,
    begun: Option<Begun>,
    /// The message that begins the next step, where it has come.
    next: Option<Incoming>,
    incoming: Codec,
    outgoing: Codec,
    outside: O,
}

impl<O: Outside> Strip<O> {
    fn seat(&self, at: &Exchange<'_>) -> Seat {
        let Assignment { strip, tile, .. } = &self.assignment;
        Seat::new(&self.rows, strip, *tile, at.level)
    }

    /// Hands out `out`, waits, and gives what came back.
    fn meet(
        &mut self,
        exchange: &Exchange<'_>,
        out: HashMap<&'static str, Handed>,
    ) -> Result<Tensors> {
        let out = self.hand_out(exchange, out)?;
        let (at, tensors) = self.outside.exchange(exchange.label(), out)?;
        self.accept(exchange, &at, tensors)
    }

    /// What a message brings for `exchange`, its features as plain numbers.
    fn accept(
        &mut self,
        exchange: &Exchange<'_>,
        at: &str,
        tensors: HashMap<String, Payload>,
    ) -> Result<Tensors> {
        let wires = self.assignment.placement.wires;
        let items = exchange.to_worker(self.seat(exchange));
        let mut got = accept(exchange, &items, wires, at, tensors)?;
        for item in items {
            let Some(wire) = item.wire(wires) else {
                continue;
            };
            let payload = take(&mut got, item.name)?;
            let stream = format!("{at}: {}", item.name);
            let tensor = self.incoming.read(&stream, payload, &item.shape, wire)?;
            got.insert(item.name, tensor.into());
        }
        Ok(got)
    }

    /// `out` as the exchange has it travel; what it does not ask for stays.
    fn hand_out(
        &mut self,
        exchange: &Exchange<'_>,
        mut out: HashMap<&'static str, Handed>,
    ) -> Result<HashMap<String, Payload>> {
        let (wires, seat) = (self.assignment.placement.wires, self.seat(exchange));
        let label = exchange.label();
        let outgoing = &mut self.outgoing;
        let write = |item: Item| {
            let payload = match (out.remove(item.name), item.wire(wires)) {
                (Some(Handed::Statistics(moments)), None) => statistics::to_payload(&moments),
                (Some(Handed::Features(tensor)), None) => tensor.into(),
                (Some(Handed::Features(tensor)), Some(wire)) => {
                    outgoing.write(&format!("{label}: {}", item.name), tensor, wire)?
                }
                _ => return Err(Error::OutOfTurn(format!("no {} to hand out", item.name))),
            };
            Ok((item.name.to_owned(), payload))
        };
        let items = exchange.from_worker(seat).into_iter();
        items.map(write).collect()
    }

    fn on_device<const D: usize>(&self, payload: Payload) -> Result<Tensor<D>> {
        let tensor = payload.into_tensor("a feature")?;
        Ok(tensor.into_device(self.whole.device())?)
    }

    fn take<const D: usize>(&self, got: &mut Tensors, name: &'static str) -> Result<Tensor<D>> {
        self.on_device(take(got, name)?)
    }

    fn take_halo(&self, got: &mut Tensors) -> Result<Halo> {
        let mut side = |name| {
            got.remove(name)
                .map(|payload| self.on_device(payload))
                .transpose()
        };
        Ok([side("above")?, side("below")?])
    }

    /// The step that has begun.
    fn begun(&mut self) -> Result<&mut Begun> {
        let not_yet = || Error::OutOfTurn("the step has not begun".into());
        self.begun.as_mut().ok_or_else(not_yet)
    }

    /// Queries, keys and values of the strip's tokens.
    fn projected(
        &mut self,
        layer: &Attention,
        x: &Tensor<3>,
    ) -> Result<[(&'static str, Handed); 3]> {
        let [q, k, v] = self.whole.project(layer, x, false)?;
        Ok([
            ("q", features(&q)?),
            ("k", features(&k)?),
            ("v", features(&v)?),
        ])
    }

    /// A convolution of the strip between its neighbours' rows.
    fn convolve(
        &self,
        seat: Seat,
        layer: &Conv2d,
        x: Tensor<4>,
        [above, below]: Halo,
    ) -> Result<Tensor<4>> {
        let [b, c, _, w] = x.dims();
        let device = self.whole.device().clone();
        let zeros = || Tensor::zeros([b, c, 1, w], &device);
        let above = above.or_else(|| (!seat.above).then(zeros));
        let below = below.or_else(|| (!seat.below).then(zeros));
        let neighbour = |rows: Option<Tensor<4>>| rows.map(|rows| ops::like(rows, &x));
        let (above, below) = (neighbour(above), neighbour(below));
        let rows = above.into_iter().chain([x]).chain(below).collect();
        let x = Tensor::cat(rows, 2);
        Ok(ops::conv2d_of_strip(
            self.whole.weights(),
            layer,
            x,
            seat.odd,
        )?)
    }

    /// Statistics of the whole feature map of which `x` is a strip.
    fn merged(
        &self,
        at: &Exchange<'_>,
        norm: &GroupNorm,
        got: &mut Tensors,
    ) -> Result<Vec<Moments>> {
        let count = norm.channels / norm.groups * self.rows.rows(at.level) * at.columns;
        Ok(statistics::from_payload(&take(got, "moments")?, count)?)
    }
}

fn host<const D: usize>(x: Tensor<D>) -> Result<HostTensor> {
    Ok(HostTensor::from_device(x)?)
}

fn features<const D: usize>(x: &Tensor<D>) -> Result<Handed> {
    Ok(Handed::Features(host(x.clone())?))
}

impl<O: Outside> Party for Strip<O> {
    type Local = Whole;
    type Error = Error;

    fn begin(&mut self, at: &Exchange<'_>) -> Result<Tensor<4>> {
        let (label, tensors) = match self.next.take() {
            Some(message) => message,
            None => self.outside.wait()?,
        };
        let mut got = self.accept(at, &label, tensors)?;
        if let Some(prompt) = got.remove("prompt") {
            let prompt = self.on_device(prompt)?;
            self.whole.set_prompt(Conditioning::of_text(prompt));
        }
        let x = self.take(&mut got, "x")?;
        self.begun = Some(Begun {
            embedding: self.take(&mut got, "embedding")?,
            halo: self.take_halo(&mut got)?,
            seat: self.seat(at),
        });
        Ok(x)
    }

    fn end(&mut self, at: &Exchange<'_>, y: Tensor<4>) -> Result<()> {
        let out = HashMap::from([("y", Handed::Features(host(y)?))]);
        let out = self.hand_out(at, out)?;
        self.next = Some(self.outside.exchange(at.label(), out)?);
        Ok(())
    }

    fn embed_time(&mut self, _: &TimeEmbedding, _: f64) -> Result<Tensor<2>> {
        Ok(self.begun()?.embedding.clone())
    }

    fn alone<T>(
        &mut self,
        _: Place,
        work: impl FnOnce(&mut Whole) -> lacuna_model::Result<T>,
    ) -> Result<T> {
        Ok(work(&mut self.whole)?)
    }

    fn users(
        &mut self,
        _: Place,
        x: &Tensor<4>,
        _: impl FnOnce(&mut Whole) -> lacuna_model::Result<Tensor<4>>,
    ) -> Result<Tensor<4>> {
        Ok(x.clone())
    }

    fn first_conv(&mut self, _: Place, conv: &Conv2d, x: &Tensor<4>) -> Result<Tensor<4>> {
        let begun = self.begun()?;
        let (seat, halo) = (begun.seat, std::mem::take(&mut begun.halo));
        self.convolve(seat, conv, x.clone(), halo)
    }

    fn conv(
        &mut self,
        at: &Exchange<'_>,
        _: Place,
        conv: &Conv2d,
        x: &Tensor<4>,
    ) -> Result<Tensor<4>> {
        let out = HashMap::from(edges(x)?);
        let mut got = self.meet(at, out)?;
        let halo = self.take_halo(&mut got)?;
        self.convolve(self.seat(at), conv, x.clone(), halo)
    }

    fn norm(
        &mut self,
        at: &Exchange<'_>,
        norm: &GroupNorm,
        x: &Tensor<4>,
        silu: bool,
    ) -> Result<Tensor<4>> {
        let moments = ops::group_moments(x.clone(), norm.groups)?;
        let out = HashMap::from([("moments", Handed::Statistics(moments))]);
        let mut got = self.meet(at, out)?;
        let merged = self.merged(at, norm, &mut got)?;
        let weights = self.whole.weights();
        Ok(ops::group_norm_by(weights, norm, x.clone(), &merged, silu)?)
    }

    fn norm_conv(
        &mut self,
        at: &Exchange<'_>,
        norm: &GroupNorm,
        conv: &Conv2d,
        x: &Tensor<4>,
    ) -> Result<Tensor<4>> {
        let moments = ops::group_moments(x.clone(), norm.groups)?;
        let mut out = HashMap::from(edges(x)?);
        out.insert("moments", Handed::Statistics(moments));
        let mut got = self.meet(at, out)?;
        let merged = self.merged(at, norm, &mut got)?;
        let weights = self.whole.weights();
        let normalise = |x| ops::group_norm_by(weights, norm, x, &merged, true);
        // The neighbours' rows come as they were before the normalisation.
        let [above, below] = self.take_halo(&mut got)?;
        let halo = [
            above.map(&normalise).transpose()?,
            below.map(&normalise).transpose()?,
        ];
        self.convolve(self.seat(at), conv, normalise(x.clone())?, halo)
    }

    fn enter(&mut self, at: &Exchange<'_>, _: &Transformer, x: &Tensor<4>) -> Result<Tensor<3>> {
        let mut got = self.meet(at, HashMap::from([("x", features(x)?)]))?;
        self.take(&mut got, "x")
    }

    fn paired(
        &mut self,
        at: &Exchange<'_>,
        _: &TransformerBlock,
        x: Tensor<3>,
    ) -> Result<Tensor<3>> {
        // Kept only where it is needed: a tensor that nobody else holds is handed out without a copy.
        let kept = (!self.assignment.placement.wires.attention.is_exact()).then(|| x.clone());
        let out = HashMap::from([("x", Handed::Features(host(x)?))]);
        let mut got = self.meet(at, out)?;
        let y = self.take(&mut got, "x")?;
        Ok(match kept {
            Some(x) => ops::add(x, y),
            None => y,
        })
    }

    fn self_attention(
        &mut self,
        at: &Exchange<'_>,
        layer: &Attention,
        how: SelfAttention,
        x: &Tensor<3>,
    ) -> Result<Tensor<3>> {
        match how {
            SelfAttention::Qkv => {
                let out = self.projected(layer, x)?;
                let mut got = self.meet(at, HashMap::from(out))?;
                let y = self.take(&mut got, "y")?;
                Ok(self.whole.linear(&layer.to_out, &y)?)
            }
            SelfAttention::Broadcast => {
                let [q, k, v] = self.whole.project(layer, x, false)?;
                let out = [("k", features(&k)?), ("v", features(&v)?)];
                let mut got = self.meet(at, HashMap::from(out))?;
                let all = [self.take(&mut got, "k")?, self.take(&mut got, "v")?];
                let y = self.whole.attend_to(layer, q, all);
                Ok(self.whole.linear(&layer.to_out, &y)?)
            }
            _ => {
                let mut got = self.meet(at, HashMap::from([("x", features(x)?)]))?;
                self.take(&mut got, "y")
            }
        }
    }

    fn tiled(
        &mut self,
        dealt: &Exchange<'_>,
        merged: &Exchange<'_>,
        layer: &Attention,
        x: &Tensor<3>,
    ) -> Result<Tensor<3>> {
        let out = self.projected(layer, x)?;
        let mut got = self.meet(dealt, HashMap::from(out))?;
        let [q, k, v] = [
            self.take(&mut got, "q")?,
            self.take(&mut got, "k")?,
            self.take(&mut got, "v")?,
        ];
        let (y, sums) = ops::attention_part(q, k, v, layer.heads);
        let out = [("y", features(&y)?), ("sums", features(&sums)?)];
        let mut got = self.meet(merged, HashMap::from(out))?;
        let y = self.take(&mut got, "y")?;
        Ok(self.whole.linear(&layer.to_out, &y)?)
    }

    fn cross_attention(
        &mut self,
        at: &Exchange<'_>,
        layer: &Attention,
        x: &Tensor<3>,
    ) -> Result<Tensor<3>> {
        let q = self.whole.linear(&layer.to_q, x)?;
        let out = HashMap::from([("q", Handed::Features(host(q)?))]);
        let mut got = self.meet(at, out)?;
        let y = self.take(&mut got, "y")?;
        Ok(self.whole.linear(&layer.to_out, &y)?)
    }

    fn observe(&mut self, block: &str, x: &Tensor<4>) -> Result<()> {
        self.outside.observe(block, x)
    }
}

/// First and last row, for the neighbours.
fn edges(x: &Tensor<4>) -> Result<[(&'static str, Handed); 2]> {
    let row = |at| Ok::<_, Error>(Handed::Features(host(x.clone().narrow(2, at, 1))?));
    let last = x.dims()[2] - 1;
    Ok([("first", row(0)?), ("last", row(last)?)])
}
