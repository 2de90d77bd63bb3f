//! Makes one picture after the other, wherever the U-Net is computed.
//!
//! [`order`] says what is wanted, and gets ready. Whoever asks for a picture hears of its progress as
//! [`Event`]s, and can end it at each.
//!
//! What one picture teaches about the workers, the next one knows: who was lost and who stepped in
//! ([`crate::fleet::roster`]). What each worker did and saw is kept of every picture, also of one that failed.
//! [`denoiser`] does that for any U-Net calls; [`failover`] goes on when a worker is lost.

pub mod denoiser;
pub mod failover;
pub mod order;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::Tensor;
use lacuna_model::weights::Weights;
use lacuna_model::whole::Conditioning;
use lacuna_wire::HostTensor;

use crate::error::Result;
use crate::fleet::config::FleetConfig;
use crate::fleet::local::LocalWorkers;
use crate::noise::TorchRng;
use crate::picture::Picture;
use crate::pipeline::{Pipeline, Sampling, Step, go_on};
use crate::schemes::Setting;
use denoiser::Denoiser;
use failover::OnLoss;

/// What all pictures share.
pub struct Generator {
    /// The model.
    pub pipeline: Arc<Pipeline>,
    /// How the sampler goes.
    pub sampling: Sampling,
    /// Where the U-Net is computed, and what became of the workers so far.
    pub denoiser: Denoiser,
    /// Workers of one's own, which live as long as this.
    _local: Option<LocalWorkers>,
}

/// What one picture is made of.
#[derive(Clone)]
pub struct Request {
    /// Of [`Pipeline::encode`].
    pub context: Tensor<3>,
    /// Noise `[1, C, H, W]` of standard deviation 1.
    pub noise: HostTensor,
    /// Fresh noise, where the scheduler adds any, goes on from here.
    pub rng: TorchRng,
}

/// What happened to a picture. `Break` in answer ends it with [`crate::Error::Interrupted`].
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The weights of the user's part of the U-Net are there.
    Loaded(Duration),
    /// A sampler step is done.
    Step(Step),
    /// The final latents, `[1, C, H, W]`, are there; they are decoded next.
    Denoised(&'a HostTensor),
}

/// A picture.
pub struct Made {
    /// The picture.
    pub picture: Picture,
    /// All sampler steps, and reaching the workers.
    pub denoise: Duration,
    /// Latents to picture.
    pub decode: Duration,
}

impl Generator {
    /// Computes by `setting`, on the workers of `fleet` if there are any, and with `whole` where the U-Net is
    /// computed in this process.
    pub fn new(
        pipeline: Arc<Pipeline>,
        sampling: Sampling,
        setting: Setting,
        whole: Option<Weights>,
        fleet: Option<FleetConfig>,
    ) -> Self {
        Self {
            denoiser: Denoiser::new(pipeline.source().clone(), setting, whole, fleet),
            pipeline,
            sampling,
            _local: None,
        }
    }

    /// Does `on_loss` when a worker is lost.
    pub fn on_loss(self, on_loss: OnLoss) -> Self {
        Self {
            denoiser: self.denoiser.on_loss(on_loss),
            ..self
        }
    }

    /// One picture. The user's part of the U-Net is loaded for it, unless all of it is there, and dropped before the
    /// picture is decoded. Blocks for as long as it takes, on a thread of the async runtime that may block.
    ///
    /// # Errors
    /// As [`Denoiser::weights`] and [`Self::denoise`]; those of the decoder.
    pub fn picture(
        &self,
        request: Request,
        hear: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Made> {
        let start = Instant::now();
        let weights = self.denoiser.weights()?;
        // Before a session is opened: values that are not finite end it here.
        go_on(hear(Event::Loaded(start.elapsed())))?;
        let start = Instant::now();
        let latents = self.denoise(request, weights, hear)?;
        let denoise = start.elapsed();
        go_on(hear(Event::Denoised(&latents)))?;
        let start = Instant::now();
        Ok(Made {
            picture: self.pipeline.decode(latents)?,
            denoise,
            decode: start.elapsed(),
        })
    }

    /// The latents `[1, C, H, W]` of one picture, with `weights` of [`Denoiser::weights`].
    ///
    /// # Errors
    /// Those of the scheme and the sampler, [`crate::Error::Interrupted`] among them. The sessions on the
    /// workers are closed in any case.
    pub fn denoise(
        &self,
        request: Request,
        weights: Weights,
        hear: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<HostTensor> {
        let Request {
            context,
            noise,
            mut rng,
        } = request;
        let conditioning = Conditioning {
            context,
            added: None,
        };
        self.denoiser.predict(weights, conditioning, |predictor| {
            let mut watch = |step| hear(Event::Step(step));
            let (pipeline, sampling) = (&self.pipeline, &self.sampling);
            pipeline.sample(predictor, sampling, noise, &mut rng, &mut watch)
        })
    }
}
