//! Singlestep DPM-Solver and DPM-Solver++ (Lu et al. 2022, <https://arxiv.org/abs/2206.00927>): calls in groups of one,
//! two or three, of which the last goes from the group's start to its end with the differences inside it.

use super::config::{SchedulerConfig, TimestepSpacing};
use super::dpm_formula::{Algorithm, Converter, Rule, Weights, refuse_learned};
use super::history::History;
use super::keys::unsupported;
use super::levels::{LastLevel, Level, Schedule, Steps, kept, made, order, refuse_flow};
use super::limit::Limit;
use super::prediction::PredictionType;
use super::sigmas::{Curve, final_sigma};
use super::tables::{Tables, Training};
use super::{Scheduler, SchedulerError, SchedulerKind};
use crate::noise::TorchRng;

/// `diffusers`' `DPMSolverSinglestepScheduler`.
pub(super) struct DpmSingle {
    /// Timesteps visited, descending.
    timesteps: Vec<f64>,
    /// The level before each call.
    levels: Vec<Level>,
    /// The numbers of each call.
    updates: Vec<Update>,
    converter: Converter,
    /// The last predictions, at most three.
    history: History,
    /// The sample at the start of the group.
    start: Vec<f32>,
}

/// One call, from the start of its group to the level after it.
struct Update {
    weights: Weights,
    /// How many calls of the group are done with it.
    order: usize,
    /// How far into the step the newest and, in groups of three, the middle prediction lie, as shares of it.
    shares: [f32; 2],
    /// Whether the third order takes the middle prediction's place only.
    midpoint: bool,
}

impl DpmSingle {
    pub(super) fn new(
        config: &SchedulerConfig,
        steps: usize,
        first: usize,
    ) -> Result<Self, SchedulerError> {
        refuse_flow(config)?;
        refuse_learned(config)?;
        let algorithm = Algorithm::new(config, SchedulerKind::DpmSingle)?;
        let rule = Rule::new(config)?;
        let converter = Converter {
            algorithm,
            prediction: config.prediction(PredictionType::ALL)?,
            limit: Limit::thresholding(config)?,
        };
        if !algorithm.of_x0 && !matches!(converter.limit, Limit::None) {
            let reason =
                "not with algorithm_type dpmsolver; choose another scheduler by --scheduler";
            return Err(unsupported("thresholding", true, reason));
        }
        let tables = Tables::new(config, Training::PLAIN)?;
        let class = Steps {
            kept: kept(config, &tables)?,
            spacing: TimestepSpacing::Linspace,
            curve: Curve::new(config)?,
            cut_for_cosine: false,
            last: final_sigma(config, LastLevel::Zero, LastLevel::Lowest)?,
        };
        let Schedule { timesteps, levels } = Schedule::new(config, &tables, steps, &class)?;
        let to_zero = matches!(class.last, LastLevel::Zero);
        let orders = orders(config, timesteps.len(), to_zero)?;
        let update = |(i, &order): (usize, &usize)| {
            let order = order.min(made(i, first) + 1);
            let update = Update::new(&levels, i, order, algorithm, rule);
            let fine = converter.divides(levels[i]) && update.is_finite();
            fine.then_some(update)
                .ok_or(SchedulerError::Degenerate { step: i })
        };
        let updates = orders.iter().enumerate().map(update);
        Ok(Self {
            updates: updates.collect::<Result<_, _>>()?,
            timesteps,
            levels,
            converter,
            history: History::new(3),
            start: Vec::new(),
        })
    }
}

/// The order of each of `steps` calls: in groups that go up to `solver_order`, and lower ones at the end where they
/// do not come out even, or lead to no noise.
fn orders(
    config: &SchedulerConfig,
    steps: usize,
    to_zero: bool,
) -> Result<Vec<usize>, SchedulerError> {
    let max = order(config)?;
    let uneven = !steps.is_multiple_of(max);
    let lower = config.lower_order_final.unwrap_or(false);
    let mut orders: Vec<usize> = (0..steps).map(|i| i % max + 1).collect();
    // A last group that is whole is broken up: of three calls into two and one, of two into one and one.
    if ((lower && !uneven) || to_zero)
        && let Some(last) = orders.last_mut()
    {
        *last = 1;
    }
    Ok(orders)
}

