//! What all schedulers share: the training schedule and the timesteps to visit.
//!
//! Precision follows the reference step by step (`f32` where it has torch `f32`, `f64` where it has
//! numpy `f64`), because 1 - alpha near timestep 0 keeps only four digits in `f32`.

use super::config::{BetaSchedule, SchedulerConfig, TimestepSpacing};
use super::error::SchedulerError;
use super::keys::unsupported;

/// alpha-bar at the last timestep when a schedule without signal would make sigma infinite: the
/// smallest positive half-precision number.
const SMALLEST_ALPHA: f32 = 1.0 / (1 << 24) as f32;

/// What a class takes for the schedule of training where the file does not say, and what it knows of it.
#[derive(Clone, Copy)]
pub(super) struct Training {
    /// First and last beta.
    pub betas: [f64; 2],
    /// The curve between them.
    pub curve: BetaSchedule,
    /// A curve that not every class has.
    pub own_curves: &'static [BetaSchedule],
    /// Whether the class knows `rescale_betas_zero_snr`.
    pub zero_snr: bool,
}

impl Training {
    /// Of most classes (Ho et al. 2020).
    pub(super) const PLAIN: Self = Self {
        betas: [0.0001, 0.02],
        curve: BetaSchedule::Linear,
        own_curves: &[],
        zero_snr: false,
    };

    /// Of the same, which know `rescale_betas_zero_snr`.
    pub(super) const RESCALED: Self = Self {
        zero_snr: true,
        ..Self::PLAIN
    };

    /// Of the classes whose betas are those of latent diffusion, along a line.
    pub(super) const LATENT_LINEAR: Self = Self {
        betas: [0.00085, 0.012],
        ..Self::PLAIN
    };

    /// Of the classes for distilled latent models.
    pub(super) const LATENT: Self = Self {
        betas: [0.00085, 0.012],
        curve: BetaSchedule::ScaledLinear,
        ..Self::RESCALED
    };
}

/// The training schedule: one entry per training timestep.
pub(super) struct Tables {
    /// alpha-bar_t: the product of all 1 - beta up to timestep t (Ho et al. 2020, eq. 4); the share
    /// of the sample's variance that is signal.
    pub alphas_cumprod: Vec<f32>,
}

impl Tables {
    /// The schedule that the configuration describes to a class.
    pub(super) fn new(config: &SchedulerConfig, class: Training) -> Result<Self, SchedulerError> {
        let mut alphas = cumulative(&betas(config, class)?);
        if class.zero_snr && config.rescale_betas_zero_snr.unwrap_or(false) {
            alphas = cumulative(&zero_snr_betas(&alphas));
            if alphas.iter().any(|alpha| !alpha.is_finite()) {
                let reason = "this schedule has a single noise level";
                return Err(unsupported("rescale_betas_zero_snr", true, reason));
            }
        }
        Ok(Self {
            alphas_cumprod: alphas,
        })
    }

    /// The same for the schedulers that work in sigmas and know `rescale_betas_zero_snr`: they need some signal
    /// everywhere.
    pub(super) fn with_finite_sigmas(config: &SchedulerConfig) -> Result<Self, SchedulerError> {
        let mut tables = Self::new(config, Training::RESCALED)?;
        if config.rescale_betas_zero_snr.unwrap_or(false) {
            let last = tables.alphas_cumprod.len() - 1;
            tables.alphas_cumprod[last] = SMALLEST_ALPHA;
        }
        Ok(tables)
    }

    /// alpha-bar at timestep `t`.
    pub(super) fn alpha(&self, t: i64) -> Result<f32, SchedulerError> {
        usize::try_from(t)
            .ok()
            .and_then(|t| self.alphas_cumprod.get(t).copied())
            .ok_or(SchedulerError::TimestepRange {
                timestep: t,
                trained: self.alphas_cumprod.len(),
            })
    }

