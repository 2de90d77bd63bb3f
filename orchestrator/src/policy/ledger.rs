//! What each provider sees of a picture: foreseen from the setting, or counted in a run.

use std::collections::BTreeMap;

use serde::Serialize;
use shared::placement::{Latents, Prompt, SelfAttention, Tile};
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
    /// Share of all queries, and of all keys and values, that it gets in secret order and turned: it
    /// learns the products between them.
    pub tiles: [f64; 2],
    /// Whether it gets its rows of the noisy latents, or gives those of the prediction.
    pub latents: bool,
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
        let seen: Vec<_> = seen.collect();
        let mut together: BTreeMap<String, Together> = BTreeMap::new();
        for ((provider, rows), tile) in seen.iter().zip(Tile::grid(seen.len())) {
            let all = together.entry((*provider).to_owned()).or_default();
            all.workers += 1;
            for (all, rows) in all.rows.iter_mut().zip(rows) {
                all.extend(rows);
            }
            for (all, part) in all.tiles.iter_mut().zip([tile.queries, tile.keys]) {
                let index = part.index as isize;
                all.add(index, index + 1, part.of);
            }
        }
        let placement = setting.placement;
        let prompt = match setting.scheme {
            Scheme::Local => false,
            Scheme::Ppidm => true,
            Scheme::Resident => placement.prompt == Prompt::Shared,
        };
        let latents = match setting.scheme {
            Scheme::Local => false,
            // The paper's first convolution stays with the user, the last does not.
            Scheme::Ppidm => true,
            Scheme::Resident => placement.latents == Latents::Shared,
        };
        let attentions = placement.self_attention.of_levels(setting.levels);
        let done = |how| setting.scheme == Scheme::Resident && attentions.contains(&how);
        let view = |(provider, all): (String, Together)| {
            let [own, with_halo] = all.rows.map(|rows| rows.share());
            let view = View {
                workers: all.workers,
                rows: own,
                rows_with_halo: with_halo,
                keys_and_values: if done(SelfAttention::Broadcast) {
                    1.0
                } else {
                    own
                },
                tiles: match done(SelfAttention::Tiled) {
                    true => all.tiles.map(|part| part.share()),
                    false => [0.0; 2],
                },
                latents,
                prompt,
            };
            (provider, view)
        };
        Self {
            providers: together.into_iter().map(view).collect(),
        }
    }
}

/// What a provider's workers see together.
#[derive(Default)]
struct Together {
    workers: usize,
    rows: Seen,
    /// Parts of the queries, and of the keys and values, of tiled attentions.
    tiles: [Coverage; 2],
}
