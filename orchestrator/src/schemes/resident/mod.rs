//! Resident strips: every worker keeps its rows of every feature map for a whole step.
//!
//! # Layout
//!
//! - [`options`]: what can be chosen.
//! - [`layout`]: that for latents of one size.
//! - [`places`]: which rows each worker holds.
//! - [`mod@conductor`]: the user's walk of the U-Net, exchange by exchange.
//! - [`cloud`]: meets the workers at the exchanges, and does the user's part.
//! - [`intake`]: what workers hand out, read and checked.
//! - [`tiles`]: what workers attend to without knowing what it is.
//! - [`strips`]: that as a predictor.
//! - [`count`]: what would travel, without sending it.
//! - [`own`]: the layers that the user computes.
//! - here: that as a scheme.

pub mod cloud;
pub mod conductor;
pub mod count;
pub mod intake;
pub mod layout;
pub mod options;
pub mod own;
pub mod places;
pub mod strips;
pub mod tiles;

use std::any::Any;
use std::collections::HashSet;
use std::sync::Arc;

use futures::future::BoxFuture;
use lacuna_model::partition::Levels;
use lacuna_model::unet::UNet;
use lacuna_model::whole::Whole;
use lacuna_protocol::placement::{Latents, Placement, Prompt, SelfAttention, Wire, Wires};

use super::count::Count;
use super::scheme::Options;
use super::{Exposure, Predictor, Rules, Scheme, Sizes, Uses};
use crate::error::Result;
use crate::fleet::Fleet;
use crate::fleet::check::Again;
use crate::fleet::config::FleetConfig;
use crate::fleet::tally::Seen;
use crate::named::name;
use layout::Layout;
pub use options::Resident;
use options::can_be_compared;
use strips::Strips;

impl Options for Resident {
    const NAME: &'static str = "resident";
    const ABOUT: &'static str =
        "Ours: workers keep their strips for a whole step, and exchange what lies outside";

    fn scheme(self) -> Arc<dyn Scheme> {
        Arc::new(self)
    }
}

impl Resident {
    /// The options for calls of `sizes`. Where nobody says, the halves of a guided step go side by side: workers
    /// are behind a link.
    pub fn layout(&self, sizes: &Sizes) -> Layout {
        Layout::new(self.chosen(), self.lanes.unwrap_or(true), sizes)
    }

    fn settled(&self, placement: Placement) -> Arc<dyn Scheme> {
        self.with(placement).scheme()
    }
}

impl Scheme for Resident {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn label(&self) -> String {
        let Wires { halo, attention } = self.chosen().wires;
        match halo == attention {
            true => format!("resident, {}", name(&halo)),
            false => format!("resident, {}/{}", name(&halo), name(&attention)),
        }
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let placement = self.chosen();
        let Wires { halo, attention } = placement.wires;
        let wire = match halo == attention {
            true => name(&halo),
            false => format!("halo={},attention={}", name(&halo), name(&attention)),
        };
        let self_attention = name(&placement.self_attention.at(0));
        vec![("self_attention", self_attention), ("wire", wire)]
    }

    fn in_words(&self) -> String {
        let placement = self.chosen();
        format!(
            "self-attention by level {}, prompt {}, latents {}, wires: halo {}, attention {}",
            name(&placement.self_attention),
            name(&placement.prompt),
            name(&placement.latents),
            name(&placement.wires.halo),
            name(&placement.wires.attention),
        )
    }

