//! The pictures of an audit: some for the attacker to train on, the others held out.

use std::ops::ControlFlow;

use lacuna_model::weights::Weights;
use lacuna_model::whole::Conditioning;
use lacuna_wire::HostTensor;

use super::prompts::{self, Prompt};
use crate::error::Result;
use lacuna_orchestrator::generator::denoiser::Denoiser;
use lacuna_orchestrator::noise::TorchRng;
use lacuna_orchestrator::picture::Picture;
use lacuna_orchestrator::pipeline::{Pipeline, Reached, Sampling, Start, Step};
use lacuna_orchestrator::schemes::Options;
use lacuna_orchestrator::schemes::local::Local;
use lacuna_orchestrator::schemes::{Finished, Predictor, Setting};
use lacuna_orchestrator::text;

/// Of the prompts of an audit.
const SEED: u64 = 0;

/// One picture, and what its making asked of the U-Net.
pub struct Run {
    /// What it was to show.
    pub prompt: Prompt,
    /// What the prompt became.
    pub context: Conditioning,
    /// Inputs and timesteps of the U-Net calls that are audited.
    pub calls: Vec<(HostTensor, f64)>,
    /// The final latents, `[1, C, H, W]`.
    pub latents: HostTensor,
    /// The picture.
    pub picture: Picture,
}

/// How many pictures are made, and which steps of each are audited.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Pictures to train on.
    pub train: usize,
    /// Pictures held out.
    pub held_out: usize,
    /// Steps that are audited, spread over all.
    pub audited: usize,
}

/// Makes the pictures with the whole model, `weights`; `setting` has the sizes. The schemes give the same pictures to
/// rounding, so that what a provider has of a step can be had by doing that step alone by a scheme.
///
/// # Errors
/// Those of the model.
pub fn make(
    pipeline: &Pipeline,
    weights: &Weights,
    sampling: &Sampling,
    setting: &Setting,
    size: Size,
    mut watch: impl FnMut(usize),
) -> Result<Vec<Run>> {
    let [_, rows, columns] = setting.sizes.latents;
    let local = setting.by(Local {}.scheme());
    let unet = pipeline.source().clone();
    let denoiser = Denoiser::new(unet, local, Some(weights.clone()), None);
    let shape = [1, pipeline.unet().latent_channels(), rows, columns];
    let prompts = prompts::draw(size.train + size.held_out, SEED);
    let make = |(i, prompt): (usize, Prompt)| {
        watch(i);
        let words = text::Prompt::new(&prompt.text);
        let context = pipeline.encode(&words, sampling, shape)?;
        let mut rng = TorchRng::new(i as u64);
        let noise = HostTensor::new(shape, rng.randn(shape.iter().product()))?;
        let mut on = |_: Step, _: Reached<'_>| ControlFlow::Continue(());
        let mut calls = Vec::new();
        let latents = denoiser.predict(denoiser.weights()?, context.clone(), |predictor| {
            let calls = &mut calls;
            let mut recorder = Recorder { predictor, calls };
            let start = Start::new(noise, &mut rng);
            pipeline.sample(&mut recorder, sampling, start, &mut on)
        })?;
        Ok(Run {
            prompt,
            context,
            calls: spread(calls, size.audited),
            picture: pipeline.decode(latents.clone())?,
            latents,
        })
    };
    prompts.into_iter().enumerate().map(make).collect()
}

/// `count` of `all`, the last among them, and the first where there are two.
fn spread<T>(all: Vec<T>, count: usize) -> Vec<T> {
    let last = all.len().saturating_sub(1);
    let wanted: Vec<usize> = match count {
        0 | 1 => vec![last],
        _ => (0..count).map(|i| i * last / (count - 1)).collect(),
    };
    let chosen = all.into_iter().enumerate();
    chosen
        .filter(|(i, _)| wanted.contains(i))
        .map(|(_, x)| x)
        .collect()
}

/// Keeps what is asked of a predictor.
struct Recorder<'a> {
    predictor: &'a mut dyn Predictor,
    calls: &'a mut Vec<(HostTensor, f64)>,
}

impl Predictor for Recorder<'_> {
    fn predict(
        &mut self,
        sample: HostTensor,
        timestep: f64,
    ) -> lacuna_orchestrator::Result<HostTensor> {
        self.calls.push((sample.clone(), timestep));
        self.predictor.predict(sample, timestep)
    }

    fn traffic(&self) -> Option<lacuna_orchestrator::fleet::tally::Traffic> {
        self.predictor.traffic()
    }

    fn finish(self: Box<Self>) -> Finished {
        // Whoever lent the predictor takes its account.
        Finished::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audited_steps_reach_from_the_first_to_the_last() {
        let steps: Vec<usize> = (0..20).collect();
        assert_eq!(spread(steps.clone(), 4), [0, 6, 12, 19]);
        assert_eq!(spread(steps.clone(), 1), [19]);
        assert_eq!(spread(steps, 50).len(), 20);
    }
}
