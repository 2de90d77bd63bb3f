//! Noise levels of the solvers that step along the log signal-to-noise ratio: DPM-Solver, DEIS and UniPC.
//!
//! In the papers' letters: alpha and sigma are the weights of signal and noise, lambda = log(alpha / sigma).

use super::SchedulerError;
use super::config::{BetaSchedule, SchedulerConfig, TimestepSpacing};
use super::keys::{refuse, unsupported};
use super::sigmas::{Curve, interpolate, log_levels, timestep_of};
use super::tables::{Tables, leading, linspace, trailing};

/// Below this many steps `lower_order_final` lowers the order at the end.
const FEW_STEPS: usize = 15;

/// A noise level in the letters of the papers.
#[derive(Clone, Copy)]
pub(super) struct Level {
    /// Weight of signal in a sample of unit variance.
    pub alpha: f32,
    /// Weight of noise in it.
    pub sigma: f32,
    /// log(alpha / sigma); infinite without noise.
    pub lambda: f32,
}

impl Level {
    /// From sigma in the form where the signal has weight one.
    pub(super) fn new(sigma: f32) -> Self {
        let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
        let sigma = sigma * alpha;
        Self {
            alpha,
            sigma,
            lambda: alpha.ln() - sigma.ln(),
        }
    }

    /// The weights of signal and noise.
    pub(super) fn weights(self) -> [f32; 2] {
        [self.alpha, self.sigma]
    }
}

/// What one class makes of the configuration.
pub(super) struct Steps {
    /// How many of the training timesteps may be visited, from 0 up.
    pub kept: usize,
    /// Spacing of the timesteps.
    pub spacing: TimestepSpacing,
    /// Which noise levels; where the curve is plain, those at the timesteps.
    pub curve: Curve,
    /// Whether timesteps of Karras' curve are cut, not rounded, under a cosine schedule.
    pub cut_for_cosine: bool,
    /// The noise level after the last step.
    pub last: LastLevel,
}

/// The noise level after the last step.
#[derive(Clone, Copy)]
pub(super) enum LastLevel {
    /// None.
    Zero,
    /// That of timestep 0.
    Lowest,
    /// That of timestep 0; where the levels follow a curve, the curve's last again.
    LowestOfCurve,
}

/// Timesteps to visit (whole, descending), and the levels before each step and after the last.
pub(super) struct Schedule {
    pub timesteps: Vec<f64>,
    pub levels: Vec<Level>,
}

impl Schedule {
    pub(super) fn new(
        config: &SchedulerConfig,
        tables: &Tables,
        steps: usize,
        class: &Steps,
    ) -> Result<Self, SchedulerError> {
        let table = tables.sigmas();
        let (min, max) = (f64::from(table[0]), f64::from(table[table.len() - 1]));
        let (timesteps, sigmas) = match class.curve.levels(config, min, max, steps)? {
            Some(sigmas) => {
                let log_sigmas = log_levels(&table);
                let whole = class.rounding(config);
                let timestep = |&sigma: &f64| whole(timestep_of(sigma, &log_sigmas));
                (sigmas.iter().map(timestep).collect(), sigmas)
            }
            None => {
                let timesteps = class.timesteps(config, table.len(), steps);
                let sigma = |&timestep: &f64| interpolate(&table, timestep);
                let sigmas: Vec<f64> = timesteps.iter().map(sigma).collect();
                (timesteps, sigmas)
            }
        };
        let mut sigmas: Vec<f32> = sigmas.into_iter().map(|sigma| sigma as f32).collect();
        sigmas.push(match (class.last, class.curve, sigmas.last()) {
            (LastLevel::Zero, ..) => 0.0,
            (LastLevel::Lowest, ..) | (_, Curve::Plain, _) | (_, _, None) => table[0],
            (LastLevel::LowestOfCurve, _, Some(&last)) => last,
        });
        Ok(Self {
            timesteps,
            levels: sigmas.into_iter().map(Level::new).collect(),
        })
    }
}

