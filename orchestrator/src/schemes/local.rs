//! `local`: the whole U-Net on the user's device. Nobody else sees anything.

use std::any::Any;
use std::collections::HashSet;
use std::sync::Arc;

use clap::Args;
use lacuna_model::survey::survey;
use lacuna_model::unet::UNet;
use lacuna_model::whole::Whole;

use super::count::Count;
use super::predictor::{Predictor, at_home};
use super::scheme::Options;
use super::{Exposure, Scheme, Sizes, Uses};
use crate::error::Result;
use crate::fleet::Fleet;
use crate::fleet::tally::Seen;

/// The scheme. It has no options.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Local {}

impl Options for Local {
    const NAME: &'static str = "local";
    const ABOUT: &'static str = "Everything on your own device";

    fn scheme(self) -> Arc<dyn Scheme> {
        Arc::new(self)
    }
}

impl Scheme for Local {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn needs_workers(&self) -> bool {
        false
    }

    fn uses(&self, _levels: usize) -> Uses {
        Uses::default()
    }

    fn hidden_from(&self, _sizes: &Sizes, workers: usize) -> Result<Option<usize>> {
        Ok(Some(workers))
    }

    fn exposure(&self, _levels: usize) -> Exposure {
        Exposure::default()
    }

    fn seen(&self, _unet: &UNet, _sizes: &Sizes, _workers: usize) -> Result<Vec<Seen>> {
        Ok(Vec::new())
    }

    fn first_calls(&self, unet: &UNet, sizes: &Sizes, _workers: usize) -> Result<[Count; 2]> {
        let operations = survey(unet, sizes.latents, sizes.tokens)?.into_iter();
        let (once, always): (Vec<_>, Vec<_>) =
            operations.partition(lacuna_model::survey::Operation::makes_prompt_keys);
        let [once, always] =
            [once, always].map(|of| of.iter().map(|operation| operation.flop).sum::<u64>());
        let call = |user_flop| Count {
            user_flop,
            ..Count::new(0)
        };
        Ok([call(once + always), call(always)])
    }

    fn user_layers(&self, _unet: &UNet, _sizes: &Sizes) -> Result<Option<HashSet<String>>> {
        Ok(None)
    }

    fn predictor<'a>(
        &self,
        unet: &'a UNet,
        _sizes: &Sizes,
        whole: Whole,
        _fleet: Fleet,
    ) -> Result<Box<dyn Predictor + 'a>> {
        Ok(at_home(unet, whole))
    }
}
