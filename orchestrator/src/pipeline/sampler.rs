//! The sampler: from noise to latents, one U-Net call after the other.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use lacuna_wire::HostTensor;

use super::Pipeline;
use crate::error::{Error, Result};
use crate::fleet::tally::Traffic;
use crate::interrupt;
use crate::noise::TorchRng;
use crate::schedulers::{Scheduler, SchedulerKind, SchedulerOption};
use crate::schemes::Predictor;

/// Noise of the strongest schedules is some 10^4.
const LARGEST_LATENT: f32 = 1e9;

/// How the sampler goes from noise to latents.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// Another scheduler than the model's own.
    pub scheduler: Option<SchedulerKind>,
    /// Keys of its config in place of the model's.
    pub options: Vec<SchedulerOption>,
    /// Sampler steps.
    pub steps: usize,
    /// Guidance scale; above 1 the U-Net runs on a batch of two.
    pub guidance: f32,
    /// Whether the model takes the guidance scale as an input. Nothing is guided away from then.
    pub embedded: bool,
    /// DDIM's and TCD's amount of fresh noise, 0 to 1.
    pub eta: f32,
    /// Where the picture is made from another one.
    pub from: Option<FromImage>,
}

/// How a picture is made from another one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FromImage {
    /// How far it may go from that, 0 to 1: so large a share of the steps is made.
    pub strength: f64,
    /// Whether a part of it is kept.
    pub masked: bool,
}

impl FromImage {
    /// Whether nothing of the other picture is left in what the sampler begins with.
    pub fn begins_with_noise(self) -> bool {
        self.masked && self.strength >= 1.0
    }
}

impl Sampling {
    /// Whether the prediction is guided away from the negative prompt (Ho and Salimans 2022).
    pub fn guided(&self) -> bool {
        self.guidance > 1.0 && !self.embedded
    }

    /// What is not the model's own of the scheduler, in words.
    pub fn scheduler_in_words(&self) -> Option<String> {
        let kind = self.scheduler.map(|kind| kind.to_string());
        let options = self.options.iter().map(ToString::to_string);
        let words: Vec<String> = kind.into_iter().chain(options).collect();
        (!words.is_empty()).then(|| words.join(", "))
    }

    /// Batch entries of one U-Net call.
    pub fn batch(&self) -> usize {
        if self.guided() { 2 } else { 1 }
    }
}

/// What the sampler begins with.
pub struct Start<'a> {
    /// `[1, C, H, W]`, of standard deviation 1.
    pub noise: HostTensor,
    /// Fresh noise, where the scheduler adds any, goes on from here.
    pub rng: &'a mut TorchRng,
    /// Guided predictions `[1, C, H, W]` of the first steps, where these were made before.
    pub made: Vec<Vec<f32>>,
    /// What is begun with beside the noise, where [`Sampling::from`] says that there is something.
    pub origin: Option<Origin>,
}

/// What is begun with beside noise.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Whether the first latents are noise alone.
    pub noise_alone: bool,
    /// The other picture's latents, `[C, H, W]`.
    pub latents: Option<Vec<f32>>,
    /// 1 where the picture is painted anew, else 0, `[H, W]`: there the other picture's latents take the place of the sample after each
    /// step.
    pub mask: Option<Vec<f32>>,
    /// What the U-Net takes behind the sample's channels, `[C', H, W]`.
    pub beside: Vec<f32>,
}

impl Origin {
    /// The first latents, by a scheduler whose first call is `first`.
    fn begin(&self, scheduler: &dyn Scheduler, first: usize, noise: &[f32]) -> Option<Vec<f32>> {
        let latents = self.latents.as_ref().filter(|_| !self.noise_alone)?;
        Some(mixed(scheduler.level(first), latents, noise))
    }

    /// Puts the other picture's latents in the place of the sample's outside the mask, with as much noise as `weights` say.
    fn put_back(&self, weights: [f32; 2], noise: &[f32], sample: &mut [f32]) {
        let (Some(mask), Some(latents)) = (&self.mask, &self.latents) else {
            return;
        };
        let kept = mixed(weights, latents, noise);
        let anew = mask.iter().cycle();
        for ((x, kept), _) in sample
            .iter_mut()
            .zip(kept)
            .zip(anew)
            .filter(|(_, m)| **m < 0.5)
        {
            *x = kept;
        }
    }
}

/// Clean latents and noise with these weights.
fn mixed([signal, fresh]: [f32; 2], latents: &[f32], noise: &[f32]) -> Vec<f32> {
    let pairs = latents.iter().zip(noise);
    pairs.map(|(x, noise)| signal * x + fresh * noise).collect()
}

impl<'a> Start<'a> {
    /// A beginning of which nothing was made before.
    pub fn new(noise: HostTensor, rng: &'a mut TorchRng) -> Self {
        Self {
            noise,
            rng,
            made: Vec::new(),
            origin: None,
        }
    }
}

/// Where the sampler is.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// U-Net calls done.
    pub done: usize,
    /// U-Net calls in all; some schedulers make more than there are steps.
    pub of: usize,
    /// How long the last call took.
    pub took: Duration,
    /// What the workers were sent and sent so far; none without workers.
    pub traffic: Option<Traffic>,
}

