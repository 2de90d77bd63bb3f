//! What programs run on: a model on the device, with what follows from its sizes.

use std::ops::Deref;
use std::sync::Arc;

use lacuna_model::memory;

use crate::bounds::Bounds;
use crate::compute::Compute;
use crate::error::{Error, Result};
use crate::intake::Intake;
use crate::metrics::Metrics;
use crate::model::Model;
use crate::store::Lease;

/// Largest requests that are in memory at a time, and replies that are kept.
const AT_ONCE: usize = 4;

/// A model on the device.
pub struct Ground {
    /// The U-Net.
    pub model: Arc<Model>,
    /// The thread that computes single layers.
    pub compute: Compute,
    /// What the largest picture bounds.
    pub bounds: Bounds,
    /// How much of requests may be in memory at a time.
    pub intake: Intake,
}

impl Ground {
    /// `model`, for latents of at most `latents` (batch, rows, columns); `metrics` count its work.
    ///
    /// # Errors
    /// [`Error::Invalid`] when latents may be larger than this machine's memory can hold, [`Error::Compute`] when the operating
    /// system gives no thread.
    pub fn new(model: Arc<Model>, latents: [usize; 3], metrics: Arc<Metrics>) -> Result<Self> {
        let bounds = Bounds::new(&model, latents, memory::in_all())?;
        let compute = Compute::start(model.clone(), metrics)
            .map_err(|e| Error::Compute(format!("cannot start a thread: {e}")))?;
        Ok(Self {
            intake: Intake::new(bounds.body_bytes, AT_ONCE),
            model,
            compute,
            bounds,
        })
    }

    /// Bytes of replies that may be kept for retries.
    pub fn kept(&self) -> usize {
        AT_ONCE.saturating_mul(self.bounds.body_bytes)
    }
}

/// A model that somebody uses: for as long as this is there it stays on the device, and its files where they are.
#[derive(Clone)]
pub struct Loan {
    ground: Arc<Ground>,
    _lease: Option<Lease>,
}

impl Loan {
    /// Of `ground`, whose files, if it is of the store, are held by `lease`.
    pub fn new(ground: Arc<Ground>, lease: Option<Lease>) -> Self {
        let _lease = lease;
        Self { ground, _lease }
    }
}

impl Deref for Loan {
    type Target = Ground;

    fn deref(&self) -> &Ground {
        &self.ground
    }
}
