//! Making the pictures of one arm.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use lacuna_model::device::OpenDevice;
use lacuna_model::weights::Weights;
use tokio::runtime::Handle;

use super::arm::ArmSetting;
use crate::error::{Error, Result};
use lacuna_orchestrator::arguments::sampling::draw_noise;
use lacuna_orchestrator::fleet::config::{FleetConfig, MAX_WORKERS};
use lacuna_orchestrator::generator::failover::OnLoss;
use lacuna_orchestrator::generator::order::{Order, default_workers};
use lacuna_orchestrator::generator::{Event, Generator, Request};
use lacuna_orchestrator::noise::TorchRng;
use lacuna_orchestrator::picture::Picture;
use lacuna_orchestrator::pipeline::{Pipeline, Sampling};
use lacuna_orchestrator::policy::Policy;
use lacuna_orchestrator::policy::ledger::Ledger;
use lacuna_orchestrator::schemes::Setting;
use lacuna_orchestrator::text::{Prompt, PromptOptions};

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
    /// What every arm on given workers must keep to.
    pub policy: Option<Policy>,
    /// How many to start, where an arm does not say.
    pub local_workers: Option<usize>,
    /// How the sampler goes, where an arm does not say.
    pub sampling: Sampling,
    /// Columns and rows of the pictures, where an arm does not say.
    pub size: [usize; 2],
    /// How every prompt is read.
    pub options: PromptOptions,
    /// Whether prompt and seed go into the pictures' files, as text.
    pub metadata: bool,
    /// For the dialogue with workers.
    pub runtime: Handle,
}

/// An arm that is ready.
pub struct Place<'a> {
    maker: &'a Maker,
    generator: Generator,
    /// Of the user's part of the U-Net.
    weights: Weights,
    /// `[1, C, H, W]`.
    shape: [usize; 4],
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
        Ok(self.pipeline.latent_shape(Some(width), Some(height))?)
    }

    /// Settles how many workers an arm has, and finds out before hours of work that it cannot be.
    ///
    /// # Errors
    /// [`Error::Request`], naming the arm.
    pub fn settle(&self, arm: &mut ArmSetting) -> Result<()> {
        let name = arm.name.clone();
        let refuse = |reason: String| Error::Request(format!("{name}: {reason}"));
        let [_, _, rows, _] = self.shape(arm).map_err(|e| refuse(e.to_string()))?;
        if arm.options.steps.unwrap_or(self.sampling.steps) == 0 {
            return Err(refuse("it takes at least one step".into()));
        }
        if !arm.scheme.needs_workers() {
            return Ok(());
        }
        let unet = self.pipeline.unet();
        let given = self.fleet.as_ref().map(|fleet| fleet.workers.len());
        let n = arm.options.workers.or(given).or(self.local_workers);
        let n = n.unwrap_or_else(|| default_workers(&*arm.scheme, self.pipeline.unet(), rows));
        let most = given.unwrap_or(MAX_WORKERS);
        if n == 0 || n > most {
            return Err(refuse(format!("{n} workers, from 1 to {most} can be had")));
        }
        let strips = arm.scheme.most_workers(unet, rows);
        if n > strips {
            return Err(refuse(format!(
                "{n} workers, and {strips} rows at the coarsest level of the U-Net: at most one a row"
            )));
        }
        arm.options.workers = Some(n);
        if let (Some(policy), Some(fleet)) = (&self.policy, self.fleet_of(arm)) {
            let setting = self.setting(arm).map_err(|e| refuse(e.to_string()))?;
            let ledger = Ledger::foresee(unet, &setting, &fleet, &[])?;
            let kept = policy.check(&setting, &ledger);
            kept.map_err(|e| refuse(e.to_string()))?;
        }
        Ok(())
    }

    /// The given workers that an arm has, where any are given.
    fn fleet_of(&self, arm: &ArmSetting) -> Option<FleetConfig> {
        let mut fleet = self.fleet.clone()?;
        let n = arm.options.workers.unwrap_or(fleet.workers.len());
        fleet.workers.truncate(n);
        Some(fleet)
    }

    fn sampling_of(&self, arm: &ArmSetting) -> Sampling {
        Sampling {
            steps: arm.options.steps.unwrap_or(self.sampling.steps),
            ..self.sampling.clone()
        }
    }

    fn setting(&self, arm: &ArmSetting) -> Result<Setting> {
        let [_, _, rows, columns] = self.shape(arm)?;
        let (unet, tokens) = (self.pipeline.unet(), self.pipeline.tokens());
        let latents = [self.sampling.batch(), rows, columns];
        let setting = Setting::new(arm.scheme.clone(), unet, latents, tokens);
        let calls = self.pipeline.calls(&self.sampling_of(arm))?;
        Ok(setting.of_calls(calls).linked(self.fleet.is_some()))
    }

    /// Gets an arm ready: starts its workers, where none were given.
    ///
    /// # Errors
    /// Those of starting workers, and of loading the user's part of the U-Net.
    pub fn place(&self, arm: &ArmSetting) -> Result<Place<'_>> {
        let shape = self.shape(arm)?;
        let order = Order {
            pipeline: self.pipeline.clone(),
            device: self.device.clone(),
            sampling: self.sampling_of(arm),
            scheme: arm.scheme.clone(),
            shape,
            whole: self.whole.clone(),
            fleet: self.fleet_of(arm),
            workers: arm.options.workers,
        };
        let ready = self.runtime.block_on(order.ready())?;
        let setting = ready.setting.clone();
        // Fewer workers would be another arm.
        let generator = ready.generator(setting, self.policy.clone());
        let generator = generator.on_loss(OnLoss::Spare);
        Ok(Place {
            maker: self,
            weights: generator.denoiser.weights()?,
            generator,
            shape,
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
        let text = match self.maker.metadata {
            true => &text[..],
            false => &[],
        };
        picture
            .write_png(path, text)
            .map_err(|e| Failure::OfRun(e.into()))
    }

    fn make(&self, prompt: &str, seed: u64) -> Result<Picture, Failure> {
        let Generator {
            pipeline, sampling, ..
        } = &self.generator;
        let prompt = Prompt {
            text: prompt.to_owned(),
            options: self.maker.options.clone(),
        };
        let context = pipeline.encode(&prompt, sampling, self.shape)?;
        let mut rng = TorchRng::new(seed);
        let noise = draw_noise(&mut rng, self.shape)?;
        let request = Request::new(context, noise, rng);
        let mut go_on = |_: Event<'_>| ControlFlow::Continue(());
        let weights = self.weights.clone();
        let latents = self.generator.denoise(request, weights, &mut go_on)?;
        Ok(pipeline.decode(latents)?)
    }
}

impl From<lacuna_orchestrator::Error> for Failure {
    /// What the prompt or its values bring about is the picture's own; what is left would meet the next one,
    /// too, and is better mended before it is tried again.
    fn from(error: lacuna_orchestrator::Error) -> Self {
        use lacuna_orchestrator::Error;
        match error {
            Error::Prompt(_)
            | Error::Tokens(_)
            | Error::Model(lacuna_model::Error::Tensor(
                lacuna_wire::Error::NotFinite { .. } | lacuna_wire::Error::TooLarge { .. },
            ))
            | Error::WorkerRefused { status: 422, .. } => Self::OfPicture(error.into()),
            _ => Self::OfRun(error.into()),
        }
    }
}