    /// sigma_t = sqrt((1 - alpha-bar_t) / alpha-bar_t): the noise level when the signal has weight
    /// one (Karras et al. 2022, table 1, VP column), ascending in t.
    pub(super) fn sigmas(&self) -> Vec<f32> {
        let sigma = |&alpha: &f32| ((1.0 - alpha) / alpha).sqrt();
        self.alphas_cumprod.iter().map(sigma).collect()
    }
}

/// The weights of signal and noise where alpha-bar is `alpha`.
pub(super) fn weights(alpha: f32) -> [f32; 2] {
    [alpha.sqrt(), (1.0 - alpha).sqrt()]
}

/// beta_t for every training timestep.
fn betas(config: &SchedulerConfig, class: Training) -> Result<Vec<f32>, SchedulerError> {
    let trained = config.trained()?;
    // Negated so that a NaN fails too.
    let outside = |beta: f64| !(beta > 0.0 && beta < 1.0);
    if let Some(betas) = &config.trained_betas {
        if betas.len() != trained {
            let reason = format!("expected num_train_timesteps = {trained} of them");
            let value = format!("a list of {}", betas.len());
            return Err(unsupported("trained_betas", value, reason));
        }
        if let Some(&beta) = betas.iter().find(|&&beta| outside(beta)) {
            return Err(unsupported("trained_betas", beta, "expected (0, 1)"));
        }
        return Ok(betas.iter().map(|&beta| beta as f32).collect());
    }
    let start = config.beta_start.unwrap_or(class.betas[0]);
    let end = config.beta_end.unwrap_or(class.betas[1]);
    for (key, beta) in [("beta_start", start), ("beta_end", end)] {
        if outside(beta) {
            return Err(unsupported(key, beta, "expected (0, 1)"));
        }
    }
    let curve = config.beta_schedule.unwrap_or(class.curve);
    let common = [
        BetaSchedule::Linear,
        BetaSchedule::ScaledLinear,
        BetaSchedule::SquaredcosCapV2,
    ];
    if !common.contains(&curve) && !class.own_curves.contains(&curve) {
        let reason = "this scheduler does not have it; choose another by --scheduler";
        return Err(unsupported("beta_schedule", curve.name(), reason));
    }
    Ok(match curve {
        BetaSchedule::Linear => linspace_f32(start, end, trained),
        BetaSchedule::ScaledLinear => linspace_f32(start.sqrt(), end.sqrt(), trained)
            .into_iter()
            .map(|root| root * root)
            .collect(),
        BetaSchedule::SquaredcosCapV2 => capped(trained, |t| {
            let cos = ((t + 0.008) / 1.008 * std::f64::consts::PI / 2.0).cos();
            cos * cos
        }),
        BetaSchedule::Exp => capped(trained, |t| (t * -12.0).exp()),
        BetaSchedule::Laplace => capped(trained, |t| {
            let side = 1f64.copysign(0.5 - t);
            let log_ratio = -0.5 * side * (1.0 - 2.0 * (0.5 - t).abs() + 1e-6).ln();
            let ratio = log_ratio.exp();
            (ratio / (1.0 + ratio)).sqrt()
        }),
        BetaSchedule::Sigmoid => linspace_f32(-6.0, 6.0, trained)
            .into_iter()
            .map(|x| 1.0 / (1.0 + (-x).exp()) * (end - start) as f32 + start as f32)
            .collect(),
    })
}

/// The betas whose running product of 1 - beta is `alpha_bar` of the share of training done, at most 0.999 each.
fn capped(trained: usize, alpha_bar: impl Fn(f64) -> f64) -> Vec<f32> {
    let at = |i: usize| alpha_bar(i as f64 / trained as f64);
    (0..trained)
        .map(|i| (1.0 - at(i + 1) / at(i)).min(0.999) as f32)
        .collect()
}

