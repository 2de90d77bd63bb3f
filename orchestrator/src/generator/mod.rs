//! Makes pictures, one after the other or side by side, wherever the U-Net is computed.
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

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use lacuna_kernels::allocator::give_back_freed_pages;
use lacuna_model::weights::Weights;
use lacuna_model::whole::Conditioning;
use lacuna_wire::HostTensor;

use crate::error::Result;
use crate::fleet::config::FleetConfig;
use crate::fleet::local::LocalWorkers;
use crate::fleet::tally::Shown;
use crate::noise::TorchRng;
use crate::picture::Picture;
use crate::pipeline::{Origin, Pipeline, Reached, Sampling, Start, Step, go_on};
use crate::schemes::{Predictor, Setting};
use denoiser::{Denoiser, lock};
use failover::{OnLoss, Told};

/// What all pictures share.
pub struct Generator {
    /// The model.
    pub pipeline: Arc<Pipeline>,
    /// How the sampler goes.
    pub sampling: Sampling,
    /// Where the U-Net is computed, and what became of the workers so far.
    pub denoiser: Denoiser,
    /// Of the user's part, where a picture has them: pictures side by side have the same.
    loaded: Mutex<Weak<Weights>>,
    /// The decoder takes more memory than anything else of the user's: one picture at a time.
    decoding: Mutex<()>,
    /// Workers of one's own, which live as long as this.
    _local: Option<LocalWorkers>,
}

/// What one picture is made of.
#[derive(Clone)]
pub struct Request {
    /// Of [`Pipeline::encode`].
    pub conditioning: Conditioning,
    /// Noise `[1, C, H, W]` of standard deviation 1.
    pub noise: HostTensor,
    /// Fresh noise, where the scheduler adds any, goes on from here.
    pub rng: TorchRng,
    /// What was made of it before.
    pub begun: Begun,
    /// Of a picture that is made from another one.
    pub origin: Option<Origin>,
}

impl Request {
    /// A picture of which nothing was made before: by `conditioning` of [`Pipeline::encode`], from `noise` `[1, C, H, W]` of standard
    /// deviation 1, and `rng`'s where the scheduler adds any.
    pub fn new(conditioning: Conditioning, noise: HostTensor, rng: TorchRng) -> Self {
        Self {
            conditioning,
            noise,
            rng,
            begun: Begun::default(),
            origin: None,
        }
    }
}

/// What was made of a picture that did not get to its end.
#[derive(Clone, Debug, Default)]
pub struct Begun {
    /// Guided predictions `[1, C, H, W]` of the first steps.
    pub predictions: Vec<Vec<f32>>,
    /// What was shown to whom.
    pub shown: Vec<Shown>,
}

/// What happened to a picture. `Break` in answer ends it with [`crate::Error::Interrupted`].
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The weights of the user's part of the U-Net are there.
    Loaded(Duration),
    /// Sessions are about to be opened: what they will have shown, with all before them of this picture.
    Opening(&'a [Shown]),
    /// A sampler step is done.
    Step(Step, Reached<'a>),
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
            loaded: Mutex::default(),
            decoding: Mutex::default(),
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
        let weights = self.weights()?;
        // Before a session is opened: values that are not finite end it here.
        go_on(hear(Event::Loaded(start.elapsed())))?;
        let start = Instant::now();
        let latents = self.denoise(request, Weights::clone(&weights), hear)?;
        drop(weights);
        give_back_freed_pages();
        let denoise = start.elapsed();
        go_on(hear(Event::Denoised(&latents)))?;
        let _alone = lock(&self.decoding);
        let start = Instant::now();
        Ok(Made {
            picture: self.pipeline.decode(latents)?,
            denoise,
            decode: start.elapsed(),
        })
    }

    /// The weights of the user's part, those of a picture that is being made if there is one.
    fn weights(&self) -> Result<Arc<Weights>> {
        let mut loaded = lock(&self.loaded);
        if let Some(weights) = loaded.upgrade() {
            return Ok(weights);
        }
        let weights = Arc::new(self.denoiser.weights()?);
        *loaded = Arc::downgrade(&weights);
        Ok(weights)
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
            conditioning,
            noise,
            mut rng,
            begun: Begun { predictions, shown },
            origin,
        } = request;
        let hear = RefCell::new(hear);
        let note = Box::new(|told: Told<'_>| match told {
            Told::Opening(shown) => go_on(hear.borrow_mut()(Event::Opening(shown))),
            // The log has it.
            Told::WentOn(_) => Ok(()),
        });
        let calls = |predictor: &mut dyn Predictor| {
            let mut watch =
                |step: Step, reached: Reached<'_>| hear.borrow_mut()(Event::Step(step, reached));
            let (pipeline, sampling) = (&self.pipeline, &self.sampling);
            let start = Start {
                noise,
                rng: &mut rng,
                made: predictions,
                origin,
            };
            pipeline.sample(predictor, sampling, start, &mut watch)
        };
        let denoiser = &self.denoiser;
        denoiser.predict_on(weights, conditioning, shown, note, calls)
    }
}
