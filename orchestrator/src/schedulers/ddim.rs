//! DDIM (Song et al. 2021, <https://arxiv.org/abs/2010.02502>).

use super::config::SchedulerConfig;
use super::limit::Limit;
use super::prediction::PredictionType;
use super::tables::{Tables, Training, whole};
use super::{Scheduler, SchedulerError, add_noise};
use crate::noise::TorchRng;

/// `diffusers`' `DDIMScheduler`.
pub(super) struct Ddim {
    /// Timesteps visited, descending.
    timesteps: Vec<f64>,
    /// The numbers of each step.
    steps: Vec<Step>,
    /// What the network's output means.
    prediction: PredictionType,
    /// How far the predicted x0 may go.
    limit: Limit,
    /// Whether steps add noise (eta above 0), and so draw from the generator.
    stochastic: bool,
}

/// The coefficients of one step in equation 12 of the paper (whose alpha is alpha-bar here).
struct Step {
    /// sqrt(alpha_t): the weight of x0 in the sample.
    signal: f32,
    /// sqrt(1 - alpha_t): the weight of the noise in the sample.
    noise: f32,
    /// sqrt(alpha_{t-1}).
    next_signal: f32,
    /// sqrt(1 - alpha_{t-1} - sigma_t^2): the weight of the "direction pointing to x_t".
    direction: f32,
    /// sigma_t of equation 16: the weight of the fresh noise.
    sigma: f32,
}

impl Ddim {
    pub(super) fn new(
        config: &SchedulerConfig,
        steps: usize,
        eta: f32,
    ) -> Result<Self, SchedulerError> {
        let prediction = config.prediction(PredictionType::ALL)?;
        let limit = Limit::either(config, true)?;
        let tables = Tables::new(config, Training::RESCALED)?;
        let trained = tables.alphas_cumprod.len();
        let timesteps = whole(config, trained, steps);
        let last = match config.set_alpha_to_one.unwrap_or(true) {
            true => 1.0,
            false => tables.alphas_cumprod[0],
        };
        let stride = (trained / steps) as i64;
        let coefficients = |(i, &timestep): (usize, &f64)| {
            let timestep = timestep as i64;
            let alpha = tables.alpha(timestep)?;
            let next = timestep - stride;
            let next_alpha = if next < 0 { last } else { tables.alpha(next)? };
            let step = Step::new(alpha, next_alpha, eta);
            let weights = [step.signal, step.noise];
            // Both x0 and the noise are predicted.
            let divisors = [false, true].map(|noise| prediction.divisor(weights, noise));
            let divisor = divisors[0].min(divisors[1]);
            if divisor > 0.0 && step.sigma.is_finite() {
                Ok(step)
            } else {
                Err(SchedulerError::Degenerate { step: i })
            }
        };
        let steps = timesteps.iter().enumerate().map(coefficients);
        Ok(Self {
            steps: steps.collect::<Result<_, _>>()?,
            timesteps,
            prediction,
            limit,
            stochastic: eta > 0.0,
        })
    }
}

impl Step {
    fn new(alpha: f32, next_alpha: f32, eta: f32) -> Self {
        let variance = (1.0 - next_alpha) / (1.0 - alpha) * (1.0 - alpha / next_alpha);
        let sigma = eta * variance.sqrt();
        Self {
            signal: alpha.sqrt(),
            noise: (1.0 - alpha).sqrt(),
            next_signal: next_alpha.sqrt(),
            // At eta 1 from pure noise this is zero, and may round to just below it.
            direction: (1.0 - next_alpha - sigma * sigma).max(0.0).sqrt(),
            sigma,
        }
    }
}

impl Scheduler for Ddim {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn level(&self, i: usize) -> [f32; 2] {
        let step = &self.steps[i];
        [step.signal, step.noise]
    }

    fn step(
        &mut self,
        i: usize,
        model_output: &[f32],
        sample: &[f32],
        rng: &mut TorchRng,
    ) -> Vec<f32> {
        let step = &self.steps[i];
        let weights = [step.signal, step.noise];
        let x0 = self
            .limit
            .x0(self.prediction, weights, model_output, sample);
        let next = |((&output, &x), x0): ((&f32, &f32), f32)| {
            let noise = self.prediction.noise(weights, output, x);
            step.next_signal * x0 + step.direction * noise
        };
        let pairs = model_output.iter().zip(sample);
        let mut out: Vec<f32> = pairs.zip(x0).map(next).collect();
        if self.stochastic {
            add_noise(&mut out, [1.0, step.sigma], rng);
        }
        out
    }
}