/// What a step led to.
#[derive(Clone, Copy, Debug)]
pub struct Reached<'a> {
    /// The guided prediction, `[1, C, H, W]`. From all of them, and the noise, the latents follow.
    pub prediction: &'a [f32],
    /// The latents after it, `[1, C, H, W]`.
    pub latents: &'a [f32],
    /// The clean latents by this prediction alone, `[1, C, H, W]`: what the picture would be if this were the last step.
    pub clean: &'a [f32],
}

impl Pipeline {
    /// From noise to latents `[1, C, H, W]`, calling `predictor` on every step that was not made before and `watch` after
    /// each, which may end it.
    ///
    /// # Errors
    /// Those of the scheduler's settings and of the scheme; [`Error::Interrupted`].
    pub fn sample(
        &self,
        predictor: &mut dyn Predictor,
        sampling: &Sampling,
        start: Start<'_>,
        watch: &mut dyn FnMut(Step, Reached<'_>) -> ControlFlow<()>,
    ) -> Result<HostTensor> {
        self.sample_held(predictor, sampling, start, &mut |_, _| {}, watch)
    }

    /// The same, where `hold` may change the latents `[1, C, H, W]` before every step, and those at the end: it is given
    /// the weights of clean latents and of noise in them ([`crate::schedulers::Scheduler::level`]).
    ///
    /// # Errors
    /// As [`Self::sample`].
    pub fn sample_held(
        &self,
        predictor: &mut dyn Predictor,
        sampling: &Sampling,
        start: Start<'_>,
        hold: &mut dyn FnMut([f32; 2], &mut [f32]),
        watch: &mut dyn FnMut(Step, Reached<'_>) -> ControlFlow<()>,
    ) -> Result<HostTensor> {
        let Start {
            noise,
            rng,
            made,
            origin,
        } = start;
        let mut scheduler = self.scheduler(sampling)?;
        let timesteps = scheduler.timesteps().to_vec();
        let [_, c, h, w] = noise.dims()?;
        let noise = noise.data;
        check_range(&noise, "the initial noise is off (--latents)")?;
        let first = scheduler.first();
        let begun = origin.as_ref();
        let begun = begun.and_then(|origin| origin.begin(&*scheduler, first, &noise));
        let mut latents = begun.unwrap_or_else(|| {
            let sigma = scheduler.init_noise_sigma();
            noise.iter().map(|x| x * sigma).collect()
        });
        let beside = origin.as_ref().map_or(&[][..], |origin| &origin.beside);
        let prediction = self.prediction(sampling)?;
        let mut made = made.into_iter();
        for (i, &timestep) in timesteps.iter().enumerate().skip(first) {
            interrupt::check()?;
            let start = Instant::now();
            hold(scheduler.level(i), &mut latents);
            let output = match made.next() {
                Some(output) => output,
                None => {
                    let mut input = latents.clone();
                    scheduler.scale_model_input(i, &mut input);
                    input.extend_from_slice(beside);
                    let (batch, channels) = (sampling.batch(), c + beside.len() / (h * w));
                    let input = HostTensor::new([batch, channels, h, w], input.repeat(batch))?;
                    let output = predictor.predict(input, timestep)?;
                    match sampling.guided() {
                        true => guide(&output.data, sampling.guidance),
                        false => output.data,
                    }
                }
            };
            let mut clean = prediction.clean(scheduler.level(i), &output, &latents);
            latents = scheduler.step(i, &output, &latents, rng);
            if let Some(origin) = &origin {
                let last = i + 1 == timesteps.len();
                let weights = if last {
                    [1.0, 0.0]
                } else {
                    scheduler.blended(i + 1)
                };
                origin.put_back(weights, &noise, &mut latents);
                origin.put_back([1.0, 0.0], &noise, &mut clean);
            }
            check_range(&latents, "--guidance or the model's config is off")?;
            let step = Step {
                done: i + 1 - first,
                of: timesteps.len() - first,
                took: start.elapsed(),
                traffic: predictor.traffic(),
            };
            let reached = Reached {
                prediction: &output,
                latents: &latents,
                clean: &clean,
            };
            go_on(watch(step, reached))?;
        }
        hold([1.0, 0.0], &mut latents);
        let latents = HostTensor::new([1, c, h, w], latents)?;
        latents.check_finite("the latents")?;
        Ok(latents)
    }
}

/// Whether whoever watches wants more.
///
/// # Errors
/// [`Error::Interrupted`] when not.
pub fn go_on(answer: ControlFlow<()>) -> Result<()> {
    match answer {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Interrupted),
    }
}

/// `u + scale (c - u)` of a batch of two, unconditional first (Ho and Salimans 2022, eq. 6).
fn guide(output: &[f32], scale: f32) -> Vec<f32> {
    let (unconditional, conditional) = output.split_at(output.len() / 2);
    let pairs = unconditional.iter().zip(conditional);
    pairs.map(|(u, c)| u + scale * (c - u)).collect()
}

/// That nobody is asked to compute on values of which no picture is made, and which overflow on the way.
fn check_range(latents: &[f32], reason: &str) -> Result<()> {
    let off = |x: &&f32| x.is_nan() || x.abs() > LARGEST_LATENT;
    match latents.iter().find(off) {
        None => Ok(()),
        Some(x) => Err(Error::Request(format!("a latent is {x:e}: {reason}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guidance_of_one_is_the_conditional_half() {
        assert_eq!(guide(&[1.0, 2.0, 5.0, 7.0], 1.0), [5.0, 7.0]);
        assert_eq!(guide(&[1.0, 2.0, 5.0, 7.0], 2.0), [9.0, 12.0]);
    }
}
