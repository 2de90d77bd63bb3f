//! Models that workers are sent and keep: pushing, listing and removing them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use lacuna_model::unet::original;
use lacuna_model::weights::{Checkpoint, Extract, Library, Stored as Network, WeightFiles};
use lacuna_protocol::models::{
    Announcement, CONFIG, FileSize, ORIGINAL, Received, Stored, Upload, is_digest, is_file_name,
};
use lacuna_protocol::session::DIGEST;
use reqwest::{Method, RequestBuilder};
use tokio::task::spawn_blocking;

use super::config::{FleetConfig, WorkerConfig};
use super::line::{Line, MARGIN};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::ModelFiles;

/// Bytes that are sent at a time, where the worker takes so many: what a break of the connection may cost.
const PIECE: usize = 8 << 20;
/// How long a worker may take to look at a model that came, and how often it is asked meanwhile.
const LOOKING: Duration = Duration::from_secs(1800);
const PAUSE: Duration = Duration::from_secs(1);
/// Most bytes of what a worker says of its store.
const LIST: usize = 256 << 10;

/// A model's U-Net, ready to be sent.
#[derive(Clone, Debug)]
pub struct Package {
    /// What tells it from others.
    pub digest: String,
    /// Its files: by what name they go, and what is in them.
    files: Vec<(FileSize, Content)>,
}

/// What is in a file that is sent.
#[derive(Clone, Debug)]
enum Content {
    /// What is in the one that lies there.
    File(PathBuf),
    /// A part of another file.
    Part(Extract),
    /// What was made here.
    Bytes(Bytes),
}

impl Content {
    /// At most `most` bytes from `offset` on; not none.
    async fn read(&self, offset: u64, most: usize) -> Result<Bytes> {
        match self {
            Self::File(path) => {
                let path = path.clone();
                reading(move || read(&path, offset, most)).await
            }
            Self::Part(part) => {
                let part = part.clone();
                reading(move || Ok(part.read(offset, most)?)).await
            }
            Self::Bytes(bytes) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                let from = from.min(bytes.len());
                Ok(bytes.slice(from..bytes.len().min(from.saturating_add(most))))
            }
        }
    }
}

/// What became of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// The worker had it.
    Held,
    /// So many bytes were sent.
    Sent(u64),
}

impl Package {
    /// The U-Net of a model, without adapters: of the `files` of a directory those of its variant, which lose that name on the way;
    /// of a model in one file those of its tensors. All of it is read for the digest.
    ///
    /// # Errors
    /// A [`lacuna_model::Error`] naming the file; [`Error::Request`] for a name that workers do not take.
    pub fn open(files: &ModelFiles) -> Result<Self> {
        let contents = match files.model.is_file() {
            true => Self::of_one_file(files)?,
            false => Self::of_folder(&files.model.join("unet"), files.variant.as_deref())?,
        };
        let (config, checkpoint) = files.open_unet()?;
        let digest = Network::new(config.build(), checkpoint)?
            .digest()?
            .to_owned();
        let sized = contents.into_iter().map(|(name, content)| {
            let bytes = match &content {
                Content::File(path) => std::fs::metadata(path).map_err(|e| unread(path, &e))?.len(),
                Content::Part(part) => part.bytes(),
                Content::Bytes(bytes) => bytes.len() as u64,
            };
            Ok((FileSize { name, bytes }, content))
        });
        Ok(Self {
            digest,
            files: sized.collect::<Result<_>>()?,
        })
    }

    /// Of a model in one file its U-Net's tensors, as they are: neither text encoder nor autoencoder leaves.
    fn of_one_file(files: &ModelFiles) -> Result<Vec<(String, Content)>> {
        let unet = |name: &str| name.starts_with(original::PREFIX);
        let part = Content::Part(Extract::of(&files.model, unet)?);
        let config = files.unet_config();
        let config = config.map(|path| (CONFIG.to_owned(), Content::File(path)));
        let part = (ORIGINAL.to_owned(), part);
        Ok(config.into_iter().chain([part]).collect())
    }

    fn of_folder(folder: &Path, variant: Option<&str>) -> Result<Vec<(String, Content)>> {
        if let Some(variant) = variant.filter(|v| !Checkpoint::has_variant(folder, v)) {
            return Err(Error::Request(format!(
                "--variant {variant}: there are no such files in {}; leave it out",
                folder.display()
            )));
        }
        let located = WeightFiles::locate(folder, Library::Diffusers, variant)?;
        let stem = Library::Diffusers.stem();
        let mut files = vec![(CONFIG.to_owned(), folder.join(CONFIG))];
        match (located.index, located.weights) {
            (None, weights) => {
                let whole = weights.into_iter();
                files.extend(whole.map(|path| (format!("{stem}.safetensors"), path)));
            }
            // Shards are looked for by the names that the index has for them.
            (Some(index), weights) => {
                files.push((format!("{stem}.safetensors.index.json"), index));
                files.extend(weights.into_iter().filter_map(|path| {
                    let name = path.file_name()?.to_str()?.to_owned();
                    Some((name, path))
                }));
            }
        }
        let files = files.into_iter().map(|(name, path)| {
            if !is_file_name(&name) {
                let reason = format!("{}: workers take no file of this name", path.display());
                return Err(Error::Request(reason));
            }
            Ok((name, Content::File(path)))
        });
        files.collect()
    }

