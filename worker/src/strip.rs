//! The executor over one worker's rows: the worker's side of the `resident` scheme.
//!
//! A strip keeps its rows of every feature map for a whole step and asks for what lies outside at
//! the exchanges of [`shared::exchange`]. It knows no other worker and, unless the placement says
//! so, no prompt.

use std::collections::HashMap;

use burn::tensor::Tensor;
use shared::exchange::{Assignment, Exchange, Item, Of, Seat, Tensors, accept, take};
use shared::executor::{Executor, attentions_apart, enter_apart};
use shared::host::{HostTensor, OnDevice};
use shared::layers::{Attention, Conv2d, GroupNorm};
use shared::partition::Levels;
use shared::placement::{Latents, Prompt, SelfAttention};
use shared::protocol::{Error, Result};
use shared::stats::Moments;
use shared::unet::{CONV_IN, CONV_OUT, TimeEmbedding, Transformer, TransformerBlock, UNet};
use shared::weights::Weights;
use shared::whole::{Conditioning, Whole};
use shared::wire::{Codec, Payload};
use shared::{ops, statistics};

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

    /// Called with each block's output: [`Executor::observe`] of the strip. A worker that serves looks
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
    let count = unet.levels();
    let mut strip = Strip {
        whole: Whole::without_prompt(weights),
        rows: Levels::new(assignment.rows, count),
        columns: Levels::new(assignment.columns, count),
        level: 0,
        begun: None,
        first: true,
        incoming: Codec::default(),
        outgoing: Codec::default(),
        knows_prompt: assignment.placement.prompt == Prompt::Hidden,
        assignment,
        outside,
    };
    let mut message = strip.outside.wait()?;
    loop {
        let x = strip.begin(unet, message)?;
        let y = unet.forward(&mut strip, &x, 0.0)?;
        let end = strip.exchange(Of::End {
            norm: &unet.conv_norm_out,
            conv_out: &unet.conv_out,
            latents: strip.assignment.placement.latents,
        });
        let out = HashMap::from([("y", Handed::Features(host(y)?))]);
        let out = strip.hand_out(&end, out)?;
        message = strip.outside.exchange(end.label(), out)?;
        strip.first = false;
    }
}

/// A step's input beside the latents.
struct Begun {
    /// Of the timestep, `[1, D]`.
    embedding: Tensor<2>,
    /// Rows of the latents above and below the strip.
    halo: Halo,
}

/// Rows next to a strip; none where the picture ends.
type Halo = [Option<Tensor<4>>; 2];

/// Something to hand out, not yet in its number type.
enum Handed {
    Features(HostTensor),
    Statistics(Vec<Moments>),
}

/// Executes a U-Net over one strip.
struct Strip<O> {
    whole: Whole,
    assignment: Assignment,
    rows: Levels,
    columns: Levels,
    /// Level of the feature map that the walk is at.
    level: usize,
    begun: Option<Begun>,
    /// Whether this is the first step.
    first: bool,
    incoming: Codec,
    outgoing: Codec,
    knows_prompt: bool,
    outside: O,
}

impl<O: Outside> Strip<O> {
    fn seat(&self) -> Seat {
        Seat::new(
            &self.rows,
            &self.assignment.strip,
            self.assignment.tile,
            self.level,
        )
    }

    /// Whether the user does `layer`, the first or the last convolution.
    fn is_the_users(&self, layer: &Conv2d) -> bool {
        let ends = [CONV_IN, CONV_OUT];
        self.assignment.placement.latents == Latents::Hidden && ends.contains(&layer.name.as_str())
    }

    /// How self-attention is done at this level.
    fn attention(&self) -> SelfAttention {
        self.assignment.placement.self_attention.at(self.level)
    }

