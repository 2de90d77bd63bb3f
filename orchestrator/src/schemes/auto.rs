//! `auto`: whichever scheme is the fastest of those that the policy allows. Where nothing is planned, as without workers
//! of providers, that is at home.

use std::any::Any;
use std::collections::HashSet;
use std::sync::Arc;

use clap::Args;
use lacuna_model::unet::UNet;
use lacuna_model::whole::Whole;

use super::count::Count;
use super::local::Local;
use super::scheme::Options;
use super::{Exposure, Predictor, Rules, Scheme, Sizes, Uses};
use crate::error::Result;
use crate::fleet::Fleet;
use crate::fleet::tally::Seen;

/// Gives schemes, with their options open.
pub type Others = fn() -> Vec<Arc<dyn Scheme>>;

/// The scheme. It has no options.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Auto {
    /// Those that it may be, with their options open.
    #[arg(skip)]
    others: Option<Others>,
    /// The share of what workers compute that is checked, if any is.
    #[arg(skip)]
    verify: Option<f64>,
}

const HOME: Local = Local {};

impl Options for Auto {
    const NAME: &'static str = "auto";
    const ABOUT: &'static str =
        "The fastest of these that the policy allows, at home if that is faster";

    fn scheme(self) -> Arc<dyn Scheme> {
        Arc::new(self)
    }
}

impl Auto {
    /// Whichever of what `others` gives.
    pub fn of(others: Others) -> Self {
        Self {
            others: Some(others),
            ..Self::default()
        }
    }

    fn others(&self) -> Vec<Arc<dyn Scheme>> {
        self.others.map(|others| others()).unwrap_or_default()
    }
}

impl Scheme for Auto {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn label(&self) -> String {
        HOME.label()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn stands_for_others(&self) -> bool {
        true
    }

    fn needs_workers(&self) -> bool {
        HOME.needs_workers()
    }

    fn can_use_workers(&self) -> bool {
        true
    }

    fn verified(&self, share: f64) -> Option<Arc<dyn Scheme>> {
        let verify = Some(share);
        Some(Self { verify, ..*self }.scheme())
    }

    fn choices(&self, rules: &Rules<'_>) -> Vec<Arc<dyn Scheme>> {
        let of = |scheme: Arc<dyn Scheme>| match scheme.choices(rules) {
            choices if choices.is_empty() => vec![scheme],
            choices => choices,
        };
        // At home there is nobody to be checked.
        let checked = |scheme: Arc<dyn Scheme>| match self.verify {
            Some(share) if scheme.needs_workers() => scheme.verified(share),
            _ => Some(scheme),
        };
        let others = self.others().into_iter();
        others.filter_map(checked).flat_map(of).collect()
    }

    fn variants(
        &self,
        best: &dyn Scheme,
        part: usize,
        levels: usize,
        rules: &Rules<'_>,
    ) -> Option<Vec<Arc<dyn Scheme>>> {
        let mut others = self.others().into_iter();
        let open = others.find(|scheme| scheme.name() == best.name())?;
        open.variants(best, part, levels, rules)
    }

    fn uses(&self, levels: usize) -> Uses {
        HOME.uses(levels)
    }

    fn hidden_from(&self, sizes: &Sizes, workers: usize) -> Result<Option<usize>> {
        HOME.hidden_from(sizes, workers)
    }

    fn exposure(&self, levels: usize) -> Exposure {
        HOME.exposure(levels)
    }

    fn seen(&self, unet: &UNet, sizes: &Sizes, workers: usize) -> Result<Vec<Seen>> {
        HOME.seen(unet, sizes, workers)
    }

    fn first_calls(&self, unet: &UNet, sizes: &Sizes, workers: usize) -> Result<[Count; 2]> {
        HOME.first_calls(unet, sizes, workers)
    }

    fn user_layers(&self, unet: &UNet, sizes: &Sizes) -> Result<Option<HashSet<String>>> {
        HOME.user_layers(unet, sizes)
    }

    fn predictor<'a>(
        &self,
        unet: &'a UNet,
        sizes: &Sizes,
        whole: Whole,
        fleet: Fleet,
    ) -> Result<Box<dyn Predictor + 'a>> {
        HOME.predictor(unet, sizes, whole, fleet)
    }
}
