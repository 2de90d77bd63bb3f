//! Euler's method on the probability-flow ODE (Karras et al. 2022,
//! <https://arxiv.org/abs/2206.00364>, algorithm 2 without churn and second-order correction).

use super::config::{PredictionType, SchedulerConfig};
use super::keys::{choose, refuse};
use super::sigmas::{SigmaSchedule, final_sigma};
use super::tables::Tables;
use super::{Scheduler, SchedulerError, assert_same_length};
use crate::noise::TorchRng;

/// `diffusers`' `EulerDiscreteScheduler`.
pub(super) struct Euler {
    /// Where the steps lead.
    schedule: SigmaSchedule,
}

impl Euler {
    pub(super) fn new(config: &SchedulerConfig, steps: usize) -> Result<Self, SchedulerError> {
        refuse("use_exponential_sigmas", config.use_exponential_sigmas)?;
        refuse("use_beta_sigmas", config.use_beta_sigmas)?;
        let interpolation = config.interpolation_type.as_deref();
        choose("interpolation_type", interpolation, &[("linear", ())])?;
        let timestep_type = config.timestep_type.as_deref();
        choose("timestep_type", timestep_type, &[("discrete", ())])?;
        let prediction = config.prediction(&[
            PredictionType::Epsilon,
            PredictionType::Sample,
            PredictionType::VPrediction,
        ])?;
        let tables = Tables::with_finite_sigmas(config)?;
        let last = final_sigma(config, &tables)?;
        let karras = config.use_karras_sigmas.unwrap_or(false);
        let schedule = SigmaSchedule::new(config, &tables, steps, karras, last, prediction)?;
        Ok(Self { schedule })
    }
}

impl Scheduler for Euler {
    fn timesteps(&self) -> &[f64] {
        &self.schedule.timesteps
    }

    fn init_noise_sigma(&self) -> f32 {
        self.schedule.init_noise_sigma
    }

    fn scale_model_input(&self, i: usize, sample: &mut [f32]) {
        self.schedule.scale_model_input(i, sample);
    }

    fn level(&self, i: usize) -> [f32; 2] {
        [1.0, self.schedule.sigmas[i]]
    }

    fn step(
        &mut self,
        i: usize,
        model_output: &[f32],
        sample: &[f32],
        _: &mut TorchRng,
    ) -> Vec<f32> {
        assert_same_length(model_output, sample);
        let to = self.schedule.sigmas[i + 1];
        let pairs = model_output.iter().zip(sample);
        pairs
            .map(|(&output, &x)| self.schedule.euler(i, to, output, x))
            .collect()
    }
}
