//! Multistep DPM-Solver++ (Lu et al. 2022, <https://arxiv.org/abs/2211.01095>), orders 1 to 3.
//!
//! In the paper's letters: a step goes from time s to time t, alpha and sigma are the weights of
//! signal and noise there, lambda = log(alpha / sigma), h = lambda_t - lambda_s.

use super::config::{PredictionType, SchedulerConfig, TimestepSpacing};
use super::keys::{choose, refuse, unsupported};
use super::sigmas::{final_sigma, interpolate, karras, timestep_of};
use super::tables::{Tables, leading, linspace, trailing};
use super::{BetaSchedule, Scheduler, SchedulerError, assert_next, assert_same_length};
use crate::noise::TorchRng;

/// Below this many steps `lower_order_final` lowers the order at the end.
const FEW_STEPS: usize = 15;

/// `diffusers`' `DPMSolverMultistepScheduler` with `algorithm_type` `dpmsolver++`.
pub(super) struct DpmSolver {
    /// Timesteps visited, descending.
    timesteps: Vec<f64>,
    /// The numbers of each step.
    updates: Vec<Update>,
    /// What the network's output means.
    prediction: PredictionType,
    /// The last predictions of x0, newest last, at most three.
    history: Vec<Vec<f32>>,
    /// Index of the step that is due.
    due: usize,
}

/// The second-order rule.
#[derive(Clone, Copy)]
enum Rule {
    /// The x0 prediction in the middle of the step, extrapolated.
    Midpoint,
    /// The x0 prediction as a line through the last two.
    Heun,
}

/// A noise level in the letters of the paper.
#[derive(Clone, Copy)]
struct Level {
    /// Weight of signal in a sample of unit variance.
    alpha: f32,
    /// Weight of noise in it.
    sigma: f32,
    /// log(alpha / sigma); infinite without noise.
    lambda: f32,
}

/// x_t = sample x_s + d0 D0 + d1 D1 + d2 D2, where D0 is the newest x0 prediction and D1, D2 are
/// finite differences of the last ones.
struct Update {
    /// Weight of signal in the sample, to predict x0.
    alpha: f32,
    /// Weight of noise in the sample, to predict x0.
    sigma: f32,
    /// Factor of the sample.
    sample: f32,
    /// Factor of D0.
    d0: f32,
    /// Factors of the differences; how many there are is the order.
    differences: Differences,
}

/// How many earlier predictions a step uses, and with which weights.
enum Differences {
    /// First order: none.
    None,
    /// Second order: `d1`, and 1 / r0 that scales the difference.
    One { d1: f32, inv_r0: f32 },
    /// Third order: two differences and how they mix.
    Two {
        d1: f32,
        d2: f32,
        inv_r0: f32,
        inv_r1: f32,
        /// r0 / (r0 + r1).
        mix: f32,
        /// 1 / (r0 + r1).
        inv_sum: f32,
    },
}

impl DpmSolver {
    pub(super) fn new(config: &SchedulerConfig, steps: usize) -> Result<Self, SchedulerError> {
        refuse("thresholding", config.thresholding)?;
        refuse("use_exponential_sigmas", config.use_exponential_sigmas)?;
        refuse("use_beta_sigmas", config.use_beta_sigmas)?;
        refuse("use_lu_lambdas", config.use_lu_lambdas)?;
        refuse("use_flow_sigmas", config.use_flow_sigmas)?;
        refuse("use_dynamic_shifting", config.use_dynamic_shifting)?;
        let variance = config.variance_type.as_deref();
        if let Some(variance) = variance.filter(|v| ["learned", "learned_range"].contains(v)) {
            return Err(unsupported("variance_type", variance, "not implemented"));
        }
        // Like the reference, reads DEIS as its own algorithm where the last noise level allows it.
        let deis = config.final_sigmas_type.as_deref() == Some("sigma_min");
        let algorithms = [("dpmsolver++", ()), ("deis", ())];
        choose(
            "algorithm_type",
            config.algorithm_type.as_deref(),
            &algorithms[..1 + usize::from(deis)],
        )?;
        // Like the reference, reads the rules of DEIS and UniPC as its own nearest one.
        let rules = [
            ("midpoint", Rule::Midpoint),
            ("heun", Rule::Heun),
            ("logrho", Rule::Midpoint),
            ("bh1", Rule::Midpoint),
            ("bh2", Rule::Midpoint),
        ];
        let rule = choose("solver_type", config.solver_type.as_deref(), &rules)?;
        let max_order = config.solver_order.unwrap_or(2);
        if !(1..=3).contains(&max_order) {
            return Err(unsupported("solver_order", max_order, "expected 1, 2 or 3"));
        }
        let prediction = config.prediction(&[
            PredictionType::Epsilon,
            PredictionType::Sample,
            PredictionType::VPrediction,
        ])?;
        let tables = Tables::with_finite_sigmas(config)?;
        let (timesteps, sigmas) = schedule(config, &tables, steps)?;
        let orders = Orders {
            max: max_order,
            count: timesteps.len(),
            lower_last: config.euler_at_final.unwrap_or(false) || sigmas[timesteps.len()] == 0.0,
            lower_few: config.lower_order_final.unwrap_or(true),
        };
        let levels: Vec<Level> = sigmas.into_iter().map(Level::new).collect();
        let updates = (0..timesteps.len())
            .map(|i| Update::new(&levels, i, orders.at(i), rule))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            timesteps,
            updates,
            prediction,
            history: Vec::new(),
            due: 0,
        })
    }
}

