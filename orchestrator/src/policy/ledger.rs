//! What each provider sees of a picture: foreseen from the setting, or counted in a run.

use std::collections::{BTreeMap, BTreeSet};

use lacuna_model::unet::UNet;
use serde::Serialize;

use crate::error::Result;
use crate::fleet::config::FleetConfig;
use crate::fleet::tally::{Seen, Tally, Words};
use crate::schemes::{Exposure, Setting};

/// What each provider sees. Workers of one provider are one view.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Ledger {
    /// By the provider's name.
    #[serde(flatten)]
    pub providers: BTreeMap<String, View>,
    /// How many workers may put together what they have and learn nothing; none where one alone learns something.
    #[serde(skip)]
    pub hidden_from: Option<usize>,
}

/// What one provider sees.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct View {
    /// Number of its workers.
    pub workers: usize,
    /// Number of pictures that it sees something of.
    pub pictures: usize,
    /// Share of the rows that it computes, over all layers, 0 to 1.
    pub rows: f64,
    /// The same with the rows that it is sent beside its own.
    pub rows_with_halo: f64,
    /// Share of the rows whose keys and values it gets or could make: from these alone the picture can
    /// be told.
    pub keys_and_values: f64,
    /// Share of all queries, and of all keys and values, that it gets permuted and rotated: it
    /// learns the products between them.
    pub tiles: [f64; 2],
    /// Whether it gets its rows of the noisy latents, or gives those of the prediction.
    pub latents: bool,
    /// Whether it gets the prompt's embedding, or keys and values made of it.
    pub prompt: bool,
    /// Whether it holds the U-Net's adapters, or knows their digest.
    pub adapters: bool,
    /// Words of shares that it is sent or draws: of one U-Net call where they are foreseen, and of all pictures where they
    /// are counted. They are uniform and independent of the picture to whoever lacks another worker's share or seed
    /// (`docs/blind.md`), so they are no part of it.
    #[serde(skip_serializing_if = "Words::are_none")]
    pub words: Words,
}

impl View {
    /// Counts other pictures in, of which the most that was seen of one counts.
    fn add(&mut self, other: &Self) {
        self.pictures += other.pictures;
        self.rows = self.rows.max(other.rows);
        self.rows_with_halo = self.rows_with_halo.max(other.rows_with_halo);
        self.keys_and_values = self.keys_and_values.max(other.keys_and_values);
        for (most, part) in self.tiles.iter_mut().zip(other.tiles) {
            *most = most.max(part);
        }
    }

    /// Whether there is nothing of the picture in it.
    pub fn is_of_nothing(&self) -> bool {
        self.rows <= SLACK
            && self.rows_with_halo <= SLACK
            && self.keys_and_values <= SLACK
            && self.tiles.iter().all(|part| *part <= SLACK)
            && !self.latents
            && !self.prompt
    }
}

/// A share is a sum of rows over their number: equal shares may differ in the last bits.
pub const SLACK: f64 = 1e-9;

impl Ledger {
    /// The largest share of the rows that a provider computes.
    pub fn most_rows(&self) -> f64 {
        let shares = self.providers.values().map(|view| view.rows);
        shares.fold(0.0, f64::max)
    }

    /// The largest share of the rows that any `n` providers together compute, about: strips do not overlap, but of a
    /// picture that was cut anew. Those from whom the scheme hides everything compute none; all others, where it hides
    /// everything from fewer, have all.
    pub fn most_rows_of(&self, n: usize) -> f64 {
        match self.hidden_from {
            Some(most) if n <= most => 0.0,
            Some(_) => 1.0,
            None => {
                let mut shares: Vec<f64> = self.providers.values().map(|view| view.rows).collect();
                shares.sort_by(|a, b| b.total_cmp(a));
                shares.iter().take(n).sum::<f64>().min(1.0)
            }
        }
    }

