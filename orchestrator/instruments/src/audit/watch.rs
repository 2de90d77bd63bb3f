//! What the audit knows of each scheme that it attacks: where a worker sits, and how to read what it was sent.

use std::ops::Range;
use std::sync::Arc;

use lacuna_model::partition::{Levels, strips};
use lacuna_model::unet::UNet;
use lacuna_model::weights::Weights;
use lacuna_protocol::placement::{Attentions, SelfAttention};
use lacuna_worker::Model;

use super::shares;
use super::view::{self, View};
use crate::error::{Error, Result};
use lacuna_orchestrator::fleet::tap::Heard;
use lacuna_orchestrator::schemes::Options;
use lacuna_orchestrator::schemes::blind::Blind;
use lacuna_orchestrator::schemes::ppidm::Ppidm;
use lacuna_orchestrator::schemes::resident::{Resident, places};
use lacuna_orchestrator::schemes::{Scheme, Sizes};

/// One of the workers.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Which, from 0.
    pub worker: usize,
    /// Of so many.
    pub of: usize,
}

impl Place {
    fn take<T>(self, each: Vec<T>) -> Result<T> {
        let missing =
            || Error::Request(format!("--provider {}: there are {}", self.worker, self.of));
        each.into_iter().nth(self.worker).ok_or_else(missing)
    }
}

/// How a worker under a scheme is watched.
pub trait Watch {
    /// The rows of the latents that the worker computes.
    ///
    /// # Errors
    /// [`lacuna_model::Error::TooManyStrips`]; [`Error::Request`] when there is no such worker.
    fn rows(&self, unet: &UNet, sizes: &Sizes, place: Place) -> Result<Range<usize>>;

    /// Who attacks, where that is more than one at a time: workers whose owners put together what they have.
    ///
    /// # Errors
    /// Those of the placement.
    fn coalitions(&self, _sizes: &Sizes, _workers: usize) -> Result<Option<Vec<Vec<usize>>>> {
        Ok(None)
    }

    /// The scheme in an attacker's own runs, which it trains on.
    fn own(&self) -> Arc<dyn Scheme>;

    /// What the worker has of each of `calls` U-Net calls, from what it `heard`.
    ///
    /// # Errors
    /// As [`Self::rows`]; those of the computation.
    fn views(
        &self,
        model: &Model,
        weights: &Weights,
        sizes: &Sizes,
        place: Place,
        heard: Heard,
        calls: usize,
    ) -> Result<Vec<View>>;
}

/// How workers under `scheme` are watched.
///
/// # Errors
/// [`Error::Request`] where the audit has no attack on it.
pub fn of(scheme: &dyn Scheme) -> Result<&dyn Watch> {
    let any = scheme.as_any();
    let ppidm = any
        .downcast_ref::<Ppidm>()
        .map(|scheme| scheme as &dyn Watch);
    let resident = any
        .downcast_ref::<Resident>()
        .map(|scheme| scheme as &dyn Watch);
    let blind = any
        .downcast_ref::<Blind>()
        .map(|scheme| scheme as &dyn Watch);
    ppidm.or(resident).or(blind).ok_or_else(|| {
        let reason = format!("the audit has no attack on the scheme {}", scheme.name());
        Error::Request(reason)
    })
}

impl Watch for Ppidm {
    fn rows(&self, _unet: &UNet, sizes: &Sizes, place: Place) -> Result<Range<usize>> {
        let [_, rows, _] = sizes.latents;
        place.take(strips(rows, place.of))
    }

    fn own(&self) -> Arc<dyn Scheme> {
        self.scheme()
    }

    fn views(
        &self,
        model: &Model,
        _weights: &Weights,
        _sizes: &Sizes,
        _place: Place,
        heard: Heard,
        calls: usize,
    ) -> Result<Vec<View>> {
        view::of_pieces(model, heard, calls)
    }
}

impl Watch for Resident {
    fn rows(&self, unet: &UNet, sizes: &Sizes, place: Place) -> Result<Range<usize>> {
        let [_, rows, _] = sizes.latents;
        let assignment = place.take(places::assignments(unet, &self.layout(sizes), place.of)?)?;
        Ok(Levels::new(rows, unet.levels()).scale(&assignment.strip, 0))
    }

    /// With everybody's keys and values in place of tiles.
    fn own(&self) -> Arc<dyn Scheme> {
        let mut placement = self.chosen();
        let each: Vec<SelfAttention> = placement.self_attention.into();
        for (level, how) in each.into_iter().enumerate() {
            if how == SelfAttention::Tiled {
                placement.self_attention = match level {
                    0 => Attentions::all(SelfAttention::Broadcast),
                    _ => placement
                        .self_attention
                        .with(level, SelfAttention::Broadcast),
                };
            }
        }
        self.with(placement).scheme()
    }

    fn views(
        &self,
        model: &Model,
        weights: &Weights,
        sizes: &Sizes,
        place: Place,
        heard: Heard,
        _calls: usize,
    ) -> Result<Vec<View>> {
        let unet = model.unet();
        let assignment = place.take(places::assignments(unet, &self.layout(sizes), place.of)?)?;
        view::of_walk(unet, weights, assignment, heard)
    }
}

impl Watch for Blind {
    /// All of them: it has words of every row.
    fn rows(&self, _unet: &UNet, sizes: &Sizes, _place: Place) -> Result<Range<usize>> {
        let [_, rows, _] = sizes.latents;
        Ok(0..rows)
    }

    fn coalitions(&self, sizes: &Sizes, workers: usize) -> Result<Option<Vec<Vec<usize>>>> {
        shares::coalitions(self, sizes, workers).map(Some)
    }

    fn own(&self) -> Arc<dyn Scheme> {
        self.scheme()
    }

    fn views(
        &self,
        model: &Model,
        _weights: &Weights,
        sizes: &Sizes,
        place: Place,
        heard: Heard,
        calls: usize,
    ) -> Result<Vec<View>> {
        shares::views(model.unet(), self, sizes, place, heard, calls)
    }
}