    fn exchange<'a>(&self, of: Of<'a>) -> Exchange<'a> {
        Exchange {
            of,
            batch: self.assignment.batch,
            columns: self.columns.rows(self.level),
            level: self.level,
            first: self.first,
        }
    }

    /// Takes a step's first message apart; gives the strip of the noisy latents, or of what the first
    /// convolution made of them.
    fn begin(&mut self, unet: &UNet, (at, tensors): Incoming) -> Result<Tensor<4>> {
        self.level = 0;
        let begin = self.exchange(Of::Begin {
            conv_in: &unet.conv_in,
            latents: self.assignment.placement.latents,
            embedding: unet.embedding(self.assignment.batch),
            prompt: (!self.knows_prompt).then_some([self.assignment.tokens, unet.context_width]),
        });
        let mut got = self.accept(&begin, &at, tensors)?;
        if let Some(prompt) = got.remove("prompt") {
            self.whole.set_prompt(Conditioning {
                context: self.place(prompt)?,
                added: None,
            });
            self.knows_prompt = true;
        }
        let x = self.take(&mut got, "x")?;
        self.begun = Some(Begun {
            embedding: self.take(&mut got, "embedding")?,
            halo: self.take_halo(&mut got)?,
        });
        Ok(x)
    }

    /// Hands out `out`, waits, and gives what came back.
    fn meet(&mut self, of: Of<'_>, out: HashMap<&'static str, Handed>) -> Result<Tensors> {
        let exchange = self.exchange(of);
        let out = self.hand_out(&exchange, out)?;
        let (at, tensors) = self.outside.exchange(exchange.label(), out)?;
        self.accept(&exchange, &at, tensors)
    }

    /// What a message brings for `exchange`, its features as plain numbers.
    fn accept(
        &mut self,
        exchange: &Exchange<'_>,
        at: &str,
        tensors: HashMap<String, Payload>,
    ) -> Result<Tensors> {
        let wires = self.assignment.placement.wires;
        let items = exchange.to_worker(self.seat());
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
        let (wires, seat) = (self.assignment.placement.wires, self.seat());
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

    fn place<const D: usize>(&self, payload: Payload) -> Result<Tensor<D>> {
        let tensor = payload.into_tensor("a feature")?;
        Ok(tensor.into_device(self.whole.device())?)
    }

    fn take<const D: usize>(&self, got: &mut Tensors, name: &'static str) -> Result<Tensor<D>> {
        self.place(take(got, name)?)
    }

    fn take_halo(&self, got: &mut Tensors) -> Result<Halo> {
        let mut side = |name| {
            got.remove(name)
                .map(|payload| self.place(payload))
                .transpose()
        };
        Ok([side("above")?, side("below")?])
    }

    /// First and last row, for the neighbours.
    fn edges(&self, x: &Tensor<4>) -> Result<[(&'static str, Handed); 2]> {
        let row = |at| Ok::<_, Error>(Handed::Features(host(x.clone().narrow(2, at, 1))?));
        let last = x.dims()[2] - 1;
        Ok([("first", row(0)?), ("last", row(last)?)])
    }

    /// A convolution of the strip between its neighbours' rows.
    fn convolve(
        &mut self,
        layer: &Conv2d,
        x: Tensor<4>,
        [above, below]: Halo,
    ) -> Result<Tensor<4>> {
        let seat = self.seat();
        let [b, c, _, w] = x.dims();
        let device = self.whole.device().clone();
        let zeros = || Tensor::zeros([b, c, 1, w], &device);
        let above = above.or_else(|| (!seat.above).then(zeros));
        let below = below.or_else(|| (!seat.below).then(zeros));
        let neighbour = |rows: Option<Tensor<4>>| rows.map(|rows| ops::like(rows, &x));
        let (above, below) = (neighbour(above), neighbour(below));
        let rows = above.into_iter().chain([x]).chain(below).collect();
        let y = ops::conv2d_of_strip(self.whole.weights(), layer, Tensor::cat(rows, 2), seat.odd)?;
        if layer.stride == 2 {
            self.level += 1;
        }
        Ok(y)
    }

    /// Statistics of the whole feature map of which `x` is a strip.
    fn merged(&self, norm: &GroupNorm, x: &Tensor<4>, got: &mut Tensors) -> Result<Vec<Moments>> {
        let [_, c, _, w] = x.dims();
        let count = c / norm.groups * self.rows.rows(self.level) * w;
        Ok(statistics::from_payload(&take(got, "moments")?, count)?)
    }

    fn normalise(&mut self, norm: &GroupNorm, x: &Tensor<4>, silu: bool) -> Result<Tensor<4>> {
        let moments = ops::group_moments(x.clone(), norm.groups)?;
        let out = HashMap::from([("moments", Handed::Statistics(moments))]);
        let mut got = self.meet(Of::Norm(norm), out)?;
        let merged = self.merged(norm, x, &mut got)?;
        Ok(ops::group_norm_by(
            self.whole.weights(),
            norm,
            x.clone(),
            &merged,
            silu,
        )?)
    }
}

fn host<const D: usize>(x: Tensor<D>) -> Result<HostTensor> {
    Ok(HostTensor::from_device(x)?)
}

impl<O: Outside> Executor for Strip<O> {
    type Feature = Tensor<4>;
    type Tokens = Tensor<3>;
    type Embedding = Tensor<2>;
    type Error = Error;

    fn embed_time(&mut self, _: &TimeEmbedding, _: f64) -> Result<Tensor<2>> {
        match &self.begun {
            Some(begun) => Ok(begun.embedding.clone()),
            None => Err(Error::OutOfTurn("the step has not begun".into())),
        }
    }

    fn conv(&mut self, layer: &Conv2d, x: &Tensor<4>) -> Result<Tensor<4>> {
        if self.is_the_users(layer) {
            return Ok(x.clone());
        }
        if layer.kernel == 1 {
            return Ok(self.whole.conv(layer, x)?);
        }
        let halo = match &mut self.begun {
            Some(begun) if layer.name == CONV_IN => std::mem::take(&mut begun.halo),
            _ => {
                let out = HashMap::from(self.edges(x)?);
                let mut got = self.meet(Of::Halo(layer), out)?;
                self.take_halo(&mut got)?
            }
        };
        self.convolve(layer, x.clone(), halo)
    }

    fn group_norm(&mut self, layer: &GroupNorm, x: &Tensor<4>) -> Result<Tensor<4>> {
        self.normalise(layer, x, false)
    }

    fn group_norm_silu(&mut self, layer: &GroupNorm, x: &Tensor<4>) -> Result<Tensor<4>> {
        self.normalise(layer, x, true)
    }

    fn norm_conv(&mut self, norm: &GroupNorm, conv: &Conv2d, x: &Tensor<4>) -> Result<Tensor<4>> {
        if self.is_the_users(conv) {
            return Ok(x.clone());
        }
        let moments = ops::group_moments(x.clone(), norm.groups)?;
        let mut out = HashMap::from(self.edges(x)?);
        out.insert("moments", Handed::Statistics(moments));
        let mut got = self.meet(Of::NormConv(norm, conv), out)?;
        let merged = self.merged(norm, x, &mut got)?;
        let weights = self.whole.weights().clone();
        let normalise = |x| ops::group_norm_by(&weights, norm, x, &merged, true);
        // The neighbours' rows come as they were before the normalisation.
        let [above, below] = self.take_halo(&mut got)?;
        let halo = [
            above.map(&normalise).transpose()?,
            below.map(&normalise).transpose()?,
        ];
        self.convolve(conv, normalise(x.clone())?, halo)
    }

    fn upsample(&mut self, x: &Tensor<4>, like: &Tensor<4>) -> Result<Tensor<4>> {
        self.level = self.level.saturating_sub(1);
        Ok(self.whole.upsample(x, like)?)
    }

    fn enter(&mut self, transformer: &Transformer, x: &Tensor<4>) -> Result<Tensor<3>> {
        if self.attention() != SelfAttention::Fused {
            return enter_apart(self, transformer, x);
        }
        let out = HashMap::from([("x", Handed::Features(host(x.clone())?))]);
        let mut got = self.meet(Of::Enter(transformer), out)?;
        self.take(&mut got, "x")
    }

    fn attentions(&mut self, block: &TransformerBlock, x: Tensor<3>) -> Result<Tensor<3>> {
        if !self.attention().pairs() {
            return attentions_apart(self, block, x);
        }
        // Kept only where it is needed: a tensor that nobody else holds is handed out without a copy.
        let kept = (!self.assignment.placement.wires.attention.is_exact()).then(|| x.clone());
        let out = HashMap::from([("x", Handed::Features(host(x)?))]);
        let mut got = self.meet(Of::Paired(block), out)?;
        let y = self.take(&mut got, "x")?;
        Ok(match kept {
            Some(x) => ops::add(x, y),
            None => y,
        })
    }

    fn self_attention(&mut self, layer: &Attention, x: &Tensor<3>) -> Result<Tensor<3>> {
        let how = self.attention();
        let of = Of::SelfAttention(layer, how);
        let features = |x: &Tensor<3>| Ok::<_, Error>(Handed::Features(host(x.clone())?));
        match how {
            SelfAttention::Paired | SelfAttention::Fused | SelfAttention::Tokens => {
                let mut got = self.meet(of, HashMap::from([("x", features(x)?)]))?;
                self.take(&mut got, "y")
            }
            SelfAttention::Qkv => {
                let [q, k, v] = self.whole.project(layer, x, false)?;
                let out = [
                    ("q", features(&q)?),
                    ("k", features(&k)?),
                    ("v", features(&v)?),
                ];
                let mut got = self.meet(of, HashMap::from(out))?;
                let y = self.take(&mut got, "y")?;
                Ok(self.whole.linear(&layer.to_out, &y)?)
            }
            SelfAttention::Tiled => {
                let [q, k, v] = self.whole.project(layer, x, false)?;
                let out = [
                    ("q", features(&q)?),
                    ("k", features(&k)?),
                    ("v", features(&v)?),
                ];
                let mut got = self.meet(Of::Tiles(layer), HashMap::from(out))?;
                let [q, k, v] = [
                    self.take(&mut got, "q")?,
                    self.take(&mut got, "k")?,
                    self.take(&mut got, "v")?,
                ];
                let (y, sums) = ops::attention_part(q, k, v, layer.heads);
                let out = [("y", features(&y)?), ("sums", features(&sums)?)];
                let mut got = self.meet(Of::Merge(layer), HashMap::from(out))?;
                let y = self.take(&mut got, "y")?;
                Ok(self.whole.linear(&layer.to_out, &y)?)
            }
            SelfAttention::Broadcast => {
                let [q, k, v] = self.whole.project(layer, x, false)?;
                let out = [("k", features(&k)?), ("v", features(&v)?)];
                let mut got = self.meet(of, HashMap::from(out))?;
                let all = [self.take(&mut got, "k")?, self.take(&mut got, "v")?];
                let y = self.whole.attend_to(layer, q, all);
                Ok(self.whole.linear(&layer.to_out, &y)?)
            }
        }
    }

    fn cross_attention(&mut self, layer: &Attention, x: &Tensor<3>) -> Result<Tensor<3>> {
        if self.assignment.placement.prompt == Prompt::Shared {
            return Ok(self.whole.cross_attention(layer, x)?);
        }
        let q = self.whole.linear(&layer.to_q, x)?;
        let out = HashMap::from([("q", Handed::Features(host(q)?))]);
        let mut got = self.meet(Of::CrossAttention(layer), out)?;
        let y = self.take(&mut got, "y")?;
        Ok(self.whole.linear(&layer.to_out, &y)?)
    }

    fn observe(&mut self, block: &str, x: &Tensor<4>) -> Result<()> {
        self.outside.observe(block, x)
    }

    shared::whole_does_the_rest!(whole);
}
