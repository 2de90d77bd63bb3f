//! Schedulers: how noise is taken out of the latents, sampler step by sampler step.
//!
//! They run where the user is, on latents of B x C x H x W numbers in `f32`: small, and never sent
//! anywhere by this module. Each follows the `diffusers` class of the same name to `f32` rounding,
//! which the goldens in `tests/goldens/schedulers.safetensors` hold step by step.
//!
//! # Layout
//!
//! - [`SchedulerConfig`]: `scheduler_config.json` and what is refused in it;
//! - `keys`: how its single keys are read;
//! - `tables`: the training schedule and which timesteps are visited;
//! - `sigmas`: noise levels, for the schedulers that step along those;
//! - `ddim`, `pndm`, `euler`, `euler_ancestral`, `dpm_solver`: one scheduler each;
//! - [`SchedulerError`]: why one cannot be built.

mod config;
mod ddim;
mod dpm_solver;
mod error;
mod euler;
mod euler_ancestral;
mod keys;
mod pndm;
mod sigmas;
mod tables;

pub use config::{BetaSchedule, PredictionType, SchedulerConfig, TimestepSpacing, WITHOUT_EFFECT};
pub use error::SchedulerError;

use crate::noise::TorchRng;

/// The schedulers there are, by the names that `--scheduler` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SchedulerKind {
    /// DDIM, the only one with an `eta`.
    #[value(name = "ddim")]
    Ddim,
    /// PNDM (also known as PLMS); calls the network once more than there are steps.
    #[value(name = "pndm")]
    Pndm,
    /// Euler.
    #[value(name = "euler")]
    Euler,
    /// Euler ancestral: adds fresh noise on every step.
    #[value(name = "euler-a")]
    EulerAncestral,
    /// DPM-Solver++, multistep.
    #[value(name = "dpm++")]
    DpmSolver,
}

impl SchedulerKind {
    /// The scheduler for a `diffusers` class name, as in `model_index.json`.
    pub fn from_class_name(name: &str) -> Result<Self, SchedulerError> {
        match name {
            "DDIMScheduler" => Ok(Self::Ddim),
            "PNDMScheduler" => Ok(Self::Pndm),
            "EulerDiscreteScheduler" => Ok(Self::Euler),
            "EulerAncestralDiscreteScheduler" => Ok(Self::EulerAncestral),
            "DPMSolverMultistepScheduler" => Ok(Self::DpmSolver),
            other => Err(SchedulerError::UnknownClass(other.to_owned())),
        }
    }
}

impl std::fmt::Display for SchedulerKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ddim => "ddim",
            Self::Pndm => "pndm",
            Self::Euler => "euler",
            Self::EulerAncestral => "euler-a",
            Self::DpmSolver => "dpm++",
        })
    }
}

impl std::str::FromStr for SchedulerKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        clap::ValueEnum::from_str(name, false)
    }
}

/// Takes one picture (or one batch) from noise to latents.
///
/// The loop is the same for every scheduler: start from `randn` times
/// [`init_noise_sigma`](Self::init_noise_sigma); for each index `i` of
/// [`timesteps`](Self::timesteps) in order, scale a copy of the sample for the network
/// ([`scale_model_input`](Self::scale_model_input)), run the network at that timestep, apply
/// guidance, and [`step`](Self::step). Some schedulers remember earlier steps, so build a new one
/// for each picture.
pub trait Scheduler: Send {
    /// What the network is told about time at each call, from high to low: in units of training
    /// timesteps, not always whole. There may be more calls than sampler steps (PNDM).
    fn timesteps(&self) -> &[f64];

    /// The standard deviation that the first sample must have: 1, if the scheduler does not say otherwise.
    fn init_noise_sigma(&self) -> f32 {
        1.0
    }

    /// Scales a sample, in place, to what the network expects at call `i`: as it is, if the scheduler does not say
    /// otherwise.
    ///
    /// # Panics
    ///
    /// If `i` is not an index of [`timesteps`](Self::timesteps).
    fn scale_model_input(&self, _i: usize, _sample: &mut [f32]) {}

    /// The weights of the clean latents and of noise of standard deviation 1 in the sample at call `i`, before scaling.
    ///
    /// # Panics
    ///
    /// If `i` is not an index of [`timesteps`](Self::timesteps).
    fn level(&self, i: usize) -> [f32; 2];

    /// The next sample from the network's output at call `i` (after guidance) and the sample that
    /// it saw before scaling. All have the same B x C x H x W numbers. Only schedulers that add
    /// noise (Euler ancestral, DDIM with `eta`) draw from `rng`.
    ///
    /// # Panics
    ///
    /// If `i` is not the next index of [`timesteps`](Self::timesteps), or the lengths differ:
    /// mistakes of the caller, who has checked what came over the network.
    fn step(
        &mut self,
        i: usize,
        model_output: &[f32],
        sample: &[f32],
        rng: &mut TorchRng,
    ) -> Vec<f32>;
}

/// Builds a scheduler for one picture of `steps` sampler steps.
///
/// `kind` may be another scheduler than the configuration's own. `eta` (0 to 1) is DDIM's amount of
/// fresh noise; it must be 0 for the others.
pub fn build(
    kind: SchedulerKind,
    config: &SchedulerConfig,
    steps: usize,
    eta: f32,
) -> Result<Box<dyn Scheduler>, SchedulerError> {
    let max = config.trained()?;
    if !(1..=max).contains(&steps) {
        return Err(SchedulerError::Steps { steps, min: 1, max });
    }
    if !(0.0..=1.0).contains(&eta) {
        return Err(SchedulerError::EtaRange(eta));
    }
    if eta > 0.0 && kind != SchedulerKind::Ddim {
        return Err(SchedulerError::EtaUnused(kind));
    }
    Ok(match kind {
        SchedulerKind::Ddim => Box::new(ddim::Ddim::new(config, steps, eta)?),
        SchedulerKind::Pndm => Box::new(pndm::Pndm::new(config, steps)?),
        SchedulerKind::Euler => Box::new(euler::Euler::new(config, steps)?),
        SchedulerKind::EulerAncestral => {
            Box::new(euler_ancestral::EulerAncestral::new(config, steps)?)
        }
        SchedulerKind::DpmSolver => Box::new(dpm_solver::DpmSolver::new(config, steps)?),
    })
}

/// Two latents that are combined number by number must have equally many.
fn assert_same_length(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "latents of different sizes");
}

/// A scheduler that remembers earlier steps must see them in order.
fn assert_next(i: usize, due: usize) {
    assert_eq!(i, due, "sampler steps out of order");
}