    /// What was made here, as files of a model of `digest`.
    pub(super) fn of_bytes(digest: String, files: Vec<(String, Vec<u8>)>) -> Self {
        let files = files.into_iter().map(|(name, content)| {
            let bytes = content.len() as u64;
            (FileSize { name, bytes }, Content::Bytes(content.into()))
        });
        Self {
            digest,
            files: files.collect(),
        }
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|(file, _)| file.bytes).sum()
    }

    /// Sends it to `worker`, from where an earlier push ended; `progress` hears how many bytes more are there.
    ///
    /// # Errors
    /// Those of [`Line::send_for`], [`Error::WorkerStore`]; [`Error::Input`] where a file cannot be read.
    pub async fn push(&self, worker: &WorkerConfig, progress: impl Fn(u64)) -> Result<Pushed> {
        let line = Line::new(worker)?;
        let (sent, told, start) = (AtomicU64::new(0), AtomicU64::new(0), Instant::now());
        // What is there is said once, however often it begins.
        let reach = |there: u64| {
            let before = told.fetch_max(there, Ordering::Relaxed);
            progress(there.saturating_sub(before));
        };
        loop {
            match self.send(&line, &sent, &reach).await {
                // Somebody else sent all of it meanwhile, or it made room for others: then it begins anew.
                Err(error)
                    if ["checking", "upload"]
                        .iter()
                        .any(|code| error.is_of_code(code))
                        && start.elapsed() < LOOKING =>
                {
                    interrupt::pause(PAUSE).await?;
                }
                other => return other,
            }
        }
    }

    /// The same, once; `sent` counts the bytes, and `reach` hears how many are there.
    async fn send(&self, line: &Line, sent: &AtomicU64, reach: &impl Fn(u64)) -> Result<Pushed> {
        let files = self.files.iter().map(|(file, _)| file.clone());
        let announced = Announcement {
            files: files.collect(),
        };
        let path = ["v1", "models", &self.digest];
        let begin = || line.request(Method::POST, &path).json(&announced);
        let upload: Upload = line.json(&asked(line, begin, MARGIN).await?)?;
        if upload.held {
            reach(self.bytes());
            return Ok(match sent.load(Ordering::Relaxed) {
                0 => Pushed::Held,
                bytes => Pushed::Sent(bytes),
            });
        }
        if upload.piece == 0 {
            return Err(line.nonsense("it takes pieces of no bytes"));
        }
        let piece = upload.piece.min(PIECE);
        let mut before = 0;
        for (file, content) in &self.files {
            let there = upload.files.iter().find(|there| there.name == file.name);
            let mut there = there.map_or(0, |there| there.bytes).min(file.bytes);
            reach(before + there);
            while there < file.bytes {
                interrupt::check()?;
                let bytes = content.read(there, piece).await?;
                let len = bytes.len() as u64;
                let at = ["v1", "models", &self.digest, &file.name, &there.to_string()];
                // What was changed on the way is found now, and sent again, not when all of it is there.
                let digest = blake3::hash(&bytes).to_hex();
                let append = || {
                    let request = line.request(Method::POST, &at);
                    request.header(DIGEST, digest.as_str()).body(bytes.clone())
                };
                let received: Received = line.json(&asked(line, append, MARGIN).await?)?;
                // It says what it has, also of what another one sent: more than before, and no more than there is.
                if received.bytes <= there || received.bytes > file.bytes {
                    let reason = format!("{} bytes of {} are there", received.bytes, file.name);
                    return Err(line.nonsense(&reason));
                }
                reach(before + received.bytes);
                sent.fetch_add(len.min(received.bytes - there), Ordering::Relaxed);
                there = received.bytes;
            }
            before += file.bytes;
        }
        self.finish(line).await?;
        Ok(Pushed::Sent(sent.load(Ordering::Relaxed)))
    }

    /// Has the worker look at what came, and waits for what it finds.
    async fn finish(&self, line: &Line) -> Result<()> {
        let path = ["v1", "models", &self.digest, "finish"];
        let finish = || line.request(Method::POST, &path).body(Vec::new());
        let start = Instant::now();
        loop {
            match asked(line, finish, MARGIN).await {
                Err(error) if error.is_of_code("checking") && start.elapsed() < LOOKING => {
                    interrupt::pause(PAUSE).await?;
                }
                other => return other.map(drop),
            }
        }
    }
}

