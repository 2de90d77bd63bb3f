//! What each provider sees of a picture: foreseen from the setting, or counted in a run.

use std::collections::BTreeMap;

use serde::Serialize;
use shared::placement::{Prompt, SelfAttention};
use shared::unet::UNet;

use crate::error::Result;
use crate::fleet::config::FleetConfig;
use crate::fleet::tally::{Coverage, Tally};
use crate::schemes::{Scheme, Setting, ppidm, resident};

/// What each provider sees. Workers of one provider are one view.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Ledger {
    /// By the provider's name.
    #[serde(flatten)]
    pub providers: BTreeMap<String, View>,
}

/// What one provider sees.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct View {
    /// Number of its workers.
    pub workers: usize,
    /// Share of the rows that it computes, over all layers, 0 to 1.
    pub rows: f64,
    /// The same with the rows that it is sent beside its own.
    pub rows_with_halo: f64,
    /// Share of the rows whose keys and values it gets or could make: from these alone the picture can
    /// be told.
    pub keys_and_values: f64,
    /// Whether it gets the prompt's embedding, or keys and values made of it.
    pub prompt: bool,
}

/// A worker's rows: those that it computes, and with those that it is sent.
pub type Seen = [Coverage; 2];

impl Ledger {
    /// What computing by `setting` on `fleet` will show to each provider.
    ///
    /// # Errors
    /// [`shared::Error::TooManyStrips`].
    pub fn foresee(unet: &UNet, setting: &Setting, fleet: &FleetConfig) -> Result<Self> {
        let n = fleet.workers.len();
        let seen = match setting.scheme {
            Scheme::Local => Vec::new(),
            Scheme::Ppidm => ppidm::rows_seen(unet, setting, n),
            Scheme::Resident => resident::rows_seen(unet, setting, n)?,
        };
        let providers = fleet.workers.iter().map(|w| w.provider.as_str());
        Ok(Self::new(setting, providers.zip(seen)))
    }

    /// What a run by `setting` has shown, by the workers' accounts.
    pub fn of_run(setting: &Setting, tallies: &[Tally]) -> Self {
        let seen = tallies.iter().map(|tally| {
            let rows = [tally.rows.clone(), tally.rows_with_halo.clone()];
            (tally.provider.as_str(), rows)
        });
        Self::new(setting, seen)
    }

    fn new<'a>(setting: &Setting, seen: impl Iterator<Item = (&'a str, Seen)>) -> Self {
        let mut together: BTreeMap<String, (usize, Seen)> = BTreeMap::new();
        for (provider, rows) in seen {
            let (workers, all) = together.entry(provider.to_owned()).or_default();
            *workers += 1;
            for (all, rows) in all.iter_mut().zip(&rows) {
                all.extend(rows);
            }
        }
        let placement = setting.placement;
        let prompt = match setting.scheme {
            Scheme::Local => false,
            Scheme::Ppidm => true,
            Scheme::Resident => placement.prompt == Prompt::Shared,
        };
        let broadcast = setting.scheme == Scheme::Resident
            && placement
                .self_attention
                .of_levels(setting.levels)
                .contains(&SelfAttention::Broadcast);
        let view = |(provider, (workers, [own, with_halo])): (String, (usize, Seen))| {
            let view = View {
                workers,
                rows: own.share(),
                rows_with_halo: with_halo.share(),
                keys_and_values: if broadcast { 1.0 } else { own.share() },
                prompt,
            };
            (provider, view)
        };
        Self {
            providers: together.into_iter().map(view).collect(),
        }
    }
}
