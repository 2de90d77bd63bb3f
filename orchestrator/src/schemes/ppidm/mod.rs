//! The paper's scheme (PPIDM): the feature map stays with the user, layer by layer it is cut into
//! strips along the height, sent, computed and merged.
//!
//! Every 3x3 convolution but `conv_in` (which sees the noisy latents), the products of every
//! cross-attention and the statistics of every group normalisation are the workers', or some of these
//! kinds. Everything else, self-attention included, is the user's.
//!
//! # Layout
//!
//! - [`options`]: what can be chosen.
//! - `strip`: a worker's rows of one layer.
//! - [`layerwise`]: the executor.
//! - `count`: what is sent, without sending.
//! - here: that as a scheme.

mod count;
pub mod layerwise;
pub mod options;
mod strip;

use std::any::Any;
use std::collections::HashSet;
use std::sync::Arc;

use lacuna_model::survey::{self, survey};
use lacuna_model::unet::UNet;
use lacuna_model::whole::Whole;
use lacuna_protocol::placement::Wire;

use super::count::Count;
use super::scheme::Options;
use super::{Exposure, Placed, Predictor, Scheme, Sizes, Uses};
use crate::error::Result;
use crate::fleet::Fleet;
use crate::fleet::check::Again;
use crate::fleet::tally::Seen;
use layerwise::Layerwise;
pub use options::{GroupNormMode, Offload, Ppidm};

impl Options for Ppidm {
    const NAME: &'static str = "ppidm";
    const ABOUT: &'static str =
        "The paper's: convolutions, cross-attention products and group statistics in strips";

    fn scheme(self) -> Arc<dyn Scheme> {
        Arc::new(self)
    }
}

impl Ppidm {
    fn offloaded(&self) -> Offload {
        self.offload.unwrap_or_default()
    }
}

impl Scheme for Ppidm {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn verified(&self, share: f64) -> Option<Arc<dyn Scheme>> {
        let verify = Some(share);
        Some(Self { verify, ..*self }.scheme())
    }

    fn uses(&self, _levels: usize) -> Uses {
        Uses {
            self_attention: Vec::new(),
            wires: vec![Wire::F32],
        }
    }

    /// Statistics that are not merged exactly promise nothing.
    fn promised_psnr(&self) -> Option<f64> {
        match self.groupnorm.unwrap_or_default() {
            GroupNormMode::Exact => None,
            GroupNormMode::Averaged | GroupNormMode::Local => Some(0.0),
        }
    }

    /// The paper's first convolution stays with the user, the last does not.
    fn exposure(&self, _levels: usize) -> Exposure {
        Exposure {
            prompt: true,
            latents: true,
            keys_and_values: false,
            adapters: true,
        }
    }

    fn seen(&self, unet: &UNet, sizes: &Sizes, workers: usize) -> Result<Vec<Seen>> {
        count::rows_seen(unet, sizes, self.offloaded(), workers)
    }

    fn first_calls(&self, unet: &UNet, sizes: &Sizes, workers: usize) -> Result<[Count; 2]> {
        let calls = count::first_calls(unet, sizes, self.offloaded(), workers)?;
        Ok(calls.map(|call| call.checked(self.verify)))
    }

    /// Whoever checks workers has all.
    fn user_layers(&self, unet: &UNet, sizes: &Sizes) -> Result<Option<HashSet<String>>> {
        match self.verify {
            Some(_) => Ok(None),
            None => user_layers(unet, sizes, self.offloaded()).map(Some),
        }
    }

    fn predictor<'a>(
        &self,
        unet: &'a UNet,
        sizes: &Sizes,
        whole: Whole,
        mut fleet: Fleet,
    ) -> Result<Box<dyn Predictor + 'a>> {
        if let Some(share) = self.verify {
            let weights = whole.weights();
            fleet.check_by(&Again::new(unet, weights, sizes.latents, share, true)?);
        }
        let mode = self.groupnorm.unwrap_or_default();
        Ok(Box::new(Placed {
            unet,
            device: whole.device().clone(),
            executor: Layerwise::new(whole, fleet, mode, self.offloaded()),
        }))
    }
}

/// Tensor prefixes of the layers whose parameters the user needs: all but the workers' convolutions.
/// Of a group normalisation workers give the statistics, of a cross-attention the products.
///
/// # Errors
/// None today: shapes alone cannot fail.
fn user_layers(unet: &UNet, sizes: &Sizes, offload: Offload) -> Result<HashSet<String>> {
    let operations = survey(unet, sizes.latents, sizes.tokens)?.into_iter();
    let own = operations.filter(|operation| match operation.kind {
        survey::Kind::Conv { kernel } => !offload.has_conv(&operation.layer, kernel),
        _ => true,
    });
    Ok(own.map(|operation| operation.layer).collect())
}
