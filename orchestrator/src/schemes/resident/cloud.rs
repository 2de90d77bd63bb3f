//! The hub that talks to workers: merges what they hand out, and does the user's part.

use std::ops::Range;

use burn::tensor::Tensor;
use lacuna_kernels::stats::Moments;
use lacuna_model::executor::Executor;
use lacuna_model::host::OnDevice;
use lacuna_model::layers::Attention;
use lacuna_model::partition::{Levels, Rows, cut, join};
use lacuna_model::survey::Operation;
use lacuna_model::whole::Whole;
use lacuna_protocol::exchange::{Exchange, Item, Of, Seat, Tensors, take};
use lacuna_protocol::placement::{Latents, SelfAttention, Wires};
use lacuna_protocol::statistics;
use lacuna_wire::HostTensor;
use lacuna_wire::{Codec, Payload};

use super::conductor::Hub;
use super::intake::{Intake, stream};
use super::places::seats;
use super::tiles::Secret;
use crate::error::{Error, Result};
use crate::fleet::Fleet;
use crate::fleet::client::Handed;
use crate::fleet::tally::Kind;
use crate::schemes::plausible::Plausible;

/// One picture's strips, on a fleet of workers.
pub struct Cloud {
    fleet: Fleet,
    /// The user's own part of the U-Net.
    whole: Whole,
    wires: Wires,
    /// This side's end of what goes to each worker.
    codecs: Vec<Codec>,
    /// And of what comes from them.
    intake: Intake,
    rows: Levels,
    /// Each worker's rows of the coarsest level.
    strips: Vec<Range<usize>>,
    /// Most bytes of tensors that a worker hands out at once.
    limit: usize,
    /// The prompt's embedding, for workers that are to know it.
    prompt: Option<HostTensor>,
    /// What the workers have handed out and nobody has looked at.
    pending: Vec<Handed>,
    /// The step's input: latents and embedding of the timestep.
    begin: Option<(HostTensor, HostTensor)>,
    /// The step's prediction.
    prediction: Option<HostTensor>,
    /// What makes the tiles that the workers are at understandable.
    secret: Option<Secret>,
}

impl Cloud {
    /// A hub over `fleet`, whose sessions hold `strips`. Workers hand out at most `limit` bytes at once.
    /// `prompt` is its embedding, for workers that are to know it.
    pub fn new(
        fleet: Fleet,
        whole: Whole,
        prompt: Option<HostTensor>,
        wires: Wires,
        rows: Levels,
        strips: Vec<Range<usize>>,
        limit: usize,
    ) -> Self {
        Self {
            fleet,
            whole,
            wires,
            codecs: strips.iter().map(|_| Codec::default()).collect(),
            intake: Intake::new(wires, strips.len()),
            rows,
            strips,
            limit,
            prompt,
            pending: Vec::new(),
            begin: None,
            prediction: None,
            secret: None,
        }
    }

    /// Begins a step with its latents, `[B, C, H, W]`, and timestep's embedding, `[1, D]`.
    ///
    /// # Errors
    /// As [`Fleet::begin_call`].
    pub fn begin_step(&mut self, latents: HostTensor, embedding: HostTensor) -> Result<()> {
        self.begin = Some((latents, embedding));
        self.fleet.begin_call()
    }

    /// The last step's prediction, once.
    pub fn take_prediction(&mut self) -> Option<HostTensor> {
        self.prediction.take()
    }

    /// The user's own part of the U-Net.
    pub fn whole(&mut self) -> &mut Whole {
        &mut self.whole
    }

    /// The workers.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// The user's part and the fleet, to take account of both.
    pub fn into_parts(self) -> (Whole, Fleet) {
        (self.whole, self.fleet)
    }

    /// What all workers hand out at `exchange`, checked.
    fn collect(&mut self, exchange: &Exchange<'_>, seats: &[Seat]) -> Result<Vec<Tensors>> {
        let kind = kind_of(exchange);
        let pending = std::mem::take(&mut self.pending);
        let mut collected = Vec::with_capacity(pending.len());
        for (i, (handed, seat)) in pending.into_iter().zip(seats).enumerate() {
            if let Some(tally) = self.fleet.tallies().nth(i) {
                tally.count_reply(kind, handed.size);
            }
            let tensors = self.intake.read(i, exchange, *seat, handed);
            collected.push(tensors.map_err(|e| self.fleet.nonsense(i, &e))?);
        }
        Ok(collected)
    }

