//! Linear multistep in noise levels (Adams and Bashforth's method with uneven steps, as Crowson's k-diffusion has
//! it), of up to the fourth order.

use super::config::SchedulerConfig;
use super::history::History;
use super::prediction::PredictionType;
use super::sigmas::{Curve, SigmaSchedule, to_unit_variance};
use super::tables::{Tables, Training};
use super::{Scheduler, SchedulerError};
use crate::noise::TorchRng;

/// The most slopes that one step combines.
const ORDER: usize = 4;

/// `diffusers`' `LMSDiscreteScheduler`.
pub(super) struct Lms {
    /// Where the steps lead.
    schedule: SigmaSchedule,
    /// The weights of the slopes in each step, the newest slope's first.
    weights: Vec<Vec<f32>>,
    /// The last slopes.
    slopes: History,
}

impl Lms {
    pub(super) fn new(config: &SchedulerConfig, steps: usize) -> Result<Self, SchedulerError> {
        let tables = Tables::new(config, Training::PLAIN)?;
        let mut config = config.clone();
        if Curve::new(&config)? == Curve::Karras {
            // Like the reference's, this class does not look at the ends of that curve.
            (config.sigma_min, config.sigma_max) = (None, None);
        }
        let schedule = SigmaSchedule::to_zero(&config, &tables, steps, PredictionType::ALL)?;
        let sigmas: Vec<f64> = schedule.sigmas.iter().copied().map(f64::from).collect();
        let of_step = |i: usize| {
            let order = ORDER.min(i + 1);
            let weights = (0..order).map(|age| weight(&sigmas, i, order, age) as f32);
            let weights: Vec<f32> = weights.collect();
            let finite = weights.iter().all(|weight| weight.is_finite());
            finite
                .then_some(weights)
                .ok_or(SchedulerError::Degenerate { step: i })
        };
        Ok(Self {
            weights: (0..steps).map(of_step).collect::<Result<_, _>>()?,
            schedule,
            slopes: History::new(ORDER),
        })
    }
}

/// The integral over step `i` of the polynomial that is 1 at the noise level `age` steps back and 0 at the other ones
/// of the last `order`. Its degree is at most 3, where Gauss's rule of two points is exact.
fn weight(sigmas: &[f64], i: usize, order: usize, age: usize) -> f64 {
    let basis = |at: f64| -> f64 {
        let others = (0..order).filter(|&k| k != age);
        others
            .map(|k| (at - sigmas[i - k]) / (sigmas[i - age] - sigmas[i - k]))
            .product()
    };
    let (from, to) = (sigmas[i], sigmas[i + 1]);
    let (middle, half) = ((from + to) / 2.0, (to - from) / 2.0);
    let off = half / 3f64.sqrt();
    half * (basis(middle - off) + basis(middle + off))
}

impl Scheduler for Lms {
    fn timesteps(&self) -> &[f64] {
        &self.schedule.timesteps
    }

    fn init_noise_sigma(&self) -> f32 {
        self.schedule.init_noise_sigma
    }

    fn scale_model_input(&self, i: usize, sample: &mut [f32]) {
        to_unit_variance(self.schedule.sigmas[i], sample);
    }

    fn level(&self, i: usize) -> [f32; 2] {
        [1.0, self.schedule.sigmas[i]]
    }

    fn step(
        &mut self,
        i: usize,
        model_output: &[f32],
        sample: &[f32],
        _: &mut TorchRng,
    ) -> Vec<f32> {
        let sigma = self.schedule.sigmas[i];
        let pairs = model_output.iter().zip(sample);
        let newest = pairs.map(|(&output, &x)| self.schedule.slope(sigma, output, x));
        self.slopes.push(newest.collect());
        let sum = self.slopes.weighted(&self.weights[i]);
        sample.iter().zip(sum).map(|(x, sum)| x + sum).collect()
    }
}
