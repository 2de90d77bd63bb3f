//! Noise levels: what the schedulers after Karras et al. 2022 step along instead of alphas.
//!
//! A sample here is x = x0 + sigma * noise (their "variance exploding" form).

use statrs::function::beta::inv_beta_reg;

use super::config::{SchedulerConfig, TimestepSpacing};
use super::error::SchedulerError;
use super::keys::{choose, unsupported};
use super::prediction::PredictionType;
use super::tables::{Tables, linspace, spaced};

/// Along which curve the noise levels fall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Curve {
    /// That of training, at the timesteps that are visited.
    Plain,
    /// Evenly in sigma^(1/7) (Karras et al. 2022, eq. 5).
    Karras,
    /// Evenly in log sigma.
    Exponential,
    /// Quantiles of the beta distribution with both parameters 0.6 (Lee et al. 2024).
    Beta,
    /// Evenly in the log signal-to-noise ratio (Lu et al. 2022), between the ends of training.
    Lu,
}

impl Curve {
    /// The curve that the configuration names, of those that most classes know.
    pub(super) fn new(config: &SchedulerConfig) -> Result<Self, SchedulerError> {
        let switches = [
            ("use_karras_sigmas", config.use_karras_sigmas, Self::Karras),
            (
                "use_exponential_sigmas",
                config.use_exponential_sigmas,
                Self::Exponential,
            ),
            ("use_beta_sigmas", config.use_beta_sigmas, Self::Beta),
        ];
        let mut on = switches.iter().filter(|(_, on, _)| on.unwrap_or(false));
        match (on.next(), on.next()) {
            (None, _) => Ok(Self::Plain),
            (Some((.., curve)), None) => Ok(*curve),
            (Some((first, ..)), Some((second, ..))) => {
                let reason = format!("only one of it and {first} may be on");
                Err(unsupported(second, true, reason))
            }
        }
    }

    /// `n` noise levels from high to low, between the configuration's `sigma_max` and `sigma_min`, or `max` and `min`
    /// where it has none; none of the plain curve.
    pub(super) fn levels(
        self,
        config: &SchedulerConfig,
        min: f64,
        max: f64,
        n: usize,
    ) -> Result<Option<Vec<f64>>, SchedulerError> {
        const RHO: f64 = 7.0;
        if self == Self::Plain {
            return Ok(None);
        }
        if self == Self::Lu {
            // Logarithms are taken in f32, as the reference does.
            let log = |sigma: f64| f64::from((sigma as f32).ln());
            let (low, high) = (log(min), log(max));
            let level = |ramp: f64| (high + ramp * (low - high)).exp();
            return Ok(Some(linspace(0.0, 1.0, n).into_iter().map(level).collect()));
        }
        let min = config.sigma_min.unwrap_or(min);
        let max = config.sigma_max.unwrap_or(max);
        for (key, sigma) in [("sigma_min", min), ("sigma_max", max)] {
            if !(sigma > 0.0 && sigma.is_finite()) {
                return Err(unsupported(key, sigma, "expected a positive number"));
            }
        }
        Ok(Some(match self {
            Self::Exponential => {
                let logs = linspace(max.ln(), min.ln(), n);
                logs.into_iter().map(f64::exp).collect()
            }
            Self::Beta => {
                let share = |ramp: f64| inv_beta_reg(0.6, 0.6, 1.0 - ramp);
                let level = |ramp: f64| min + share(ramp) * (max - min);
                linspace(0.0, 1.0, n).into_iter().map(level).collect()
            }
            _ => {
                let (low, high) = (min.powf(1.0 / RHO), max.powf(1.0 / RHO));
                let level = |ramp: f64| (high + ramp * (low - high)).powf(RHO);
                linspace(0.0, 1.0, n).into_iter().map(level).collect()
            }
        }))
    }
}

/// The noise levels of one picture.
pub(super) struct SigmaSchedule {
    /// Timesteps for the network, descending; fractional under linspace and the curves.
    pub timesteps: Vec<f64>,
    /// Noise level before each step, and after the last one: at least one more than `timesteps`.
    pub sigmas: Vec<f32>,
    /// Standard deviation of the first sample.
    pub init_noise_sigma: f32,
    /// What the network's output means.
    pub prediction: PredictionType,
    /// log sigma of every training timestep, ascending.
    pub log_sigmas: Vec<f32>,
}