    /// One tensor from each worker.
    fn each(handed: &mut [Tensors], name: &'static str) -> Result<Vec<HostTensor>> {
        let one = |tensors: &mut Tensors| take(tensors, name)?.into_tensor(name);
        Ok(handed
            .iter_mut()
            .map(one)
            .collect::<lacuna_wire::Result<_>>()?)
    }

    /// The tokens `name` of the whole picture, on the user's device.
    fn gather(&self, handed: &mut [Tensors], name: &'static str) -> Result<Tensor<3>> {
        let whole = join(&Self::each(handed, name)?, Rows::OfTokens)?;
        Ok(whole.into_device(self.whole.device())?)
    }

    /// Each worker's tokens of `x`, as `name`.
    fn scatter(
        &mut self,
        exchange: &Exchange<'_>,
        name: &'static str,
        x: Tensor<3>,
    ) -> Result<Vec<Tensors>> {
        let x = HostTensor::from_device(x)?;
        self.scatter_rows(exchange, name, x, Rows::OfTokens)
    }

    /// Each worker's rows of `x`, as `name`.
    fn scatter_rows(
        &mut self,
        exchange: &Exchange<'_>,
        name: &'static str,
        x: HostTensor,
        axis: Rows,
    ) -> Result<Vec<Tensors>> {
        // A row of tokens is as many as there are columns.
        let unit = match axis {
            Rows::OfFeature => 1,
            Rows::OfTokens => exchange.columns,
        };
        let stream = stream(exchange, name);
        let part = |(strip, codec): (_, &mut Codec)| {
            let rows = self.rows.scale(strip, exchange.level);
            let [from, to] = [rows.start, rows.end].map(|row| (row * unit) as isize);
            let part = cut(&x, axis, &(from..to))?;
            let payload = codec.write(&stream, part, self.wires.attention)?;
            Ok(Tensors::from([(name, payload)]))
        };
        self.strips.iter().zip(&mut self.codecs).map(part).collect()
    }

    /// Each worker's tile of what all `handed` out.
    fn deal(
        &mut self,
        exchange: &Exchange<'_>,
        layer: &Attention,
        seats: &[Seat],
        mut handed: Vec<Tensors>,
    ) -> Result<Vec<Tensors>> {
        let [q, k, v] = [
            self.gather(&mut handed, "q")?,
            self.gather(&mut handed, "k")?,
            self.gather(&mut handed, "v")?,
        ];
        let [_, tokens, _] = q.dims();
        let width = layer.to_q.d_out / layer.heads;
        let secret = Secret::draw(tokens, layer.heads, width, self.whole.device())?;
        let hidden = secret.hide(q, k, v)?;
        let wire = self.wires.attention.timeless();
        let deal = |(seat, codec): (&Seat, &mut Codec)| {
            let [queries, keys] = [seat.tile.queries, seat.tile.keys];
            let parts = [("q", queries), ("k", keys), ("v", keys)];
            let cards = parts.into_iter().zip(&hidden).map(|((name, part), x)| {
                let Range { start, end } = part.range(tokens);
                let card = cut(x, Rows::OfTokens, &(start as isize..end as isize))?;
                let payload = codec.write(&stream(exchange, name), card, wire)?;
                Ok((name, payload))
            });
            cards.collect::<Result<Tensors>>()
        };
        let messages = seats.iter().zip(&mut self.codecs).map(deal).collect();
        self.secret = Some(secret);
        messages
    }

    /// Notes what the messages of `exchange` show to each worker, before they leave.
    fn show(&mut self, exchange: &Exchange<'_>, seats: &[Seat]) {
        let rows = self.rows.rows(exchange.level);
        let workers = self.fleet.tallies().zip(&self.strips).zip(seats);
        for ((tally, strip), seat) in workers {
            tally
                .seen
                .add_strip(&self.rows.scale(strip, exchange.level), rows);
            if matches!(exchange.of, Of::Tiles(_)) {
                tally.seen.add_tile(seat.tile);
            }
        }
    }

