//! The formulas of the DPM-Solver family (Lu et al. 2022, <https://arxiv.org/abs/2206.00927> and
//! <https://arxiv.org/abs/2211.01095>), which its multistep and its singlestep form share.
//!
//! In the papers' letters: a step goes from time s to time t, alpha and sigma are the weights of signal and noise
//! there, h = lambda_t - lambda_s. What is stepped along is a prediction D0 and its first and second derivatives D1
//! and D2 over lambda, as finite differences.

use super::config::SchedulerConfig;
use super::keys::{choose, unsupported};
use super::levels::Level;
use super::limit::Limit;
use super::prediction::PredictionType;
use super::{SchedulerError, SchedulerKind};

/// The member of the family: what the network's outputs are turned into, and whether steps add noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Algorithm {
    /// Predictions of x0 (the `++`); of the noise, if not.
    pub of_x0: bool,
    /// The stochastic equation is solved, not the ordinary one.
    pub stochastic: bool,
}

/// The rule of the second order and above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// The prediction in the middle of the step, extrapolated.
    Midpoint,
    /// The prediction as a polynomial through the last ones.
    Heun,
}

/// x_t = sample x_s + d0 D0 + d1 D1 + d2 D2 + noise z, with z of standard deviation 1.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weights {
    pub sample: f32,
    pub d0: f32,
    pub d1: f32,
    pub d2: f32,
    pub noise: f32,
}

impl Algorithm {
    /// The paper's second, deterministic.
    pub(super) const PLUS_PLUS: Self = Self {
        of_x0: true,
        stochastic: false,
    };

    /// `algorithm_type`, or `dpmsolver++`.
    pub(super) fn new(
        config: &SchedulerConfig,
        kind: SchedulerKind,
    ) -> Result<Self, SchedulerError> {
        let key = "algorithm_type";
        let name = config.algorithm_type.as_deref();
        let member = |of_x0, stochastic| Self { of_x0, stochastic };
        let mut members = vec![
            ("dpmsolver++", Self::PLUS_PLUS),
            ("sde-dpmsolver++", member(true, true)),
            ("dpmsolver", member(false, false)),
            // Like the reference, reads DEIS as its own algorithm.
            ("deis", Self::PLUS_PLUS),
        ];
        if kind != SchedulerKind::DpmSingle {
            members.push(("sde-dpmsolver", member(false, true)));
        }
        let algorithm = choose(key, name, &members)?;
        let zero = config.final_sigmas_type.as_deref() != Some("sigma_min");
        let name = name.unwrap_or_default();
        if zero && !name.is_empty() && !name.ends_with("++") {
            let reason =
                "only with final_sigmas_type sigma_min; choose another scheduler by --scheduler";
            return Err(unsupported(key, format!("{name:?}"), reason));
        }
        Ok(algorithm)
    }
}

impl Rule {
    /// `solver_type`, or `midpoint`.
    pub(super) fn new(config: &SchedulerConfig) -> Result<Self, SchedulerError> {
        // Like the reference, reads the rules of DEIS and UniPC as its own nearest one.
        let rules = [
            ("midpoint", Self::Midpoint),
            ("heun", Self::Heun),
            ("logrho", Self::Midpoint),
            ("bh1", Self::Midpoint),
            ("bh2", Self::Midpoint),
        ];
        choose("solver_type", config.solver_type.as_deref(), &rules)
    }
}

/// Refuses models that predict a variance.
pub(super) fn refuse_learned(config: &SchedulerConfig) -> Result<(), SchedulerError> {
    let variance = config.variance_type.as_deref();
    match variance.filter(|v| ["learned", "learned_range"].contains(v)) {
        Some(variance) => {
            let reason = "models that predict a variance are not supported";
            Err(unsupported("variance_type", variance, reason))
        }
        None => Ok(()),
    }
}

