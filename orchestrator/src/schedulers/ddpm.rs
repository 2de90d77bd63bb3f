//! DDPM: ancestral sampling (Ho et al. 2020, <https://arxiv.org/abs/2006.11239>, algorithm 2).

use super::config::SchedulerConfig;
use super::keys::{choose, unsupported};
use super::limit::Limit;
use super::prediction::PredictionType;
use super::tables::{Tables, Training, whole};
use super::{BetaSchedule, Scheduler, SchedulerError, add_noise};
use crate::noise::TorchRng;

/// `diffusers`' `DDPMScheduler`.
pub(super) struct Ddpm {
    /// Timesteps visited, descending.
    timesteps: Vec<f64>,
    /// The numbers of each step.
    steps: Vec<Step>,
    /// What the network's output means.
    prediction: PredictionType,
    /// How far the predicted x0 may go.
    limit: Limit,
}

/// The coefficients of one step in equation 7 of the paper.
struct Step {
    /// sqrt(alpha-bar_t) and sqrt(1 - alpha-bar_t): the weights of x0 and noise in the sample.
    weights: [f32; 2],
    /// The weight of x0 in the mean of the next sample.
    x0: f32,
    /// The weight of the sample in it.
    sample: f32,
    /// The standard deviation of the fresh noise; none at timestep 0, where none is drawn.
    fresh: Option<f32>,
}

/// The variance of the fresh noise (section 3.2 of the paper: both ends of its range).
#[derive(Clone, Copy)]
enum Variance {
    /// That of the posterior.
    Small,
    /// The same, by way of its logarithm.
    SmallLog,
    /// beta_t.
    Large,
}

impl Ddpm {
    pub(super) fn new(config: &SchedulerConfig, steps: usize) -> Result<Self, SchedulerError> {
        let variance = variance(config)?;
        let prediction = config.prediction(PredictionType::ALL)?;
        let limit = Limit::either(config, true)?;
        let training = Training {
            own_curves: &[BetaSchedule::Laplace, BetaSchedule::Sigmoid],
            ..Training::RESCALED
        };
        let tables = Tables::new(config, training)?;
        let timesteps = whole(config, tables.alphas_cumprod.len(), steps);
        let alphas = timesteps.iter().map(|&timestep| {
            let timestep = timestep as i64;
            Ok((timestep, tables.alpha(timestep)?))
        });
        let alphas: Vec<(i64, f32)> = alphas.collect::<Result<_, SchedulerError>>()?;
        let step = |(i, &(timestep, alpha)): (usize, &(i64, f32))| {
            let next = alphas.get(i + 1).map_or(1.0, |&(_, alpha)| alpha);
            let step = Step::new(timestep, alpha, next, variance);
            let fine = prediction.divisor(step.weights, false) > 0.0 && step.is_finite();
            fine.then_some(step)
                .ok_or(SchedulerError::Degenerate { step: i })
        };
        Ok(Self {
            steps: alphas
                .iter()
                .enumerate()
                .map(step)
                .collect::<Result<_, _>>()?,
            timesteps,
            prediction,
            limit,
        })
    }
}

/// `variance_type`, or `fixed_small`.
fn variance(config: &SchedulerConfig) -> Result<Variance, SchedulerError> {
    let name = config.variance_type.as_deref();
    let reason = match name {
        Some("learned" | "learned_range") => "models that predict a variance are not supported",
        Some("fixed_large_log") => "the root of a logarithm below zero is no number",
        _ => {
            let choices = [
                ("fixed_small", Variance::Small),
                ("fixed_small_log", Variance::SmallLog),
                ("fixed_large", Variance::Large),
            ];
            return choose("variance_type", name, &choices);
        }
    };
    let reason = format!("{reason}; choose another scheduler by --scheduler");
    Err(unsupported(
        "variance_type",
        name.unwrap_or_default(),
        reason,
    ))
}

impl Step {
    fn new(timestep: i64, alpha: f32, next: f32, variance: Variance) -> Self {
        let (noise, next_noise) = (1.0 - alpha, 1.0 - next);
        let kept = alpha / next;
        let beta = 1.0 - kept;
        let posterior = (next_noise / noise * beta).max(1e-20);
        let fresh = match variance {
            Variance::Small => posterior.sqrt(),
            Variance::SmallLog => (0.5 * posterior.ln()).exp(),
            Variance::Large => beta.sqrt(),
        };
        Self {
            weights: [alpha.sqrt(), noise.sqrt()],
            x0: next.sqrt() * beta / noise,
            sample: kept.sqrt() * next_noise / noise,
            fresh: (timestep > 0).then_some(fresh),
        }
    }

    fn is_finite(&self) -> bool {
        (self.x0 + self.sample + self.fresh.unwrap_or(0.0)).is_finite()
    }
}

impl Scheduler for Ddpm {
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
        let x0 = self
            .limit
            .x0(self.prediction, step.weights, model_output, sample);
        let means = x0.iter().zip(sample);
        let mut out: Vec<f32> = means
            .map(|(x0, x)| step.x0 * x0 + step.sample * x)
            .collect();
        if let Some(fresh) = step.fresh {
            add_noise(&mut out, [1.0, fresh], rng);
        }
        out
    }
}
