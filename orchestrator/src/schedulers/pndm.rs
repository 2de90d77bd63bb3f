//! PNDM: pseudo linear multistep, with or without a pseudo Runge-Kutta start (Liu et al. 2022,
//! <https://arxiv.org/abs/2202.09778>, algorithm 2).
//!
//! Stable Diffusion skips the Runge-Kutta start (`skip_prk_steps`): the first step is then made
//! twice, the second time with the mean of both noise predictions, so that the network runs
//! steps + 1 times. With it, the first three steps take four network calls each.

use super::config::SchedulerConfig;
use super::history::History;
use super::keys::unsupported;
use super::levels::made;
use super::prediction::PredictionType;
use super::tables::{Tables, Training, weights, whole};
use super::{Scheduler, SchedulerError};
use crate::noise::TorchRng;

/// Steps that the Runge-Kutta start looks at, and the fewest that it needs.
const ORDER: usize = 4;

/// `diffusers`' `PNDMScheduler`.
pub(super) struct Pndm {
    /// One timestep per network call.
    timesteps: Vec<f64>,
    /// What each call does.
    calls: Vec<Call>,
    /// What the network's output means.
    prediction: PredictionType,
    /// The last noise predictions, at most four.
    history: History,
    /// The sample that the current group of calls starts from.
    origin: Vec<f32>,
    /// Weighted sum of the noise predictions in the current Runge-Kutta step.
    sum: Vec<f32>,
}

/// One network call: how its output is combined with earlier ones, and the transfer that follows.
struct Call {
    /// The weights of signal and noise at the timestep that the network is told.
    told: [f32; 2],
    /// What becomes of the network's output.
    rule: Rule,
    /// Where the sample goes with it.
    transfer: Transfer,
}

/// How a noise prediction is combined with earlier ones.
enum Rule {
    /// Call 0 to 3 of a Runge-Kutta step (equation 13 of the paper).
    RungeKutta(usize),
    /// The first call without a Runge-Kutta start: used as it is.
    First,
    /// The first step again, with the mean of both predictions.
    Again,
    /// Linear multistep over as many predictions as there are, up to four (equation 12).
    Multistep,
}

/// The numbers of equation 11, which moves a sample from one timestep to another.
struct Transfer {
    /// sqrt(alpha_from), for velocity prediction.
    signal: f32,
    /// sqrt(1 - alpha_from), for velocity prediction.
    noise: f32,
    /// Factor of the sample.
    scale: f32,
    /// alpha_to - alpha_from.
    difference: f32,
    /// What the noise prediction is divided by.
    divisor: f32,
}

impl Pndm {
    pub(super) fn new(
        config: &SchedulerConfig,
        steps: usize,
        first: usize,
    ) -> Result<Self, SchedulerError> {
        let prediction =
            config.prediction(&[PredictionType::Epsilon, PredictionType::VPrediction])?;
        let tables = Tables::new(config, Training::PLAIN)?;
        let trained = tables.alphas_cumprod.len();
        let spaced: Vec<i64> = whole(config, trained, steps)
            .into_iter()
            .map(|timestep| timestep as i64)
            .collect();
        let stride = (trained / steps) as i64;
        let plan = if config.skip_prk_steps.unwrap_or(false) {
            multistep_only(&spaced, stride, first)
        } else if first > 0 {
            let reason = "a picture cannot begin with another one so; choose another scheduler by --scheduler";
            return Err(unsupported("skip_prk_steps", false, reason));
        } else if spaced.len() < ORDER {
            return Err(SchedulerError::Steps {
                steps,
                min: ORDER,
                max: trained,
            });
        } else {
            with_runge_kutta(&spaced, stride)
        };
        let last = match config.set_alpha_to_one.unwrap_or(false) {
            true => 1.0,
            false => tables.alphas_cumprod[0],
        };
        let mut timesteps = Vec::with_capacity(plan.len());
        let mut calls = Vec::with_capacity(plan.len());
        for (i, planned) in plan.into_iter().enumerate() {
            let from = tables.alpha(planned.from)?;
            let to = if planned.to < 0 {
                last
            } else {
                tables.alpha(planned.to)?
            };
            let transfer = Transfer::new(from, to);
            if !(transfer.scale.is_finite() && transfer.divisor > 0.0) {
                return Err(SchedulerError::Degenerate { step: i });
            }
            timesteps.push(planned.timestep as f64);
            calls.push(Call {
                told: weights(tables.alpha(planned.timestep)?),
                rule: planned.rule,
                transfer,
            });
        }
        Ok(Self {
            timesteps,
            calls,
            prediction,
            history: History::new(ORDER),
            origin: Vec::new(),
            sum: Vec::new(),
        })
    }
}

/// A network call before its timesteps are looked up.
struct Planned {
    /// The timestep the network is told.
    timestep: i64,
    /// The timestep that the transfer starts from.
    from: i64,
    /// The timestep that it leads to; the end of the schedule when negative.
    to: i64,
    /// What becomes of the network's output.
    rule: Rule,
}