impl Weights {
    /// Of a step from `s` to `t`. Below the third order `d2` is 0, below the second `d1`, too.
    pub(super) fn new(algorithm: Algorithm, s: Level, t: Level, order: usize, rule: Rule) -> Self {
        let h = t.lambda - s.lambda;
        // Above the second order there is one rule.
        let midpoint = order == 2 && rule == Rule::Midpoint;
        let mut weights = match (algorithm.of_x0, algorithm.stochastic) {
            (true, false) => {
                let decay = (-h).exp() - 1.0;
                Self {
                    sample: t.sigma / s.sigma,
                    d0: -(t.alpha * decay),
                    d1: match midpoint {
                        true => -0.5 * (t.alpha * decay),
                        false => t.alpha * (decay / h + 1.0),
                    },
                    d2: -(t.alpha * ((decay + h) / (h * h) - 0.5)),
                    noise: 0.0,
                }
            }
            (false, false) => {
                let growth = h.exp() - 1.0;
                Self {
                    sample: t.alpha / s.alpha,
                    d0: -(t.sigma * growth),
                    d1: match midpoint {
                        true => -0.5 * (t.sigma * growth),
                        false => -(t.sigma * (growth / h - 1.0)),
                    },
                    d2: -(t.sigma * ((growth - h) / (h * h) - 0.5)),
                    noise: 0.0,
                }
            }
            (true, true) => {
                let gone = 1.0 - (-2.0 * h).exp();
                let twice = -2.0 * h;
                Self {
                    sample: t.sigma / s.sigma * (-h).exp(),
                    d0: t.alpha * gone,
                    d1: match midpoint {
                        true => 0.5 * (t.alpha * gone),
                        false => t.alpha * (gone / twice + 1.0),
                    },
                    d2: t.alpha * ((gone + twice) / (twice * twice) - 0.5),
                    noise: t.sigma * gone.sqrt(),
                }
            }
            (false, true) => {
                let growth = h.exp() - 1.0;
                Self {
                    sample: t.alpha / s.alpha,
                    d0: -2.0 * (t.sigma * growth),
                    d1: match midpoint {
                        true => -(t.sigma * growth),
                        false => -2.0 * (t.sigma * (growth / h - 1.0)),
                    },
                    d2: 0.0,
                    noise: t.sigma * ((2.0 * h).exp() - 1.0).sqrt(),
                }
            }
        };
        if order < 3 {
            weights.d2 = 0.0;
        }
        if order < 2 {
            weights.d1 = 0.0;
        }
        weights
    }

    /// The sample at time t from that at time s and the differences D0, D1 and D2, of which those count that have a
    /// weight; with fresh noise where there is any.
    pub(super) fn combine(
        &self,
        sample: &[f32],
        differences: impl Fn(usize) -> [f32; 3],
        noise: Option<Vec<f32>>,
    ) -> Vec<f32> {
        let next = |(k, x): (usize, &f32)| {
            let [d0, d1, d2] = differences(k);
            self.sample * x + self.d0 * d0 + self.d1 * d1 + self.d2 * d2
        };
        let mut out: Vec<f32> = sample.iter().enumerate().map(next).collect();
        for (x, noise) in out.iter_mut().zip(noise.into_iter().flatten()) {
            *x += self.noise * noise;
        }
        out
    }

    /// Whether every number of them is finite.
    pub(super) fn is_finite(&self) -> bool {
        (self.sample + self.d0 + self.d1 + self.d2 + self.noise).is_finite()
    }
}

/// What a solver turns the network's outputs into before it combines them.
pub(super) struct Converter {
    pub algorithm: Algorithm,
    pub prediction: PredictionType,
    pub limit: Limit,
}

impl Converter {
    /// The prediction of x0, in range, or of the noise, from a sample of this level.
    pub(super) fn convert(&self, level: Level, output: &[f32], sample: &[f32]) -> Vec<f32> {
        let weights = level.weights();
        let pairs = || output.iter().zip(sample);
        let noise = |(&output, &x): (&f32, &f32)| self.prediction.noise(weights, output, x);
        let x0 = |(&output, &x): (&f32, &f32)| self.prediction.x0(weights, output, x);
        match (self.algorithm.of_x0, self.limit) {
            (false, Limit::None) => pairs().map(noise).collect(),
            (of_x0, limit) => {
                let mut clean: Vec<f32> = match of_x0 {
                    true => pairs().map(x0).collect(),
                    false => pairs()
                        .map(|(output, x)| (x - level.sigma * noise((output, x))) / level.alpha)
                        .collect(),
                };
                limit.apply(&mut clean);
                match of_x0 {
                    true => clean,
                    false => noise_left(level, &clean, sample),
                }
            }
        }
    }

    /// Whether it divides by nothing at this level.
    pub(super) fn divides(&self, level: Level) -> bool {
        let thresholded = !matches!(self.limit, Limit::None);
        let of_noise = !self.algorithm.of_x0;
        let divisor = self.prediction.divisor(level.weights(), of_noise);
        divisor > 0.0 && (!thresholded || (level.alpha > 0.0 && level.sigma > 0.0))
    }
}

/// The noise in a sample of this level whose clean part is `x0`.
pub(super) fn noise_left(level: Level, x0: &[f32], sample: &[f32]) -> Vec<f32> {
    let pairs = sample.iter().zip(x0);
    let noise = |(x, x0): (&f32, &f32)| (x - level.alpha * x0) / level.sigma;
    pairs.map(noise).collect()
}
