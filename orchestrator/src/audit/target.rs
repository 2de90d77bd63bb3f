//! One provider's worker among the others, and what its owner has of each picture.

use std::ops::Range;

use shared::partition::{Levels, strips};
use shared::placement::{Attentions, SelfAttention};
use shared::weights::Weights;
use shared::whole::Whole;
use tokio::runtime::Handle;
use worker::Model;

use super::corpus::Run;
use super::view::{self, View};
use crate::error::{Error, Result};
use crate::fleet::config::FleetConfig;
use crate::pipeline::Pipeline;
use crate::schemes::{Scheme, Setting, resident};

/// The workers, and which of them is attacked from.
pub struct Target<'a> {
    /// The model, as the attacker has it too.
    pub pipeline: &'a Pipeline,
    /// The U-Net with its weights.
    pub model: &'a Model,
    /// The workers.
    pub fleet: &'a FleetConfig,
    /// The attacker's.
    pub worker: usize,
    /// Where the dialogue with the workers goes on.
    pub runtime: Handle,
}

impl Target<'_> {
    /// The rows of the latents that the attacker computes, of `rows` in all.
    ///
    /// # Errors
    /// [`shared::Error::TooManyStrips`]; [`Error::Request`] when there is no such worker.
    pub fn rows(&self, setting: &Setting) -> Result<Range<usize>> {
        let [_, rows, _] = setting.latents;
        let workers = self.fleet.workers.len();
        if setting.scheme == Scheme::Ppidm {
            let strips = strips(rows, workers);
            return strips
                .get(self.worker)
                .cloned()
                .ok_or_else(|| self.missing());
        }
        let assignments = resident::assignments(self.pipeline.unet(), setting, workers)?;
        let assignment = assignments.get(self.worker).ok_or_else(|| self.missing())?;
        let levels = Levels::new(rows, setting.levels);
        Ok(levels.scale(&assignment.strip, 0))
    }

    /// Does the audited steps of each of `runs` by `setting`, and gives what the attacker has of them. The
    /// first `train` runs are the attacker's own, who broadcasts where `setting` would have tiles.
    ///
    /// # Errors
    /// Those of the workers and of the scheme.
    pub fn watch(
        &self,
        setting: &Setting,
        weights: &Weights,
        runs: &[Run],
        train: usize,
        mut progress: impl FnMut(),
    ) -> Result<Vec<Vec<View>>> {
        let own = without_tiles(setting);
        let each = runs.iter().enumerate().map(|(i, run)| {
            progress();
            let setting = if i < train { &own } else { setting };
            self.watch_run(setting, weights, run)
        });
        each.collect()
    }

    /// What the attacker has of one run, step by step.
    ///
    /// # Errors
    /// As [`Self::watch`].
    pub fn watch_run(&self, setting: &Setting, weights: &Weights, run: &Run) -> Result<Vec<View>> {
        let (unet, digest) = (self.pipeline.unet(), self.pipeline.digest());
        let opened = setting.open(self.fleet, digest, unet);
        let mut fleet = self.runtime.block_on(opened)?;
        let tap = fleet.tap(self.worker);
        let whole = Whole::new(weights.clone(), run.context.clone());
        let mut predictor = setting.predictor(unet, whole, Some(fleet))?;
        for (sample, timestep) in &run.calls {
            predictor.predict(sample.clone(), *timestep)?;
        }
        if let Some(fleet) = predictor.finish().fleet {
            self.runtime.block_on(fleet.close());
        }
        let views = if setting.scheme == Scheme::Ppidm {
            view::of_pieces(self.model, tap.take(), run.calls.len())?
        } else {
            let assignments = resident::assignments(unet, setting, self.fleet.workers.len())?;
            let assignment = assignments.into_iter().nth(self.worker);
            let assignment = assignment.ok_or_else(|| self.missing())?;
            view::of_walk(unet, weights, assignment, tap.take())?
        };
        if views.len() == run.calls.len() {
            return Ok(views);
        }
        let reason = format!("{} of {} steps were seen", views.len(), run.calls.len());
        Err(Error::Request(reason))
    }

    fn missing(&self) -> Error {
        let workers = self.fleet.workers.len();
        Error::Request(format!("--provider {}: there are {workers}", self.worker))
    }
}

/// The same, with everybody's keys and values in place of tiles.
fn without_tiles(setting: &Setting) -> Setting {
    let mut own = *setting;
    let each: Vec<SelfAttention> = own.placement.self_attention.into();
    for (level, how) in each.into_iter().enumerate() {
        if how == SelfAttention::Tiled {
            let all = Attentions::all(SelfAttention::Broadcast);
            own.placement.self_attention = match level {
                0 => all,
                _ => own
                    .placement
                    .self_attention
                    .with(level, SelfAttention::Broadcast),
            };
        }
    }
    own
}
