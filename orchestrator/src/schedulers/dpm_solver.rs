//! Multistep DPM-Solver and DPM-Solver++ (Lu et al. 2022, <https://arxiv.org/abs/2211.01095>), deterministic and
//! stochastic, orders 1 to 3.

use super::config::{SchedulerConfig, TimestepSpacing};
use super::dpm_formula::{Algorithm, Converter, Rule, Weights, refuse_learned};
use super::history::History;
use super::keys::unsupported;
use super::levels::{LastLevel, Level, Orders, Schedule, Steps, kept, order, refuse_flow};
use super::limit::Limit;
use super::prediction::PredictionType;
use super::sigmas::{Curve, final_sigma};
use super::tables::Tables;
use super::{Scheduler, SchedulerError, SchedulerKind};
use crate::noise::TorchRng;

/// `diffusers`' `DPMSolverMultistepScheduler`.
pub(super) struct DpmSolver {
    /// Timesteps visited, descending.
    timesteps: Vec<f64>,
    /// The level before each step.
    levels: Vec<Level>,
    /// The numbers of each step.
    updates: Vec<Update>,
    converter: Converter,
    /// The last predictions, at most three.
    history: History,
}

/// One step: its formula, and how the finite differences of the last predictions are scaled.
struct Update {
    weights: Weights,
    order: usize,
    /// 1 / r0 and 1 / r1, the step's length in units of the last two.
    inverse: [f32; 2],
    /// r0 / (r0 + r1).
    mix: f32,
    /// 1 / (r0 + r1).
    inverse_sum: f32,
}

impl DpmSolver {
    pub(super) fn new(
        config: &SchedulerConfig,
        steps: usize,
        first: usize,
        stochastic: bool,
    ) -> Result<Self, SchedulerError> {
        refuse_flow(config)?;
        refuse_learned(config)?;
        let algorithm = match stochastic {
            true => Algorithm {
                stochastic,
                ..Algorithm::PLUS_PLUS
            },
            false => Algorithm::new(config, SchedulerKind::DpmSolver)?,
        };
        let rule = Rule::new(config)?;
        let max = order(config)?;
        if max == 3 && algorithm.stochastic && !algorithm.of_x0 {
            let reason = "with algorithm_type sde-dpmsolver 1 or 2 is expected";
            return Err(unsupported("solver_order", max, reason));
        }
        let converter = Converter {
            algorithm,
            prediction: config.prediction(PredictionType::ALL)?,
            limit: Limit::thresholding(config)?,
        };
        let tables = Tables::with_finite_sigmas(config)?;
        let curve = Curve::new(config)?;
        let lu = config.use_lu_lambdas.unwrap_or(false) && curve != Curve::Karras;
        let class = Steps {
            kept: kept(config, &tables)?,
            spacing: config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace),
            curve: if lu { Curve::Lu } else { curve },
            cut_for_cosine: true,
            last: final_sigma(config, LastLevel::Zero, LastLevel::Lowest)?,
        };
        let Schedule { timesteps, levels } = Schedule::new(config, &tables, steps, &class)?;
        let orders = Orders {
            max,
            count: timesteps.len(),
            first,
            lower_last: config.euler_at_final.unwrap_or(false)
                || matches!(class.last, LastLevel::Zero),
            lower_few: config.lower_order_final.unwrap_or(true),
        };
        let update = |i: usize| {
            let update = Update::new(&levels, i, orders.at(i), algorithm, rule);
            let fine = converter.divides(levels[i]) && update.is_finite();
            fine.then_some(update)
                .ok_or(SchedulerError::Degenerate { step: i })
        };
        Ok(Self {
            updates: (0..timesteps.len()).map(update).collect::<Result<_, _>>()?,
            timesteps,
            levels,
            converter,
            history: History::new(3),
        })
    }
}

impl Update {
    /// The numbers of step `i`, from `levels[i]` to `levels[i + 1]`, of order at most `i + 1`
    /// (algorithm 2 of the paper and, for order 3, the corresponding differences of DPM-Solver-3).
    fn new(levels: &[Level], i: usize, order: usize, algorithm: Algorithm, rule: Rule) -> Self {
        let (s, t) = (levels[i], levels[i + 1]);
        let h = t.lambda - s.lambda;
        let earlier = |k: usize| match order > k {
            true => (levels[i + 1 - k].lambda - levels[i - k].lambda) / h,
            false => 1.0,
        };
        let (r0, r1) = (earlier(1), earlier(2));
        Self {
            weights: Weights::new(algorithm, s, t, order, rule),
            order,
            inverse: [1.0 / r0, 1.0 / r1],
            mix: r0 / (r0 + r1),
            inverse_sum: 1.0 / (r0 + r1),
        }
    }

    /// Whether every number that the step uses is finite.
    fn is_finite(&self) -> bool {
        let [near, far] = self.inverse;
        self.weights.is_finite() && (near + far + self.mix + self.inverse_sum).is_finite()
    }

    /// D0, D1 and D2 of one number from its last predictions, the newest first.
    fn differences(&self, newest_first: impl Fn(usize) -> f32) -> [f32; 3] {
        let m = newest_first;
        match self.order {
            1 => [m(0), 0.0, 0.0],
            2 => [m(0), self.inverse[0] * (m(0) - m(1)), 0.0],
            _ => {
                let near = self.inverse[0] * (m(0) - m(1));
                let far = self.inverse[1] * (m(1) - m(2));
                let first = near + self.mix * (near - far);
                [m(0), first, self.inverse_sum * (near - far)]
            }
        }
    }
}

impl Scheduler for DpmSolver {
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
        rng: &mut TorchRng,
    ) -> Vec<f32> {
        let newest = self.converter.convert(self.levels[i], model_output, sample);
        self.history.push(newest);
        // On the last step, too, where it counts for nothing, as the reference does.
        let stochastic = self.converter.algorithm.stochastic;
        let noise = stochastic.then(|| rng.randn(sample.len()));
        let newest_first = self.history.newest_first();
        let update = &self.updates[i];
        let differences = |k: usize| update.differences(|age| newest_first[age][k]);
        update.weights.combine(sample, differences, noise)
    }
}
