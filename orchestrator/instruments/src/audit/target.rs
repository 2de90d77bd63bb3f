//! One provider's worker among the others, and what its owner has of each picture.

use std::ops::Range;

use lacuna_model::weights::Weights;
use lacuna_model::whole::Whole;
use lacuna_worker::Model;
use tokio::runtime::Handle;

use super::corpus::Run;
use super::view::View;
use super::watch::{self, Place};
use crate::error::{Error, Result};
use lacuna_orchestrator::fleet::config::FleetConfig;
use lacuna_orchestrator::pipeline::Pipeline;
use lacuna_orchestrator::schemes::Setting;

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
    /// [`lacuna_model::Error::TooManyStrips`]; [`Error::Request`] when there is no such worker.
    pub fn rows(&self, setting: &Setting) -> Result<Range<usize>> {
        let watch = watch::of(&*setting.scheme)?;
        watch.rows(self.pipeline.unet(), &setting.sizes, self.place())
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
        let own = setting.by(watch::of(&*setting.scheme)?.own());
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
        let watch = watch::of(&*setting.scheme)?;
        let views = watch.views(
            self.model,
            weights,
            &setting.sizes,
            self.place(),
            tap.take(),
            run.calls.len(),
        )?;
        if views.len() == run.calls.len() {
            return Ok(views);
        }
        let reason = format!("{} of {} steps were seen", views.len(), run.calls.len());
        Err(Error::Request(reason))
    }

    fn place(&self) -> Place {
        Place {
            worker: self.worker,
            of: self.fleet.workers.len(),
        }
    }
}
