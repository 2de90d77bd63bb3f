//! Ancestral sampling with Euler steps: each step goes further down than its target noise level and
//! adds fresh noise to come back up to it (the variance split of Ho et al. 2020, in sigmas).

use super::config::SchedulerConfig;
use super::prediction::PredictionType;
use super::sigmas::{Curve, Interpolation, SigmaSchedule, to_unit_variance};
use super::tables::Tables;
use super::{Scheduler, SchedulerError, add_noise};
use crate::noise::TorchRng;

/// `diffusers`' `EulerAncestralDiscreteScheduler`.
pub(super) struct EulerAncestral {
    /// Where the steps lead.
    schedule: SigmaSchedule,
}

impl EulerAncestral {
    pub(super) fn new(config: &SchedulerConfig, steps: usize) -> Result<Self, SchedulerError> {
        let prediction =
            config.prediction(&[PredictionType::Epsilon, PredictionType::VPrediction])?;
        let tables = Tables::with_finite_sigmas(config)?;
        let curve = (Curve::Plain, Interpolation::Linear);
        let schedule = SigmaSchedule::new(config, &tables, steps, curve, 0.0, prediction)?;
        Ok(Self { schedule })
    }
}

impl Scheduler for EulerAncestral {
    fn timesteps(&self) -> &[f64] {
        &self.schedule.timesteps
    }

    fn init_noise_sigma(&self) -> f32 {
        self.schedule.init_noise_sigma
    }

    fn scale_model_input(&self, i: usize, sample: &mut [f32]) {
        to_unit_variance(self.schedule.sigmas[i], sample);
    }

    fn level(&self, i: usize) -> [f32; 2] {
        [1.0, self.schedule.sigmas[i]]
    }

    fn step(
        &mut self,
        i: usize,
        model_output: &[f32],
        sample: &[f32],
        rng: &mut TorchRng,
    ) -> Vec<f32> {
        let (from, to) = (self.schedule.sigmas[i], self.schedule.sigmas[i + 1]);
        let [up, down] = split(from, to);
        let pairs = model_output.iter().zip(sample);
        let next = pairs.map(|(&output, &x)| self.schedule.euler(i, down, output, x));
        let mut out: Vec<f32> = next.collect();
        // On the last step too, where it counts for nothing, as the reference does.
        add_noise(&mut out, [1.0, up], rng);
        out
    }
}

/// The standard deviation of the fresh noise in a step from noise level `from` to `to`, and the level that the step
/// itself goes down to: up^2 + down^2 = to^2, with up^2 the posterior variance.
pub(super) fn split(from: f32, to: f32) -> [f32; 2] {
    let up = (to * to * (from * from - to * to) / (from * from))
        .max(0.0)
        .sqrt();
    [up, (to * to - up * up).max(0.0).sqrt()]
}
