//! One provider's worker among the others, and what its owner has of each picture.

use std::ops::Range;

use lacuna_model::weights::Weights;
use lacuna_worker::Model;

use super::corpus::Run;
use super::view::View;
use super::watch::{self, Place};
use crate::error::{Error, Result};
use lacuna_orchestrator::fleet::config::FleetConfig;
use lacuna_orchestrator::fleet::tap::Tap;
use lacuna_orchestrator::generator::denoiser::Denoiser;
use lacuna_orchestrator::generator::failover::OnLoss;
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
        let tap = Tap::default();
        let [own, theirs] = [&own, setting].map(|setting| {
            let unet = self.pipeline.source().clone();
            let (whole, fleet) = (weights.clone(), self.fleet.clone());
            let denoiser = Denoiser::new(unet, setting.clone(), Some(whole), Some(fleet));
            // With one lost, what is heard would not be what the place was to be sent.
            let denoiser = denoiser.on_loss(OnLoss::End);
            denoiser.tapped(self.worker, tap.clone())
        });
        let each = runs.iter().enumerate().map(|(i, run)| {
            progress();
            let denoiser = if i < train { &own } else { &theirs };
            self.watch_run(denoiser, &tap, weights, run)
        });
        each.collect()
    }

    /// What the attacker has of one run, step by step, by what comes through `tap`.
    fn watch_run(
        &self,
        denoiser: &Denoiser,
        tap: &Tap,
        weights: &Weights,
        run: &Run,
    ) -> Result<Vec<View>> {
        denoiser.predict(denoiser.weights()?, run.context.clone(), |predictor| {
            for (sample, timestep) in &run.calls {
                predictor.predict(sample.clone(), *timestep)?;
            }
            Ok(())
        })?;
        let Setting { scheme, sizes } = &denoiser.setting;
        let heard = tap.take();
        let steps = run.calls.len();
        let watch = watch::of(&**scheme)?;
        let views = watch.views(self.model, weights, sizes, self.place(), heard, steps)?;
        if views.len() == steps {
            return Ok(views);
        }
        let reason = format!("{} of {steps} steps were seen", views.len());
        Err(Error::Request(reason))
    }

    fn place(&self) -> Place {
        Place {
            worker: self.worker,
            of: self.fleet.workers.len(),
        }
    }
}
