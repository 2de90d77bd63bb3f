//! The rows of a run, or of its shards together.

use std::path::{Path, PathBuf};

use super::features;
use super::record::{Arm, REAL, Record, Row};
use super::shard::Shard;
use super::store::Store;
use crate::error::{Error, Result};
use crate::metrics::sets::{Network, SetFeatures};

/// The rows of a run, or of all its shards.
pub struct Results {
    /// What the run is.
    pub record: Record,
    /// Arm by arm, in the order of the prompts.
    pub rows: Vec<Row>,
    /// Where they come from, in the order of the shards.
    stores: Vec<Store>,
}

impl Results {
    /// Those of one run or shard.
    pub fn of(store: Store) -> Self {
        Self {
            record: store.record.clone(),
            rows: store.rows().cloned().collect(),
            stores: vec![store],
        }
    }

    /// Those of all shards of a run, in any order.
    ///
    /// # Errors
    /// [`Error::Request`] when they are not all the shards of one run, each once and whole; as
    /// [`Store::read`].
    pub fn merge(dirs: &[PathBuf]) -> Result<Self> {
        let stores = dirs
            .iter()
            .map(|dir| Ok((dir.as_path(), Store::read(dir)?)));
        let mut stores = stores.collect::<Result<Vec<(&Path, Store)>>>()?;
        stores.sort_by_key(|(_, store)| store.record.shard.index);
        let refuse = |dir: &Path, reason: String| {
            Err(Error::Request(format!("{}: {reason}", dir.display())))
        };
        let Some((_, first)) = stores.first() else {
            return Err(Error::Request("there is no shard to merge".into()));
        };
        let record = first.record.clone();
        let of = record.shard.of;
        for (place, (dir, store)) in stores.iter().enumerate() {
            if let Some(difference) = store.record.difference(&record) {
                let reason = format!("it is no shard of the same run ({difference})");
                return refuse(dir, reason);
            }
            let Shard { index, of: n } = store.record.shard;
            if n != of {
                return refuse(dir, format!("it is one of {n} shards, others are of {of}"));
            }
            if index != place {
                let reason = match index < place {
                    true => format!("the shard {index}/{of} is there twice"),
                    false => format!("the shard {place}/{of} is missing before {index}/{of}"),
                };
                return refuse(dir, reason);
            }
            let want = record.arms.len() * store.record.shard.of_prompts(record.prompts).len();
            let got = store.rows().count();
            if got != want {
                return refuse(
                    dir,
                    format!("the shard {index}/{of} is not finished: {got} of {want} rows"),
                );
            }
            if let Some(file) = store.missing_features() {
                let file = file.display();
                let reason = format!("the shard {index}/{of} is not finished: there is no {file}");
                return refuse(dir, reason);
            }
        }
        if stores.len() != of {
            let missing = stores.len();
            return Err(Error::Request(format!(
                "the shard {missing}/{of} is missing"
            )));
        }
        let stores: Vec<Store> = stores.into_iter().map(|(_, store)| store).collect();
        let of_arm = |arm: &Arm| {
            let rows = stores.iter().flat_map(Store::rows);
            let rows = rows.filter(|row| row.arm == arm.name);
            rows.cloned().collect::<Vec<Row>>()
        };
        Ok(Self {
            rows: record.arms.iter().flat_map(of_arm).collect(),
            record: Record {
                shard: Shard::default(),
                ..record
            },
            stores,
        })
    }

    /// Where a picture lies, if it is there: shards may be merged without their pictures.
    pub fn picture(&self, folder: &str, index: usize) -> Option<PathBuf> {
        let mut paths = self.stores.iter().map(|store| store.picture(folder, index));
        paths.find(|path| path.is_file())
    }

    /// The rows of an arm.
    pub fn of_arm<'a>(&'a self, arm: &'a Arm) -> impl Iterator<Item = &'a Row> {
        self.rows.iter().filter(|row| row.arm == arm.name)
    }

    /// A network's features of a set over all shards; none where none were taken.
    ///
    /// # Errors
    /// Those of the features' files.
    pub fn features(&self, network: Network, set: &str) -> Result<Option<SetFeatures>> {
        // Every shard has the same real pictures.
        let shards = if set == REAL { 1 } else { self.stores.len() };
        let paths = self.stores[..shards]
            .iter()
            .map(|store| store.features(network.name(), set));
        let sets = paths.filter(|path| path.is_file());
        features::merge(
            sets.map(|path| features::load(&path))
                .collect::<Result<Vec<_>>>()?,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::store::tests::{record, rows, write};
    use super::super::summary::Summary;
    use super::super::table::rows_csv;
    use super::*;

    fn shard(dir: &Path, index: usize, of: usize) {
        let shard = Shard { index, of };
        let range = shard.of_prompts(3);
        let own: Vec<Row> = rows()
            .into_iter()
            .filter(|row| range.contains(&row.index))
            .collect();
        write(dir, Record { shard, ..record() }, &own);
    }

    #[test]
    fn merged_shards_are_the_whole_run() {
        let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
        write(dirs[0].path(), record(), &rows());
        shard(dirs[1].path(), 0, 2);
        shard(dirs[2].path(), 1, 2);
        let whole = Results::of(Store::read(dirs[0].path()).unwrap());
        let paths = [&dirs[2], &dirs[1]].map(|dir| dir.path().to_owned());
        let merged = Results::merge(&paths).unwrap();
        assert_eq!(merged.rows, whole.rows);
        assert_eq!(rows_csv(&merged).unwrap(), rows_csv(&whole).unwrap());
        let summary = Summary::of(&merged).unwrap();
        assert_eq!(summary.arms[0].psnr, Some(31.0));
        assert_eq!(summary.arms[0].identical, 1);

        let only = Results::merge(&paths[1..]).err().unwrap().to_string();
        assert!(only.contains("1/2 is missing"), "{only}");
        let twice = [paths[1].clone(), paths[1].clone()];
        let twice = Results::merge(&twice).err().unwrap().to_string();
        assert!(twice.contains("0/2 is there twice"), "{twice}");
        let unlike = Results::merge(&[paths[1].clone(), dirs[0].path().to_owned()]);
        let unlike = unlike.err().unwrap().to_string();
        assert!(unlike.contains("shards"), "{unlike}");
    }

    #[test]
    fn an_unfinished_shard_is_not_merged() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), record(), &rows()[..4]);
        let error = Results::merge(&[dir.path().to_owned()]);
        let error = error.err().unwrap().to_string();
        assert!(error.contains("4 of 6 rows"), "{error}");
    }
}
