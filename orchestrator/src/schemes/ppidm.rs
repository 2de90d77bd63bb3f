//! The paper's scheme (PPIDM): the feature map stays with the user, layer by layer it is cut into
//! strips along the height, sent, computed and merged.
//!
//! Every 3x3 convolution but `conv_in` (which sees the noisy latents), the products of every
//! cross-attention and the statistics of every group normalisation are the workers'. Everything
//! else, self-attention included, is the user's.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use burn::tensor::Tensor;
use shared::executor::Executor;
use shared::host::HostTensor;
use shared::layers::{Attention, Conv2d, GroupNorm};
use shared::ops;
use shared::partition::{Rows, cut, join, rows_with_halo, strips};
use shared::stats::Moments;
use shared::survey::{self, Operation, survey};
use shared::unet::{CONV_IN, Layer, TimeEmbedding, UNet};
use shared::whole::Whole;
use shared::wire::{Payload, Work};

use crate::cost::count::{Count, Counted};
use crate::error::{Error, Result};
use crate::fleet::tally::{Kind, Seen, Traffic};
use crate::fleet::{Fleet, Piece};
use crate::schemes::{Account, Finished, Setting};

/// How the strips' statistics become a group normalisation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum GroupNormMode {
    /// Merged exactly: the statistics of the whole tensor.
    #[default]
    Exact,
    /// Each strip by its own statistics; lossy, the paper's.
    Local,
    /// All strips by the averages of their means and variances; lossy.
    Averaged,
}

/// Executes a U-Net layer by layer over a fleet of workers.
pub struct Ppidm {
    whole: Whole,
    fleet: Fleet,
    mode: GroupNormMode,
}

impl Ppidm {
    /// The user's side `whole` and the workers.
    pub fn new(whole: Whole, fleet: Fleet, mode: GroupNormMode) -> Self {
        Self { whole, fleet, mode }
    }

    /// Gives every worker with rows in `strips` the piece of work that `piece` makes of them; the
    /// outputs are those of the workers that have rows.
    ///
    /// `flop` is the work of one row.
    fn exchange(
        &mut self,
        kind: Kind,
        strips: &[Strip],
        flop: u64,
        piece: impl Fn(&Strip) -> Result<Piece>,
    ) -> Result<Vec<Payload>> {
        let parts = strips
            .iter()
            .map(|s| (!s.own.is_empty()).then(|| Ok(vec![piece(s)?])).transpose())
            .collect::<Result<Vec<_>>>()?;
        for (tally, strip) in self.fleet.tallies().zip(strips) {
            strip.add_to(&mut tally.seen);
        }
        let replies = self.fleet.exchange(kind, parts)?;
        for (tally, strip) in self.fleet.tallies().zip(strips) {
            tally.flop += strip.own.len() as u64 * flop;
        }
        Ok(replies.into_iter().flatten().flatten().collect())
    }

    /// Statistics of each strip of `x`: `[strip][batch entry and group]`.
    fn moments(&mut self, layer: &GroupNorm, x: &Tensor<4>) -> Result<Vec<Vec<Moments>>> {
        let [b, c, h, w] = x.dims();
        let host = HostTensor::from_device(x.clone())?;
        let strips = Strip::plain(h, self.fleet.len());
        let replies = self.exchange(Kind::GroupNorm, &strips, 0, |strip| {
            let work = Work::Moments {
                layer: layer.name.clone(),
            };
            Ok(Piece {
                work,
                inputs: vec![cut(&host, Rows::OfFeature, &strip.sent)?],
                output: vec![b * layer.groups, 2],
            })
        })?;
        let filled = strips.iter().enumerate().filter(|(_, s)| !s.own.is_empty());
        filled
            .zip(replies)
            .map(|((worker, strip), reply)| {
                let count = c / layer.groups * strip.own.len() * w;
                let moments = reply.into_moments(count);
                moments.map_err(|e| self.fleet.nonsense(worker, &e))
            })
            .collect()
    }

