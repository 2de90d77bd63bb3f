//! Schedulers: how noise is taken out of the latents, sampler step by sampler step.
//!
//! They run where the user is, on latents of B x C x H x W numbers in `f32`: small, and never sent
//! anywhere by this module. Each follows the `diffusers` class of the same name to `f32` rounding,
//! which the goldens in `tests/goldens/schedulers.safetensors` hold step by step.
//!
//! # Layout
//!
//! - [`SchedulerKind`]: which there are, by name and class;
//! - [`SchedulerConfig`]: `scheduler_config.json` and what is refused in it;
//! - `keys`: how its single keys are read; [`SchedulerOption`]: keys in place of the model's;
//! - `tables`: the training schedule and which timesteps are visited;
//! - `sigmas`: noise levels, and the curves that they may follow;
//! - `levels`: the same in the letters of the solvers that step along the log signal-to-noise ratio;
//! - `prediction`, `limit`: what the network's output says of the clean latents, and how those are kept in range;
//! - `history`: what multistep schedulers remember;
//! - `dpm_formula`: what the two DPM-Solvers share; `teacher`: what the two schedulers of distilled models share;
//! - `ddim`, `ddpm`, `pndm`, `lms`, `euler`, `euler_ancestral`, `heun`, `kdpm2`, `dpm_solver`, `dpm_single`, `deis`,
//!   `unipc`, `lcm`, `tcd`: the schedulers;
//! - [`SchedulerError`]: why one cannot be built.

mod class_keys;
mod config;
mod ddim;
mod ddpm;
mod deis;
mod dpm_formula;
mod dpm_single;
mod dpm_solver;
mod error;
mod euler;
mod euler_ancestral;
mod heun;
mod history;
mod kdpm2;
mod keys;
mod kind;
mod lcm;
mod levels;
mod limit;
mod lms;
mod options;
mod pndm;
mod prediction;
mod sigmas;
mod tables;
mod tcd;
mod teacher;
mod unipc;

pub use config::{BetaSchedule, SchedulerConfig, TimestepSpacing, UNREAD_BY_CLASS, WITHOUT_EFFECT};
pub use error::SchedulerError;
pub use kind::SchedulerKind;
pub use options::SchedulerOption;
pub use prediction::PredictionType;

use crate::noise::TorchRng;

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
    /// timesteps, not always whole. There may be more calls than sampler steps (PNDM; Heun and KDPM2 call twice a step).
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

    /// The call that is made first: 0, where the picture begins with noise.
    fn first(&self) -> usize {
        0
    }

    /// The weights of the clean latents and of noise of standard deviation 1 in the sample at call `i`, before scaling.
    ///
    /// # Panics
    ///
    /// If `i` is not an index of [`timesteps`](Self::timesteps).
    fn level(&self, i: usize) -> [f32; 2];

    /// The same for what takes the place of the sample outside a mask: as [`level`](Self::level) has it, if the
    /// reference does not know better.
    ///
    /// # Panics
    ///
    /// If `i` is not an index of [`timesteps`](Self::timesteps).
    fn blended(&self, i: usize) -> [f32; 2] {
        self.level(i)
    }

    /// The next sample from the network's output at call `i` (after guidance) and the sample that
    /// it saw before scaling. All have the same B x C x H x W numbers. Only schedulers that add
    /// noise (ancestral and stochastic ones, LCM, DDIM and TCD with `eta`) draw from `rng`.
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

/// What a picture begins with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Begin {
    /// Noise: all steps are made.
    Noise,
    /// Another picture with noise, from which it is to differ by this strength, 0 to 1: so large a share of the steps
    /// is made, the last ones.
    Picture(f64),
    /// The same as the pipelines of latent consistency models have it: all steps are made, among so large a share of their
    /// teacher's timesteps. By a scheduler that knows of no teacher, as [`Self::Picture`].
    PictureOfTeacher(f64),
}

/// How many of `steps` sampler steps, the last ones, a picture takes that goes so far from another one, 0 to 1.
///
/// # Errors
/// [`SchedulerError::NoSteps`].
pub fn last_steps(steps: usize, strength: f64) -> Result<usize, SchedulerError> {
    match (steps as f64 * strength) as usize {
        0 => Err(SchedulerError::NoSteps {
            steps,
            least: 1.0 / steps as f64,
        }),
        last => Ok(last.min(steps)),
    }
}

/// Builds a scheduler for one picture of `steps` sampler steps that begins with noise.
///
/// `kind` may be another scheduler than the configuration's own. `eta` (0 to 1) is DDIM's and
/// TCD's amount of fresh noise; it must be 0 for the others.
///
/// # Errors
/// As [`build_from`].
pub fn build(
    kind: SchedulerKind,
    config: &SchedulerConfig,
    steps: usize,
    eta: f32,
) -> Result<Box<dyn Scheduler>, SchedulerError> {
    build_from(Begin::Noise, kind, config, steps, eta)
}

