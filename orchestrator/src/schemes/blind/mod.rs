//! `blind`: workers multiply shares of features, and learn nothing.
//!
//! The features stay with the user. A layer's input is split into shares that are uniform words each, workers multiply
//! them with the layer's public weights, and the user adds what they made of them. Everything that is not linear is the
//! user's. `docs/blind.md` says what each party sees, and why that tells nothing.
//!
//! # Layout
//!
//! - [`options`]: what can be chosen.
//! - [`groups`]: how workers fall into groups, and who holds what in each.
//! - [`sent`]: which layers workers multiply.
//! - [`own`]: what the user needs of these layers.
//! - [`dialogue`]: the dialogue with a group.
//! - [`executor`]: the executor.
//! - `count`: what would travel, without sending it.
//! - here: that as a scheme.

mod count;
pub mod dialogue;
pub mod executor;
pub mod groups;
pub mod options;
pub mod own;
pub mod sent;

use std::any::Any;
use std::collections::HashSet;
use std::sync::Arc;

use futures::future::BoxFuture;
use lacuna_model::unet::UNet;
use lacuna_model::whole::Whole;
use lacuna_shares::Precision;
use lacuna_shares::precision::WORKERS;

use super::count::Count;
use super::scheme::Options;
use super::{Exposure, Predictor, Scheme, Sizes, Uses};
use crate::error::Result;
use crate::fleet::Fleet;
use crate::fleet::config::FleetConfig;
use crate::fleet::tally::Seen;
use executor::{Calls, Shared};
use groups::Groups;
pub use options::Blind;

impl Options for Blind {
    const NAME: &'static str = "blind";
    const ABOUT: &'static str = "Ours: workers multiply shares of features that tell them nothing";

    fn scheme(self) -> Arc<dyn Scheme> {
        Arc::new(self)
    }
}

impl Blind {
    fn bits(&self) -> String {
        options::Bits(self.precision()).to_string()
    }
}

impl Scheme for Blind {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn label(&self) -> String {
        match self.groups() {
            1 => format!("blind, {}", self.bits()),
            n => format!("blind, {}, {n} groups", self.bits()),
        }
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        vec![
            ("share_bits", self.bits()),
            ("share_groups", self.groups().to_string()),
        ]
    }

    fn in_words(&self) -> String {
        let precision = self.precision();
        let groups = match self.groups() {
            1 => "all workers in one group".to_owned(),
            n => format!("workers in {n} groups"),
        };
        format!(
            "shares of {} bits, products of {} before the point and {} behind it, {groups}",
            precision.up(),
            precision.range(),
            precision.fraction()
        )
    }

    fn placement(&self) -> serde_json::Value {
        let precision = self.precision();
        serde_json::json!({
            "bits_up": precision.up(),
            "bits_down": precision.down(),
            "groups": self.groups(),
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn usual_workers(&self) -> usize {
        WORKERS.start() * self.groups()
    }

    fn most_workers(&self, _unet: &UNet, _rows: usize) -> usize {
        WORKERS.end() * self.groups()
    }

    fn uses(&self, _levels: usize) -> Uses {
        Uses::default()
    }

    /// Measured of the demo model (`docs/blind.md`), and less.
    fn promised_psnr(&self) -> Option<f64> {
        Some(match self.precision() {
            Precision::SPEED => 50.0,
            Precision::QUALITY => 60.0,
            _ => 0.0,
        })
    }

    /// Nothing: words that are uniform whatever the features are.
    fn exposure(&self, _levels: usize) -> Exposure {
        Exposure::default()
    }

    fn seen(&self, _unet: &UNet, _sizes: &Sizes, workers: usize) -> Result<Vec<Seen>> {
        Ok(vec![Seen::default(); workers])
    }

    fn check_fleet(&self, sizes: &Sizes, fleet: &FleetConfig) -> Result<()> {
        Groups::new(self, sizes, fleet.workers.len())?.check(fleet)
    }

    fn first_calls(&self, unet: &UNet, sizes: &Sizes, workers: usize) -> Result<[Count; 2]> {
        count::first_calls(unet, sizes, self, workers)
    }

    /// All of them: carries are multiplied with the weights of the layers that are sent.
    fn user_layers(&self, _unet: &UNet, _sizes: &Sizes) -> Result<Option<HashSet<String>>> {
        Ok(None)
    }

    fn open<'a>(
        &'a self,
        config: &'a FleetConfig,
        digest: &'a str,
        _unet: &'a UNet,
        sizes: &'a Sizes,
    ) -> BoxFuture<'a, Result<Fleet>> {
        Box::pin(async move {
            let groups = Groups::new(self, sizes, config.workers.len())?;
            groups.check(config)?;
            let holdings = (0..config.workers.len()).map(|worker| groups.open(worker));
            let holdings = holdings.collect::<Result<Vec<_>>>()?;
            let (kinds, masks): (Vec<_>, Vec<_>) = holdings.into_iter().unzip();
            let kind = |worker: usize| kinds[worker].clone();
            let mut fleet = Fleet::open(config, digest, kind, 1).await?;
            fleet.give_masks(masks);
            Ok(fleet)
        })
    }

    fn predictor<'a>(
        &self,
        unet: &'a UNet,
        sizes: &Sizes,
        whole: Whole,
        fleet: Fleet,
    ) -> Result<Box<dyn Predictor + 'a>> {
        let groups = Groups::new(self, sizes, fleet.len())?;
        let sent = sent::sent(unet, sizes)?;
        let executor = Shared::new(whole, groups, self.precision(), sent, fleet)?;
        Ok(Box::new(Calls { unet, executor }))
    }
}