    fn normalise(&mut self, layer: &GroupNorm, x: &Tensor<4>, silu: bool) -> Result<Tensor<4>> {
        let strips_of_moments = self.moments(layer, x)?;
        let weights = self.whole.weights();
        let groups = x.dims()[0] * layer.groups;
        // One statistic for each group from all strips of it.
        let combine = |of_group: fn(&[Moments]) -> Moments| -> Vec<Moments> {
            let of_strips = |g: usize| strips_of_moments.iter().map(|s| s[g]).collect::<Vec<_>>();
            (0..groups).map(|g| of_group(&of_strips(g))).collect()
        };
        let moments = match self.mode {
            GroupNormMode::Exact => combine(|strips| {
                strips
                    .iter()
                    .fold(Moments::default(), |all, m| all.merge(*m))
            }),
            GroupNormMode::Averaged => combine(Moments::average),
            GroupNormMode::Local => {
                let rows = strips(x.dims()[2], self.fleet.len());
                let filled = rows.into_iter().filter(|r| !r.is_empty());
                let parts = filled.zip(&strips_of_moments).map(|(rows, moments)| {
                    let strip = x.clone().narrow(2, rows.start, rows.len());
                    ops::group_norm_by(weights, layer, strip, moments, silu)
                });
                return Ok(Tensor::cat(parts.collect::<shared::Result<_>>()?, 2));
            }
        };
        Ok(ops::group_norm_by(
            weights,
            layer,
            x.clone(),
            &moments,
            silu,
        )?)
    }
}

impl Account for Ppidm {
    fn traffic(&self) -> Option<Traffic> {
        Some(self.fleet.traffic())
    }

    fn finish(self) -> Finished {
        Finished {
            user_flop: self.whole.flop(),
            fleet: Some(self.fleet),
            ..Finished::default()
        }
    }
}

/// Whether a convolution is the workers': every 3x3 one but the one that sees the noisy latents.
fn is_offloaded(layer: &str, kernel: usize) -> bool {
    kernel > 1 && layer != CONV_IN
}

/// Tensor prefixes of the layers whose parameters the user needs: all but the workers' convolutions.
/// Of a group normalisation workers give the statistics, of a cross-attention the products.
///
/// # Errors
/// None today: shapes alone cannot fail.
pub fn user_layers(unet: &UNet, setting: &Setting) -> Result<HashSet<String>> {
    let operations = survey(unet, setting.latents, setting.tokens)?.into_iter();
    let own = operations.filter(|operation| match operation.kind {
        survey::Kind::Conv { kernel } => !is_offloaded(&operation.layer, kernel),
        _ => true,
    });
    Ok(own.map(|operation| operation.layer).collect())
}

/// What one U-Net call sends to `workers` workers; none leaves everything to the user.
pub fn count(unet: &UNet, setting: &Setting, workers: usize) -> Count {
    let mut count = Count::new(workers);
    let named = unet.layers().map(|layer| (layer.name().to_owned(), layer));
    let layers: HashMap<String, Layer<'_>> = named.collect();
    // Shapes alone cannot fail.
    let operations = survey(unet, setting.latents, setting.tokens).unwrap_or_default();
    // In the middle of a picture the prompt's keys and values are there.
    for operation in operations.into_iter().filter(|o| !o.makes_prompt_keys()) {
        let layer = layers.get(&operation.layer).copied();
        let offloaded = match (operation.kind, layer) {
            (survey::Kind::Conv { kernel }, Some(Layer::Conv(conv))) => {
                is_offloaded(&conv.name, kernel)
                    .then(|| (Kind::Conv, conv_bytes(conv, &operation, workers)))
            }
            (survey::Kind::CrossAttention, _) => {
                let bytes = attention_bytes(&operation, setting.tokens, workers);
                Some((Kind::Attention, bytes))
            }
            (survey::Kind::GroupNorm, Some(Layer::Norm(norm))) => {
                Some((Kind::GroupNorm, norm_bytes(norm, &operation, workers)))
            }
            _ => None,
        };
        match offloaded {
            Some((kind, strips)) if workers > 0 => {
                for (flop, (share, ..)) in count.workers_flop.iter_mut().zip(&strips) {
                    *flop += (operation.flop as f64 * share).round() as u64;
                }
                count.exchanges.push(Counted {
                    label: operation.layer,
                    kind,
                    up: strips.iter().map(|(_, up, _)| *up).collect(),
                    down: strips.iter().map(|(.., down)| *down).collect(),
                    workers_flop: operation.flop,
                    user_flop: 0,
                });
            }
            _ => {
                count.user_flop += operation.flop;
                if let Some(exchange) = count.exchanges.last_mut() {
                    exchange.user_flop += operation.flop;
                }
            }
        }
    }
    count
}