    /// The most of each that a provider sees; none where there is no provider.
    pub fn most(&self) -> Option<View> {
        let views = self.providers.values().cloned();
        views.reduce(|a, b| View {
            workers: a.workers.max(b.workers),
            pictures: a.pictures.max(b.pictures),
            rows: a.rows.max(b.rows),
            rows_with_halo: a.rows_with_halo.max(b.rows_with_halo),
            keys_and_values: a.keys_and_values.max(b.keys_and_values),
            tiles: std::array::from_fn(|i| a.tiles[i].max(b.tiles[i])),
            latents: a.latents || b.latents,
            prompt: a.prompt || b.prompt,
            adapters: a.adapters || b.adapters,
            words: Words {
                sent: a.words.sent.max(b.words.sent),
                drawn: a.words.drawn.max(b.words.drawn),
            },
        })
    }

    /// What computing by `setting` on `fleet` will have shown to each provider, with what sessions in the
    /// `past` of the same picture have.
    ///
    /// # Errors
    /// [`lacuna_model::Error::TooManyStrips`]; [`crate::Error::Workers`].
    pub fn foresee(
        unet: &UNet,
        setting: &Setting,
        fleet: &FleetConfig,
        past: &[Tally],
    ) -> Result<Self> {
        let n = fleet.workers.len();
        setting.scheme.check_fleet(&setting.sizes, fleet)?;
        let seen = setting.scheme.seen(unet, &setting.sizes, n)?;
        let workers = fleet.workers.iter().zip(&seen);
        let workers = workers.map(|(w, seen)| (w.provider.as_str(), w.url.as_str(), seen));
        Ok(Self {
            hidden_from: setting.scheme.hidden_from(&setting.sizes, n)?,
            ..Self::new(setting, workers.chain(past.iter().map(shown)))
        })
    }

    /// What a run by `setting` has shown, by the workers' accounts of each of its pictures: to every provider
    /// that was shown anything, the most that it saw of one picture.
    pub fn of_run(setting: &Setting, pictures: &[Vec<Tally>]) -> Self {
        let mut all = Self::new(setting, pictures.iter().flatten().map(shown));
        for view in all.providers.values_mut() {
            // Parts of different pictures do not add up to a larger part of one.
            view.rows = 0.0;
            view.rows_with_halo = 0.0;
            view.keys_and_values = 0.0;
            view.tiles = [0.0; 2];
            view.pictures = 0;
        }
        for tallies in pictures {
            for (provider, of_one) in Self::new(setting, tallies.iter().map(shown)).providers {
                all.providers.entry(provider).or_default().add(&of_one);
            }
        }
        all
    }

    /// Adds what other pictures than those in it have shown.
    pub fn add(&mut self, others: Self) {
        for (provider, of_others) in others.providers {
            let view = self.providers.entry(provider).or_default();
            view.add(&of_others);
            view.workers = view.workers.max(of_others.workers);
            view.latents |= of_others.latents;
            view.prompt |= of_others.prompt;
            view.adapters |= of_others.adapters;
            view.words.add(of_others.words);
        }
    }

    /// `shown`: provider, address and what was seen, of each session.
    fn new<'a>(
        setting: &Setting,
        shown: impl Iterator<Item = (&'a str, &'a str, &'a Seen)>,
    ) -> Self {
        let mut together: BTreeMap<&str, (BTreeSet<&str>, Seen)> = BTreeMap::new();
        for (provider, worker, seen) in shown {
            let (workers, all) = together.entry(provider).or_default();
            workers.insert(worker);
            all.extend(seen);
        }
        let Exposure {
            prompt,
            latents,
            keys_and_values,
            adapters,
        } = setting.scheme.exposure(setting.sizes.levels);
        let view = |(provider, (workers, seen)): (&str, (BTreeSet<&str>, Seen))| {
            let rows = seen.rows.share();
            let view = View {
                workers: workers.len(),
                pictures: 1,
                rows,
                rows_with_halo: seen.rows_with_halo.share(),
                keys_and_values: if keys_and_values { 1.0 } else { rows },
                tiles: seen.tiles.map(|part| part.share()),
                latents,
                prompt,
                adapters: adapters && setting.adapted,
                words: seen.words,
            };
            (provider.to_owned(), view)
        };
        Self {
            providers: together.into_iter().map(view).collect(),
            hidden_from: None,
        }
    }
}

fn shown(tally: &Tally) -> (&str, &str, &Seen) {
    (&tally.provider, &tally.url, &tally.seen)
}
