//! DPM-Solver-2 in noise levels, plain and ancestral (Karras et al. 2022, <https://arxiv.org/abs/2206.00364>,
//! algorithm 2 with the middle of the step in log sigma, as Crowson's k-diffusion has it).
//!
//! Every step calls the network twice, at its start and in its middle, and goes along the second slope alone; the last,
//! to no noise, is one call of Euler's method.

use super::config::SchedulerConfig;
use super::euler_ancestral::split;
use super::prediction::PredictionType;
use super::sigmas::{Curve, SigmaSchedule, to_unit_variance};
use super::tables::{Tables, Training};
use super::{Scheduler, SchedulerError, add_noise};
use crate::noise::TorchRng;

/// `diffusers`' `KDPM2DiscreteScheduler` and `KDPM2AncestralDiscreteScheduler`.
pub(super) struct Kdpm2 {
    /// Noise levels and what the network's output means.
    schedule: SigmaSchedule,
    /// What the network is told, call by call.
    timesteps: Vec<f64>,
    /// Where each step leads.
    steps: Vec<Step>,
    /// The sample that a step starts from, between its calls.
    start: Option<Vec<f32>>,
}

/// One step of two calls.
struct Step {
    /// The noise level of the second call; none on the last step.
    middle: Option<f32>,
    /// The noise level that the step goes down to.
    down: f32,
    /// The standard deviation of the fresh noise, where there is any.
    up: Option<f32>,
}

impl Kdpm2 {
    pub(super) fn new(
        config: &SchedulerConfig,
        steps: usize,
        ancestral: bool,
    ) -> Result<Self, SchedulerError> {
        let accepted = [PredictionType::Epsilon, PredictionType::VPrediction];
        let tables = Tables::new(config, Training::LATENT_LINEAR)?;
        let schedule = SigmaSchedule::to_zero(config, &tables, steps, &accepted)?;
        let whole = Curve::new(config)? == Curve::Karras;
        let step = |pair: &[f32]| {
            let (from, to) = (pair[0], pair[1]);
            let (down, up) = match ancestral {
                true => {
                    let [up, down] = split(from, to);
                    (down, Some(up))
                }
                false => (to, None),
            };
            let middle = match ancestral {
                true => between(from, down),
                false => between(to, from),
            };
            Step {
                middle: (to > 0.0).then_some(middle),
                down,
                up: up.filter(|_| to > 0.0),
            }
        };
        let steps: Vec<Step> = schedule.sigmas.windows(2).map(step).collect();
        let mut timesteps = Vec::with_capacity(2 * steps.len());
        for (i, (step, &timestep)) in steps.iter().zip(&schedule.timesteps).enumerate() {
            let usable = |level: &f32| level.is_finite() && *level > 0.0;
            if step.middle.is_some_and(|middle| !usable(&middle)) {
                return Err(SchedulerError::Degenerate { step: i });
            }
            timesteps.push(match whole {
                true => timestep.round_ties_even(),
                false => timestep,
            });
            let middle = step.middle;
            timesteps.extend(middle.map(|middle| timestep_of(middle, &schedule.log_sigmas)));
        }
        Ok(Self {
            schedule,
            timesteps,
            steps,
            start: None,
        })
    }

    /// The noise level of the sample at call `i`.
    fn sigma(&self, i: usize) -> f32 {
        match self.steps[i / 2].middle {
            Some(middle) if i % 2 == 1 => middle,
            _ => self.schedule.sigmas[i / 2],
        }
    }
}

/// Halfway between two noise levels in their logarithms.
fn between(a: f32, b: f32) -> f32 {
    let (a, b) = (a.ln(), b.ln());
    (b - (b - a) * 0.5).exp()
}

/// The fractional timestep with noise level `sigma`, by linear interpolation in log sigma; all in `f32`, as the
/// reference has it here. `log_sigmas` has an entry per training timestep and ascends.
fn timestep_of(sigma: f32, log_sigmas: &[f32]) -> f64 {
    let log_sigma = sigma.max(1e-10).ln();
    let not_above = log_sigmas.iter().rposition(|&level| level <= log_sigma);
    let low = not_above.unwrap_or(0).min(log_sigmas.len() - 2);
    let (below, above) = (log_sigmas[low], log_sigmas[low + 1]);
    let weight = ((below - log_sigma) / (below - above)).clamp(0.0, 1.0);
    f64::from((1.0 - weight) * low as f32 + weight * (low + 1) as f32)
}

impl Scheduler for Kdpm2 {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn init_noise_sigma(&self) -> f32 {
        self.schedule.init_noise_sigma
    }

    fn scale_model_input(&self, i: usize, sample: &mut [f32]) {
        to_unit_variance(self.sigma(i), sample);
    }

    fn level(&self, i: usize) -> [f32; 2] {
        [1.0, self.sigma(i)]
    }

    fn blended(&self, i: usize) -> [f32; 2] {
        [1.0, self.schedule.sigmas[i.div_ceil(2)]]
    }

    fn step(
        &mut self,
        i: usize,
        model_output: &[f32],
        sample: &[f32],
        rng: &mut TorchRng,
    ) -> Vec<f32> {
        let (sigma, step) = (self.sigma(i), &self.steps[i / 2]);
        let from = self.schedule.sigmas[i / 2];
        let slope = |(&output, &x): (&f32, &f32)| self.schedule.slope(sigma, output, x);
        let slopes = model_output.iter().zip(sample).map(slope);
        let start = self.start.take();
        let (far, fresh) = match (&start, step.middle) {
            (None, Some(middle)) => (middle - from, None),
            _ => (step.down - from, step.up),
        };
        let origin = start.as_deref().unwrap_or(sample);
        let pairs = origin.iter().zip(slopes);
        let mut out: Vec<f32> = pairs.map(|(x, slope)| x + slope * far).collect();
        if let Some(fresh) = fresh {
            add_noise(&mut out, [1.0, fresh], rng);
        }
        if start.is_none() {
            self.start = Some(sample.to_vec());
        }
        out
    }
}
