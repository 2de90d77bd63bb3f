//! Making the pictures of one arm.

use std::path::Path;
use std::sync::Arc;

use shared::device::OpenDevice;
use shared::partition::Levels;
use shared::weights::Weights;
use tokio::runtime::Handle;
use worker::Model;

use super::arm::ArmSetting;
use crate::commands::placed::{Placed, draw_noise, start_workers};
use crate::error::{Error, Result};
use crate::fleet::config::{FleetConfig, MAX_WORKERS};
use crate::fleet::local::LocalWorkers;
use crate::noise::TorchRng;
use crate::picture::Picture;
use crate::pipeline::{Pipeline, Sampling};
use crate::schemes::Scheme;

/// What all arms share.
pub struct Maker {
    /// The model.
    pub pipeline: Arc<Pipeline>,
    /// Where the user's part is computed, and workers started here.
    pub device: OpenDevice,
    /// The whole U-Net, where anything is computed with it in this process.
    pub whole: Option<Weights>,
    /// Workers that were given, in place of those that are started here.
    pub fleet: Option<FleetConfig>,
    /// How many to start, where an arm does not say.
    pub local_workers: Option<usize>,
    /// How the sampler goes, where an arm does not say.
    pub sampling: Sampling,
    /// Columns and rows of the pictures, where an arm does not say.
    pub size: [usize; 2],
    /// What not to see.
    pub negative_prompt: String,
    /// Tokens of a prompt.
    pub tokens: usize,
    /// For the dialogue with workers.
    pub runtime: Handle,
}

/// An arm that is ready.
pub struct Place<'a> {
    maker: &'a Maker,
    placed: Placed,
    /// `[1, C, H, W]`.
    shape: [usize; 4],
    /// Workers that live as long as this.
    _workers: Option<LocalWorkers>,
}

/// Why there is no picture.
pub enum Failure {
    /// For a reason that may be this picture's alone.
    OfPicture(Error),
    /// For a reason that the next pictures would share.
    OfRun(Error),
}

impl Maker {
    /// Columns and rows of an arm's pictures, as latents `[1, C, H, W]`.
    fn shape(&self, arm: &ArmSetting) -> Result<[usize; 4]> {
        let [width, height] = arm.options.size.unwrap_or(self.size);
        self.pipeline.latent_shape(Some(width), Some(height))
    }

    /// Finds out before hours of work that an arm cannot be.
    ///
    /// # Errors
    /// [`Error::Request`], naming the arm.
    pub fn check(&self, arm: &ArmSetting) -> Result<()> {
        let refuse = |reason: String| Error::Request(format!("{}: {reason}", arm.name));
        let [_, _, rows, _] = self.shape(arm).map_err(|e| refuse(e.to_string()))?;
        if arm.options.steps.unwrap_or(self.sampling.steps) == 0 {
            return Err(refuse("it takes at least one step".into()));
        }
        let given = self.fleet.as_ref().map(|fleet| fleet.workers.len());
        let Some(n) = arm.options.workers.or(given).or(self.local_workers) else {
            return Ok(());
        };
        let most = given.unwrap_or(MAX_WORKERS);
        if n == 0 || n > most {
            return Err(refuse(format!("{n} workers, from 1 to {most} can be had")));
        }
        let coarsest = Levels::new(rows, self.pipeline.unet().levels()).coarsest();
        if arm.scheme == Scheme::Resident && n > coarsest {
            return Err(refuse(format!(
                "{n} workers, and {coarsest} rows at the coarsest level of the U-Net: at most one a row"
            )));
        }
        Ok(())
    }

    /// Gets an arm ready: starts its workers, where none were given.
    ///
    /// # Errors
    /// Those of starting workers.
    pub fn place(&self, arm: &ArmSetting) -> Result<Place<'_>> {
        let shape = self.shape(arm)?;
        let sampling = Sampling {
            steps: arm.options.steps.unwrap_or(self.sampling.steps),
            ..self.sampling.clone()
        };
        let [_, _, rows, columns] = shape;
        let latents = [sampling.batch(), rows, columns];
        let unet = self.pipeline.unet();
        let mut workers = None;
        let fleet = match (&self.fleet, &self.whole) {
            _ if !arm.scheme.needs_workers() => None,
            (Some(fleet), _) => {
                let mut fleet = fleet.clone();
                fleet
                    .workers
                    .truncate(arm.options.workers.unwrap_or(fleet.workers.len()));
                Some(fleet)
            }
            (None, Some(weights)) => {
                let model = Arc::new(Model::new(unet.clone(), weights.clone()));
                let n = arm.options.workers.or(self.local_workers);
                let start = start_workers(arm.scheme, n, &model, &self.device, latents);
                let started = workers.insert(self.runtime.block_on(start)?);
                Some(started.config().clone())
            }
            (None, None) => {
                let reason = "there are neither workers nor the whole U-Net";
                return Err(Error::Request(reason.into()));
            }
        };
        let settings = &arm.options.settings;
        let mut setting = settings.setting(arm.scheme, unet, latents, self.tokens);
        setting.lanes = settings.lanes(self.fleet.is_some());
        Ok(Place {
            maker: self,
            placed: Placed {
                setting,
                whole: self.whole.clone(),
                pipeline: self.pipeline.clone(),
                policy: None,
                sampling,
                fleet,
            },
            shape,
            _workers: workers,
        })
    }
}

impl Place<'_> {
    /// Makes the picture of `prompt` from the noise of `seed`, and writes it to `path`.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn picture(&self, prompt: &str, seed: u64, path: &Path) -> Result<(), Failure> {
        let picture = self.make(prompt, seed)?;
        let text = [("prompt", prompt.to_owned()), ("seed", seed.to_string())];
        picture.write_png(path, &text).map_err(Failure::OfRun)
    }

    fn make(&self, prompt: &str, seed: u64) -> Result<Picture, Failure> {
        let pipeline = &self.placed.pipeline;
        let guided = self.placed.sampling.guided();
        let context = pipeline.encode(prompt, &self.maker.negative_prompt, guided)?;
        let mut rng = TorchRng::new(seed);
        let noise = draw_noise(&mut rng, self.shape)?;
        let weights = self.placed.weights().map_err(Failure::OfRun)?;
        let open = self.maker.runtime.block_on(self.placed.open());
        let open = open.map_err(Failure::OfRun)?;
        let (latents, finished) =
            self.placed
                .denoise(context, noise, &mut rng, (weights, open), &mut |_| {})?;
        if let Some(fleet) = finished.fleet {
            self.maker.runtime.block_on(fleet.close());
        }
        Ok(pipeline.decode(latents)?)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::WorkerUnreachable { .. }
            | Error::WorkerSilent { .. }
            | Error::NoFailover { .. }
            | Error::WorkerToken { .. }
            | Error::WorkerModel { .. }
            | Error::WorkerRefused { .. }
            | Error::WorkerReply { .. } => Self::OfRun(error),
            _ => Self::OfPicture(error),
        }
    }
}
