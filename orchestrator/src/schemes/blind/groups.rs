//! How workers fall into groups, and who holds what in each.
//!
//! The features of a group's batch entries are shared among its workers: all but the last draw their share from a seed,
//! the last is sent what is left. All workers of a group together have the features; any fewer of them have words that
//! are uniform whatever the features are.

use std::collections::BTreeMap;

use lacuna_model::device::Precision;
use lacuna_protocol::session::SessionKind;
use lacuna_protocol::shares::{Form, Holding, Seed};
use lacuna_shares::Shares;
use lacuna_shares::precision::WORKERS;
use lacuna_shares::stream::Masks;

use super::options::Blind;
use crate::error::{Error, Result};
use crate::fleet::config::{FleetConfig, WorkerConfig};
use crate::schemes::Sizes;
use lacuna_files::address::{LOOPBACK, host};

/// Workers in groups of as many each.
#[derive(Clone, Debug)]
pub struct Groups {
    /// How many.
    pub number: usize,
    /// Workers of each.
    pub size: usize,
    /// Batch entries that each computes.
    pub entries: usize,
    shares: Shares,
    weights: Precision,
    masks: Vec<u32>,
}

impl Groups {
    /// So many `workers` in the groups that `options` ask for, for calls of `sizes`.
    ///
    /// # Errors
    /// [`Error::Workers`] where they do not fall into such groups.
    pub fn new(options: &Blind, sizes: &Sizes, workers: usize) -> Result<Self> {
        let number = options.groups();
        let [batch, ..] = sizes.latents;
        let size = workers.checked_div(number).unwrap_or_default();
        let refusal = |reason: String| Error::Workers(format!("--scheme blind: {reason}"));
        if number == 0 {
            return Err(refusal("--share-groups 0: there is one at least".into()));
        }
        if size * number != workers || !WORKERS.contains(&size) {
            let [least, most] = [WORKERS.start(), WORKERS.end()].map(|n| n * number);
            let each = match number {
                1 => String::new(),
                _ => format!(", as many in each of {number} groups"),
            };
            return Err(refusal(format!(
                "{workers} {}; features are shared among {least} to {most} of as many providers{each} \
                 (--share-groups)",
                if workers == 1 { "worker" } else { "workers" }
            )));
        }
        if !batch.is_multiple_of(number) {
            return Err(refusal(format!(
                "--share-groups {number}: a call's {batch} batch entries cannot be shared out evenly"
            )));
        }
        let shares = options.chosen()?;
        let masks = shares.masks(size).map_err(|e| {
            let bits = options.bits();
            refusal(format!(
                "--share-bits {bits} with {size} workers in a group: {e}"
            ))
        })?;
        Ok(Self {
            number,
            size,
            entries: batch / number,
            shares,
            weights: options.weights(),
            masks,
        })
    }

