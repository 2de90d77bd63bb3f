//! The schemes: how one U-Net call is placed. Each is an executor of [`shared::executor`].
//!
//! - `local`: [`shared::whole::Whole`], everything on the user's device;
//! - `ppidm`: [`ppidm::Ppidm`], the paper's: layers cut into strips and sent to workers.

pub mod ppidm;

use burn::tensor::{Device, Tensor};
use shared::executor::Executor;
use shared::host::HostTensor;
use shared::unet::UNet;
use shared::whole::Whole;

use crate::error::{Error, Result};
use crate::fleet::tally::Traffic;

/// The schemes by the names that `--scheme` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Scheme {
    /// Everything on the user's device.
    Local,
    /// The paper's: convolutions, cross-attention products and group statistics in strips.
    Ppidm,
}

impl std::fmt::Display for Scheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::Ppidm => "ppidm",
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
}

/// An executor that knows what it had others do.
pub trait Account {
    /// What the workers were sent and sent so far; none without workers.
    fn traffic(&self) -> Option<Traffic>;
}

impl Account for Whole {
    fn traffic(&self) -> Option<Traffic> {
        None
    }
}

/// A U-Net with an executor of tensors on one device.
pub struct Placed<'a, E> {
    /// The walk.
    pub unet: &'a UNet,
    /// Who executes it.
    pub executor: E,
    /// Where samples go.
    pub device: Device,
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
}
