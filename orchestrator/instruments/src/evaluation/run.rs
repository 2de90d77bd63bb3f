//! A run: every prompt of the shard under every arm.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;

use super::arm::ArmSetting;
use super::making::{Failure, Maker, Place};
use crate::error::Result;
use crate::evaluation::features;
use crate::evaluation::prompts::Prompts;
use crate::evaluation::record::{Arm, Outcome, REAL, Row, Values};
use crate::evaluation::store::{Log, Store};
use crate::metrics::decode::Rgb8;
use crate::metrics::folder::{Folder, Pair};
use crate::metrics::networks::Wanted;
use crate::metrics::sets::{Network, SetFeatures};
use lacuna_orchestrator::output::make_directory;
use lacuna_orchestrator::progress::Progress;
use lacuna_orchestrator::side_by_side::side_by_side;

/// A run.
pub struct Run {
    /// Makes the pictures.
    pub maker: Maker,
    /// What is compared, as in the store's record.
    pub arms: Vec<ArmSetting>,
    /// All prompts, of all shards.
    pub prompts: Prompts,
    /// What is measured.
    pub wanted: Wanted,
    /// What is there already.
    pub store: Store,
    /// How many pictures are made at a time.
    pub parallel: usize,
}

/// Why there is no picture of a prompt, by the folder that it should be in and the prompt.
type Missing = BTreeMap<(String, usize), String>;

impl Run {
    /// Makes and measures what is not there yet. Gives the number of real pictures that cannot be read.
    ///
    /// # Errors
    /// What would stop every further picture; those of the files.
    pub fn go(&self) -> anyhow::Result<usize> {
        let range = self.store.record.shard.of_prompts(self.prompts.len());
        let references = self.references();
        // Pictures, then rows.
        let works = references.len() + 2 * self.arms.len();
        let bar = Progress::new("picture or row", works * range.len());
        let mut missing = Missing::new();
        for reference in &references {
            self.make(reference, &bar, &mut missing)
                .with_context(|| format!("the run stopped at {}", reference.name))?;
        }
        let mut log = self.store.log()?;
        for (arm, record) in self.arms.iter().zip(&self.store.record.arms) {
            self.make(arm, &bar, &mut missing)
                .with_context(|| format!("the run stopped at {}", arm.name))?;
            self.measure(record, &missing, &bar, &mut log)?;
        }
        bar.about("features of sets");
        self.take_features(&bar)
    }

    /// The uncut runs that the arms are compared with, each once.
    fn references(&self) -> Vec<ArmSetting> {
        if self.store.record.reference.is_some() {
            return Vec::new();
        }
        let mut seen = BTreeSet::new();
        let references = self.arms.iter().map(ArmSetting::reference);
        references
            .filter(|arm| seen.insert(arm.name.clone()))
            .collect()
    }

    /// Makes the pictures of an arm that are not there.
    fn make(&self, arm: &ArmSetting, bar: &Progress, missing: &mut Missing) -> Result<()> {
        let folder = arm.folder();
        bar.about(arm.name.clone());
        let shard = self.store.record.shard.of_prompts(self.prompts.len());
        let path = |index| self.store.picture(&folder, index);
        let (there, wanted): (Vec<usize>, Vec<usize>) =
            shard.partition(|index| path(*index).is_file());
        there.iter().for_each(|_| bar.skip());
        let mut place: Option<Place> = None;
        if let Some(first) = wanted.iter().find(|index| self.prompts[**index].is_ok()) {
            make_folder(&path(*first))?;
            place = Some(self.maker.place(arm)?);
        }
        let missing = Mutex::new(missing);
        side_by_side(self.parallel, wanted, |index| {
            let failed = match (&self.prompts[index], &place) {
                (Err(reason), _) => Some(reason.clone()),
                (Ok(prompt), Some(place)) => {
                    let seed = self.store.record.seed_of(index);
                    match place.picture(prompt, seed, &path(index)) {
                        Ok(()) => None,
                        Err(Failure::OfPicture(error)) => Some(error.to_string()),
                        Err(Failure::OfRun(error)) => return Err(error),
                    }
                }
                // There is a place where there is a prompt.
                (Ok(_), None) => None,
            };
            if let Some(reason) = failed {
                bar.note(format_args!("{}, prompt {index}: {reason}", arm.name));
                let mut missing = missing.lock().unwrap_or_else(PoisonError::into_inner);
                missing.insert((folder.clone(), index), reason);
            }
            bar.step();
            Ok(())
        })
    }

