//! The folder of a store: what lies where in it, and how it comes and goes.
//!
//! `models/DIGEST` are whole, `uploads/DIGEST` are not, and `gone` is on its way out: what is moved there at once is not half
//! of a model, wherever the worker ends.

use std::fs::{DirBuilder, File, FileTimes, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use lacuna_protocol::models::{
    ADAPTED, Adapted, Announcement, CONFIG, MOST_JSON, ORIGINAL, is_digest,
};
use uuid::Uuid;

use crate::error::{Error, Result};

/// What was announced, beside the files of an upload; no file of a model has the name.
const ANNOUNCED: &str = "announced";
/// Most bytes of that.
const MOST: u64 = 256 << 10;

/// A model as it lies there.
pub(super) struct Found {
    pub(super) digest: String,
    pub(super) bytes: u64,
    /// When it was last used.
    pub(super) used: SystemTime,
    /// The digest of the one that it is with adapters.
    pub(super) adapts: Option<String>,
}

/// A store's folder.
pub(super) struct Disk {
    dir: PathBuf,
}

/// `error` as one about `path`.
pub(super) fn failed(path: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    |error| Error::Disk(format!("{}: {error}", path.display()))
}

impl Disk {
    /// The folder `dir`, and what keeps others out of it.
    pub(super) fn open(dir: &Path) -> Result<(Self, File)> {
        let disk = Self {
            dir: dir.to_owned(),
        };
        for name in ["models", "uploads", "gone"] {
            make_folder(&dir.join(name))?;
        }
        let path = dir.join("lock");
        let lock = create(&path)?;
        lock.try_lock().map_err(|_| {
            Error::Disk(format!(
                "{}: another worker keeps models there",
                dir.display()
            ))
        })?;
        disk.empty("gone")?;
        Ok((disk, lock))
    }

    /// Where the model of `digest` lies.
    pub(super) fn model(&self, digest: &str) -> PathBuf {
        self.dir.join("models").join(digest)
    }

    /// Where its upload does.
    pub(super) fn upload(&self, digest: &str) -> PathBuf {
        self.dir.join("uploads").join(digest)
    }

    /// The models.
    pub(super) fn models(&self) -> Result<Vec<Found>> {
        let mut models = Vec::new();
        for digest in self.digests("models")? {
            let dir = self.model(&digest);
            let used = std::fs::metadata(told_by(&dir)).and_then(|config| config.modified());
            match (used, read_adapted(&dir)) {
                (Ok(used), Ok(adapted)) => {
                    models.push(Found {
                        digest,
                        bytes: bytes_in(&dir)?,
                        used,
                        adapts: adapted.map(|adapted| adapted.model),
                    });
                }
                _ => tracing::warn!("{}: not a model; left alone", dir.display()),
            }
        }
        Ok(models)
    }

    /// Digests of the uploads.
    pub(super) fn uploads(&self) -> Result<Vec<String>> {
        self.digests("uploads")
    }

    /// Makes a model of an upload that is whole.
    pub(super) fn keep(&self, digest: &str) -> Result<()> {
        let (from, to) = (self.upload(digest), self.model(digest));
        // What lies there is no model, or it would not have come again.
        self.discard(&to)?;
        std::fs::rename(&from, &to).map_err(failed(&to))?;
        let announced = to.join(ANNOUNCED);
        if let Err(error) = std::fs::remove_file(&announced) {
            tracing::warn!("{}: {error}", announced.display());
        }
        sync(&self.dir.join("models"))
    }

    /// Removes a model.
    pub(super) fn drop_model(&self, digest: &str) -> Result<()> {
        self.discard(&self.model(digest))
    }

    /// Removes an upload, if there is one.
    pub(super) fn drop_upload(&self, digest: &str) -> Result<()> {
        self.discard(&self.upload(digest))
    }

    fn discard(&self, dir: &Path) -> Result<()> {
        let name = Uuid::new_v4().simple().to_string();
        let gone = self.dir.join("gone").join(name);
        match std::fs::rename(dir, &gone) {
            Ok(()) => std::fs::remove_dir_all(&gone).map_err(failed(&gone)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed(dir)(error)),
        }
    }

    fn empty(&self, folder: &str) -> Result<()> {
        let dir = self.dir.join(folder);
        for entry in std::fs::read_dir(&dir).map_err(failed(&dir))? {
            let path = entry.map_err(failed(&dir))?.path();
            std::fs::remove_dir_all(&path).map_err(failed(&path))?;
        }
        Ok(())
    }

    fn digests(&self, folder: &str) -> Result<Vec<String>> {
        let dir = self.dir.join(folder);
        let mut digests = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(failed(&dir))? {
            let name = entry.map_err(failed(&dir))?.file_name();
            match name.to_str().filter(|name| is_digest(name)) {
                Some(digest) => digests.push(digest.to_owned()),
                None => tracing::warn!("{}: {name:?} is no digest; left alone", dir.display()),
            }
        }
        Ok(digests)
    }
}

/// Makes a folder that nobody else may look into, with those above it.
pub(super) fn make_folder(dir: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(failed(dir))
}

/// A file that nobody else may read, to be written on at its end; made where there is none.
pub(super) fn create(path: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path);
    file.map_err(failed(path))
}