    /// That no group has two workers of one provider, or on one machine: those two would be one, and see what only all
    /// of them together may. Workers on this machine are the user's own.
    ///
    /// # Errors
    /// [`Error::Workers`], naming both.
    pub fn check(&self, fleet: &FleetConfig) -> Result<()> {
        for group in fleet.workers.chunks(self.size) {
            let mut known: BTreeMap<String, &WorkerConfig> = BTreeMap::new();
            for worker in group {
                let machine = host(&worker.url);
                let on = (machine != LOOPBACK).then(|| format!("on one machine, {machine}"));
                // However it is written: whoever writes it twice means one.
                let provider = worker.provider.trim().to_lowercase();
                let of = Some(format!("of one provider, {provider}"));
                for same in [of, on].into_iter().flatten() {
                    if let Some(other) = known.insert(same.clone(), worker) {
                        return Err(Error::Workers(format!(
                            "--scheme blind: {} and {} are {same}, which would see everything; a group needs workers \
                             of different providers",
                            other.url, worker.url
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    /// The shares, with their bits.
    pub fn shares(&self) -> Shares {
        self.shares
    }

    /// Whether the `worker`-th is the one of its group that is sent its share.
    pub fn holds_share(&self, worker: usize) -> bool {
        worker % self.size + 1 == self.size
    }

    /// Bits of a word that a share holder is sent.
    pub fn share_bits(&self) -> u32 {
        self.masks.last().copied().unwrap_or_default()
    }

    /// Bits of the words of a group's `place`-th worker.
    pub fn bits(&self, place: usize) -> u32 {
        let masked = self.masks.get(place).copied();
        masked.unwrap_or_else(|| self.share_bits())
    }

    /// Bits of the words of each seed holder of a group.
    pub fn mask_bits(&self) -> &[u32] {
        &self.masks
    }

    /// What the `worker`-th holds, and the stream of its shares, if it draws them.
    ///
    /// # Errors
    /// [`Error::Shares`] where the system has no random numbers.
    pub fn open(&self, worker: usize) -> Result<(SessionKind, Option<Masks>)> {
        let masks = match self.holds_share(worker) {
            true => None,
            false => Some(Masks::fresh()?),
        };
        let bits = self.bits(worker % self.size);
        let form = match self.shares {
            Shares::Carry(precision) => Form::Carry {
                bits,
                range: precision.range(),
                fraction: precision.fraction(),
            },
            Shares::Ring(ring) => Form::Ring {
                bits,
                down: ring.down(),
            },
        };
        let holding = Holding {
            form,
            weights: self.weights,
            seed: masks.as_ref().map(|masks| Seed(masks.to_send())),
        };
        Ok((SessionKind::Shares(holding), masks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(groups: usize, batch: usize, workers: usize) -> Result<Groups> {
        let options = Blind {
            share_groups: Some(groups),
            ..Blind::default()
        };
        let sizes = Sizes {
            latents: [batch, 8, 8],
            levels: 3,
            tokens: 77,
        };
        Groups::new(&options, &sizes, workers)
    }

    #[test]
    fn workers_fall_into_groups_of_two_to_four() {
        let four = groups(1, 1, 4).unwrap();
        assert_eq!((four.size, four.share_bits()), (4, 22));
        let holds: Vec<bool> = (0..4).map(|worker| four.holds_share(worker)).collect();
        assert_eq!(holds, [false, false, false, true]);
        let pairs = groups(2, 2, 4).unwrap();
        assert_eq!((pairs.size, pairs.entries, pairs.share_bits()), (2, 1, 12));
        assert!(pairs.holds_share(1) && pairs.holds_share(3) && !pairs.holds_share(2));
        for (number, batch, workers, named) in [
            (1, 1, 1, "1 worker; features are shared among 2 to 4"),
            (1, 1, 5, "5 workers"),
            (
                2,
                2,
                5,
                "4 to 8 of as many providers, as many in each of 2 groups",
            ),
            (0, 1, 2, "--share-groups 0"),
            (2, 1, 4, "1 batch entries"),
        ] {
            let error = groups(number, batch, workers).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn seed_holders_get_a_fresh_seed_each_and_the_share_holder_none() {
        let three = groups(1, 1, 3).unwrap();
        let mut seeds = Vec::new();
        for worker in [0, 1, 2, 0, 1, 2] {
            let (kind, masks) = three.open(worker).unwrap();
            let SessionKind::Shares(holding) = kind else {
                panic!("{kind:?}");
            };
            assert_eq!(holding.form.bits(), [12, 17, 17][worker]);
            assert_eq!(holding.seed.is_some(), worker < 2);
            assert_eq!(masks.is_some(), worker < 2);
            seeds.extend(holding.seed);
        }
        for (i, seed) in seeds.iter().enumerate() {
            assert!(!seeds[..i].contains(seed));
        }
    }

    #[test]
    fn two_of_one_provider_are_refused() {
        let pairs = groups(2, 2, 4).unwrap();
        let mut fleet = FleetConfig::imagined(4).unwrap();
        pairs.check(&fleet).unwrap();
        // One of each pair may be of the same.
        fleet.workers[2].provider = fleet.workers[0].provider.clone();
        pairs.check(&fleet).unwrap();
        fleet.workers[3].provider = fleet.workers[0].provider.clone();
        let error = pairs.check(&fleet).unwrap_err().to_string();
        assert!(error.contains("would see everything"), "{error}");
        let mut fleet = FleetConfig::imagined(4).unwrap();
        fleet.workers[1].url = "http://0.invalid:81".parse().unwrap();
        let error = pairs.check(&fleet).unwrap_err().to_string();
        assert!(error.contains("on one machine, 0.invalid"), "{error}");
    }
}