/// Timesteps to visit (whole, descending) and the noise levels before each step and after the last.
fn schedule(
    config: &SchedulerConfig,
    tables: &Tables,
    steps: usize,
) -> Result<(Vec<f64>, Vec<f32>), SchedulerError> {
    let trained = tables.alphas_cumprod.len();
    let table = tables.sigmas();
    let (timesteps, sigmas) = if config.use_karras_sigmas.unwrap_or(false) {
        let (min, max) = (f64::from(table[0]), f64::from(table[trained - 1]));
        let sigmas = karras(config, min, max, steps)?;
        let log_sigmas: Vec<f32> = table.iter().map(|sigma| sigma.ln()).collect();
        let round: fn(f64) -> f64 = match config.beta_schedule {
            Some(BetaSchedule::SquaredcosCapV2) => f64::trunc,
            _ => f64::round_ties_even,
        };
        let timestep = |&sigma: &f64| round(timestep_of(sigma, &log_sigmas));
        (sigmas.iter().map(timestep).collect(), sigmas)
    } else {
        let timesteps = plain_timesteps(config, tables, steps)?;
        let sigma = |&timestep: &f64| interpolate(&table, timestep);
        let sigmas: Vec<f64> = timesteps.iter().map(sigma).collect();
        (timesteps, sigmas)
    };
    let mut sigmas: Vec<f32> = sigmas.into_iter().map(|sigma| sigma as f32).collect();
    sigmas.push(final_sigma(config, tables)?);
    Ok((timesteps, sigmas))
}

/// Timesteps of the configured spacing. Unlike the other schedulers this one spreads steps + 1 of
/// them and leaves out the lowest (but for trailing spacing), and can be told to start later.
fn plain_timesteps(
    config: &SchedulerConfig,
    tables: &Tables,
    steps: usize,
) -> Result<Vec<f64>, SchedulerError> {
    let trained = tables.alphas_cumprod.len();
    let lambda_min = config.lambda_min_clipped.unwrap_or(f64::NEG_INFINITY) as f32;
    let lambda = |alpha: f32| alpha.sqrt().ln() - (1.0 - alpha).sqrt().ln();
    let alphas = tables.alphas_cumprod.iter();
    let kept = alphas.filter(|&&alpha| lambda(alpha) >= lambda_min).count();
    if kept == 0 {
        let reason = "it leaves no timestep";
        return Err(unsupported("lambda_min_clipped", lambda_min, reason));
    }
    Ok(
        match config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace) {
            TimestepSpacing::Linspace => {
                let ascending = linspace(0.0, (kept - 1) as f64, steps + 1);
                let rounded = ascending.into_iter().skip(1).rev();
                rounded.map(f64::round_ties_even).collect()
            }
            TimestepSpacing::Leading => {
                let offset = config.steps_offset.unwrap_or(0);
                let mut timesteps = leading(steps + 1, kept / (steps + 1), offset);
                timesteps.truncate(steps);
                timesteps
            }
            TimestepSpacing::Trailing => trailing(kept, trained as f64 / steps as f64),
        },
    )
}

/// Which order each step has.
struct Orders {
    /// `solver_order`.
    max: usize,
    /// Steps of the picture.
    count: usize,
    /// Whether the last step is first-order whatever the number of steps.
    lower_last: bool,
    /// Whether the last steps are of lower order when there are few.
    lower_few: bool,
}

impl Orders {
    /// The order of step `i`: at most one more than the steps before it.
    fn at(&self, i: usize) -> usize {
        let few = self.lower_few && self.count < FEW_STEPS;
        let to_go = self.count - 1 - i;
        let bound = match to_go {
            0 if few || self.lower_last => 1,
            1 if few => 2,
            _ => 3,
        };
        self.max.min(i + 1).min(bound)
    }
}