/// What `worker` keeps, fit to be shown.
///
/// # Errors
/// Those of [`Line::send_for`], [`Error::WorkerStore`].
pub async fn list(worker: &WorkerConfig) -> Result<Stored> {
    let line = Line::new(worker)?;
    let request = || line.request(Method::GET, &["v1", "models"]);
    let stored: Stored = line.json(&asked(&line, request, LIST).await?)?;
    let kept = stored.models.iter().map(|kept| &kept.digest);
    if !kept
        .chain(&stored.unfinished)
        .all(|digest| is_digest(digest))
    {
        return Err(line.nonsense("what it keeps has no digest"));
    }
    Ok(stored)
}

/// Removes the model of `digest` from `worker`.
///
/// # Errors
/// Those of [`Line::send_for`], [`Error::WorkerStore`].
pub async fn remove(worker: &WorkerConfig, digest: &str) -> Result<()> {
    let line = Line::new(worker)?;
    let request = || line.request(Method::DELETE, &["v1", "models", digest]);
    match asked(&line, request, MARGIN).await {
        // Whoever asks twice hears the second time that it is gone.
        Err(error) if error.is_of_code("model") => Ok(()),
        other => other.map(drop),
    }
}

/// What each worker of the fleet, spares included, keeps, in the order of the file.
pub async fn list_all(fleet: &FleetConfig) -> Vec<Result<Stored>> {
    join_all(fleet.everybody().map(list)).await
}

/// The one digest that begins with `beginning` among those that workers keep, or have a part of.
///
/// # Errors
/// [`Error::WhichModel`] where there is none, or more than one.
pub fn meant<'a>(beginning: &str, stored: impl IntoIterator<Item = &'a Stored>) -> Result<&'a str> {
    let all = stored.into_iter().flat_map(|stored| {
        let kept = stored.models.iter().map(|kept| kept.digest.as_str());
        kept.chain(stored.unfinished.iter().map(String::as_str))
    });
    let found = all.filter(|digest| !beginning.is_empty() && digest.starts_with(beginning));
    let found: BTreeSet<&str> = found.collect();
    match found.first() {
        Some(only) if found.len() == 1 => Ok(only),
        _ => Err(Error::WhichModel {
            beginning: beginning.to_owned(),
            found: found.into_iter().map(str::to_owned).collect(),
        }),
    }
}

/// Sends a request of the store; one that comes twice does no more than once.
async fn asked(line: &Line, request: impl Fn() -> RequestBuilder, limit: usize) -> Result<Vec<u8>> {
    line.again(request, limit)
        .await
        .map_err(|error| match error {
            // Who knows no such path has no word for it.
            Error::WorkerRefused {
                worker,
                status: 404 | 405,
                code,
                ..
            } if code.is_empty() => Error::WorkerStore { worker },
            other => other,
        })
}

/// What `read` reads, which may take a while.
async fn reading(read: impl FnOnce() -> Result<Vec<u8>> + Send + 'static) -> Result<Bytes> {
    let bytes = spawn_blocking(read).await;
    let bytes = bytes.map_err(|error| Error::Request(format!("reading a file: {error}")))?;
    bytes.map(Bytes::from)
}

/// At most `most` bytes of a file, from `offset` on; not none.
fn read(path: &Path, offset: u64, most: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(most);
    let mut part = || {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        file.take(most as u64).read_to_end(&mut bytes)
    };
    match part() {
        Ok(1..) => Ok(bytes),
        Ok(0) => Err(unread(path, &"it has become shorter")),
        Err(error) => Err(unread(path, &error)),
    }
}

fn unread(path: &Path, reason: &dyn std::fmt::Display) -> Error {
    Error::Input {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use lacuna_protocol::models::Kept;

    use super::*;

    fn stored(digests: &[&str], unfinished: &[&str]) -> Stored {
        let kept = digests.iter().map(|digest| Kept {
            digest: (*digest).to_owned(),
            adapts: None,
            bytes: 1,
            idle_seconds: 0,
            used: false,
        });
        Stored {
            models: kept.collect(),
            unfinished: unfinished.iter().map(|d| (*d).to_owned()).collect(),
            bytes: 1,
            most: 2,
        }
    }

    #[test]
    fn a_beginning_means_one_model_of_all_workers() {
        let workers = [stored(&["abc1", "ffff"], &[]), stored(&["abc1"], &["abd2"])];
        let of = |beginning| meant(beginning, &workers);
        assert_eq!(of("abc").unwrap(), "abc1");
        assert_eq!(of("f").unwrap(), "ffff");
        assert_eq!(of("abd2").unwrap(), "abd2");
        for (beginning, word) in [("ab", "several"), ("", "none"), ("c", "none")] {
            let error = of(beginning).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
