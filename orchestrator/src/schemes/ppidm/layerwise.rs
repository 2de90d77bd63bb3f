//! The executor that has workers compute single layers, strip by strip.

use burn::tensor::Tensor;
use lacuna_kernels::stats::Moments;
use lacuna_model::executor::Executor;
use lacuna_model::host::OnDevice;
use lacuna_model::layers::{Attention, Conv2d, GroupNorm};
use lacuna_model::ops;
use lacuna_model::partition::{Rows, cut, join, strips};
use lacuna_model::unet::{CONV_OUT, TimeEmbedding};
use lacuna_model::whole::Whole;
use lacuna_protocol::session::Work;
use lacuna_protocol::statistics;
use lacuna_wire::HostTensor;
use lacuna_wire::Payload;

use super::options::{GroupNormMode, Offload};
use super::strip::Strip;
use crate::error::{Error, Result};
use crate::fleet::tally::{Kind, Traffic};
use crate::fleet::{Fleet, Piece};
use crate::schemes::plausible::{Plausible, check_prediction};
use crate::schemes::{Account, Finished};

/// Executes a U-Net layer by layer over a fleet of workers.
pub struct Layerwise {
    whole: Whole,
    fleet: Fleet,
    mode: GroupNormMode,
    offload: Offload,
}

impl Layerwise {
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
        check: impl Fn(&Payload) -> lacuna_wire::Result<f64>,
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
                return Ok(Tensor::cat(parts.collect::<lacuna_model::Result<_>>()?, 2));
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

impl Account for Layerwise {
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

impl Executor for Layerwise {
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

    lacuna_model::whole_does_the_rest!(whole);
    lacuna_model::whole_maps_tokens!(whole);
}
