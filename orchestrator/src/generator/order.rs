//! What is to be generated, and getting ready for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lacuna_model::device::OpenDevice;
use lacuna_model::unet::UNet;
use lacuna_model::weights::Weights;
use lacuna_worker::Model;
use tokio::task::spawn_blocking;

use super::Generator;
use crate::error::Result;
use crate::fleet::config::FleetConfig;
use crate::fleet::local::LocalWorkers;
use crate::pipeline::{Pipeline, Sampling};
use crate::policy::Policy;
use crate::schemes::{Scheme, Setting};
use crate::unet_source::UNetSource;

/// What is to be generated, and on what.
pub struct Order {
    /// The model.
    pub pipeline: Arc<Pipeline>,
    /// Where the user's part is computed, and workers that are started here.
    pub device: OpenDevice,
    /// How the sampler goes.
    pub sampling: Sampling,
    /// Where the U-Net is computed.
    pub scheme: Arc<dyn Scheme>,
    /// Of the latents, `[1, C, H, W]`.
    pub shape: [usize; 4],
    /// The whole U-Net's weights, where they are loaded already.
    pub whole: Option<Weights>,
    /// Workers that are given.
    pub fleet: Option<FleetConfig>,
    /// Where none are given: so many are started here; none means as many as is usual.
    pub workers: Option<usize>,
}

/// An order with its workers there. Nothing was sent yet.
pub struct Ready {
    /// The model.
    pub pipeline: Arc<Pipeline>,
    /// How the sampler goes.
    pub sampling: Sampling,
    /// Where the U-Net is computed, with what is left open of it.
    pub setting: Setting,
    /// Who computes, where that is anybody else.
    pub fleet: Option<FleetConfig>,
    /// What loading the whole U-Net took, where that was needed, and starting workers here.
    pub loading: Duration,
    whole: Option<Weights>,
    local: Option<LocalWorkers>,
}

/// Workers to start in this process where nobody says how many: as many as is usual and latents of `rows` have rows
/// for.
pub fn default_workers(scheme: &dyn Scheme, unet: &UNet, rows: usize) -> usize {
    scheme.usual_workers().min(scheme.most_workers(unet, rows))
}

/// Who computes where nobody else was given: this process.
#[derive(Default)]
pub struct Own {
    /// The whole U-Net's weights.
    pub whole: Option<Weights>,
    /// Workers of one's own, which live as long as this, where the scheme needs some.
    pub local: Option<LocalWorkers>,
}

impl Own {
    /// Loads the `unet`, unless it is loaded as `whole`, and starts as many workers as are asked for, or as many as is usual,
    /// for latents of `[B, H, W]`.
    ///
    /// # Errors
    /// As [`load_whole`] and [`LocalWorkers::start`].
    pub async fn start(
        unet: &Arc<UNetSource>,
        whole: Option<Weights>,
        device: &OpenDevice,
        scheme: &dyn Scheme,
        workers: Option<usize>,
        latents: [usize; 3],
    ) -> Result<Self> {
        let weights = match whole {
            Some(whole) => whole,
            None => load_whole(unet).await?,
        };
        let local = match scheme.needs_workers() {
            true => {
                let [_, rows, _] = latents;
                let n = workers.unwrap_or_else(|| default_workers(scheme, unet.layers(), rows));
                let model = Model::new(unet.layers().clone(), weights.clone(), unet.digest());
                Some(LocalWorkers::start(n, &Arc::new(model), device, latents).await?)
            }
            false => None,
        };
        Ok(Self {
            whole: Some(weights),
            local,
        })
    }
}

impl Order {
    /// Loads what is computed here, and starts workers where the scheme needs some and none are given.
    ///
    /// # Errors
    /// As [`load_whole`] and [`LocalWorkers::start`].
    pub async fn ready(self) -> Result<Ready> {
        let Self {
            pipeline,
            device,
            sampling,
            scheme,
            shape,
            whole,
            fleet,
            workers,
        } = self;
        let start = Instant::now();
        let [_, _, rows, columns] = shape;
        let latents = [sampling.batch(), rows, columns];
        let Own { whole, local } = match fleet {
            Some(_) => Own { whole, local: None },
            None => {
                let unet = pipeline.source();
                Own::start(unet, whole, &device, &*scheme, workers, latents).await?
            }
        };
        let loading = start.elapsed();
        let setting = Setting::new(scheme, pipeline.unet(), latents, pipeline.tokens());
        let setting = setting.adapted(pipeline.adapts_unet());
        let setting = setting.of_calls(pipeline.calls(&sampling)?);
        Ok(Ready {
            setting: setting.linked(fleet.is_some()),
            fleet: fleet.or_else(|| local.as_ref().map(|local| local.config().clone())),
            pipeline,
            sampling,
            loading,
            whole,
            local,
        })
    }
}

impl Ready {
    /// The same for a prompt of so many tokens.
    pub fn of_tokens(mut self, tokens: usize) -> Self {
        self.setting.sizes.tokens = tokens;
        self
    }

    /// Generates by `setting`, which is [`Self::setting`] or what a plan made of it; a worker that is lost is gone on
    /// without as far as `policy` allows.
    pub fn generator(self, setting: Setting, policy: Option<Policy>) -> Generator {
        // Nobody else's part of a U-Net that is computed here.
        let fleet = self.fleet.filter(|_| setting.scheme.needs_workers());
        let generator = Generator::new(self.pipeline, self.sampling, setting, self.whole, fleet);
        Generator {
            denoiser: generator.denoiser.under(policy),
            _local: self.local,
            ..generator
        }
    }
}

/// Loads the whole U-Net, for where it is computed in this process.
///
/// # Errors
/// As [`UNetSource::check_room`] and [`UNetSource::load_all`].
pub async fn load_whole(unet: &Arc<UNetSource>) -> Result<Weights> {
    unet.check_room()?;
    let unet = unet.clone();
    let loaded = spawn_blocking(move || unet.load_all());
    loaded
        .await
        .map_err(|panic| lacuna_model::Error::Device(panic.to_string()))?
}
