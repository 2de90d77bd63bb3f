//! Makes one picture after the other, wherever the U-Net is computed.
//!
//! [`order`] says what is wanted, and gets ready. Whoever asks for a picture hears of its progress as
//! [`Event`]s, and can end it at each.
//!
//! What one picture teaches about the workers, the next one knows: who was lost and who stepped in
//! ([`crate::fleet::roster`]). What each worker did and saw is kept of every picture, also of one that failed.
//! [`failover`] goes on when a worker is lost.

pub mod failover;
pub mod order;

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use burn::tensor::Tensor;
use lacuna_model::weights::Weights;
use lacuna_model::whole::{Conditioning, Whole};
use lacuna_wire::HostTensor;

use crate::error::Result;
use crate::fleet::config::FleetConfig;
use crate::fleet::local::LocalWorkers;
use crate::fleet::roster::Roster;
use crate::fleet::tally::Tally;
use crate::noise::TorchRng;
use crate::picture::Picture;
use crate::pipeline::{Pipeline, Sampling, Step, go_on};
use crate::policy::Policy;
use crate::schemes::{Predictor, Setting};
use failover::{Failover, Terms};

/// What all pictures share, and what became of the workers so far.
pub struct Generator {
    /// The model.
    pub pipeline: Arc<Pipeline>,
    /// How the sampler goes.
    pub sampling: Sampling,
    /// Where the U-Net is computed.
    pub setting: Setting,
    /// The whole U-Net's weights, where it is computed in this process.
    whole: Option<Weights>,
    /// What a run must keep to.
    policy: Option<Policy>,
    /// Whether a picture needs as many workers as were given.
    same_number: bool,
    /// The workers, if there are any; held for as long as a picture takes.
    roster: Option<Mutex<Roster>>,
    accounts: Mutex<Accounts>,
    /// Workers of one's own, which live as long as this.
    _local: Option<LocalWorkers>,
}

/// What one picture is made of.
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

/// What was done and seen, over all pictures.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    /// Work of the user, multiply and add counted as two.
    pub user_flop: u64,
    /// Reaching the workers.
    pub connect: Duration,
    /// All sampler steps.
    pub denoise: Duration,
    /// The accounts of every picture's sessions, also of those that were given up.
    pub pictures: Vec<Vec<Tally>>,
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
            pipeline,
            sampling,
            setting,
            whole,
            policy: None,
            same_number: false,
            roster: fleet.map(|fleet| Mutex::new(Roster::new(fleet))),
            accounts: Mutex::default(),
            _local: None,
        }
    }

    /// Always with as many workers as were given: a spare may step in, but nobody may just be left out.
    pub fn with_the_same_number(mut self) -> Self {
        self.same_number = true;
        self
    }

    /// The weights of the user's part of the U-Net.
    ///
    /// # Errors
    /// As [`Pipeline::load_unet`].
    pub fn weights(&self) -> Result<Weights> {
        match &self.whole {
            Some(weights) => Ok(weights.clone()),
            None => {
                let parameters = self.setting.user_parameters(self.pipeline.unet())?;
                self.pipeline.load_unet(&parameters)
            }
        }
    }

    /// One picture. The user's part of the U-Net is loaded for it, unless all of it is there, and dropped before the
    /// picture is decoded. Blocks for as long as it takes, on a thread of the async runtime that may block.
    ///
    /// # Errors
    /// As [`Self::weights`] and [`Self::denoise`]; those of the decoder.
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

    /// The latents `[1, C, H, W]` of one picture, with `weights` of [`Self::weights`].
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
        let whole = Whole::new(weights, conditioning);
        let unet = self.pipeline.unet();
        let sample = |predictor: &mut dyn Predictor| {
            let start = Instant::now();
            let pipeline = &self.pipeline;
            let mut watch = |step| hear(Event::Step(step));
            let latents = pipeline.sample(predictor, &self.sampling, noise, &mut rng, &mut watch);
            self.accounts().denoise += start.elapsed();
            latents
        };
        let Some(roster) = &self.roster else {
            let mut predictor = self.setting.predictor(unet, whole, None)?;
            let latents = sample(&mut *predictor);
            self.accounts().user_flop += predictor.finish().user_flop;
            return latents;
        };
        let mut roster = lock(roster);
        let terms = Terms {
            unet,
            digest: self.pipeline.digest(),
            setting: &self.setting,
            policy: self.policy.as_ref(),
            same_number: self.same_number,
        };
        let start = Instant::now();
        let mut predictor = Failover::new(terms, &mut roster, whole)?;
        let opened = predictor.open();
        self.accounts().connect += start.elapsed();
        let latents = opened.and_then(|()| sample(&mut predictor));
        let (user_flop, tallies) = predictor.close();
        let mut accounts = self.accounts();
        accounts.user_flop += user_flop;
        accounts.pictures.push(tallies);
        latents
    }

    /// What was done and seen so far.
    pub fn accounts(&self) -> MutexGuard<'_, Accounts> {
        lock(&self.accounts)
    }
}

/// What a mutex holds: no change of it is left half done, so a panic elsewhere spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