impl Level {
    /// From sigma in the form where the signal has weight one.
    fn new(sigma: f32) -> Self {
        let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
        let sigma = sigma * alpha;
        Self {
            alpha,
            sigma,
            lambda: alpha.ln() - sigma.ln(),
        }
    }
}

impl Update {
    /// The numbers of step `i`, from `levels[i]` to `levels[i + 1]`, of order at most `i + 1`
    /// (algorithm 2 of the paper and, for order 3, the corresponding differences of DPM-Solver-3).
    fn new(levels: &[Level], i: usize, order: usize, rule: Rule) -> Result<Self, SchedulerError> {
        let (s, t) = (levels[i], levels[i + 1]);
        let h = t.lambda - s.lambda;
        let decay = (-h).exp() - 1.0;
        let earlier = |k: usize| levels[i + 1 - k].lambda - levels[i - k].lambda;
        let differences = match order {
            1 => Differences::None,
            2 => Differences::One {
                d1: match rule {
                    Rule::Midpoint => -0.5 * (t.alpha * decay),
                    Rule::Heun => t.alpha * (decay / h + 1.0),
                },
                inv_r0: 1.0 / (earlier(1) / h),
            },
            _ => {
                let (r0, r1) = (earlier(1) / h, earlier(2) / h);
                Differences::Two {
                    d1: t.alpha * (decay / h + 1.0),
                    d2: -(t.alpha * ((decay + h) / (h * h) - 0.5)),
                    inv_r0: 1.0 / r0,
                    inv_r1: 1.0 / r1,
                    mix: r0 / (r0 + r1),
                    inv_sum: 1.0 / (r0 + r1),
                }
            }
        };
        let update = Self {
            alpha: s.alpha,
            sigma: s.sigma,
            sample: t.sigma / s.sigma,
            d0: -(t.alpha * decay),
            differences,
        };
        if update.is_finite() {
            Ok(update)
        } else {
            Err(SchedulerError::Degenerate { step: i })
        }
    }

    /// Whether every number that the step uses is finite, and x0 can be predicted.
    fn is_finite(&self) -> bool {
        let differences = match self.differences {
            Differences::None => 0.0,
            Differences::One { d1, inv_r0 } => d1 * inv_r0,
            Differences::Two {
                d1,
                d2,
                inv_r0,
                inv_r1,
                mix,
                inv_sum,
            } => (d1 + d2) * (inv_r0 + inv_r1) * (mix + inv_sum),
        };
        self.alpha > 0.0 && (self.sample + self.d0 + differences).is_finite()
    }

    /// The network's output as a prediction of x0 (table 1 of the paper).
    fn x0(&self, prediction: PredictionType, output: f32, x: f32) -> f32 {
        match prediction {
            PredictionType::Epsilon => (x - self.sigma * output) / self.alpha,
            PredictionType::Sample => output,
            PredictionType::VPrediction => self.alpha * x - self.sigma * output,
        }
    }
}

impl Scheduler for DpmSolver {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn level(&self, i: usize) -> [f32; 2] {
        let update = &self.updates[i];
        [update.alpha, update.sigma]
    }

    fn step(
        &mut self,
        i: usize,
        model_output: &[f32],
        sample: &[f32],
        _: &mut TorchRng,
    ) -> Vec<f32> {
        assert_same_length(model_output, sample);
        assert_next(i, self.due);
        self.due += 1;
        let update = &self.updates[i];
        let pairs = model_output.iter().zip(sample);
        let newest = pairs
            .map(|(&output, &x)| update.x0(self.prediction, output, x))
            .collect();
        if self.history.len() == 3 {
            self.history.remove(0);
        }
        self.history.push(newest);
        let newest_first: Vec<&[f32]> = self.history.iter().rev().map(Vec::as_slice).collect();
        let next = |(k, x): (usize, &f32)| {
            let m = |age: usize| newest_first[age][k];
            let base = update.sample * x + update.d0 * m(0);
            match update.differences {
                Differences::None => base,
                Differences::One { d1, inv_r0 } => base + d1 * (inv_r0 * (m(0) - m(1))),
                Differences::Two {
                    d1,
                    d2,
                    inv_r0,
                    inv_r1,
                    mix,
                    inv_sum,
                } => {
                    let (near, far) = (inv_r0 * (m(0) - m(1)), inv_r1 * (m(1) - m(2)));
                    let first = near + mix * (near - far);
                    base + d1 * first + d2 * (inv_sum * (near - far))
                }
            }
        };
        sample.iter().enumerate().map(next).collect()
    }
}
