//! Heun's method on the probability-flow ODE (Karras et al. 2022, <https://arxiv.org/abs/2206.00364>, algorithm 1).
//!
//! Every step calls the network twice, at its start and at where Euler's method leads, and goes along the mean of both
//! slopes; the last, to no noise, is Euler's alone.

use super::config::SchedulerConfig;
use super::limit::Limit;
use super::prediction::PredictionType;
use super::sigmas::{SigmaSchedule, to_unit_variance};
use super::tables::{Tables, Training};
use super::{BetaSchedule, Scheduler, SchedulerError};
use crate::noise::TorchRng;

/// `diffusers`' `HeunDiscreteScheduler`.
pub(super) struct Heun {
    /// Where the steps lead.
    schedule: SigmaSchedule,
    /// What the network is told, call by call.
    timesteps: Vec<f64>,
    /// How far the predicted x0 may go.
    limit: Limit,
    /// Between the calls of one step: the sample it starts from, and the slope there.
    first: Option<(Vec<f32>, Vec<f32>)>,
}

impl Heun {
    pub(super) fn new(config: &SchedulerConfig, steps: usize) -> Result<Self, SchedulerError> {
        let limit = Limit::clipping(config, false)?;
        let training = Training {
            own_curves: &[BetaSchedule::Exp],
            ..Training::LATENT_LINEAR
        };
        let tables = Tables::new(config, training)?;
        let schedule = SigmaSchedule::to_zero(config, &tables, steps, PredictionType::ALL)?;
        let twice = schedule
            .timesteps
            .iter()
            .flat_map(|&timestep| [timestep; 2]);
        Ok(Self {
            timesteps: twice.skip(1).collect(),
            schedule,
            limit,
            first: None,
        })
    }

    /// The noise level of the sample at call `i`: the second call of a step is at the next one's.
    fn sigma(&self, i: usize) -> f32 {
        self.schedule.sigmas[i.div_ceil(2)]
    }

    /// The slope of the ODE at call `i`.
    fn slope(&self, i: usize, model_output: &[f32], sample: &[f32]) -> Vec<f32> {
        let sigma = self.sigma(i);
        let prediction = self.schedule.prediction;
        let pairs = model_output.iter().zip(sample);
        let mut x0: Vec<f32> = pairs
            .map(|(&output, &x)| prediction.x0_exploding(sigma, output, x))
            .collect();
        self.limit.apply(&mut x0);
        let pairs = sample.iter().zip(x0);
        pairs.map(|(x, x0)| (x - x0) / sigma).collect()
    }
}

impl Scheduler for Heun {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn init_noise_sigma(&self) -> f32 {
        self.schedule.init_noise_sigma
    }

    fn scale_model_input(&self, i: usize, sample: &mut [f32]) {
        to_unit_variance(self.sigma(i), sample);
    }

    fn level(&self, i: usize) -> [f32; 2] {
        [1.0, self.sigma(i)]
    }

    fn step(
        &mut self,
        i: usize,
        model_output: &[f32],
        sample: &[f32],
        _: &mut TorchRng,
    ) -> Vec<f32> {
        let slope = self.slope(i, model_output, sample);
        match self.first.take() {
            None => {
                let far = self.schedule.sigmas[i / 2 + 1] - self.sigma(i);
                let pairs = sample.iter().zip(&slope);
                let next = pairs.map(|(x, slope)| x + slope * far).collect();
                self.first = Some((sample.to_vec(), slope));
                next
            }
            Some((start, first)) => {
                let far = self.sigma(i) - self.schedule.sigmas[i / 2];
                let slopes = first.iter().zip(&slope);
                let pairs = start.iter().zip(slopes);
                pairs
                    .map(|(x, (first, second))| x + (first + second) / 2.0 * far)
                    .collect()
            }
        }
    }
}