    /// Appends the rows of an arm that are not there.
    fn measure(&self, arm: &Arm, missing: &Missing, bar: &Progress, log: &mut Log) -> Result<()> {
        for index in self.store.record.shard.of_prompts(self.prompts.len()) {
            if self.store.has(&arm.name, index) {
                bar.skip();
                continue;
            }
            let prompt = &self.prompts[index];
            let reason = |folder: &str| missing.get(&(folder.to_owned(), index)).cloned();
            let outcome = match (reason(&arm.reference), reason(&arm.folder)) {
                (Some(reason), _) => Outcome::Failed {
                    failed: format!("the reference: {reason}"),
                },
                (None, Some(failed)) => Outcome::Failed { failed },
                (None, None) => self.compare(arm, index, prompt.as_deref().unwrap_or_default()),
            };
            if let Outcome::Failed { failed } = &outcome {
                bar.note(format_args!("{}, prompt {index}: {failed}", arm.name));
            }
            log.append(&Row {
                arm: arm.name.clone(),
                index,
                seed: self.store.record.seed_of(index),
                prompt: prompt.clone().unwrap_or_default(),
                outcome,
            })?;
            bar.step();
        }
        Ok(())
    }

    fn compare(&self, arm: &Arm, index: usize, prompt: &str) -> Outcome {
        let [a, b] = [&arm.folder, &arm.reference].map(|folder| self.store.picture(folder, index));
        let identical = same_bytes(&a, &b);
        let clip = match self.wanted.clip.as_ref() {
            Some(clip) => match Rgb8::read(&a).and_then(|own| clip.score(&own, prompt)) {
                Ok(score) => Some(score),
                Err(error) => {
                    return Outcome::Failed {
                        failed: error.to_string(),
                    };
                }
            },
            None => None,
        };
        let pair = Pair {
            name: arm.name.clone(),
            a,
            b,
        };
        let mut outcome = Outcome::Measured(Values {
            identical,
            clip,
            ..Values::default()
        });
        self.wanted.pairs().measure(&[pair], |measured| {
            outcome = match measured {
                Ok(values) => Outcome::Measured(Values {
                    identical: values.psnr.map_or(identical, f64::is_infinite),
                    psnr: values.psnr.filter(|db| db.is_finite()),
                    ssim: values.ssim,
                    lpips: values.lpips,
                    clip,
                }),
                Err(fault) => Outcome::Failed {
                    failed: format!("{}: {}", fault.picture, fault.reason),
                },
            };
        });
        outcome
    }

    /// Takes the features of every set that are not there. Gives the number of real pictures that cannot
    /// be read.
    fn take_features(&self, bar: &Progress) -> anyhow::Result<usize> {
        let record = &self.store.record;
        let sets = record.feature_sets();
        let mut unread = 0;
        for network in Network::ALL {
            let Some(features) = self.wanted.network(network) else {
                continue;
            };
            for set in &sets {
                let paths = match &record.fid_reference {
                    Some(dir) if set == REAL => Folder::list(Path::new(dir))?.paths(),
                    _ => self.pictures(set),
                };
                let file = self.store.features(network.name(), set);
                if file.is_file() && features::load(&file)?.statistics.count() == paths.len() {
                    continue;
                }
                make_folder(&file)?;
                let keep = self.wanted.keeps(network);
                let taken = SetFeatures::of(&paths, &*features, keep, |fault| {
                    unread += 1;
                    bar.note(format_args!(
                        "not measured: {}: {}",
                        fault.picture, fault.reason
                    ));
                });
                features::save(&file, &taken?)?;
            }
        }
        Ok(unread)
    }

    /// The pictures of a set that there are.
    fn pictures(&self, folder: &str) -> Vec<PathBuf> {
        let range = self.store.record.shard.of_prompts(self.prompts.len());
        let paths = range.map(|index| self.store.picture(folder, index));
        paths.filter(|path| path.is_file()).collect()
    }
}

fn same_bytes(a: &Path, b: &Path) -> bool {
    matches!((std::fs::read(a), std::fs::read(b)), (Ok(a), Ok(b)) if a == b)
}

fn make_folder(file: &Path) -> Result<()> {
    Ok(file.parent().map_or(Ok(()), make_directory)?)
}