/// Has what was written to a file or folder outlast the machine's power.
pub(super) fn sync(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.map_err(failed(path))
}

/// Writes down what was announced of the upload in `dir`.
pub(super) fn write_announced(dir: &Path, announced: &Announcement) -> Result<()> {
    let path = dir.join(ANNOUNCED);
    let text = serde_json::to_vec(announced).map_err(|e| Error::Disk(e.to_string()))?;
    let temporary = dir.join(format!("{ANNOUNCED}.new"));
    let mut file = create(&temporary)?;
    file.write_all(&text).map_err(failed(&temporary))?;
    std::fs::rename(&temporary, &path).map_err(failed(&path))
}

/// The file that says what the model in `dir` is.
fn told_by(dir: &Path) -> PathBuf {
    let others = [ADAPTED, ORIGINAL].map(|name| dir.join(name));
    let found = others.into_iter().find(|path| path.is_file());
    found.unwrap_or_else(|| dir.join(CONFIG))
}

/// Of which model, and by which adapters, the one in `dir` is made; none where it is whole.
///
/// # Errors
/// [`Error::Invalid`], [`Error::Disk`].
pub(crate) fn read_adapted(dir: &Path) -> Result<Option<Adapted>> {
    let path = dir.join(ADAPTED);
    let file = match File::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed(&path))?,
    };
    let mut text = Vec::new();
    file.take(MOST_JSON)
        .read_to_end(&mut text)
        .map_err(failed(&path))?;
    let adapted: Adapted = serde_json::from_slice(&text)
        .map_err(|error| Error::Invalid(format!("{ADAPTED}: {error}")))?;
    adapted.check()?;
    Ok(Some(adapted))
}

/// What was announced of the upload in `dir`.
pub(super) fn read_announced(dir: &Path) -> Result<Announcement> {
    let path = dir.join(ANNOUNCED);
    let mut text = Vec::new();
    let file = File::open(&path).map_err(failed(&path))?;
    file.take(MOST)
        .read_to_end(&mut text)
        .map_err(failed(&path))?;
    let announced: Announcement = serde_json::from_slice(&text)
        .map_err(|error| Error::Disk(format!("{}: {error}", path.display())))?;
    announced.check()?;
    Ok(announced)
}

/// Notes that a model was used. Where that cannot be noted, it counts as older after a restart.
pub(super) fn touch(dir: &Path, now: SystemTime) {
    let path = told_by(dir);
    let times = FileTimes::new().set_modified(now);
    if let Err(error) = File::open(&path).and_then(|file| file.set_times(times)) {
        tracing::debug!("{}: {error}", path.display());
    }
}

fn bytes_in(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir).map_err(failed(dir))? {
        let entry = entry.map_err(failed(dir))?;
        bytes += entry.metadata().map_err(failed(dir))?.len();
    }
    Ok(bytes)
}
