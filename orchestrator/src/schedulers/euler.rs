//! Euler's method on the probability-flow ODE (Karras et al. 2022,
//! <https://arxiv.org/abs/2206.00364>, algorithm 2 without churn and second-order correction).

use super::config::SchedulerConfig;
use super::keys::choose;
use super::prediction::PredictionType;
use super::sigmas::{Curve, Interpolation, SigmaSchedule, final_sigma, to_unit_variance};
use super::tables::Tables;
use super::{Scheduler, SchedulerError};
use crate::noise::TorchRng;

/// `diffusers`' `EulerDiscreteScheduler`.
pub(super) struct Euler {
    /// Where the steps lead.
    schedule: SigmaSchedule,
}

impl Euler {
    pub(super) fn new(config: &SchedulerConfig, steps: usize) -> Result<Self, SchedulerError> {
        let interpolations = [
            ("linear", Interpolation::Linear),
            ("log_linear", Interpolation::LogLinear),
        ];
        let interpolation = config.interpolation_type.as_deref();
        let interpolation = choose("interpolation_type", interpolation, &interpolations)?;
        let types = [("discrete", false), ("continuous", true)];
        let continuous = choose("timestep_type", config.timestep_type.as_deref(), &types)?;
        let prediction = config.prediction(PredictionType::ALL)?;
        let tables = Tables::with_finite_sigmas(config)?;
        let last = final_sigma(config, 0.0, tables.sigmas()[0])?;
        let curve = (Curve::new(config)?, interpolation);
        let mut schedule = SigmaSchedule::new(config, &tables, steps, curve, last, prediction)?;
        if continuous && prediction == PredictionType::VPrediction {
            // A quarter of log sigma (Karras et al., table 1, c_noise of the EDM column).
            let levels = schedule.timesteps.iter_mut().zip(&schedule.sigmas);
            levels.for_each(|(timestep, sigma)| *timestep = f64::from(0.25 * sigma.ln()));
        }
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
        _: &mut TorchRng,
    ) -> Vec<f32> {
        let to = self.schedule.sigmas[i + 1];
        let pairs = model_output.iter().zip(sample);
        pairs
            .map(|(&output, &x)| self.schedule.euler(i, to, output, x))
            .collect()
    }
}
