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
//! - [`placement`]: which layers workers multiply.
//! - [`sent`]: an input that they multiply.
//! - [`own`]: what the user needs of these layers.
//! - [`enlarged`]: inputs that are enlarged before.
//! - [`dialogue`]: the dialogue with a group.
//! - [`verifier`]: whether workers multiply as they should.
//! - [`executor`]: the executor.
//! - `count`: what would travel, without sending it.
//! - here: that as a scheme.

mod count;
pub mod dialogue;
pub mod enlarged;
pub mod executor;
pub mod groups;
pub mod options;
pub mod own;
pub mod placement;
pub mod sent;
pub mod verifier;

use std::any::Any;
use std::collections::HashSet;
use std::sync::Arc;

use futures::future::BoxFuture;
use lacuna_model::device::Precision;
use lacuna_model::unet::UNet;
use lacuna_model::weights::Apart;
use lacuna_model::whole::Whole;
use lacuna_shares::Shares;
use lacuna_shares::precision::WORKERS;

use super::count::Count;
use super::scheme::Options;
use super::{Exposure, Predictor, Rules, Scheme, Sizes, Uses};
use crate::error::{Error, Result};
use crate::fleet::Fleet;
use crate::fleet::config::{FleetConfig, MAX_WORKERS};
use crate::fleet::tally::{Seen, Words};
use executor::{Calls, Shared};
use groups::Groups;
pub use options::Blind;
use options::{Bits, Carries, Kind, Layers, PRESETS, Preset};
use sent::Sent;
use verifier::Verifier;

impl Options for Blind {
    const NAME: &'static str = "blind";
    const ABOUT: &'static str = "Ours: workers multiply shares of features that tell them nothing";

    fn scheme(self) -> Arc<dyn Scheme> {
        Arc::new(self)
    }
}

impl Blind {
    /// What workers multiply.
    ///
    /// # Errors
    /// [`Error::Workers`] where that is nothing.
    fn sent(&self, unet: &UNet, sizes: &Sizes) -> Result<Vec<Sent>> {
        let sent = placement::sent(unet, sizes, self.layers())?;
        match sent.is_empty() {
            false => Ok(sent),
            true => Err(Error::Workers(format!(
                "--share-layers {}: the model has no such layer, and workers would have nothing to multiply",
                self.layers()
            ))),
        }
    }
}

impl Scheme for Blind {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn label(&self) -> String {
        let mut label = format!("blind, {}", self.bits());
        if self.kind() == Kind::Ring {
            label += ", ring";
        }
        if let Some(carries) = self.share_carries.filter(|carries| *carries != Carries(0)) {
            label += &format!(", {carries} % carries");
        }
        if self.groups() > 1 {
            label += &format!(", {} groups", self.groups());
        }
        if self.layers() != Layers::Convs {
            label += &format!(", layers {}", self.layers());
        }
        if self.weights() != Precision::F32 {
            label += &format!(", weights {}", self.weights());
        }
        label
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        vec![
            ("shares", self.kind().to_string()),
            ("share_bits", self.bits().to_string()),
            ("share_carries", self.carries().to_string()),
            ("share_groups", self.groups().to_string()),
            ("share_layers", self.layers().to_string()),
            ("share_weights", self.weights().to_string()),
        ]
    }

    fn in_words(&self) -> String {
        let groups = match self.groups() {
            1 => "all workers in one group".to_owned(),
            n => format!("workers in {n} groups"),
        };
        let layers = match self.layers() {
            Layers::Convs => "convolutions".to_owned(),
            Layers::All => "all layers".to_owned(),
            Layers::Work(least) => format!("layers of {least} operations a number or more"),
        };
        let shares = match self.chosen() {
            Ok(Shares::Carry(precision)) => format!(
                "{} bits, products of {} before the point and {} behind it",
                precision.up(),
                precision.range(),
                precision.fraction()
            ),
            Ok(Shares::Ring(ring)) => {
                format!("a ring of {} bits, products of {}", ring.up(), ring.down())
            }
            Err(_) => format!("{} bits", self.bits()),
        };
        format!("{layers} by shares of {shares}, {groups}")
    }

