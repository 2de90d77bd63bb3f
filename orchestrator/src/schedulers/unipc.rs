//! UniPC: a unified predictor and corrector (Zhao et al. 2023, <https://arxiv.org/abs/2302.04867>), multistep, orders 1
//! to 3.
//!
//! A step first corrects the sample that the network was just asked about, with what it said, and then predicts the
//! next one. In the paper's letters: a step goes from time s to time t, h = lambda_t - lambda_s, and r_k is how far back
//! the k-th earlier prediction lies, in units of h.

use super::config::{SchedulerConfig, TimestepSpacing};
use super::dpm_formula::{Algorithm, Converter};
use super::history::History;
use super::keys::{choose, unsupported};
use super::levels::{LastLevel, Level, Schedule, Steps, made, order, refuse_flow};
use super::limit::Limit;
use super::prediction::PredictionType;
use super::sigmas::{Curve, final_sigma};
use super::tables::Tables;
use super::{Scheduler, SchedulerError};
use crate::noise::TorchRng;

/// `diffusers`' `UniPCMultistepScheduler`.
pub(super) struct UniPc {
    /// Timesteps visited, descending.
    timesteps: Vec<f64>,
    /// The level before each step.
    levels: Vec<Level>,
    /// The numbers of each step.
    steps: Vec<Step>,
    converter: Converter,
    /// The last predictions, at most three.
    history: History,
    /// The sample that the last step started from, after its correction.
    start: Vec<f32>,
}

/// The numbers of one step.
struct Step {
    /// What corrects the sample that it is given; none where it is taken as it is.
    corrector: Option<Update>,
    predictor: Update,
}

/// x_t = sample x_s + newest m_0 + b sum_k rho_k D_k, where D_k is the difference of the k-th prediction to m_0 over
/// r_k.
struct Update {
    sample: f32,
    newest: f32,
    b: f32,
    /// rho_k of the earlier predictions; the corrector has one more, for what the network just said.
    rhos: Vec<f32>,
    /// r_k of the earlier predictions.
    ratios: Vec<f32>,
}

/// The function B(h) of the paper (section 3.1).
#[derive(Clone, Copy)]
enum Rule {
    /// h.
    Bh1,
    /// e^h - 1.
    Bh2,
}

impl UniPc {
    pub(super) fn new(
        config: &SchedulerConfig,
        steps: usize,
        first: usize,
    ) -> Result<Self, SchedulerError> {
        refuse_flow(config)?;
        let absent = [
            ("solver_p", &config.solver_p),
            ("shift_terminal", &config.shift_terminal),
        ];
        if let Some((key, Some(value))) = absent.into_iter().find(|(_, value)| value.is_some()) {
            let reason = "not implemented; choose another scheduler by --scheduler";
            return Err(unsupported(key, value, reason));
        }
        // Like the reference, reads the rules of DPM-Solver and DEIS as its own default.
        let rules = [
            ("bh2", Rule::Bh2),
            ("bh1", Rule::Bh1),
            ("midpoint", Rule::Bh2),
            ("heun", Rule::Bh2),
            ("logrho", Rule::Bh2),
        ];
        let rule = choose("solver_type", config.solver_type.as_deref(), &rules)?;
        let max = order(config)?;
        let of_x0 = config.predict_x0.unwrap_or(true);
        let converter = Converter {
            algorithm: Algorithm {
                of_x0,
                stochastic: false,
            },
            prediction: config.prediction(PredictionType::ALL)?,
            limit: match of_x0 {
                true => Limit::thresholding(config)?,
                false => Limit::None,
            },
        };
        let tables = Tables::with_finite_sigmas(config)?;
        let class = Steps {
            kept: tables.alphas_cumprod.len(),
            spacing: config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace),
            curve: Curve::new(config)?,
            cut_for_cosine: false,
            last: final_sigma(config, LastLevel::Zero, LastLevel::LowestOfCurve)?,
        };
        if matches!(class.last, LastLevel::Zero) {
            check_last(rule, of_x0)?;
        }
        let Schedule { timesteps, levels } = Schedule::new(config, &tables, steps, &class)?;
        let count = timesteps.len();
        let order_at = |i: usize| {
            let bound = match config.lower_order_final.unwrap_or(true) {
                true => count - i,
                false => max,
            };
            max.min(bound).min(made(i, first) + 1)
        };
        let uncorrected = config.disable_corrector.as_deref().unwrap_or_default();
        let step = |i: usize| {
            let corrected = i > first && !uncorrected.contains(&(i - 1));
            let update = |i: usize, corrects| {
                Update::new(&levels, i, order_at(i), (rule, of_x0), corrects)
                    .filter(|_| converter.divides(levels[i]))
                    .ok_or(SchedulerError::Degenerate { step: i })
            };
            Ok(Step {
                // Of the step before, whose end is the sample that is given.
                corrector: corrected.then(|| update(i - 1, true)).transpose()?,
                predictor: update(i, false)?,
            })
        };
        Ok(Self {
            steps: (0..count)
                .map(step)
                .collect::<Result<_, SchedulerError>>()?,
            timesteps,
            levels,
            converter,
            history: History::new(3),
            start: Vec::new(),
        })
    }
}

/// Which settings have a last step to no noise at all.
fn check_last(rule: Rule, of_x0: bool) -> Result<(), SchedulerError> {
    let reason = "only with final_sigmas_type sigma_min; choose another scheduler by --scheduler";
    match (rule, of_x0) {
        (_, false) => Err(unsupported("predict_x0", false, reason)),
        (Rule::Bh1, _) => Err(unsupported("solver_type", "\"bh1\"", reason)),
        (Rule::Bh2, true) => Ok(()),
    }
}