/// How noise levels are found for timesteps.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Interpolation {
    /// Between those of the training timesteps around each.
    Linear,
    /// Not at all: evenly in log sigma over all of training, one level more than there are steps.
    LogLinear,
}

impl SigmaSchedule {
    /// Noise levels at the timesteps of the configured spacing, or along a curve between the highest and the lowest
    /// of those; then `last`.
    pub(super) fn new(
        config: &SchedulerConfig,
        tables: &Tables,
        steps: usize,
        (curve, interpolation): (Curve, Interpolation),
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
        let log_sigmas = log_levels(&table);
        let mut sigmas: Vec<f64> = match interpolation {
            Interpolation::Linear => timesteps.iter().map(|&t| interpolate(&table, t)).collect(),
            Interpolation::LogLinear => {
                let ends = [log_sigmas[trained - 1], log_sigmas[0]].map(f64::from);
                let logs = super::tables::linspace_f32(ends[0], ends[1], steps + 1);
                logs.into_iter().map(|log| f64::from(log.exp())).collect()
            }
        };
        if let Some(levels) = curve.levels(config, sigmas[sigmas.len() - 1], sigmas[0], steps)? {
            timesteps = levels
                .iter()
                .map(|&sigma| f64::from(timestep_of(sigma, &log_sigmas) as f32))
                .collect();
            sigmas = levels;
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
            log_sigmas,
        })
    }

    /// The same for the classes that have no last level of their own and know every curve.
    pub(super) fn to_zero(
        config: &SchedulerConfig,
        tables: &Tables,
        steps: usize,
        accepted: &[PredictionType],
    ) -> Result<Self, SchedulerError> {
        let prediction = config.prediction(accepted)?;
        let curve = (Curve::new(config)?, Interpolation::Linear);
        Self::new(config, tables, steps, curve, 0.0, prediction)
    }

    /// The slope of the probability-flow ODE dx/dsigma = (x - x0) / sigma (Karras et al., eq. 1 with s = 1) at noise
    /// level `sigma`, for one number of the sample.
    pub(super) fn slope(&self, sigma: f32, output: f32, x: f32) -> f32 {
        (x - self.prediction.x0_exploding(sigma, output, x)) / sigma
    }

    /// One Euler step of it from noise level `sigmas[i]` to `to`, for one number of the sample.
    pub(super) fn euler(&self, i: usize, to: f32, output: f32, x: f32) -> f32 {
        let sigma = self.sigmas[i];
        x + self.slope(sigma, output, x) * (to - sigma)
    }
}

/// Scales a sample of noise level `sigma` to unit variance for the network: x / sqrt(sigma^2 + 1) (Karras et al.,
/// table 1, c_in of the VP column).
pub(super) fn to_unit_variance(sigma: f32, sample: &mut [f32]) {
    let norm = (sigma * sigma + 1.0).sqrt();
    for x in sample {
        *x /= norm;
    }
}

/// The noise level after the last step: none, or that of timestep 0 (`final_sigmas_type`).
pub(super) fn final_sigma<T: Copy>(
    config: &SchedulerConfig,
    zero: T,
    lowest: T,
) -> Result<T, SchedulerError> {
    let choices = [("zero", zero), ("sigma_min", lowest)];
    let chosen = config.final_sigmas_type.as_deref();
    choose("final_sigmas_type", chosen, &choices)
}

/// log sigma of every noise level.
pub(super) fn log_levels(table: &[f32]) -> Vec<f32> {
    table.iter().map(|sigma| sigma.ln()).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_curves_at_once_are_refused() {
        let config = SchedulerConfig {
            use_karras_sigmas: Some(true),
            use_beta_sigmas: Some(true),
            ..SchedulerConfig::default()
        };
        let error = Curve::new(&config).unwrap_err().to_string();
        assert!(error.contains("use_beta_sigmas = true"), "{error}");
        assert!(error.contains("use_karras_sigmas"), "{error}");
    }
}
