//! A run's directory. It can be killed at any moment: pictures are written whole, rows are appended, and
//! everything else is made of these.
//!
//! ```text
//! run.json          what the run is
//! run.lock          held by the process that makes the run
//! rows.jsonl        a row for each picture, as they come
//! pictures/ARM/     INDEX-SEED.png
//! features/NETWORK/ of each set of pictures, for FID, KID and their like
//! ```

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::record::{GIVEN, Outcome, Record, Row};
use crate::error::{Error, Result};
use lacuna_orchestrator::output::{UNFINISHED, make_directory, write_whole};

/// A run's directory.
pub struct Store {
    dir: PathBuf,
    /// Held by the process that makes the run.
    lock: Option<File>,
    /// What the run is.
    pub record: Record,
    /// By arm and prompt.
    rows: HashMap<(String, usize), Row>,
}

impl Store {
    /// Goes on with the run in `dir`, or begins it there. Rows that say why a picture is missing, and a row
    /// that was cut off, are dropped: they will be tried again.
    ///
    /// # Errors
    /// [`Error::Request`] when the directory holds another run, naming what differs, or other files; as
    /// [`Self::read`] and [`write_whole`].
    pub fn resume(dir: &Path, record: Record) -> Result<Self> {
        let refuse = |reason: String| {
            let reason = format!("--out {}: {reason}; give another", dir.display());
            Err(Error::Request(reason))
        };
        make_directory(dir)?;
        if !dir.join("run.json").exists() {
            let mut entries = std::fs::read_dir(dir).map_err(|e| Error::output(dir, e))?;
            // A first write that was killed leaves an unfinished file.
            let other = entries.find_map(|entry| {
                let name = entry.ok()?.file_name().to_string_lossy().into_owned();
                (!name.starts_with(UNFINISHED)).then_some(name)
            });
            if let Some(name) = other {
                return refuse(format!("there are other files in it ({name})"));
            }
            write_whole(
                &dir.join("run.json"),
                &serde_json::to_vec_pretty(&record).map_err(json)?,
            )?;
        }
        let path = dir.join("run.lock");
        // Not emptied: it is never written, and a link may lead to something that is.
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path);
        let lock = lock.map_err(|e| Error::output(&path, e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return refuse("another process is making the run in it".into());
            }
            Err(TryLockError::Error(e)) => return Err(Error::output(&path, e)),
        }
        let mut store = Self::read(dir)?;
        store.lock = Some(lock);
        if let Some(difference) = record.difference(&store.record) {
            return refuse(format!("it holds a run of other settings ({difference})"));
        }
        if store.record.shard != record.shard {
            let (there, here) = (store.record.shard, record.shard);
            return refuse(format!("it holds the shard {there}, not {here}"));
        }
        store
            .rows
            .retain(|_, row| matches!(row.outcome, Outcome::Measured(_)));
        // As they were written: to read and write a number again may change its last digit.
        let mut kept = Vec::new();
        store.each_line(|line, row| {
            if matches!(row.outcome, Outcome::Measured(_)) {
                kept.extend_from_slice(line);
                kept.push(b'\n');
            }
        })?;
        write_whole(&store.log_path(), &kept)?;
        Ok(store)
    }

    /// Reads the run in `dir`.
    ///
    /// # Errors
    /// [`Error::Input`] when there is none, or a file of it is damaged.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("run.json");
        let bytes = std::fs::read(&path).map_err(|e| input_error(&path, e))?;
        let record = serde_json::from_slice(&bytes).map_err(|e| input_error(&path, e))?;
        let mut store = Self {
            dir: dir.to_owned(),
            lock: None,
            record,
            rows: HashMap::new(),
        };
        let mut rows = HashMap::new();
        store.each_line(|_, row| {
            rows.insert((row.arm.clone(), row.index), row);
        })?;
        store.rows = rows;
        Ok(store)
    }

    /// Hands the lines of the growing file to `take`, each with what it says.
    fn each_line(&self, mut take: impl FnMut(&[u8], Row)) -> Result<()> {
        let path = self.log_path();
        let log = match std::fs::read(&path) {
            Ok(log) => log,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(input_error(&path, e)),
        };
        // What follows the last line end was cut off.
        let whole = log.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
        for (i, line) in log[..whole].split(|byte| *byte == b'\n').enumerate() {
            if line.is_empty() {
                continue;
            }
            let row: Row = serde_json::from_slice(line)
                .map_err(|e| input_error(&path, format!("line {}: {e}", i + 1)))?;
            take(line, row);
        }
        Ok(())
    }

    /// Where a picture lies.
    pub fn picture(&self, folder: &str, index: usize) -> PathBuf {
        let name = picture_name(index, self.record.seed_of(index));
        match &self.record.reference {
            Some(dir) if folder == GIVEN => Path::new(dir).join(name),
            _ => self.dir.join("pictures").join(folder).join(name),
        }
    }

    /// Where a network's features of a set lie.
    pub fn features(&self, network: &str, set: &str) -> PathBuf {
        let name = format!("{set}.safetensors");
        self.dir.join("features").join(network).join(name)
    }

    /// A set whose features are wanted and not there.
    pub fn missing_features(&self) -> Option<PathBuf> {
        let networks = self.record.networks();
        let sets = self.record.feature_sets();
        let files = networks
            .flat_map(|network| sets.iter().map(move |set| (network, set)))
            .map(|(network, set)| self.features(network.name(), set));
        files.into_iter().find(|file| !file.is_file())
    }

    /// Whether there is a row of this picture.
    pub fn has(&self, arm: &str, index: usize) -> bool {
        self.rows.contains_key(&(arm.to_owned(), index))
    }

    /// All rows, arm by arm and in the order of the prompts.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        let prompts = self.record.shard.of_prompts(self.record.prompts);
        let arms = self.record.arms.iter();
        let keys = arms.flat_map(move |arm| prompts.clone().map(move |i| (arm.name.clone(), i)));
        keys.filter_map(|key| self.rows.get(&key))
    }

    /// A writer of further rows.
    ///
    /// # Errors
    /// [`lacuna_orchestrator::Error::Output`].
    pub fn log(&self) -> Result<Log> {
        let path = self.log_path();
        let file = OpenOptions::new().append(true).create(true).open(&path);
        let file = file.map_err(|e| Error::output(&path, e))?;
        Ok(Log { path, file })
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("rows.jsonl")
    }
}