    fn placement(&self) -> serde_json::Value {
        // Names and numbers alone cannot fail.
        serde_json::to_value(self.chosen()).unwrap_or_default()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn most_workers(&self, unet: &UNet, rows: usize) -> usize {
        Levels::new(rows, unet.levels()).coarsest()
    }

    /// Codes of numbers, as the wires of changes have them, cannot be compared.
    fn verified(&self, share: f64) -> Option<Arc<dyn Scheme>> {
        let verify = Some(share);
        let comparable = self.wire.is_none_or(can_be_compared);
        comparable.then(|| Self { verify, ..*self }.scheme())
    }

    /// On loopback nothing is waited for.
    fn linked(&self, linked: bool) -> Option<Arc<dyn Scheme>> {
        let lanes = Some(self.lanes.unwrap_or(linked));
        Some(Self { lanes, ..*self }.scheme())
    }

    fn of_calls(&self, calls: usize) -> Option<Arc<dyn Scheme>> {
        let calls = Some(calls);
        Some(Self { calls, ..*self }.scheme())
    }

    fn calls(&self) -> Option<usize> {
        self.calls
    }

    fn choices(&self, rules: &Rules<'_>) -> Vec<Arc<dyn Scheme>> {
        if self.is_settled() {
            return Vec::new();
        }
        let placements = self.placements(rules).into_iter();
        placements
            .map(|placement| self.settled(placement))
            .collect()
    }

    /// How one level attends, where that is left open.
    fn variants(
        &self,
        best: &dyn Scheme,
        part: usize,
        levels: usize,
        rules: &Rules<'_>,
    ) -> Option<Vec<Arc<dyn Scheme>>> {
        if self.self_attention.is_some() || part >= levels {
            return None;
        }
        let best = best.as_any().downcast_ref::<Self>()?.chosen();
        let variant = |how: &SelfAttention| {
            self.settled(Placement {
                self_attention: best.self_attention.with(part, *how),
                ..best
            })
        };
        Some(rules.self_attention.iter().map(variant).collect())
    }

    /// By the wire.
    fn ways(&self) -> Vec<Arc<dyn Scheme>> {
        if self.wire.is_some() {
            return Vec::new();
        }
        let way = |wire: Wire| Self {
            wire: Some(Wires::all(wire)),
            ..*self
        };
        Wire::ALL.map(|wire| way(wire).scheme()).to_vec()
    }

    fn uses(&self, levels: usize) -> Uses {
        let placement = self.chosen();
        Uses {
            self_attention: placement.self_attention.of_levels(levels).to_vec(),
            wires: placement.wires.each().to_vec(),
        }
    }

    /// By the wire that costs most.
    fn promised_psnr(&self) -> Option<f64> {
        let wires = self.chosen().wires.each();
        let promises = wires
            .into_iter()
            .filter_map(|wire| promised_by(wire, self.calls));
        promises.min_by(f64::total_cmp)
    }

    fn exposure(&self, levels: usize) -> Exposure {
        let placement = self.chosen();
        let attentions = placement.self_attention.of_levels(levels);
        Exposure {
            prompt: placement.prompt == Prompt::Shared,
            latents: placement.latents == Latents::Shared,
            keys_and_values: attentions.contains(&SelfAttention::Broadcast),
            adapters: true,
        }
    }

    fn seen(&self, unet: &UNet, sizes: &Sizes, workers: usize) -> Result<Vec<Seen>> {
        places::seen(unet, &self.layout(sizes), workers)
    }

    fn first_calls(&self, unet: &UNet, sizes: &Sizes, workers: usize) -> Result<[Count; 2]> {
        let calls = count::first_calls(unet, &self.layout(sizes), workers)?;
        Ok(calls.map(|call| call.checked(self.verify)))
    }

    /// Whoever checks workers has all.
    fn user_layers(&self, unet: &UNet, sizes: &Sizes) -> Result<Option<HashSet<String>>> {
        match self.verify {
            Some(_) => Ok(None),
            None => self.user_features(unet, sizes),
        }
    }

    fn user_features(&self, unet: &UNet, sizes: &Sizes) -> Result<Option<HashSet<String>>> {
        own::user_layers(unet, &self.layout(sizes)).map(Some)
    }

    fn open<'a>(
        &'a self,
        config: &'a FleetConfig,
        digest: &'a str,
        unet: &'a UNet,
        sizes: &'a Sizes,
    ) -> BoxFuture<'a, Result<Fleet>> {
        Box::pin(async move { places::open(config, digest, unet, &self.layout(sizes)).await })
    }

    fn predictor<'a>(
        &self,
        unet: &'a UNet,
        sizes: &Sizes,
        whole: Whole,
        mut fleet: Fleet,
    ) -> Result<Box<dyn Predictor + 'a>> {
        let layout = self.layout(sizes);
        if let Some(share) = self.verify {
            // Keys and values of a prompt that workers know stay from the first call on.
            let each_call = layout.placement.prompt == Prompt::Hidden;
            let weights = whole.weights();
            fleet.check_by(&Again::new(unet, weights, sizes.latents, share, each_call)?);
        }
        Ok(Box::new(Strips::new(unet, &layout, fleet, whole)?))
    }
}

/// Below so many U-Net calls changes between them are large.
const FEW_CALLS: usize = 16;

/// What features that travel by `wire` cost at most in a picture of so many U-Net calls (of many, where that is not
/// known): the least PSNR of a picture of the demo model against the uncut one, in dB; none where it costs nothing. The
/// tests hold the figures (`a_demo_picture_keeps_what_each_wire_promises`). Other models may give less; `lacuna bench`
/// measures it.
pub fn promised_by(wire: Wire, calls: Option<usize>) -> Option<f64> {
    // A picture of one call has no changes.
    let large = calls.is_some_and(|calls| (2..FEW_CALLS).contains(&calls));
    match wire {
        Wire::F32 => None,
        Wire::F16 => Some(60.0),
        Wire::Delta8 if large => Some(50.0),
        Wire::Delta8 => Some(55.0),
        Wire::Bf16 => Some(50.0),
        Wire::Int8 => Some(45.0),
        Wire::Delta4 if large => Some(25.0),
        Wire::Delta4 => Some(40.0),
    }
}
