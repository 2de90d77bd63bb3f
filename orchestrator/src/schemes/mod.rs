//! The schemes: how one U-Net call is placed. Each is an executor of [`shared::executor`].
//!
//! - `local`: [`shared::whole::Whole`], everything on the user's device;
//! - `ppidm`: [`ppidm::Ppidm`], the paper's: layers cut into strips and sent to workers;
//! - `resident`: [`resident::Resident`], ours: workers keep their strips for a whole step.
//!
//! [`failover`] goes on with any of them when a worker is lost; [`plausible`] says what a worker's values can be.

pub mod failover;
pub mod plausible;
pub mod ppidm;
pub mod resident;

use burn::tensor::{Device, Tensor};
use shared::executor::Executor;
use shared::host::{HostTensor, OnDevice};
use shared::layers::Parameter;
use shared::placement::Placement;
use shared::unet::UNet;
use shared::weights::list;
use shared::whole::Whole;
use shared::wire::SessionKind;

use crate::error::{Error, Result};
use crate::fleet::Fleet;
use crate::fleet::config::FleetConfig;
use crate::fleet::tally::{Tally, Traffic};
use ppidm::{GroupNormMode, Offload, Ppidm};
use resident::Resident;

/// The schemes by the names that `--scheme` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Scheme {
    /// Everything on the user's device.
    Local,
    /// The paper's: convolutions, cross-attention products and group statistics in strips.
    Ppidm,
    /// Ours: workers keep their strips for a whole step, and exchange what lies outside.
    Resident,
}

impl Scheme {
    /// Whether it computes on workers.
    pub fn needs_workers(self) -> bool {
        self != Self::Local
    }
}

impl std::fmt::Display for Scheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::Ppidm => "ppidm",
            Self::Resident => "resident",
        })
    }
}

/// A scheme with its settings, for latents of one size.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The scheme.
    pub scheme: Scheme,
    /// How `ppidm` normalises.
    pub groupnorm: GroupNormMode,
    /// What `ppidm` has workers compute.
    pub offload: Offload,
    /// Who does what under `resident`.
    pub placement: Placement,
    /// Whether the entries of a batch go through `resident` side by side, each as a lane of its own: one
    /// computes while the other waits for the link.
    pub lanes: bool,
    /// Batch, rows and columns of the latents.
    pub latents: [usize; 3],
    /// Levels of the U-Net.
    pub levels: usize,
    /// Tokens of the prompt.
    pub tokens: usize,
}

impl Setting {
    /// Number of lanes.
    pub fn lane_count(&self) -> usize {
        let [batch, ..] = self.latents;
        if self.lanes && self.scheme == Scheme::Resident {
            batch.max(1)
        } else {
            1
        }
    }

    /// The same for one lane.
    pub fn of_lane(self) -> Self {
        let [batch, rows, columns] = self.latents;
        Self {
            latents: [batch / self.lane_count(), rows, columns],
            lanes: false,
            ..self
        }
    }

    /// Opens a session on every worker of `config` for the model of `digest`.
    ///
    /// # Errors
    /// As [`Fleet::open`] and [`resident::open`].
    pub async fn open(&self, config: &FleetConfig, digest: &str, unet: &UNet) -> Result<Fleet> {
        match self.scheme {
            Scheme::Resident => resident::open(config, digest, unet, self).await,
            Scheme::Local | Scheme::Ppidm => {
                Fleet::open(config, digest, |_| SessionKind::Layers, 1).await
            }
        }
    }

    /// The parameters of the layers that the user computes; the others' are never looked at here.
    ///
    /// # Errors
    /// None today: shapes alone cannot fail. The signature is the walk's.
    pub fn user_parameters(&self, unet: &UNet) -> Result<Vec<Parameter>> {
        let layers = match self.scheme {
            Scheme::Local => return Ok(list(unet)),
            Scheme::Ppidm => ppidm::user_layers(unet, self)?,
            Scheme::Resident => resident::own::user_layers(unet, self)?,
        };
        let mut parameters = list(unet);
        parameters.retain(|parameter| layers.contains(parameter.layer()));
        Ok(parameters)
    }

    /// Predicts by the scheme: on the `fleet` that [`Self::open`] opened, if there is one, and with
    /// the user's part in `whole`.
    ///
    /// # Errors
    /// [`Error::Shared`] when the device does not give the prompt back.
    pub fn predictor<'a>(
        &self,
        unet: &'a UNet,
        whole: Whole,
        fleet: Option<Fleet>,
    ) -> Result<Box<dyn Predictor + 'a>> {
        let device = whole.device().clone();
        Ok(match (fleet, self.scheme) {
            (Some(fleet), Scheme::Resident) => Box::new(Resident::new(unet, self, fleet, whole)?),
            (Some(fleet), _) => Box::new(Placed {
                unet,
                executor: Ppidm::new(whole, fleet, self.groupnorm, self.offload),
                device,
            }),
            (None, _) => Box::new(Placed {
                unet,
                executor: whole,
                device,
            }),
        })
    }
}

/// Predicts noise: what the sampler needs of a scheme.
pub trait Predictor {
    /// The U-Net's output for `sample` `[B, C, H, W]` at `timestep`, of the same sizes.
    ///
    /// # Errors
    /// Those of the scheme; none leaves a half-made result.
    fn predict(&mut self, sample: HostTensor, timestep: f64) -> Result<HostTensor>;

    /// What the workers were sent and sent so far; none without workers.
    fn traffic(&self) -> Option<Traffic>;

    /// Ends the predictions; what remains is to take account and to close the sessions.
    fn finish(self: Box<Self>) -> Finished;
}

/// What remains of a predictor.
#[derive(Default)]
pub struct Finished {
    /// Work that the user did, multiply and add counted as two.
    pub user_flop: u64,
    /// The workers, their sessions still open.
    pub fleet: Option<Fleet>,
    /// Accounts of sessions that were given up when a worker was lost.
    pub past: Vec<Tally>,
}

/// An executor that knows what it had others do.
pub trait Account {
    /// What the workers were sent and sent so far; none without workers.
    fn traffic(&self) -> Option<Traffic>;

    /// Ends the executor.
    fn finish(self) -> Finished;
}

impl Account for Whole {
    fn traffic(&self) -> Option<Traffic> {
        None
    }

    fn finish(self) -> Finished {
        Finished {
            user_flop: self.flop(),
            ..Finished::default()
        }
    }
}

/// A U-Net with an executor of tensors on one device.
struct Placed<'a, E> {
    /// The walk.
    unet: &'a UNet,
    /// Who executes it.
    executor: E,
    /// Where samples go.
    device: Device,
}

impl<E> Predictor for Placed<'_, E>
where
    E: Executor<Feature = Tensor<4>> + Account,
    Error: From<E::Error>,
{
    fn predict(&mut self, sample: HostTensor, timestep: f64) -> Result<HostTensor> {
        let sample = sample.into_device(&self.device)?;
        let output = self.unet.forward(&mut self.executor, &sample, timestep)?;
        let output = HostTensor::from_device(output)?;
        output.check_finite("the noise prediction")?;
        Ok(output)
    }

    fn traffic(&self) -> Option<Traffic> {
        self.executor.traffic()
    }

    fn finish(self: Box<Self>) -> Finished {
        self.executor.finish()
    }
}