/// The calls without a Runge-Kutta start over descending timesteps, of which the second is visited twice: first to
/// finish the first step again and then to start the second. Where calls before `first` are left out, the second
/// one that is made finishes the first again all the same, as the reference has it: so its end lies a step above that of
/// the schedule.
fn multistep_only(spaced: &[i64], stride: i64, first: usize) -> Vec<Planned> {
    let twice = spaced.get(1).copied();
    let (start, rest) = spaced.split_at(spaced.len().min(1));
    let visited = start
        .iter()
        .copied()
        .chain(twice)
        .chain(rest.iter().copied());
    let call = |(i, timestep): (usize, i64)| {
        let (from, rule) = match made(i, first) {
            0 => (timestep, Rule::First),
            1 => (timestep + stride, Rule::Again),
            _ => (timestep, Rule::Multistep),
        };
        Planned {
            timestep,
            from,
            to: from - stride,
            rule,
        }
    };
    visited.enumerate().map(call).collect()
}

/// The calls with a Runge-Kutta start: three steps of four calls at the start, the middle (twice)
/// and the end of the step, then the rest as multistep.
fn with_runge_kutta(spaced: &[i64], stride: i64) -> Vec<Planned> {
    let half = stride / 2;
    let mut plan = Vec::with_capacity(spaced.len() + 9);
    for pair in spaced[..ORDER].windows(2) {
        let (start, end) = (pair[0], pair[1]);
        let middle = end + half;
        for (call, timestep) in [start, middle, middle, end].into_iter().enumerate() {
            plan.push(Planned {
                timestep,
                from: start,
                to: timestep - if call % 2 == 0 { half } else { 0 },
                rule: Rule::RungeKutta(call),
            });
        }
    }
    plan.extend(spaced[ORDER - 1..].iter().map(|&timestep| Planned {
        timestep,
        from: timestep,
        to: timestep - stride,
        rule: Rule::Multistep,
    }));
    plan
}

impl Transfer {
    fn new(from: f32, to: f32) -> Self {
        Self {
            signal: from.sqrt(),
            noise: (1.0 - from).sqrt(),
            scale: (to / from).sqrt(),
            difference: to - from,
            divisor: from * (1.0 - to).sqrt() + (from * (1.0 - from) * to).sqrt(),
        }
    }

    /// Moves one number of the sample.
    fn apply(&self, prediction: PredictionType, output: f32, x: f32) -> f32 {
        let eps = prediction.noise([self.signal, self.noise], output, x);
        self.scale * x - self.difference * eps / self.divisor
    }
}

impl Pndm {
    /// The noise prediction of the Adams-Bashforth formula for the history's length.
    fn multistep(&self) -> Vec<f32> {
        let (weights, divisor): (&[f32], f32) = match self.history.len() {
            ..=2 => (&[3.0, -1.0], 2.0),
            3 => (&[23.0, -16.0, 5.0], 12.0),
            _ => (&[55.0, -59.0, 37.0, -9.0], 24.0),
        };
        let mut sum = self.history.weighted(weights);
        for sum in &mut sum {
            *sum /= divisor;
        }
        sum
    }

    /// Combines call `call` (0 to 3) of a Runge-Kutta step with the ones before it.
    fn runge_kutta(&mut self, call: usize, output: &[f32]) -> Vec<f32> {
        let weight = if call == 0 || call == 3 {
            1.0 / 6.0
        } else {
            1.0 / 3.0
        };
        if call == 0 {
            self.history.push(output.to_vec());
            self.sum = vec![0.0; output.len()];
        }
        for (sum, eps) in self.sum.iter_mut().zip(output) {
            *sum += weight * eps;
        }
        match call {
            3 => std::mem::take(&mut self.sum),
            _ => output.to_vec(),
        }
    }
}

impl Scheduler for Pndm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn level(&self, i: usize) -> [f32; 2] {
        self.calls[i].told
    }

    fn step(
        &mut self,
        i: usize,
        model_output: &[f32],
        sample: &[f32],
        _: &mut TorchRng,
    ) -> Vec<f32> {
        let (output, from_origin) = match self.calls[i].rule {
            Rule::RungeKutta(call) => {
                if call == 0 {
                    self.origin = sample.to_vec();
                }
                (self.runge_kutta(call, model_output), true)
            }
            Rule::First => {
                self.origin = sample.to_vec();
                self.history.push(model_output.to_vec());
                (model_output.to_vec(), false)
            }
            Rule::Again => {
                let first = self.history.newest_first();
                let both = model_output.iter().zip(first[0]);
                (both.map(|(new, old)| (new + old) / 2.0).collect(), true)
            }
            Rule::Multistep => {
                self.history.push(model_output.to_vec());
                (self.multistep(), false)
            }
        };
        let sample = if from_origin { &self.origin } else { sample };
        let transfer = &self.calls[i].transfer;
        let pairs = output.iter().zip(sample);
        pairs
            .map(|(&output, &x)| transfer.apply(self.prediction, output, x))
            .collect()
    }
}