    /// The step's input for each worker: its rows of the latents with those next to them.
    fn begin(&mut self, exchange: &Exchange<'_>, seats: &[Seat]) -> Result<Vec<Tensors>> {
        let (latents, embedding) = self.begin.take().ok_or_else(|| nothing_to("begin with"))?;
        let sent = [&latents, &embedding].into_iter().chain(&self.prompt);
        self.intake.begin(Plausible::of(sent));
        let mut features = match exchange.of {
            Of::Begin {
                conv_in,
                latents: Latents::Hidden,
                ..
            } => {
                let latents = latents.clone().into_device(self.whole.device())?;
                let x = HostTensor::from_device(self.whole.conv(conv_in, &latents)?)?;
                self.scatter_rows(exchange, "x", x, Rows::OfFeature)?
            }
            _ => Vec::new(),
        }
        .into_iter();
        let messages = self.strips.iter().zip(seats).map(|(strip, seat)| {
            let own = self.rows.scale(strip, 0);
            let [start, end] = [own.start, own.end].map(|row| row as isize);
            let items = exchange.to_worker(*seat);
            let part = |item: &Item| {
                let range = match item.name {
                    "embedding" => return Ok(embedding.clone()),
                    "prompt" => {
                        return self.prompt.clone().ok_or_else(|| nothing_to("prompt with"));
                    }
                    "above" => start - 1..start,
                    "below" => end..end + 1,
                    _ => start..end,
                };
                Ok(cut(&latents, Rows::OfFeature, &range)?)
            };
            let mut message = features.next().unwrap_or_default();
            for item in items {
                if !message.contains_key(item.name) {
                    message.insert(item.name, Payload::F32(part(&item)?));
                }
            }
            Ok(message)
        });
        messages.collect()
    }

    /// Statistics merged for all, and the neighbours' edge rows passed on.
    fn pass_on(
        &self,
        exchange: &Exchange<'_>,
        seats: &[Seat],
        mut handed: Vec<Tensors>,
    ) -> Result<Vec<Tensors>> {
        let merged = match exchange.of {
            Of::NormConv(norm, _) | Of::Norm(norm) => {
                let per_row = norm.channels / norm.groups * exchange.columns;
                Some(self.merge(seats, &mut handed, per_row)?)
            }
            _ => None,
        };
        let mut messages: Vec<Tensors> = seats.iter().map(|_| Tensors::new()).collect();
        for (i, message) in messages.iter_mut().enumerate() {
            if let Some(merged) = &merged {
                message.insert("moments", merged.clone());
            }
            let above = i.checked_sub(1).and_then(|i| handed[i].remove("last"));
            let below = handed.get_mut(i + 1).and_then(|next| next.remove("first"));
            message.extend(above.map(|rows| ("above", rows)));
            message.extend(below.map(|rows| ("below", rows)));
        }
        Ok(messages)
    }

    /// The statistics of the whole, from those of the strips with `per_row` values a row and group.
    fn merge(&self, seats: &[Seat], handed: &mut [Tensors], per_row: usize) -> Result<Payload> {
        let mut merged: Vec<Moments> = Vec::new();
        for (i, (tensors, seat)) in handed.iter_mut().zip(seats).enumerate() {
            let payload = take(tensors, "moments")?;
            let moments = self.intake.moments(i, payload, per_row * seat.rows);
            let moments = moments.map_err(|e| self.fleet.nonsense(i, &e))?;
            if merged.is_empty() {
                merged = moments;
            } else {
                for (all, strip) in merged.iter_mut().zip(moments) {
                    *all = all.merge(strip);
                }
            }
        }
        Ok(statistics::to_payload(&merged))
    }