/// The growing file of rows.
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Appends a row.
    ///
    /// # Errors
    /// [`lacuna_orchestrator::Error::Output`].
    pub fn append(&mut self, row: &Row) -> Result<()> {
        let mut line = serde_json::to_vec(row).map_err(json)?;
        line.push(b'\n');
        let written = self.file.write_all(&line);
        written.map_err(|e| Error::output(&self.path, e))
    }
}

/// The file name of a picture.
pub fn picture_name(index: usize, seed: u64) -> String {
    format!("{index:05}-{seed}.png")
}

fn json(e: serde_json::Error) -> Error {
    Error::Request(format!("a result is no JSON: {e}"))
}

fn input_error(path: &Path, reason: impl ToString) -> Error {
    Error::Input {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::super::record::{Arm, Values};
    use super::super::shard::Shard;
    use super::*;
    use lacuna_orchestrator::text::PromptOptions;

    /// A run of three prompts under two arms.
    pub(crate) fn record() -> Record {
        let arm = |name: &str| Arm {
            name: name.into(),
            folder: name.replace(':', "-"),
            reference: "local".into(),
            workers: Some(2),
            paper: None,
        };
        Record {
            experiment: None,
            model: "abc".into(),
            added: Vec::new(),
            model_name: "demo".into(),
            prompts: 3,
            prompts_digest: "def".into(),
            seed: 40,
            steps: 2,
            guidance: 2.0,
            options: PromptOptions::default(),
            scheduler: None,
            size: [16, 16],
            arms: vec![arm("ppidm"), arm("resident:wire=f16")],
            reference: None,
            given: None,
            fid_reference: None,
            metrics: BTreeMap::new(),
            lpips_net: None,
            fid_resize: None,
            kid: None,
            shard: Shard::default(),
        }
    }

    /// A row that was measured.
    pub(crate) fn row(arm: &str, index: usize, psnr: Option<f64>) -> Row {
        Row {
            arm: arm.into(),
            index,
            seed: 40 + index as u64,
            prompt: format!("prompt {index}"),
            outcome: Outcome::Measured(Values {
                identical: psnr.is_none(),
                psnr,
                ssim: Some(0.9),
                ..Values::default()
            }),
        }
    }

    /// A directory with a run of these rows.
    pub(crate) fn write(dir: &Path, record: Record, rows: &[Row]) {
        let store = Store::resume(dir, record).unwrap();
        let mut log = store.log().unwrap();
        rows.iter().for_each(|row| log.append(row).unwrap());
    }

    /// Three rows of each arm; the second picture is the reference's.
    pub(crate) fn rows() -> Vec<Row> {
        let of = |arm: &'static str| {
            move |index| row(arm, index, (index != 1).then_some(30.0 + index as f64))
        };
        let [a, b] = ["ppidm", "resident:wire=f16"].map(|arm| (0..3).map(of(arm)));
        a.chain(b).collect()
    }

    #[test]
    fn a_run_goes_on_after_its_last_whole_row() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::resume(dir.path(), record()).unwrap();
        let mut log = store.log().unwrap();
        log.append(&row("resident:wire=f16", 1, Some(1.0 / 3.0)))
            .unwrap();
        log.append(&row("ppidm", 2, None)).unwrap();
        let mut failed = row("ppidm", 0, None);
        failed.outcome = Outcome::Failed {
            failed: "no UTF-8".into(),
        };
        log.append(&failed).unwrap();
        log.file.write_all(b"{\"arm\": \"ppidm\", \"ind").unwrap();
        assert_eq!(Store::read(dir.path()).unwrap().rows().count(), 3);

        drop(store);
        let store = Store::resume(dir.path(), record()).unwrap();
        let rows: Vec<&Row> = store.rows().collect();
        assert_eq!(*rows[0], row("ppidm", 2, None));
        assert_eq!(*rows[1], row("resident:wire=f16", 1, Some(1.0 / 3.0)));
        assert_eq!(rows.len(), 2, "the failure is tried again");
        store.log().unwrap().append(&row("ppidm", 1, None)).unwrap();
        assert_eq!(Store::read(dir.path()).unwrap().rows().count(), 3);
    }

    #[test]
    fn a_run_has_one_maker_and_keeps_its_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::resume(dir.path(), record()).unwrap();
        let error = Store::resume(dir.path(), record()).err().unwrap();
        assert!(error.to_string().contains("another process"), "{error}");
        let mut log = store.log().unwrap();
        // Numbers of 17 digits, of which a careless reader loses some.
        let psnr = |i: usize| Some((i as f64 + 0.1).sqrt() * 31.7);
        for i in 0..3 {
            log.append(&row("ppidm", i, psnr(i))).unwrap();
        }
        drop(store);
        let before = std::fs::read(dir.path().join("rows.jsonl")).unwrap();
        for _ in 0..3 {
            Store::resume(dir.path(), record()).unwrap();
        }
        let after = std::fs::read(dir.path().join("rows.jsonl")).unwrap();
        assert_eq!(after, before);
    }

    #[test]
    fn another_runs_directory_is_refused_with_what_differs() {
        let dir = tempfile::tempdir().unwrap();
        Store::resume(dir.path(), record()).unwrap();
        let mut other = record();
        other.steps = 7;
        let error = Store::resume(dir.path(), other).err().unwrap().to_string();
        assert!(error.contains("steps: 2 there, 7 here"), "{error}");
        let mut other = record();
        other.shard = Shard { index: 1, of: 2 };
        let error = Store::resume(dir.path(), other).err().unwrap().to_string();
        assert!(error.contains("0/1, not 1/2"), "{error}");

        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.tex"), "").unwrap();
        let error = Store::resume(dir.path(), record())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("thesis.tex"), "{error}");
    }

    #[test]
    fn a_damaged_row_is_named() {
        let dir = tempfile::tempdir().unwrap();
        Store::resume(dir.path(), record()).unwrap();
        std::fs::write(dir.path().join("rows.jsonl"), "{}\n{}\n").unwrap();
        let error = Store::read(dir.path()).err().unwrap().to_string();
        assert!(
            error.contains("rows.jsonl") && error.contains("line 1"),
            "{error}"
        );
    }
}