impl Update {
    /// The numbers of the predictor of step `i`, from `levels[i]` to `levels[i + 1]`, of order at most `i + 1`, or of
    /// the corrector of its end; none where one of them is not finite.
    fn new(
        levels: &[Level],
        i: usize,
        order: usize,
        (rule, of_x0): (Rule, bool),
        corrects: bool,
    ) -> Option<Self> {
        let (s, t) = (levels[i], levels[i + 1]);
        let h = t.lambda - s.lambda;
        let ratio = |k: usize| (levels[i - k].lambda - s.lambda) / h;
        let ratios: Vec<f32> = (1..order).map(ratio).collect();
        let signed = if of_x0 { -h } else { h };
        let phi = signed.exp_m1();
        let b = match rule {
            Rule::Bh1 => signed,
            Rule::Bh2 => phi,
        };
        let rhos = match (corrects, order) {
            (false, 1) => Vec::new(),
            (false, 2) | (true, 1) => vec![0.5],
            _ => {
                let unknown = if corrects { order } else { order - 1 };
                let nodes: Vec<f32> = ratios.iter().copied().chain([1.0]).collect();
                solve(&nodes[..unknown], &moments(signed, phi, b, unknown))?
            }
        };
        let update = match of_x0 {
            true => Self {
                sample: t.sigma / s.sigma,
                newest: -(t.alpha * phi),
                b: -(t.alpha * b),
                rhos,
                ratios,
            },
            false => Self {
                sample: t.alpha / s.alpha,
                newest: -(t.sigma * phi),
                b: -(t.sigma * b),
                rhos,
                ratios,
            },
        };
        let inverse: f32 = update.ratios.iter().map(|ratio| 1.0 / ratio).sum();
        let sum = update.sample + update.newest + update.b + inverse;
        let finite = (sum + update.rhos.iter().sum::<f32>()).is_finite();
        finite.then_some(update)
    }

    /// The next sample from the one at the start, the predictions before `said` (the newest first), and what the
    /// network said at the end, where it was asked.
    fn apply(&self, start: &[f32], newest_first: &[&[f32]], said: Option<&[f32]>) -> Vec<f32> {
        let next = |(k, x): (usize, &f32)| {
            let newest = newest_first[0][k];
            let earlier = self.ratios.iter().zip(&newest_first[1..]);
            let differences = earlier.map(|(ratio, earlier)| (earlier[k] - newest) / ratio);
            let last = said.map(|said| said[k] - newest);
            let all = self.rhos.iter().zip(differences.chain(last));
            let sum: f32 = all.map(|(rho, difference)| rho * difference).sum();
            self.sample * x + self.newest * newest + self.b * sum
        };
        start.iter().enumerate().map(next).collect()
    }
}

/// The right-hand side of the paper's equation 5: `n` moments, in `f32` as the reference has them.
fn moments(h: f32, phi: f32, b: f32, n: usize) -> Vec<f32> {
    let mut phi_k = phi / h - 1.0;
    let mut factorial = 1.0;
    (1..=n)
        .map(|i| {
            let moment = phi_k * factorial / b;
            factorial *= (i + 1) as f32;
            phi_k = phi_k / h - 1.0 / factorial;
            moment
        })
        .collect()
}

/// The weights with which powers 0, 1, ... of the nodes sum up to the moments (a Vandermonde system, by elimination);
/// none where two nodes are equal.
fn solve(nodes: &[f32], moments: &[f32]) -> Option<Vec<f32>> {
    let n = nodes.len();
    let power = |i: usize, j: usize| f64::from(nodes[j]).powi(i as i32);
    let mut rows: Vec<Vec<f64>> = (0..n)
        .map(|i| {
            let row = (0..n).map(|j| power(i, j));
            row.chain([f64::from(moments[i])]).collect()
        })
        .collect();
    for column in 0..n {
        let pivot =
            (column..n).max_by(|&a, &b| rows[a][column].abs().total_cmp(&rows[b][column].abs()))?;
        rows.swap(column, pivot);
        let pivot = rows[column].clone();
        for (_, row) in rows.iter_mut().enumerate().filter(|(i, _)| *i != column) {
            let factor = row[column] / pivot[column];
            row.iter_mut()
                .zip(&pivot)
                .for_each(|(x, p)| *x -= factor * p);
        }
    }
    let weights: Vec<f32> = (0..n).map(|i| (rows[i][n] / rows[i][i]) as f32).collect();
    let finite = weights.iter().all(|weight| weight.is_finite());
    finite.then_some(weights)
}

impl Scheduler for UniPc {
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
        let step = &self.steps[i];
        let said = self.converter.convert(self.levels[i], model_output, sample);
        let corrected = step.corrector.as_ref().map(|corrector| {
            let earlier = self.history.newest_first();
            corrector.apply(&self.start, &earlier, Some(&said))
        });
        self.start = corrected.unwrap_or_else(|| sample.to_vec());
        self.history.push(said);
        let known = self.history.newest_first();
        step.predictor.apply(&self.start, &known, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_meet_their_moments() {
        let nodes = [-1.5, -0.5, 1.0];
        let weights = solve(&nodes, &[0.3, -0.2, 0.7]).unwrap();
        for (power, moment) in [0.3, -0.2, 0.7].into_iter().enumerate() {
            let terms = nodes.iter().zip(&weights);
            let sum: f32 = terms
                .map(|(node, weight)| weight * node.powi(power as i32))
                .sum();
            assert!((sum - moment).abs() < 1e-5, "{power}: {sum}");
        }
        assert_eq!(solve(&[1.0, 1.0], &[1.0, 2.0]), None);
    }
}