impl Steps {
    /// How the timestep of a noise level becomes whole.
    fn rounding(&self, config: &SchedulerConfig) -> fn(f64) -> f64 {
        let cosine = config.beta_schedule == Some(BetaSchedule::SquaredcosCapV2);
        match self.curve {
            Curve::Karras | Curve::Lu if !(cosine && self.cut_for_cosine) => f64::round_ties_even,
            _ => f64::trunc,
        }
    }

    /// Timesteps of the spacing. Unlike the other schedulers these spread steps + 1 of them and leave out the
    /// lowest (but for trailing spacing), and can be told to start later.
    fn timesteps(&self, config: &SchedulerConfig, trained: usize, steps: usize) -> Vec<f64> {
        match self.spacing {
            TimestepSpacing::Linspace => {
                let ascending = linspace(0.0, (self.kept - 1) as f64, steps + 1);
                let rounded = ascending.into_iter().skip(1).rev();
                rounded.map(f64::round_ties_even).collect()
            }
            TimestepSpacing::Leading => {
                let offset = config.steps_offset.unwrap_or(0);
                let mut timesteps = leading(steps + 1, self.kept / (steps + 1), offset);
                timesteps.truncate(steps);
                timesteps
            }
            TimestepSpacing::Trailing => trailing(self.kept, trained as f64 / steps as f64),
        }
    }
}

/// How many training timesteps `lambda_min_clipped` leaves.
pub(super) fn kept(config: &SchedulerConfig, tables: &Tables) -> Result<usize, SchedulerError> {
    let lambda_min = config.lambda_min_clipped.unwrap_or(f64::NEG_INFINITY) as f32;
    let lambda = |alpha: f32| alpha.sqrt().ln() - (1.0 - alpha).sqrt().ln();
    let alphas = tables.alphas_cumprod.iter();
    let kept = alphas.filter(|&&alpha| lambda(alpha) >= lambda_min).count();
    if kept == 0 {
        let reason = "it leaves no timestep";
        return Err(unsupported("lambda_min_clipped", lambda_min, reason));
    }
    Ok(kept)
}

/// `solver_order`, or 2.
pub(super) fn order(config: &SchedulerConfig) -> Result<usize, SchedulerError> {
    let order = config.solver_order.unwrap_or(2);
    match (1..=3).contains(&order) {
        true => Ok(order),
        false => Err(unsupported("solver_order", order, "expected 1, 2 or 3")),
    }
}

/// Refuses what these classes have for flow matching.
pub(super) fn refuse_flow(config: &SchedulerConfig) -> Result<(), SchedulerError> {
    refuse("use_flow_sigmas", config.use_flow_sigmas)?;
    refuse("use_dynamic_shifting", config.use_dynamic_shifting)
}

/// The steps that are made before step `i` where `first` is the first one.
pub(super) fn made(i: usize, first: usize) -> usize {
    i.saturating_sub(first)
}

/// Which order each step of a multistep solver has.
pub(super) struct Orders {
    /// `solver_order`.
    pub max: usize,
    /// Steps of the picture.
    pub count: usize,
    /// The step that is made first: there is nothing before it to remember.
    pub first: usize,
    /// Whether the last step is first-order whatever the number of steps.
    pub lower_last: bool,
    /// Whether the last steps are of lower order when there are few.
    pub lower_few: bool,
}

impl Orders {
    /// The order of step `i`: at most one more than the steps before it.
    pub(super) fn at(&self, i: usize) -> usize {
        let few = self.lower_few && self.count < FEW_STEPS;
        let to_go = self.count - 1 - i;
        let bound = match to_go {
            0 if few || self.lower_last => 1,
            1 if few => 2,
            _ => 3,
        };
        self.max.min(made(i, self.first) + 1).min(bound)
    }
}
