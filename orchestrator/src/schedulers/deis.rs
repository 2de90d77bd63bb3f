//! DEIS: the diffusion exponential integrator with polynomials in log rho (Zhang and Chen 2022,
//! <https://arxiv.org/abs/2204.13902>), multistep, orders 1 to 3.

use super::config::{SchedulerConfig, TimestepSpacing};
use super::dpm_formula::noise_left;
use super::history::History;
use super::keys::choose;
use super::levels::{LastLevel, Level, Orders, Schedule, Steps, order, refuse_flow};
use super::limit::Limit;
use super::prediction::PredictionType;
use super::sigmas::Curve;
use super::tables::{Tables, Training};
use super::{Scheduler, SchedulerError};
use crate::noise::TorchRng;

/// `diffusers`' `DEISMultistepScheduler`.
pub(super) struct Deis {
    /// Timesteps visited, descending.
    timesteps: Vec<f64>,
    /// The level before each step.
    levels: Vec<Level>,
    /// The numbers of each step.
    updates: Vec<Update>,
    /// What the network's output means.
    prediction: PredictionType,
    /// How far the predicted x0 may go.
    limit: Limit,
    /// The last predictions of the noise, at most three.
    history: History,
}

/// The numbers of one step from time s to time t.
enum Update {
    /// x_t = sample x_s + noise eps.
    First { sample: f32, noise: f32 },
    /// x_t = alpha_t (x_s / alpha_s + the noise predictions times their weights, the newest first).
    Higher {
        alpha_t: f32,
        alpha_s: f32,
        weights: Vec<f32>,
    },
}

impl Deis {
    pub(super) fn new(
        config: &SchedulerConfig,
        steps: usize,
        first: usize,
    ) -> Result<Self, SchedulerError> {
        refuse_flow(config)?;
        // Like the reference, takes the algorithms and rules of other solvers for its only ones.
        let algorithms = ["deis", "dpmsolver", "dpmsolver++"].map(|name| (name, ()));
        let algorithm = config.algorithm_type.as_deref();
        choose("algorithm_type", algorithm, &algorithms)?;
        let rules = ["logrho", "midpoint", "heun", "bh1", "bh2"].map(|name| (name, ()));
        choose("solver_type", config.solver_type.as_deref(), &rules)?;
        let prediction = config.prediction(PredictionType::ALL)?;
        let limit = Limit::thresholding(config)?;
        let max = order(config)?;
        let tables = Tables::new(config, Training::PLAIN)?;
        let class = Steps {
            kept: tables.alphas_cumprod.len(),
            spacing: config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace),
            curve: Curve::new(config)?,
            cut_for_cosine: false,
            last: LastLevel::LowestOfCurve,
        };
        let Schedule { timesteps, levels } = Schedule::new(config, &tables, steps, &class)?;
        let orders = Orders {
            max,
            count: timesteps.len(),
            first,
            lower_last: false,
            lower_few: config.lower_order_final.unwrap_or(true),
        };
        let update = |i: usize| {
            let update = Update::new(&levels, i, orders.at(i));
            // The predictions are of x0 first, then of the noise that this leaves.
            let level = levels[i];
            let divides = prediction.divisor(level.weights(), false) > 0.0 && level.sigma > 0.0;
            let fine = divides && update.is_finite();
            fine.then_some(update)
                .ok_or(SchedulerError::Degenerate { step: i })
        };
        Ok(Self {
            updates: (0..timesteps.len()).map(update).collect::<Result<_, _>>()?,
            timesteps,
            levels,
            prediction,
            limit,
            history: History::new(3),
        })
    }
}

impl Update {
    fn new(levels: &[Level], i: usize, order: usize) -> Self {
        let (s, t) = (levels[i], levels[i + 1]);
        if order == 1 {
            let h = t.lambda - s.lambda;
            return Self::First {
                sample: t.alpha / s.alpha,
                noise: -(t.sigma * (h.exp() - 1.0)),
            };
        }
        let rho = |level: Level| level.sigma / level.alpha;
        // The newest first.
        let known: Vec<f32> = (0..order).map(|age| rho(levels[i - age])).collect();
        let weight = |age: usize| {
            let others = |k: usize| known[(age + k) % order].ln();
            let primitive = |at: f32| match order {
                2 => at * (-others(1) + at.ln() - 1.0) / (others(0) - others(1)),
                _ => {
                    let (b, c, d, log) = (others(0), others(1), others(2), at.ln());
                    let above = c * (d - log + 1.0) - d * log + d + log * log - 2.0 * log + 2.0;
                    at * above / ((b - c) * (b - d))
                }
            };
            primitive(rho(t)) - primitive(known[0])
        };
        Self::Higher {
            alpha_t: t.alpha,
            alpha_s: s.alpha,
            weights: (0..order).map(weight).collect(),
        }
    }

    /// Whether every number that the step uses is finite.
    fn is_finite(&self) -> bool {
        match self {
            Self::First { sample, noise } => (sample + noise).is_finite(),
            Self::Higher {
                alpha_s, weights, ..
            } => (1.0 / alpha_s + weights.iter().sum::<f32>()).is_finite(),
        }
    }

    /// The next number of the sample, from the noise predictions, the newest first.
    fn apply(&self, x: f32, newest_first: impl Fn(usize) -> f32) -> f32 {
        match self {
            Self::First { sample, noise } => sample * x + noise * newest_first(0),
            Self::Higher {
                alpha_t,
                alpha_s,
                weights,
            } => {
                let add = |sum, (age, weight): (usize, &f32)| sum + weight * newest_first(age);
                alpha_t * weights.iter().enumerate().fold(x / alpha_s, add)
            }
        }
    }
}

impl Scheduler for Deis {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn level(&self, i: usize) -> [f32; 2] {
        self.levels[i].weights()
    }

    fn step(
        &mut self,
        i: usize,
        model_output: &[f32],
        sample: &[f32],
        _: &mut TorchRng,
    ) -> Vec<f32> {
        let level = self.levels[i];
        let x0 = self
            .limit
            .x0(self.prediction, level.weights(), model_output, sample);
        self.history.push(noise_left(level, &x0, sample));
        let newest_first = self.history.newest_first();
        let update = &self.updates[i];
        let next = |(k, &x): (usize, &f32)| update.apply(x, |age| newest_first[age][k]);
        sample.iter().enumerate().map(next).collect()
    }
}
