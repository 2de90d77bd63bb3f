//! The paper's scheme (PPIDM): the feature map stays with the user, layer by layer it is cut into
//! strips along the height, sent, computed and merged.
//!
//! Every 3x3 convolution but `conv_in` (which sees the noisy latents), the products of every
//! cross-attention and the statistics of every group normalisation are the workers', or some of these
//! kinds. Everything else, self-attention included, is the user's.
//!
//! `count` says what is sent, without sending.

mod count;

use std::collections::HashSet;
use std::ops::Range;
use std::str::FromStr;

use burn::tensor::Tensor;
use shared::executor::Executor;
use shared::host::{HostTensor, OnDevice};
use shared::layers::{Attention, Conv2d, GroupNorm};
use shared::partition::{Rows, cut, join, rows_with_halo, strips};
use shared::stats::Moments;
use shared::survey::{self, survey};
use shared::unet::{CONV_IN, CONV_OUT, TimeEmbedding, UNet};
use shared::whole::Whole;
use shared::wire::{Payload, Work};
use shared::{ops, statistics};

use crate::error::{Error, Result};
use crate::fleet::tally::{Kind, Seen, Traffic};
use crate::fleet::{Fleet, Piece};
use crate::schemes::plausible::{Plausible, check_prediction};
use crate::schemes::{Account, Finished, Setting};

pub use count::{first_calls, rows_seen};

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

/// Which kinds of layers are the workers' (Table V of the paper switches them singly).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offload {
    /// 3x3 convolutions but for `conv_in`.
    pub conv: bool,
    /// The products of cross-attentions.
    pub attention: bool,
    /// The statistics of group normalisations.
    pub norm: bool,
}

impl Default for Offload {
    /// All of them, as in the paper.
    fn default() -> Self {
        Self {
            conv: true,
            attention: true,
            norm: true,
        }
    }
}

impl FromStr for Offload {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let mut offload = Self {
            conv: false,
            attention: false,
            norm: false,
        };
        for kind in text.split(',') {
            match kind.trim() {
                "conv" => offload.conv = true,
                "attention" => offload.attention = true,
                "norm" => offload.norm = true,
                other => return Err(format!("{other:?} is none of conv, attention and norm")),
            }
        }
        Ok(offload)
    }
}

impl std::fmt::Display for Offload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let named = [
            (self.conv, "conv"),
            (self.attention, "attention"),
            (self.norm, "norm"),
        ];
        let names = named.iter().filter(|(on, _)| *on).map(|(_, name)| *name);
        f.write_str(&names.collect::<Vec<_>>().join(","))
    }
}

impl Offload {
    /// Whether a convolution is the workers'. `conv_in` never is: it sees the noisy latents.
    fn has_conv(self, layer: &str, kernel: usize) -> bool {
        self.conv && kernel > 1 && layer != CONV_IN
    }
}

/// Executes a U-Net layer by layer over a fleet of workers.
pub struct Ppidm {
    whole: Whole,
    fleet: Fleet,
    mode: GroupNormMode,
    offload: Offload,
}

impl Ppidm {
    /// The user's side `whole` and the workers.
    pub fn new(whole: Whole, fleet: Fleet, mode: GroupNormMode, offload: Offload) -> Self {
        Self {
            whole,
            fleet,
            mode,
            offload,
        }
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
        let known = Plausible::of([&host]);
        let filled = strips.iter().enumerate().filter(|(_, s)| !s.own.is_empty());
        filled
            .zip(replies)
            .map(|((worker, strip), reply)| {
                let count = c / layer.groups * strip.own.len() * w;
                let moments = statistics::from_payload(&reply, count).and_then(|moments| {
                    known.check_moments(&layer.name, &moments)?;
                    Ok(moments)
                });
                moments.map_err(|e| self.fleet.nonsense(worker, &e))
            })
            .collect()
    }

    /// The tensors that the workers with rows in `strips` made of `layer`, each of which `check` accepts.
    fn features(
        &self,
        layer: &str,
        strips: &[Strip],
        replies: Vec<Payload>,
        check: impl Fn(&Payload) -> shared::wire::Result<f64>,
    ) -> Result<Vec<HostTensor>> {
        let filled = strips.iter().enumerate().filter(|(_, s)| !s.own.is_empty());
        let read = |((worker, _), reply): ((usize, &Strip), Payload)| {
            let tensor = check(&reply).and_then(|_| reply.into_tensor(layer));
            tensor.map_err(|e| self.fleet.nonsense(worker, &e))
        };
        filled.zip(replies).map(read).collect()
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

/// Tensor prefixes of the layers whose parameters the user needs: all but the workers' convolutions.
/// Of a group normalisation workers give the statistics, of a cross-attention the products.
///
/// # Errors
/// None today: shapes alone cannot fail.
pub fn user_layers(unet: &UNet, setting: &Setting) -> Result<HashSet<String>> {
    let operations = survey(unet, setting.latents, setting.tokens)?.into_iter();
    let own = operations.filter(|operation| match operation.kind {
        survey::Kind::Conv { kernel } => !setting.offload.has_conv(&operation.layer, kernel),
        _ => true,
    });
    Ok(own.map(|operation| operation.layer).collect())
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
        if !self.offload.has_conv(&layer.name, layer.kernel) {
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
        let known = Plausible::of([&host]);
        let features = self.features(&layer.name, &strips, replies, |y| {
            match layer.name == CONV_OUT {
                true => check_prediction(&layer.name, y.largest()),
                false => known.check_made(&layer.name, y.largest()),
            }
        })?;
        let merged = join(&features, Rows::OfFeature)?;
        Ok(merged.into_device(self.whole.device())?)
    }

    fn group_norm(&mut self, layer: &GroupNorm, x: &Tensor<4>) -> Result<Tensor<4>> {
        if !self.offload.norm {
            return Ok(self.whole.group_norm(layer, x)?);
        }
        self.normalise(layer, x, false)
    }

    fn group_norm_silu(&mut self, layer: &GroupNorm, x: &Tensor<4>) -> Result<Tensor<4>> {
        if !self.offload.norm {
            return Ok(self.whole.group_norm_silu(layer, x)?);
        }
        self.normalise(layer, x, true)
    }

    fn cross_attention(&mut self, layer: &Attention, x: &Tensor<3>) -> Result<Tensor<3>> {
        if !self.offload.attention {
            return Ok(self.whole.cross_attention(layer, x)?);
        }
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
        let known = Plausible::of([&v]);
        let features = self.features(&layer.name, &strips, replies, |y| {
            known.check_means(&layer.name, y.largest())
        })?;
        let merged = join(&features, Rows::OfTokens)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_as_they_are_written_and_others_named() {
        let some: Offload = "norm,conv".parse().unwrap();
        assert_eq!(some.to_string(), "conv,norm");
        assert_eq!(Offload::default().to_string(), "conv,attention,norm");
        let error = "conv,self-attention".parse::<Offload>().unwrap_err();
        assert!(error.contains("\"self-attention\""), "{error}");
    }
}
