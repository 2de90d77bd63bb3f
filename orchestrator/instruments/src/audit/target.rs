//! The attackers' workers among the others, and what their owners have of each picture.

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

/// The workers, and which of them are attacked from.
pub struct Target<'a> {
    /// The model, as the attacker has it too.
    pub pipeline: &'a Pipeline,
    /// The U-Net with its weights.
    pub model: &'a Model,
    /// The workers.
    pub fleet: &'a FleetConfig,
    /// The attackers', who put together what they have.
    pub workers: Vec<usize>,
}

/// Of so many runs the words of shares are kept, for every two of them are compared.
const WORDS_OF: usize = 8;

impl<'a> Target<'a> {
    /// Who attacks under `setting`, each by a name that begins with `name`: who was asked for, or those who collude.
    ///
    /// # Errors
    /// [`Error::Request`] where there is no attack on its scheme; those of the placement.
    pub fn attackers(&self, name: &str, setting: &Setting) -> Result<Vec<(String, Target<'a>)>> {
        let watch = watch::of(&*setting.scheme)?;
        let of = self.fleet.workers.len();
        let with = |workers: Vec<usize>| Target { workers, ..*self };
        let Some(coalitions) = watch.coalitions(&setting.sizes, of)? else {
            return Ok(vec![(name.to_owned(), with(self.workers.clone()))]);
        };
        let named = coalitions.into_iter().map(|workers| {
            let list: Vec<String> = workers.iter().map(ToString::to_string).collect();
            (format!("{name}, worker {}", list.join("+")), with(workers))
        });
        Ok(named.collect())
    }

    /// The rows of the latents that the first attacker's worker computes.
    ///
    /// # Errors
    /// [`lacuna_model::Error::TooManyStrips`]; [`Error::Request`] when there is no such worker.
    pub fn rows(&self, setting: &Setting) -> Result<Range<usize>> {
        let watch = watch::of(&*setting.scheme)?;
        watch.rows(
            self.pipeline.unet(),
            &setting.sizes,
            self.place(self.first()),
        )
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
        let each = self.workers.iter().map(|worker| (*worker, Tap::default()));
        let taps: Vec<(usize, Tap)> = each.collect();
        let [own, theirs] = [&own, setting].map(|setting| {
            let unet = self.pipeline.source().clone();
            let (whole, fleet) = (weights.clone(), self.fleet.clone());
            let denoiser = Denoiser::new(unet, setting.clone(), Some(whole), Some(fleet));
            // With one lost, what is heard would not be what the place was to be sent.
            let denoiser = denoiser.on_loss(OnLoss::End);
            denoiser.tapped(taps.clone())
        });
        let each = runs.iter().enumerate().map(|(i, run)| {
            progress();
            let denoiser = if i < train { &own } else { &theirs };
            let mut views = self.watch_run(denoiser, &taps, weights, run)?;
            if i >= WORDS_OF {
                views.iter_mut().for_each(|view| view.words.clear());
            }
            Ok(views)
        });
        each.collect()
    }

    /// What the attacker has of one run, step by step, by what comes through `taps`.
    fn watch_run(
        &self,
        denoiser: &Denoiser,
        taps: &[(usize, Tap)],
        weights: &Weights,
        run: &Run,
    ) -> Result<Vec<View>> {
        denoiser.predict(denoiser.weights()?, run.context.clone(), |predictor| {
            for (sample, timestep) in &run.calls {
                predictor.predict(sample.clone(), *timestep)?;
            }
            Ok(())
        })?;
        let Setting { scheme, sizes, .. } = &denoiser.setting;
        let steps = run.calls.len();
        let watch = watch::of(&**scheme)?;
        let mut each: Vec<Vec<View>> = (0..steps).map(|_| Vec::new()).collect();
        for (worker, tap) in taps {
            let (heard, place) = (tap.take(), self.place(*worker));
            let views = watch.views(self.model, weights, sizes, place, heard, steps)?;
            if views.len() != steps {
                let reason = format!("{} of {steps} steps were seen", views.len());
                return Err(Error::Request(reason));
            }
            each.iter_mut()
                .zip(views)
                .for_each(|(all, view)| all.push(view));
        }
        let together = each.into_iter().map(View::together);
        Ok(together.collect::<lacuna_wire::Result<_>>()?)
    }

    /// The first attacker's worker.
    fn first(&self) -> usize {
        self.workers.first().copied().unwrap_or_default()
    }

    fn place(&self, worker: usize) -> Place {
        Place {
            worker,
            of: self.fleet.workers.len(),
        }
    }
}
