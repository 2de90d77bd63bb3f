//! A run's rows and means, as CSV, JSON and Markdown.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::features;
use super::paper::{self, COLUMNS};
use super::shard::Shard;
use super::store::{Arm, Outcome, REAL, Record, Row, Store};
use crate::error::{Error, Result};
use crate::metrics::frechet::frechet_distance;
use crate::metrics::inception::FEATURES;
use crate::metrics::kid::{KernelDistance, kernel_distance};
use crate::metrics::measure::{Mean, SetFeatures};

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

    /// A set's features over all shards; none where none were taken.
    fn features(&self, set: &str) -> Result<Option<SetFeatures>> {
        // Every shard has the same real pictures.
        let shards = if set == REAL { 1 } else { self.stores.len() };
        let paths = self.stores[..shards]
            .iter()
            .map(|store| store.features(set));
        let sets = paths.filter(|path| path.is_file());
        features::merge(
            sets.map(|path| features::load(&path))
                .collect::<Result<Vec<_>>>()?,
        )
    }
}

/// What was measured, in short.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// In the order in which they were given.
    pub arms: Vec<ArmSummary>,
    /// Pictures that are missing, and why.
    pub failed: Vec<Failed>,
}

/// Of one arm.
#[derive(Debug, Serialize)]
pub struct ArmSummary {
    /// [`Arm::name`].
    pub name: String,
    /// Pictures measured.
    pub pictures: usize,
    /// Of these, identical to the reference.
    pub identical: usize,
    /// Mean over those that are not, in dB.
    pub psnr: Option<f64>,
    /// Mean.
    pub ssim: Option<f64>,
    /// Mean.
    pub lpips: Option<f64>,
    /// Against the reference's pictures or the real ones.
    pub fid: Option<f64>,
    /// Likewise.
    pub kid: Option<KernelDistance>,
    /// Why there is no distance of sets, where there should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_distance: Option<String>,
}

/// A picture that is missing.
#[derive(Debug, Serialize)]
pub struct Failed {
    /// [`Arm::name`].
    pub arm: String,
    /// Which prompt.
    pub index: usize,
    /// Why.
    pub reason: String,
}

impl Summary {
    /// Of a run's results.
    ///
    /// # Errors
    /// Those of the features' files.
    pub fn of(results: &Results) -> Result<Self> {
        let arms = results.record.arms.iter();
        let failed = results.rows.iter().filter_map(|row| match &row.outcome {
            Outcome::Failed { failed } => Some(Failed {
                arm: row.arm.clone(),
                index: row.index,
                reason: failed.clone(),
            }),
            Outcome::Measured(_) => None,
        });
        Ok(Self {
            arms: arms
                .map(|arm| ArmSummary::of(results, arm))
                .collect::<Result<_>>()?,
            failed: failed.collect(),
        })
    }
}

impl ArmSummary {
    fn of(results: &Results, arm: &Arm) -> Result<Self> {
        let [mut psnr, mut ssim, mut lpips] = [Mean::default(); 3];
        let (mut pictures, mut identical) = (0, 0);
        for row in results.of_arm(arm) {
            if let Outcome::Measured(values) = &row.outcome {
                pictures += 1;
                identical += usize::from(values.identical);
                values.psnr.into_iter().for_each(|x| psnr.add(x));
                values.ssim.into_iter().for_each(|x| ssim.add(x));
                values.lpips.into_iter().for_each(|x| lpips.add(x));
            }
        }
        let mut summary = Self {
            name: arm.name.clone(),
            pictures,
            identical,
            psnr: psnr.get(),
            ssim: ssim.get(),
            lpips: lpips.get(),
            fid: None,
            kid: None,
            no_distance: None,
        };
        let reference = results.features(results.record.feature_reference(arm))?;
        if let (Some(own), Some(reference)) = (results.features(&arm.folder)?, reference) {
            let distances = summary.measure_sets(&results.record, &own, &reference);
            summary.no_distance = distances.err().map(|e| e.to_string());
        }
        Ok(summary)
    }

    fn measure_sets(
        &mut self,
        record: &Record,
        own: &SetFeatures,
        reference: &SetFeatures,
    ) -> Result<()> {
        if record.metrics.contains_key("fid") {
            self.fid = Some(frechet_distance(&own.statistics, &reference.statistics)?);
        }
        if let Some(subsets) = record.kid {
            self.kid = Some(kernel_distance(
                &own.kept,
                &reference.kept,
                FEATURES,
                subsets,
            )?);
        }
        Ok(())
    }

    /// The value of a metric, as in the table; a dash where there is none.
    fn cell(&self, metric: &str) -> String {
        let number = |value: Option<f64>, digits: usize| {
            value.map_or("-".into(), |value| format!("{value:.digits$}"))
        };
        match metric {
            "psnr" if self.pictures > 0 && self.identical == self.pictures => "identical".into(),
            "psnr" if self.identical > 0 => {
                format!("{} ({} identical)", number(self.psnr, 2), self.identical)
            }
            "psnr" => number(self.psnr, 2),
            "ssim" => number(self.ssim, 4),
            "lpips" => number(self.lpips, 4),
            "fid" => number(self.fid, 3),
            _ => self.kid.map_or("-".into(), |kid| {
                format!("{:.5} +- {:.5}", kid.mean, kid.std)
            }),
        }
    }
}

/// A table of texts.
pub struct Texts {
    /// Over the columns.
    pub header: Vec<String>,
    /// As long as the header, each.
    pub rows: Vec<Vec<String>>,
}

/// The metrics that have a column, in the paper's order.
const METRICS: [&str; 5] = ["psnr", "ssim", "lpips", "fid", "kid"];