/// The same for one that begins with something else.
///
/// # Errors
/// A [`SchedulerError`] that names what can be changed.
pub fn build_from(
    begin: Begin,
    kind: SchedulerKind,
    config: &SchedulerConfig,
    steps: usize,
    eta: f32,
) -> Result<Box<dyn Scheduler>, SchedulerError> {
    let max = config.trained()?;
    if kind.of_a_teacher() {
        teacher::check_steps(config, max, steps)?;
    }
    if !(1..=max).contains(&steps) {
        return Err(SchedulerError::Steps { steps, min: 1, max });
    }
    if !(0.0..=1.0).contains(&eta) {
        return Err(SchedulerError::EtaRange(eta));
    }
    if eta > 0.0 && !kind.takes_eta() {
        return Err(SchedulerError::EtaUnused(kind));
    }
    let (first, share) = match begin {
        Begin::Noise => (0, 1.0),
        Begin::PictureOfTeacher(strength) if kind.of_a_teacher() => (0, strength),
        Begin::Picture(strength) | Begin::PictureOfTeacher(strength) => {
            (steps.saturating_sub(last_steps(steps, strength)?), 1.0)
        }
    };
    use SchedulerKind as Kind;
    let scheduler: Box<dyn Scheduler> = match kind {
        Kind::Ddim => Box::new(ddim::Ddim::new(config, steps, eta)?),
        Kind::Ddpm => Box::new(ddpm::Ddpm::new(config, steps)?),
        Kind::Pndm => Box::new(pndm::Pndm::new(config, steps, first)?),
        Kind::Lms => Box::new(lms::Lms::new(config, steps)?),
        Kind::Euler => Box::new(euler::Euler::new(config, steps)?),
        Kind::EulerAncestral => Box::new(euler_ancestral::EulerAncestral::new(config, steps)?),
        Kind::Heun => Box::new(heun::Heun::new(config, steps)?),
        Kind::Kdpm2 => Box::new(kdpm2::Kdpm2::new(config, steps, false)?),
        Kind::Kdpm2Ancestral => Box::new(kdpm2::Kdpm2::new(config, steps, true)?),
        Kind::DpmSolver => Box::new(dpm_solver::DpmSolver::new(config, steps, first, false)?),
        Kind::DpmSolverSde => Box::new(dpm_solver::DpmSolver::new(config, steps, first, true)?),
        Kind::DpmSingle => Box::new(dpm_single::DpmSingle::new(config, steps, first)?),
        Kind::Deis => Box::new(deis::Deis::new(config, steps, first)?),
        Kind::UniPc => Box::new(unipc::UniPc::new(config, steps, first)?),
        Kind::Lcm => Box::new(lcm::Lcm::new(config, steps, share)?),
        Kind::Tcd => Box::new(tcd::Tcd::new(config, steps, share, eta)?),
    };
    let first = first * kind.calls_each();
    Ok(Box::new(InOrder {
        scheduler,
        first,
        due: first,
    }))
}

/// A scheduler whose steps are asked for in order, of latents of one size: some remember earlier steps.
struct InOrder {
    scheduler: Box<dyn Scheduler>,
    first: usize,
    /// Index of the call that is due.
    due: usize,
}

impl Scheduler for InOrder {
    fn timesteps(&self) -> &[f64] {
        self.scheduler.timesteps()
    }

    fn init_noise_sigma(&self) -> f32 {
        self.scheduler.init_noise_sigma()
    }

    fn scale_model_input(&self, i: usize, sample: &mut [f32]) {
        self.scheduler.scale_model_input(i, sample);
    }

    fn first(&self) -> usize {
        self.first
    }

    fn level(&self, i: usize) -> [f32; 2] {
        self.scheduler.level(i)
    }

    fn blended(&self, i: usize) -> [f32; 2] {
        self.scheduler.blended(i)
    }

    fn step(
        &mut self,
        i: usize,
        model_output: &[f32],
        sample: &[f32],
        rng: &mut TorchRng,
    ) -> Vec<f32> {
        assert_eq!(
            model_output.len(),
            sample.len(),
            "latents of different sizes"
        );
        assert_eq!(i, self.due, "sampler steps out of order");
        self.due += 1;
        self.scheduler.step(i, model_output, sample, rng)
    }
}

/// `kept` times the sample and `fresh` times noise of standard deviation 1, in place.
fn add_noise(sample: &mut [f32], [kept, fresh]: [f32; 2], rng: &mut TorchRng) {
    let noise = rng.randn(sample.len());
    for (x, noise) in sample.iter_mut().zip(noise) {
        *x = kept * *x + fresh * noise;
    }
}