    fn placement(&self) -> serde_json::Value {
        let bits = self.chosen().ok().and_then(|shares| {
            let up = shares.masks(WORKERS.start().to_owned()).ok()?;
            Some((up.first().copied()?, shares.down()))
        });
        serde_json::json!({
            "shares": self.kind().to_string(),
            "bits_up": bits.map(|(up, _)| up),
            "bits_down": bits.map(|(_, down)| down),
            "carries_percent": self.carries().to_string(),
            "groups": self.groups(),
            "layers": self.layers().to_string(),
            "weights": self.weights().to_string(),
            "verified_share": self.verify,
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

    /// By the demo model (`docs/blind.md` has what was measured); of bits that have no name nothing is known.
    fn promised_psnr(&self) -> Option<f64> {
        Some(self.bits().preset().map_or(0.0, Preset::psnr))
    }

    fn verified(&self, share: f64) -> Option<Arc<dyn Scheme>> {
        let verify = Some(share);
        Some(Self { verify, ..*self }.scheme())
    }

    /// What is left open: the bits, what carries spare of them, the groups, and the layers.
    fn choices(&self, _rules: &Rules<'_>) -> Vec<Arc<dyn Scheme>> {
        let open = [
            self.share_bits.is_none(),
            self.share_groups.is_none(),
            self.share_layers.is_none(),
            self.share_carries.is_none() && self.kind() == Kind::Carry,
        ];
        if !open.contains(&true) {
            return Vec::new();
        }
        let layers = match self.share_layers {
            Some(layers) => vec![layers],
            None => Layers::CHOICES.to_vec(),
        };
        let bits = match self.share_bits {
            Some(bits) => vec![bits],
            None => PRESETS.iter().map(Bits::Named).collect(),
        };
        let carries = match (self.kind(), self.share_carries) {
            (Kind::Carry, None) => Carries::CHOICES.map(Some).to_vec(),
            (_, chosen) => vec![chosen],
        };
        let groups = match self.share_groups {
            Some(groups) => groups..=groups,
            None => 1..=MAX_WORKERS / WORKERS.start(),
        };
        let mut all = Vec::new();
        for bits in bits {
            for groups in groups.clone() {
                for layers in &layers {
                    all.extend(carries.iter().map(|carries| {
                        let settled = Self {
                            share_bits: Some(bits),
                            share_carries: *carries,
                            share_groups: Some(groups),
                            share_layers: Some(*layers),
                            ..*self
                        };
                        settled.scheme()
                    }));
                }
            }
        }
        all
    }

    /// By the kind and the bits.
    fn ways(&self) -> Vec<Arc<dyn Scheme>> {
        let kinds = match self.shares {
            Some(kind) => vec![kind],
            None => vec![Kind::Carry, Kind::Ring],
        };
        let bits: Vec<Bits> = match self.share_bits {
            Some(bits) => vec![bits],
            None => PRESETS.iter().map(Bits::Named).collect(),
        };
        let way = |kind, bits| Self {
            shares: Some(kind),
            share_bits: Some(bits),
            ..*self
        };
        let each = kinds.into_iter();
        let each = each.flat_map(|kind| bits.iter().map(move |bits| way(kind, *bits)));
        let possible = each.filter(|way| way.chosen().is_ok());
        possible.map(Options::scheme).collect()
    }

    /// The layers that are sent: a low rank is little work. Carries need their weights, shares of a ring do not.
    fn apart(&self, unet: &UNet, sizes: &Sizes) -> Result<Option<Apart>> {
        let sent = self.sent(unet, sizes)?.into_iter();
        let layers = sent.flat_map(|sent| sent.layers);
        Ok(Some(Apart {
            layers: layers.map(|layer| layer.layer).collect(),
            held: self.kind() == Kind::Carry,
            precision: self.weights(),
        }))
    }

    /// All but one of a group.
    fn hidden_from(&self, sizes: &Sizes, workers: usize) -> Result<Option<usize>> {
        Ok(Some(Groups::new(self, sizes, workers)?.size - 1))
    }

    /// Nothing: words that are uniform whatever the features are.
    fn exposure(&self, _levels: usize) -> Exposure {
        Exposure::default()
    }

    /// No rows, but words: of one call.
    fn seen(&self, unet: &UNet, sizes: &Sizes, workers: usize) -> Result<Vec<Seen>> {
        let groups = Groups::new(self, sizes, workers)?;
        let sent = self.sent(unet, sizes)?.into_iter();
        let words = sent.map(|sent| sent.of_entries(groups.entries).features() as u64);
        let words = words.sum();
        let of = |worker| match groups.holds_share(worker) {
            true => Words {
                sent: words,
                drawn: 0,
            },
            false => Words {
                sent: 0,
                drawn: words,
            },
        };
        let seen = |worker| Seen {
            words: of(worker),
            ..Seen::default()
        };
        Ok((0..workers).map(seen).collect())
    }

    fn check_fleet(&self, sizes: &Sizes, fleet: &FleetConfig) -> Result<()> {
        Groups::new(self, sizes, fleet.workers.len())?.check(fleet)
    }

    fn first_calls(&self, unet: &UNet, sizes: &Sizes, workers: usize) -> Result<[Count; 2]> {
        count::first_calls(unet, sizes, self, workers)
    }

    /// All of them, but for what [`Self::apart`] says of those that are sent.
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
        let sent = self.sent(unet, sizes)?;
        let verifier = self.verify.map(Verifier::new).transpose()?;
        let executor = Shared::new(whole, groups, sent, fleet)?;
        let executor = executor.checked_by(verifier);
        Ok(Box::new(Calls { unet, executor }))
    }
}