/// Running product of 1 - beta, summed up in `f64` and kept in `f32` as torch's `cumprod` does.
fn cumulative(betas: &[f32]) -> Vec<f32> {
    let mut product = 1.0f64;
    let next = |beta: &f32| {
        product *= f64::from(1.0 - beta);
        product as f32
    };
    betas.iter().map(next).collect()
}

/// The betas shifted and scaled so that the last timestep has no signal and the first keeps its
/// (Lin et al. 2023, algorithm 1).
fn zero_snr_betas(alphas_cumprod: &[f32]) -> Vec<f32> {
    let mut roots: Vec<f32> = alphas_cumprod.iter().map(|alpha| alpha.sqrt()).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let scale = first / (first - last);
    for root in &mut roots {
        *root = (*root - last) * scale;
    }
    let mut before = 1.0f32;
    roots
        .iter()
        .map(|root| {
            let alpha_bar = root * root;
            let beta = 1.0 - alpha_bar / before;
            before = alpha_bar;
            beta
        })
        .collect()
}

/// `torch.linspace(start, end, n)` in `f32`: counted from both ends, with one rounding per value.
pub(super) fn linspace_f32(start: f64, end: f64, n: usize) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    let step = (end - start) / (n - 1) as f32;
    (0..n)
        .map(|i| {
            if i < n / 2 {
                step.mul_add(i as f32, start)
            } else {
                (-step).mul_add((n - 1 - i) as f32, end)
            }
        })
        .collect()
}

/// `numpy.linspace(start, end, n)` in `f64`.
pub(super) fn linspace(start: f64, end: f64, n: usize) -> Vec<f64> {
    let step = (end - start) / n.saturating_sub(1).max(1) as f64;
    let mut values: Vec<f64> = (0..n).map(|i| i as f64 * step + start).collect();
    if let (Some(last), true) = (values.last_mut(), n > 1) {
        *last = end;
    }
    values
}

/// The `n` timesteps of leading spacing, descending: whole multiples of `ratio`, then the offset.
pub(super) fn leading(n: usize, ratio: usize, offset: i32) -> Vec<f64> {
    let timestep = |i| (i * ratio) as f64 + f64::from(offset);
    (0..n).rev().map(timestep).collect()
}

/// Timesteps of trailing spacing, descending from `last - 1` by `ratio`, rounded half to even.
///
/// For 62 of the step counts up to 1000 (61 is the smallest) accumulated rounding gives the
/// reference one timestep more than asked for, namely -1; that one is left out here.
pub(super) fn trailing(last: usize, ratio: f64) -> Vec<f64> {
    let last = last as f64;
    // Both as numpy's `arange` has them, so that ties round the same way.
    let count = (last / ratio).ceil() as usize;
    let step = (last - ratio) - last;
    (0..count)
        .map(|i| (last + i as f64 * step).round_ties_even() - 1.0)
        .filter(|&timestep| timestep >= 0.0)
        .collect()
}

/// The `steps` timesteps that DDIM, PNDM and the Euler schedulers visit, descending and not yet rounded.
pub(super) fn spaced(
    config: &SchedulerConfig,
    default: TimestepSpacing,
    trained: usize,
    steps: usize,
) -> Vec<f64> {
    match config.timestep_spacing.unwrap_or(default) {
        TimestepSpacing::Linspace => {
            let mut timesteps = linspace(0.0, (trained - 1) as f64, steps);
            timesteps.reverse();
            timesteps
        }
        TimestepSpacing::Leading => {
            leading(steps, trained / steps, config.steps_offset.unwrap_or(0))
        }
        TimestepSpacing::Trailing => trailing(trained, trained as f64 / steps as f64),
    }
}

/// The `steps` timesteps of DDIM, DDPM and PNDM: the same, whole, in leading spacing where the file names none.
pub(super) fn whole(config: &SchedulerConfig, trained: usize, steps: usize) -> Vec<f64> {
    spaced(config, TimestepSpacing::Leading, trained, steps)
        .into_iter()
        .map(f64::round_ties_even)
        .collect()
}
