//! Noise levels: what the Euler schedulers and DPM-Solver++ step along instead of alphas.
//!
//! A sample here is x = x0 + sigma * noise (Karras et al. 2022, "variance exploding" form).

use super::config::{PredictionType, SchedulerConfig, TimestepSpacing};
use super::error::SchedulerError;
use super::keys::{choose, unsupported};
use super::tables::{Tables, linspace, spaced};

/// The noise levels of one picture, for the two Euler schedulers.
pub(super) struct SigmaSchedule {
    /// Timesteps for the network, descending; fractional under linspace and Karras spacing.
    pub timesteps: Vec<f64>,
    /// Noise level before each step, and after the last one: one more than `timesteps`.
    pub sigmas: Vec<f32>,
    /// Standard deviation of the first sample.
    pub init_noise_sigma: f32,
    /// What the network's output means.
    prediction: PredictionType,
}

impl SigmaSchedule {
    /// Noise levels at the timesteps of the configured spacing, or under Karras spacing between
    /// the highest and the lowest of those; then `last`.
    pub(super) fn new(
        config: &SchedulerConfig,
        tables: &Tables,
        steps: usize,
        use_karras: bool,
        last: f32,
        prediction: PredictionType,
    ) -> Result<Self, SchedulerError> {
        let spacing = TimestepSpacing::Linspace;
        let trained = tables.alphas_cumprod.len();
        let mut timesteps: Vec<f64> = spaced(config, spacing, trained, steps)
            .into_iter()
            .map(|timestep| f64::from(timestep as f32))
            .collect();
        let table = tables.sigmas();
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&t| interpolate(&table, t)).collect();
        if use_karras {
            sigmas = karras(config, sigmas[steps - 1], sigmas[0], steps)?;
            let log_sigmas: Vec<f32> = table.iter().map(|sigma| sigma.ln()).collect();
            timesteps = sigmas
                .iter()
                .map(|&sigma| f64::from(timestep_of(sigma, &log_sigmas) as f32))
                .collect();
        }
        let mut sigmas: Vec<f32> = sigmas.into_iter().map(|sigma| sigma as f32).collect();
        let usable = |sigma: &f32| sigma.is_finite() && *sigma > 0.0;
        if let Some(step) = sigmas.iter().position(|sigma| !usable(sigma)) {
            return Err(SchedulerError::Degenerate { step });
        }
        sigmas.push(last);
        let max = sigmas.iter().copied().fold(0.0, f32::max);
        let init_noise_sigma = match config.timestep_spacing.unwrap_or(spacing) {
            TimestepSpacing::Leading => (max * max + 1.0).sqrt(),
            TimestepSpacing::Linspace | TimestepSpacing::Trailing => max,
        };
        Ok(Self {
            timesteps,
            sigmas,
            init_noise_sigma,
            prediction,
        })
    }

    /// Scales a sample to unit variance for the network: x / sqrt(sigma^2 + 1) (Karras et al.,
    /// table 1, c_in of the VP column).
    pub(super) fn scale_model_input(&self, i: usize, sample: &mut [f32]) {
        let sigma = self.sigmas[i];
        let norm = (sigma * sigma + 1.0).sqrt();
        for x in sample {
            *x /= norm;
        }
    }

    /// One Euler step of dx/dsigma = (x - x0) / sigma (Karras et al., eq. 1 with s = 1) from noise
    /// level `sigmas[i]` to `to`, for one number of the sample.
    pub(super) fn euler(&self, i: usize, to: f32, output: f32, x: f32) -> f32 {
        let sigma = self.sigmas[i];
        let x0 = match self.prediction {
            PredictionType::Epsilon => x - sigma * output,
            PredictionType::Sample => output,
            PredictionType::VPrediction => {
                let variance = sigma * sigma + 1.0;
                output * (-sigma / variance.sqrt()) + x / variance
            }
        };
        x + (x - x0) / sigma * (to - sigma)
    }
}

/// The noise level after the last step: none, or that of timestep 0 (`final_sigmas_type`).
pub(super) fn final_sigma(
    config: &SchedulerConfig,
    tables: &Tables,
) -> Result<f32, SchedulerError> {
    let lowest = tables.sigmas()[0];
    let choices = [("zero", 0.0), ("sigma_min", lowest)];
    choose(
        "final_sigmas_type",
        config.final_sigmas_type.as_deref(),
        &choices,
    )
}

/// `table` at fractional position `t`, linear between entries and constant beyond the ends
/// (`numpy.interp` over 0, 1, 2, ...).
pub(super) fn interpolate(table: &[f32], t: f64) -> f64 {
    let last = table.len() - 1;
    if t <= 0.0 {
        return f64::from(table[0]);
    }
    if t >= last as f64 {
        return f64::from(table[last]);
    }
    let low = t as usize;
    let (a, b) = (f64::from(table[low]), f64::from(table[low + 1]));
    (b - a) * (t - low as f64) + a
}

/// `n` noise levels from high to low, even in sigma^(1/7) (Karras et al. 2022, eq. 5), between the
/// configuration's `sigma_max` and `sigma_min`, or `max` and `min` where it has none.
pub(super) fn karras(
    config: &SchedulerConfig,
    min: f64,
    max: f64,
    n: usize,
) -> Result<Vec<f64>, SchedulerError> {
    const RHO: f64 = 7.0;
    let min = config.sigma_min.unwrap_or(min);
    let max = config.sigma_max.unwrap_or(max);
    for (key, sigma) in [("sigma_min", min), ("sigma_max", max)] {
        if !(sigma > 0.0 && sigma.is_finite()) {
            return Err(unsupported(key, sigma, "expected a positive number"));
        }
    }
    let (low, high) = (min.powf(1.0 / RHO), max.powf(1.0 / RHO));
    let level = |ramp: f64| (high + ramp * (low - high)).powf(RHO);
    Ok(linspace(0.0, 1.0, n).into_iter().map(level).collect())
}

/// The fractional timestep with noise level `sigma`, by linear interpolation in log sigma.
/// `log_sigmas` has an entry per training timestep and ascends.
pub(super) fn timestep_of(sigma: f64, log_sigmas: &[f32]) -> f64 {
    let log_sigma = sigma.max(1e-10).ln();
    let not_above = log_sigmas
        .iter()
        .rposition(|&level| f64::from(level) <= log_sigma);
    let low = not_above.unwrap_or(0).min(log_sigmas.len() - 2);
    let (below, above) = (log_sigmas[low], log_sigmas[low + 1]);
    let weight = (f64::from(below) - log_sigma) / f64::from(below - above);
    let weight = weight.clamp(0.0, 1.0);
    (1.0 - weight) * low as f64 + weight * (low + 1) as f64
}