/// The rows that each of `workers` workers computes and is sent, over all layers.
pub fn rows_seen(unet: &UNet, setting: &Setting, workers: usize) -> Vec<Seen> {
    let mut seen: Vec<Seen> = (0..workers).map(|_| Seen::default()).collect();
    let convs = unet.layers().filter_map(|layer| match layer {
        Layer::Conv(conv) => Some((conv.name.clone(), conv)),
        _ => None,
    });
    let convs: HashMap<String, &Conv2d> = convs.collect();
    // Shapes alone cannot fail.
    let operations = survey(unet, setting.latents, setting.tokens).unwrap_or_default();
    for operation in operations {
        let [_, second, third, _] = operation.input;
        let strips = match (operation.kind, convs.get(&operation.layer)) {
            (survey::Kind::Conv { kernel }, Some(conv)) if is_offloaded(&conv.name, kernel) => {
                Strip::convolved(conv, third, workers)
            }
            (survey::Kind::GroupNorm, _) => Strip::plain(third, workers),
            (survey::Kind::CrossAttention, _) => Strip::plain(second, workers),
            _ => continue,
        };
        for (strip, seen) in strips.iter().zip(&mut seen) {
            strip.add_to(seen);
        }
    }
    seen
}

/// Of each worker: its share of a layer, bytes to it and from it.
type Strips = Vec<(f64, usize, usize)>;

/// The strips of `rows` rows, each with what `bytes` says of it; a worker without rows gets nothing.
fn of_strips(rows: usize, n: usize, bytes: impl Fn(&Range<usize>) -> [usize; 2]) -> Strips {
    let strip = |own: Range<usize>| {
        let [up, down] = if own.is_empty() { [0, 0] } else { bytes(&own) };
        (own.len() as f64 / rows as f64, up, down)
    };
    strips(rows, n).into_iter().map(strip).collect()
}

fn conv_bytes(layer: &Conv2d, operation: &Operation, n: usize) -> Strips {
    let ([b, c, _, w], [_, c_out, h_out, w_out]) = (operation.input, operation.output);
    of_strips(h_out, n, |own| {
        let sent = rows_with_halo(layer, own).len();
        [b * c * sent * w, b * c_out * own.len() * w_out].map(|n| n * size_of::<f32>())
    })
}

fn attention_bytes(operation: &Operation, tokens: usize, n: usize) -> Strips {
    let [b, t, c, _] = operation.input;
    of_strips(t, n, |own| {
        let q = b * own.len() * c;
        [q + 2 * b * tokens * c, q].map(|n| n * size_of::<f32>())
    })
}

fn norm_bytes(layer: &GroupNorm, operation: &Operation, n: usize) -> Strips {
    let [b, c, h, w] = operation.input;
    of_strips(h, n, |own| {
        let moments = 2 * b * layer.groups * size_of::<f64>();
        [b * c * own.len() * w * size_of::<f32>(), moments]
    })
}

/// The tensors that the workers made of `layer`.
fn features(layer: &str, replies: Vec<Payload>) -> shared::Result<Vec<HostTensor>> {
    replies
        .into_iter()
        .map(|reply| reply.into_tensor(layer))
        .collect()
}

/// A worker's rows of one layer.
#[derive(Clone, Debug)]
struct Strip {
    /// Output rows that it computes.
    own: Range<usize>,
    /// Output rows of the whole picture.
    rows: usize,
    /// Input rows that it is sent; those outside the picture are zeros.
    sent: Range<isize>,
    /// Input rows of the whole picture.
    of: usize,
}

impl Strip {
    /// `rows` rows in `n` strips that need no halo.
    fn plain(rows: usize, n: usize) -> Vec<Self> {
        let strip = |own: Range<usize>| Self {
            sent: own.start as isize..own.end as isize,
            own,
            rows,
            of: rows,
        };
        strips(rows, n).into_iter().map(strip).collect()
    }

