//! A scheme at work: what the sampler needs of it, and what remains.

use burn::tensor::{Device, Tensor};
use lacuna_model::executor::Executor;
use lacuna_model::host::OnDevice;
use lacuna_model::unet::UNet;
use lacuna_model::whole::Whole;
use lacuna_wire::HostTensor;

use crate::error::{Error, Result};
use crate::fleet::Fleet;
use crate::fleet::tally::{Tally, Traffic};

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

    fn finish(self: Box<Self>) -> Finished {
        self.executor.finish()
    }
}

/// Predicts with the whole U-Net in `whole`.
pub fn at_home(unet: &UNet, whole: Whole) -> Box<dyn Predictor + '_> {
    Box::new(Placed {
        unet,
        device: whole.device().clone(),
        executor: whole,
    })
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
