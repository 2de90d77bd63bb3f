//! Sampling of a trajectory consistency model (Zheng et al. 2024, <https://arxiv.org/abs/2402.19159>,
//! algorithm 4): along the trajectory below the next timestep, and back up to it with fresh noise.

use super::config::SchedulerConfig;
use super::prediction::PredictionType;
use super::tables::{Tables, Training, weights};
use super::{Scheduler, SchedulerError, add_noise, teacher};
use crate::noise::TorchRng;

/// `diffusers`' `TCDScheduler`.
pub(super) struct Tcd {
    /// Timesteps visited, descending.
    timesteps: Vec<f64>,
    /// The numbers of each step.
    steps: Vec<Step>,
    /// What the network's output means.
    prediction: PredictionType,
}

/// The coefficients of one step from t to s, and back up to the next timestep.
struct Step {
    /// sqrt(alpha-bar_t) and sqrt(1 - alpha-bar_t): the weights of x0 and noise in the sample.
    weights: [f32; 2],
    /// The same at s.
    below: [f32; 2],
    /// The weights of the sample at s and of fresh noise in the next sample; none where no noise is added.
    up: Option<[f32; 2]>,
}

impl Tcd {
    /// Among the lowest `share` of the teacher's timesteps; `eta` is the paper's gamma.
    pub(super) fn new(
        config: &SchedulerConfig,
        steps: usize,
        share: f64,
        eta: f32,
    ) -> Result<Self, SchedulerError> {
        let prediction = config.prediction(PredictionType::ALL)?;
        let tables = Tables::new(config, Training::LATENT)?;
        let timesteps = teacher::timesteps(config, tables.alphas_cumprod.len(), steps, share)?;
        // As many digits as were typed: the product below is cut to a whole timestep.
        let eta = eta.to_string().parse().unwrap_or(f64::from(eta));
        let kept = (1.0 - eta) as f32;
        let step = |(i, &timestep): (usize, &i64)| {
            let next = timesteps.get(i + 1).copied();
            let below = (kept * next.unwrap_or(0) as f32).floor() as i64;
            let alpha = tables.alpha(timestep)?;
            let alpha_below = tables.alpha(below)?;
            let up = match next {
                Some(next) if eta > 0.0 => {
                    let share = tables.alpha(next)? / alpha_below;
                    Some([share.sqrt(), (1.0 - share).max(0.0).sqrt()])
                }
                _ => None,
            };
            let step = Step {
                weights: weights(alpha),
                below: weights(alpha_below),
                up,
            };
            let divisors = [false, true].map(|noise| prediction.divisor(step.weights, noise));
            match divisors[0].min(divisors[1]) > 0.0 {
                true => Ok(step),
                false => Err(SchedulerError::Degenerate { step: i }),
            }
        };
        let steps = timesteps.iter().enumerate().map(step);
        Ok(Self {
            steps: steps.collect::<Result<_, _>>()?,
            timesteps: timesteps.iter().map(|&timestep| timestep as f64).collect(),
            prediction,
        })
    }
}

impl Scheduler for Tcd {
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
        let [signal, noise] = step.below;
        let next = |(&output, &x): (&f32, &f32)| {
            let x0 = self.prediction.x0(step.weights, output, x);
            signal * x0 + noise * self.prediction.noise(step.weights, output, x)
        };
        let mut out: Vec<f32> = model_output.iter().zip(sample).map(next).collect();
        if let Some(up) = step.up {
            add_noise(&mut out, up, rng);
        }
        out
    }
}
