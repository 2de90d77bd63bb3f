//! Multistep sampling of a latent consistency model (Luo et al. 2023, <https://arxiv.org/abs/2310.04378>,
//! algorithm 3): to clean latents at once, and back to the next noise level with fresh noise.

use super::config::SchedulerConfig;
use super::keys::unsupported;
use super::limit::Limit;
use super::prediction::PredictionType;
use super::tables::{Tables, Training, weights};
use super::{Scheduler, SchedulerError, add_noise, teacher};
use crate::noise::TorchRng;

/// The standard deviation of clean latents in the boundary condition.
const SIGMA_DATA: f32 = 0.5;

/// `diffusers`' `LCMScheduler`.
pub(super) struct Lcm {
    /// Timesteps visited, descending.
    timesteps: Vec<f64>,
    /// The numbers of each step.
    steps: Vec<Step>,
    /// What the network's output means.
    prediction: PredictionType,
    /// How far the predicted x0 may go.
    limit: Limit,
}

/// The coefficients of one step.
struct Step {
    /// sqrt(alpha-bar_t) and sqrt(1 - alpha-bar_t): the weights of x0 and noise in the sample.
    weights: [f32; 2],
    /// The weight of the sample in the denoised latents (c_skip, appendix B of the paper).
    skip: f32,
    /// The weight of x0 in them (c_out).
    out: f32,
    /// The weights of the denoised latents and of fresh noise in the next sample; none on the last step.
    next: Option<[f32; 2]>,
}

impl Lcm {
    /// Among the lowest `share` of the teacher's timesteps.
    pub(super) fn new(
        config: &SchedulerConfig,
        steps: usize,
        share: f64,
    ) -> Result<Self, SchedulerError> {
        let prediction = config.prediction(PredictionType::ALL)?;
        let limit = Limit::either(config, false)?;
        let scaling = config.timestep_scaling.unwrap_or(10.0);
        if !(scaling.is_finite() && scaling >= 0.0) {
            let reason = "expected a number that is not negative";
            return Err(unsupported("timestep_scaling", scaling, reason));
        }
        let tables = Tables::new(config, Training::LATENT)?;
        let timesteps = teacher::timesteps(config, tables.alphas_cumprod.len(), steps, share)?;
        let step = |(i, &timestep): (usize, &i64)| {
            let next = timesteps.get(i + 1);
            let next = next.map(|&next| tables.alpha(next).map(weights));
            let scaled = timestep as f32 * scaling;
            let variance = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
            let step = Step {
                weights: weights(tables.alpha(timestep)?),
                skip: SIGMA_DATA * SIGMA_DATA / variance,
                out: scaled / variance.sqrt(),
                next: next.transpose()?,
            };
            match prediction.divisor(step.weights, false) > 0.0 {
                true => Ok(step),
                false => Err(SchedulerError::Degenerate { step: i }),
            }
        };
        let steps = timesteps.iter().enumerate().map(step);
        Ok(Self {
            steps: steps.collect::<Result<_, _>>()?,
            timesteps: timesteps.iter().map(|&timestep| timestep as f64).collect(),
            prediction,
            limit,
        })
    }
}

impl Scheduler for Lcm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn level(&self, i: usize) -> [f32; 2] {
        self.steps[i].weights
    }

    fn step(
        &mut self,
        i: usize,
        model_output: &[f32],
        sample: &[f32],
        rng: &mut TorchRng,
    ) -> Vec<f32> {
        let step = &self.steps[i];
        let mut latents = self
            .limit
            .x0(self.prediction, step.weights, model_output, sample);
        for (latent, x) in latents.iter_mut().zip(sample) {
            *latent = step.out * *latent + step.skip * x;
        }
        if let Some(next) = step.next {
            add_noise(&mut latents, next, rng);
        }
        latents
    }
}