    /// What each worker gets at `exchange`, for what they `handed` out.
    fn answer(
        &mut self,
        exchange: &Exchange<'_>,
        seats: &[Seat],
        mut handed: Vec<Tensors>,
    ) -> Result<Vec<Tensors>> {
        match exchange.of {
            Of::Begin { .. } => self.begin(exchange, seats),
            Of::NormConv(..) | Of::Norm(_) | Of::Halo(_) => self.pass_on(exchange, seats, handed),
            Of::Enter(transformer) => {
                let x = join(&Self::each(&mut handed, "x")?, Rows::OfFeature)?;
                let x = x.into_device(self.whole.device())?;
                let y = self.whole.enter(transformer, &x)?;
                self.scatter(exchange, "x", y)
            }
            Of::Paired(block) => {
                let x = self.gather(&mut handed, "x")?;
                let kept = (!self.wires.attention.is_exact()).then(|| x.clone());
                let mut y = self.whole.attentions(block, x)?;
                if let Some(x) = kept {
                    y = y - x;
                }
                self.scatter(exchange, "x", y)
            }
            Of::Tiles(layer) => self.deal(exchange, layer, seats, handed),
            Of::Merge(_) => {
                let parts: Vec<_> = seats.iter().map(|seat| seat.tile).collect();
                let ys = Self::each(&mut handed, "y")?;
                let sums = Self::each(&mut handed, "sums")?;
                let secret = self.secret.take().ok_or_else(|| nothing_to("merge by"))?;
                let y = secret.merge(&parts, ys, sums)?;
                self.scatter(exchange, "y", y)
            }
            Of::SelfAttention(layer, SelfAttention::Qkv) => {
                let q = self.gather(&mut handed, "q")?;
                let keys = [
                    self.gather(&mut handed, "k")?,
                    self.gather(&mut handed, "v")?,
                ];
                let y = self.whole.attend_to(layer, q, keys);
                self.scatter(exchange, "y", y)
            }
            Of::SelfAttention(_, SelfAttention::Broadcast) => {
                let mut messages = vec![Tensors::new(); seats.len()];
                for name in ["k", "v"] {
                    let joined = join(&Self::each(&mut handed, name)?, Rows::OfTokens)?;
                    let (stream, wire) = (stream(exchange, name), self.wires.attention);
                    for (message, codec) in messages.iter_mut().zip(&mut self.codecs) {
                        let payload = codec.write(&stream, joined.clone(), wire)?;
                        message.insert(name, payload);
                    }
                }
                Ok(messages)
            }
            Of::SelfAttention(layer, _) => {
                let x = self.gather(&mut handed, "x")?;
                let y = self.whole.self_attention(layer, &x)?;
                self.scatter(exchange, "y", y)
            }
            Of::CrossAttention(layer) => {
                let q = self.gather(&mut handed, "q")?;
                let keys = self.whole.prompt_keys(layer)?;
                let y = self.whole.attend_to(layer, q, keys);
                self.scatter(exchange, "y", y)
            }
            Of::End {
                norm,
                conv_out,
                latents,
            } => {
                let mut y = join(&Self::each(&mut handed, "y")?, Rows::OfFeature)?;
                if latents == Latents::Hidden {
                    let x = y.into_device(self.whole.device())?;
                    y = HostTensor::from_device(self.whole.norm_conv(norm, conv_out, &x)?)?;
                }
                self.prediction = Some(y);
                Ok(Vec::new())
            }
        }
    }
}

impl Hub for Cloud {
    type Error = Error;

    fn exchange(&mut self, exchange: &Exchange<'_>) -> Result<()> {
        let seats = seats(&self.rows, &self.strips, exchange.level);
        let handed = self.collect(exchange, &seats)?;
        let messages = self.answer(exchange, &seats, handed)?;
        if messages.is_empty() {
            return Ok(());
        }
        self.show(exchange, &seats);
        let named = |tensors: Tensors| {
            let tensors = tensors.into_iter();
            tensors
                .map(|(name, payload)| (name.to_owned(), payload))
                .collect()
        };
        let messages = messages.into_iter().map(named).collect();
        let kind = kind_of(exchange);
        self.pending = self
            .fleet
            .advance(kind, &exchange.label(), messages, self.limit)?;
        Ok(())
    }

    fn workers_do(&mut self, operation: &Operation, level: usize) {
        let of = self.rows.rows(level);
        for (tally, strip) in self.fleet.tallies().zip(&self.strips) {
            let own = self.rows.scale(strip, level);
            tally.flop += operation.flop * own.len() as u64 / of.max(1) as u64;
        }
    }

    fn user_does(&mut self, _: &Operation) {
        // The executor of the user's part counts what it does.
    }
}

fn nothing_to(what: &str) -> Error {
    lacuna_protocol::Error::OutOfTurn(format!("there is nothing to {what}")).into()
}

/// Under which kind of layer an exchange's bytes are counted.
pub fn kind_of(exchange: &Exchange<'_>) -> Kind {
    match exchange.of {
        Of::Begin { .. } | Of::End { .. } => Kind::Latents,
        Of::NormConv(..) | Of::Halo(_) => Kind::Conv,
        Of::Norm(_) => Kind::GroupNorm,
        Of::Enter(_)
        | Of::Paired(_)
        | Of::SelfAttention(..)
        | Of::Tiles(_)
        | Of::Merge(_)
        | Of::CrossAttention(_) => Kind::Attention,
    }
}
