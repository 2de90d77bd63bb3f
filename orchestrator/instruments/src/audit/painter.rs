//! The attacker's own model as a prior: pictures that go on from rows that are known.

use std::ops::{ControlFlow, Range};

use lacuna_model::weights::Weights;
use lacuna_orchestrator::generator::denoiser::Denoiser;
use lacuna_orchestrator::noise::TorchRng;
use lacuna_orchestrator::pipeline::{Pipeline, Reached, Sampling, Start, Step};
use lacuna_orchestrator::schemes::local::Local;
use lacuna_orchestrator::schemes::{Options, Setting};
use lacuna_orchestrator::text::Prompt;
use lacuna_wire::HostTensor;

use crate::error::Result;

/// The model, in the attacker's hands.
pub struct Painter<'a> {
    pipeline: &'a Pipeline,
    sampling: &'a Sampling,
    denoiser: Denoiser,
    shape: [usize; 4],
}

/// Rows of the clean latents that the attacker knows.
#[derive(Clone)]
pub struct Known<'a> {
    /// Latents `[1, C, H, W]`, of which these rows count.
    pub latents: &'a [f32],
    /// The rows.
    pub rows: Range<usize>,
}

/// What the model made.
pub struct Painting {
    /// The latents `[1, C, H, W]`.
    pub latents: HostTensor,
    /// How far known rows were from where the model took them: the mean square difference over all steps.
    pub surprise: f64,
}

/// Of the attacker's noise: none of the pictures has it.
const SEED: u64 = 1 << 32;

/// Steps of a picture that is made only to see how well a prompt fits.
const FEW: usize = 5;

impl<'a> Painter<'a> {
    /// The model in `pipeline` with its `weights`, as it is sampled; `setting` has the sizes.
    pub fn new(
        pipeline: &'a Pipeline,
        weights: &Weights,
        sampling: &'a Sampling,
        setting: &Setting,
    ) -> Self {
        let unet = pipeline.source().clone();
        let [_, rows, columns] = setting.sizes.latents;
        Self {
            shape: [1, pipeline.unet().latent_channels(), rows, columns],
            denoiser: Denoiser::new(
                unet,
                setting.by(Local {}.scheme()),
                Some(weights.clone()),
                None,
            ),
            pipeline,
            sampling,
        }
    }

    /// The picture that the model makes of `prompt` around `known` rows: before every step these are replaced by the
    /// clean ones with as much noise as the step has (Lugmayr et al. 2022, without going back).
    ///
    /// # Errors
    /// Those of the model.
    pub fn paint(&self, prompt: &str, known: Option<&Known<'_>>, seed: u64) -> Result<Painting> {
        self.sample(prompt, known, self.sampling, seed)
    }

    /// How little `prompt` fits `known` rows: what the model makes of its noisy neighbours under another prompt is
    /// further from them (as Li et al. 2023 tell classes apart). In few steps and without guidance.
    ///
    /// # Errors
    /// As [`Self::paint`].
    pub fn surprise(&self, prompt: &str, known: &Known<'_>, seed: u64) -> Result<f64> {
        let few = Sampling {
            steps: FEW.min(self.sampling.steps),
            guidance: 1.0,
            ..self.sampling.clone()
        };
        Ok(self.sample(prompt, Some(known), &few, seed)?.surprise)
    }

    fn sample(
        &self,
        prompt: &str,
        known: Option<&Known<'_>>,
        sampling: &Sampling,
        seed: u64,
    ) -> Result<Painting> {
        let context = self
            .pipeline
            .encode(&Prompt::new(prompt), sampling, self.shape)?;
        let mut rng = TorchRng::new(SEED + seed);
        let noise = rng.randn(self.shape.iter().product());
        let [_, _, rows, columns] = self.shape;
        let plane = rows * columns;
        let (mut surprise, mut steps) = (0.0, 0_u32);
        let mut hold = |[signal, spread]: [f32; 2], latents: &mut [f32]| {
            let Some(Known {
                latents: clean,
                rows,
            }) = known
            else {
                return;
            };
            let part = rows.start * columns..rows.end * columns;
            let (mut sum, mut count) = (0.0, 0_u32);
            let planes = latents
                .chunks_exact_mut(plane)
                .zip(clean.chunks_exact(plane));
            for ((to, clean), noise) in planes.zip(noise.chunks_exact(plane)) {
                let pairs = clean[part.clone()].iter().zip(&noise[part.clone()]);
                for (to, (clean, noise)) in to[part.clone()].iter_mut().zip(pairs) {
                    let held = signal * clean + spread * noise;
                    sum += f64::from(*to - held).powi(2);
                    count += 1;
                    *to = held;
                }
            }
            // Before the first step the model has said nothing.
            if steps > 0 {
                surprise += sum / f64::from(count.max(1));
            }
            steps += 1;
        };
        let start = HostTensor::new(self.shape, noise.clone())?;
        let weights = self.denoiser.weights()?;
        let latents = self.denoiser.predict(weights, context, |predictor| {
            let mut on = |_: Step, _: Reached<'_>| ControlFlow::Continue(());
            let (pipeline, start) = (self.pipeline, Start::new(start, &mut rng));
            pipeline.sample_held(predictor, sampling, start, &mut hold, &mut on)
        })?;
        Ok(Painting {
            latents,
            surprise: surprise / f64::from(steps.max(2) - 1),
        })
    }
}