    /// The `n` strips of a convolution of `of` rows.
    fn convolved(layer: &Conv2d, of: usize, n: usize) -> Vec<Self> {
        let rows = layer.out_size(of);
        let strip = |own: Range<usize>| Self {
            sent: rows_with_halo(layer, &own),
            own,
            rows,
            of,
        };
        strips(rows, n).into_iter().map(strip).collect()
    }

    /// Adds it to the rows that its worker computes, and to those that it is sent.
    fn add_to(&self, seen: &mut Seen) {
        let [start, end] = [self.own.start, self.own.end].map(|row| row as isize);
        seen.rows.add(start, end, self.rows);
        if !self.own.is_empty() {
            seen.rows_with_halo
                .add(self.sent.start, self.sent.end, self.of);
        }
    }
}

impl Executor for Ppidm {
    type Feature = Tensor<4>;
    type Tokens = Tensor<3>;
    type Embedding = Tensor<2>;
    type Error = Error;

    fn conv(&mut self, layer: &Conv2d, x: &Tensor<4>) -> Result<Tensor<4>> {
        if !is_offloaded(&layer.name, layer.kernel) {
            return Ok(self.whole.conv(layer, x)?);
        }
        let [b, _, h, w] = x.dims();
        let columns = layer.out_size(w);
        let host = HostTensor::from_device(x.clone())?;
        let strips = Strip::convolved(layer, h, self.fleet.len());
        let flop = layer.flop(b * columns);
        let replies = self.exchange(Kind::Conv, &strips, flop, |strip| {
            let work = Work::Conv {
                layer: layer.name.clone(),
                odd: strip.own.start % 2 == 1,
            };
            Ok(Piece {
                work,
                inputs: vec![cut(&host, Rows::OfFeature, &strip.sent)?],
                output: vec![b, layer.c_out, strip.own.len(), columns],
            })
        })?;
        let merged = join(&features(&layer.name, replies)?, Rows::OfFeature)?;
        Ok(merged.into_device(self.whole.device())?)
    }

    fn group_norm(&mut self, layer: &GroupNorm, x: &Tensor<4>) -> Result<Tensor<4>> {
        self.normalise(layer, x, false)
    }

    fn group_norm_silu(&mut self, layer: &GroupNorm, x: &Tensor<4>) -> Result<Tensor<4>> {
        self.normalise(layer, x, true)
    }

    fn cross_attention(&mut self, layer: &Attention, x: &Tensor<3>) -> Result<Tensor<3>> {
        let [q, k, v] = self.whole.project(layer, x, true)?;
        let [b, t, c] = q.dims();
        let flop = b as u64 * layer.products_flop(1, k.dims()[1]);
        let [q, k, v] = [
            HostTensor::from_device(q)?,
            HostTensor::from_device(k)?,
            HostTensor::from_device(v)?,
        ];
        let strips = Strip::plain(t, self.fleet.len());
        let replies = self.exchange(Kind::Attention, &strips, flop, |strip| {
            let work = Work::Attention {
                layer: layer.name.clone(),
            };
            let q = cut(&q, Rows::OfTokens, &strip.sent)?;
            Ok(Piece {
                work,
                inputs: vec![q, k.clone(), v.clone()],
                output: vec![b, strip.own.len(), c],
            })
        })?;
        let merged = join(&features(&layer.name, replies)?, Rows::OfTokens)?;
        let merged = merged.into_device(self.whole.device())?;
        Ok(self.whole.linear(&layer.to_out, &merged)?)
    }

    // The user's own.

    fn embed_time(&mut self, layer: &TimeEmbedding, timestep: f64) -> Result<Tensor<2>> {
        Ok(self.whole.embed_time(layer, timestep)?)
    }

    fn upsample(&mut self, x: &Tensor<4>, like: &Tensor<4>) -> Result<Tensor<4>> {
        Ok(self.whole.upsample(x, like)?)
    }

    fn self_attention(&mut self, layer: &Attention, x: &Tensor<3>) -> Result<Tensor<3>> {
        Ok(self.whole.self_attention(layer, x)?)
    }

    shared::whole_does_the_rest!(whole);
}