impl Texts {
    /// The summary as a table, in an experiment beside the paper's.
    pub fn of(summary: &Summary, record: &Record) -> Self {
        let metrics = METRICS
            .iter()
            .filter(|metric| record.metrics.contains_key(**metric));
        let mut header = vec!["setting".to_owned(), "pictures".into()];
        header.extend(metrics.clone().map(|metric| metric.to_uppercase()));
        let own = summary.arms.iter().map(|arm| {
            let mut row = vec![arm.name.clone(), arm.pictures.to_string()];
            row.extend(metrics.clone().map(|metric| arm.cell(metric)));
            row
        });
        let mut rows: Vec<Vec<String>> = own.collect();
        if let Some(table) = record.experiment.as_deref().and_then(paper::table) {
            header.push("the paper's".into());
            header.extend(COLUMNS.map(String::from));
            let columns = header.len();
            for (row, arm) in rows.iter_mut().zip(&record.arms) {
                let label = arm.paper.as_deref();
                let printed = table.rows.iter().find(|row| Some(row.label) == label);
                row.extend(printed.into_iter().flat_map(|printed| printed.texts()));
                row.resize(columns, String::new());
            }
            let known = |label: &str| {
                record
                    .arms
                    .iter()
                    .any(|a| a.paper.as_deref() == Some(label))
            };
            for printed in table.rows.iter().filter(|row| !known(row.label)) {
                let mut row = vec![String::new(); columns - 1 - COLUMNS.len()];
                row.extend(printed.texts());
                rows.push(row);
            }
        }
        Self { header, rows }
    }

    /// In Markdown.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule = format!("|{}\n", "---|".repeat(self.header.len()));
        let rows = self.rows.iter().map(|row| line(row));
        line(&self.header) + &rule + &rows.collect::<String>()
    }
}

impl paper::Printed {
    fn texts(&self) -> impl Iterator<Item = String> {
        let cells = std::iter::once(self.label).chain(self.values);
        cells.map(String::from)
    }
}

/// The rows as CSV, with `inf` as the PSNR of identical pictures.
///
/// # Errors
/// [`Error::Request`]: none can happen in memory.
pub fn rows_csv(results: &Results) -> Result<Vec<u8>> {
    let failed = |e: &dyn std::fmt::Display| Error::Request(format!("no CSV: {e}"));
    let mut writer = csv::Writer::from_writer(Vec::new());
    let header = [
        "setting",
        "index",
        "seed",
        "prompt",
        "identical",
        "psnr",
        "ssim",
        "lpips",
        "failed",
    ];
    writer.write_record(header).map_err(|e| failed(&e))?;
    let wanted = results.record.metrics.contains_key("psnr");
    let text = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
    for row in &results.rows {
        let measured = match &row.outcome {
            Outcome::Measured(v) => [
                v.identical.to_string(),
                text(v.psnr.or((v.identical && wanted).then_some(f64::INFINITY))),
                text(v.ssim),
                text(v.lpips),
                String::new(),
            ],
            Outcome::Failed { failed } => {
                let [a, b, c, d] = [const { String::new() }; 4];
                [a, b, c, d, failed.clone()]
            }
        };
        let (index, seed) = (row.index.to_string(), row.seed.to_string());
        let whose = [row.arm.clone(), index, seed, row.prompt.clone()];
        let record = whose.iter().chain(&measured);
        writer.write_record(record).map_err(|e| failed(&e))?;
    }
    writer.into_inner().map_err(|e| failed(&e))
}

#[cfg(test)]
mod tests {
    use super::super::store::tests::{record, row};
    use super::*;

    fn store(dir: &Path, record: Record, rows: &[Row]) {
        let store = Store::resume(dir, record).unwrap();
        let mut log = store.log().unwrap();
        rows.iter().for_each(|row| log.append(row).unwrap());
    }

    fn rows() -> Vec<Row> {
        let of = |arm: &'static str| {
            move |index| row(arm, index, (index != 1).then_some(30.0 + index as f64))
        };
        let [a, b] = ["ppidm", "resident:wire=f16"].map(|arm| (0..3).map(of(arm)));
        a.chain(b).collect()
    }

    fn shard(dir: &Path, index: usize, of: usize) {
        let shard = Shard { index, of };
        let range = shard.of_prompts(3);
        let own: Vec<Row> = rows()
            .into_iter()
            .filter(|row| range.contains(&row.index))
            .collect();
        store(dir, Record { shard, ..record() }, &own);
    }

    #[test]
    fn merged_shards_are_the_whole_run() {
        let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
        store(dirs[0].path(), record(), &rows());
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
        store(dir.path(), record(), &rows()[..4]);
        let error = Results::merge(&[dir.path().to_owned()]);
        let error = error.err().unwrap().to_string();
        assert!(error.contains("4 of 6 rows"), "{error}");
    }

    #[test]
    fn an_experiment_stands_beside_the_papers_table() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = record();
        record.experiment = Some("table-6".into());
        record.metrics.insert("psnr".into(), String::new());
        record.arms[0].paper = Some("40".into());
        store(dir.path(), record, &rows());
        let results = Results::of(Store::read(dir.path()).unwrap());
        let summary = Summary::of(&results).unwrap();
        let table = Texts::of(&summary, &results.record).markdown();
        let first = "| ppidm | 3 | 31.00 (1 identical) | 40 | 37.04 | 0.969 | 0.017 | 4.46 |";
        assert!(table.contains(first), "{table}");
        assert!(table.contains("|  |  |  | 70 | 36.48 |"), "{table}");
    }
}