impl Update {
    fn new(levels: &[Level], i: usize, order: usize, algorithm: Algorithm, rule: Rule) -> Self {
        let (start, end) = (levels[i + 1 - order], levels[i + 1]);
        let h = end.lambda - start.lambda;
        let share = |of: usize| (levels[of].lambda - start.lambda) / h;
        let shares = match order {
            1 => [1.0, 1.0],
            2 => [share(i), 1.0],
            _ => [share(i), share(i - 1)],
        };
        let mut weights = Weights::new(algorithm, start, end, order, rule);
        let midpoint = rule == Rule::Midpoint;
        if midpoint {
            weights.d2 = 0.0;
        }
        Self {
            weights,
            order,
            shares,
            midpoint,
        }
    }

    /// Whether every number that the call uses is finite.
    fn is_finite(&self) -> bool {
        let [newest, middle] = self.shares;
        let apart = match self.order {
            3 => 1.0 / (newest - middle),
            _ => 0.0,
        };
        self.weights.is_finite() && (1.0 / newest + 1.0 / middle + apart).is_finite()
    }

    /// D0, D1 and D2 of one number from its last predictions, the newest first.
    fn differences(&self, newest_first: impl Fn(usize) -> f32) -> [f32; 3] {
        let m = newest_first;
        let [newest, middle] = self.shares;
        match self.order {
            1 => [m(0), 0.0, 0.0],
            2 => [m(1), 1.0 / newest * (m(0) - m(1)), 0.0],
            _ => {
                let near = 1.0 / middle * (m(1) - m(2));
                let far = 1.0 / newest * (m(0) - m(2));
                match self.midpoint {
                    true => [m(2), far, 0.0],
                    false => {
                        let apart = newest - middle;
                        let first = (newest * near - middle * far) / apart;
                        [m(2), first, 2.0 * (far - near) / apart]
                    }
                }
            }
        }
    }
}

impl Scheduler for DpmSingle {
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
        let update = &self.updates[i];
        if update.order == 1 {
            self.start = sample.to_vec();
        }
        // On the last call, too, where it counts for nothing, as the reference does.
        let stochastic = self.converter.algorithm.stochastic;
        let noise = stochastic.then(|| rng.randn(sample.len()));
        let newest_first = self.history.newest_first();
        let differences = |k: usize| update.differences(|age| newest_first[age][k]);
        update.weights.combine(&self.start, differences, noise)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_group_is_broken_up() {
        let of = |max, steps, lower, to_zero| {
            let config = SchedulerConfig {
                solver_order: Some(max),
                lower_order_final: Some(lower),
                ..SchedulerConfig::default()
            };
            orders(&config, steps, to_zero).unwrap()
        };
        assert_eq!(of(3, 6, true, false), [1, 2, 3, 1, 2, 1]);
        assert_eq!(of(3, 7, false, true), [1, 2, 3, 1, 2, 3, 1]);
        assert_eq!(of(3, 5, false, true), [1, 2, 3, 1, 1]);
        assert_eq!(of(3, 5, false, false), [1, 2, 3, 1, 2]);
        assert_eq!(of(3, 6, false, false), [1, 2, 3, 1, 2, 3]);
        assert_eq!(of(2, 6, false, true), [1, 2, 1, 2, 1, 1]);
        assert_eq!(of(2, 4, false, false), [1, 2, 1, 2]);
        assert_eq!(of(2, 5, false, false), [1, 2, 1, 2, 1]);
        assert_eq!(of(1, 3, false, true), [1, 1, 1]);
        assert_eq!(of(2, 1, false, true), [1]);
    }
}
