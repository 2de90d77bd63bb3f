//! A model that is not all there yet: it comes file by file, piece by piece, and may be gone on with after any break.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use lacuna_protocol::models::{Announcement, FileSize};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::disk;
use crate::error::{Error, Result};
use crate::intake::{Incoming, SILENCE};

/// Bytes that are written at a time.
const AT_ONCE: usize = 1 << 20;

/// A model that comes.
pub(super) struct Upload {
    bytes: u64,
    touched: SystemTime,
    files: Vec<(FileSize, Seat)>,
    stage: Stage,
}

/// What is done with it.
enum Stage {
    Comes,
    IsChecked,
    /// Nothing of it is there any more, and why.
    Refused(String),
}

/// One of its files, to which one request at a time writes.
#[derive(Clone)]
pub struct Seat {
    part: Arc<Mutex<Part>>,
    state: Arc<FileState>,
}

/// A file of which a part is there.
struct Part {
    path: PathBuf,
    bytes: u64,
    state: Arc<FileState>,
}

/// What is known of a file, whoever writes.
#[derive(Default)]
struct FileState {
    there: AtomicU64,
    /// Whether the upload was given up: another one's file may lie in the same place.
    gone: AtomicBool,
}

impl FileState {
    fn there(&self) -> u64 {
        self.there.load(Ordering::Relaxed)
    }
}

impl Upload {
    /// One of which nothing is there but the files that are `found` elsewhere, in a new folder `dir`.
    pub(super) fn begin(
        dir: &Path,
        announced: &Announcement,
        found: &dyn Fn(&FileSize) -> Option<PathBuf>,
    ) -> Result<Self> {
        disk::make_folder(dir)?;
        for file in &announced.files {
            let there = dir.join(&file.name);
            let linked = found(file).map(|elsewhere| std::fs::hard_link(elsewhere, &there));
            if let Some(Err(error)) = linked {
                // It comes then.
                tracing::debug!("{}: {error}", there.display());
            }
        }
        disk::write_announced(dir, announced)?;
        Self::of(dir, announced, SystemTime::now())
    }

    /// One that lies in the folder `dir` since before this worker started.
    pub(super) fn resume(dir: &Path) -> Result<Self> {
        let announced = disk::read_announced(dir)?;
        let touched = std::fs::metadata(dir).and_then(|dir| dir.modified());
        let mut touched = touched.map_err(disk::failed(dir))?;
        for file in &announced.files {
            let path = dir.join(&file.name);
            if let Ok(written) = std::fs::metadata(path).and_then(|file| file.modified()) {
                touched = touched.max(written);
            }
        }
        Self::of(dir, &announced, touched)
    }

    fn of(dir: &Path, announced: &Announcement, touched: SystemTime) -> Result<Self> {
        let bytes = announced.check()?;
        let part = |file: &FileSize| {
            let path = dir.join(&file.name);
            let there = disk::create(&path)?.metadata();
            let there = there.map_err(disk::failed(&path))?.len();
            if there > file.bytes {
                let reason = format!("{}: more than was announced", path.display());
                return Err(Error::Disk(reason));
            }
            let state = Arc::new(FileState {
                there: AtomicU64::new(there),
                ..FileState::default()
            });
            let part = Part {
                path,
                bytes: file.bytes,
                state: state.clone(),
            };
            let part = Arc::new(Mutex::new(part));
            Ok((file.clone(), Seat { part, state }))
        };
        let files = announced.files.iter().map(part).collect::<Result<_>>()?;
        Ok(Self {
            bytes,
            touched,
            files,
            stage: Stage::Comes,
        })
    }

    /// Bytes that it takes, from its beginning on; none of what was refused.
    pub(super) fn bytes(&self) -> u64 {
        match self.stage {
            Stage::Refused(_) => 0,
            _ => self.bytes,
        }
    }

    /// When somebody last asked for it.
    pub(super) fn touched(&self) -> SystemTime {
        self.touched
    }

    /// Whether nobody asked for it for so long, nor writes to it, and it is not being looked at.
    pub(super) fn rests(&self, long: Duration) -> bool {
        let idle = self.touched.elapsed().unwrap_or_default();
        let written = |(_, seat): &(FileSize, Seat)| seat.part.try_lock().is_err();
        idle >= long && !self.is_checked_now() && !self.files.iter().any(written)
    }

    /// Notes that somebody asked for it.
    pub(super) fn touch(&mut self) {
        self.touched = SystemTime::now();
    }

    /// Whether all of it came and is being looked at.
    pub(super) fn is_checked_now(&self) -> bool {
        matches!(self.stage, Stage::IsChecked)
    }

    /// Why it was refused, if it was.
    pub(super) fn refused(&self) -> Option<&str> {
        match &self.stage {
            Stage::Refused(reason) => Some(reason),
            _ => None,
        }
    }

    /// Whether it is one of these files, and still comes.
    pub(super) fn is_of(&self, announced: &Announcement) -> bool {
        let files = self.files.iter().map(|(file, _)| file);
        matches!(self.stage, Stage::Comes) && files.eq(&announced.files)
    }

    /// How much of each file is there.
    pub(super) fn there(&mut self) -> Vec<FileSize> {
        self.touch();
        let there = |(file, seat): &(FileSize, Seat)| FileSize {
            name: file.name.clone(),
            bytes: seat.state.there(),
        };
        self.files.iter().map(there).collect()
    }

    /// The file `name`.
    pub(super) fn seat(&mut self, name: &str) -> Option<Seat> {
        self.touch();
        let comes = matches!(self.stage, Stage::Comes);
        let found = self.files.iter().find(|(file, _)| file.name == name);
        found.filter(|_| comes).map(|(_, seat)| seat.clone())
    }

    /// Has nothing more come. False where that was said before.
    ///
    /// # Errors
    /// [`Error::Unfinished`], [`Error::Busy`].
    pub(super) fn close(&mut self) -> Result<bool> {
        if !matches!(self.stage, Stage::Comes) {
            return Ok(false);
        }
        for (file, seat) in &self.files {
            let part = seat.part.try_lock();
            let part = part.map_err(|_| Error::Busy("somebody still sends a part of the model"))?;
            let there = part.state.there();
            if there < file.bytes {
                return Err(Error::Unfinished {
                    name: file.name.clone(),
                    there,
                    bytes: file.bytes,
                });
            }
        }
        self.stage = Stage::IsChecked;
        Ok(true)
    }

    /// Has nobody ask for it for so long.
    #[cfg(test)]
    pub(super) fn rest(&mut self, long: Duration) {
        self.touched = SystemTime::now() - long;
    }

    /// Keeps of it why nothing of it is there; who still writes to it writes no more.
    pub(super) fn refuse(&mut self, reason: String) {
        self.touch();
        for (_, seat) in self.files.drain(..) {
            seat.state.gone.store(true, Ordering::SeqCst);
        }
        self.stage = Stage::Refused(reason);
    }
}

impl Seat {
    /// Writes what comes in, which is of the file from `offset` on. What of it is there already is let pass: it is a request that
    /// was sent again. Gives how much is there then.
    ///
    /// # Errors
    /// [`Error::Offset`] where something is missing before it, [`Error::Invalid`] where the file would be longer than it was
    /// announced; [`Error::Disk`]; those of [`Incoming::chunk`], after which what came is there. Of a request that says its digest
    /// nothing is, unless all of it came as it was sent: [`Error::Damaged`].
    pub async fn write(&self, offset: u64, mut incoming: Incoming) -> Result<u64> {
        let busy = || Error::Busy("somebody else sends this file");
        let part = timeout(SILENCE, self.part.clone().lock_owned()).await;
        let mut part = part.map_err(|_| busy())?;
        let there = part.state.there();
        if offset > there {
            return Err(Error::Offset { there });
        }
        let mut known = there - offset;
        if incoming.says_digest() {
            let (mut all, _) = incoming.all().await?;
            let new = all.split_off(all.len().min(known as usize));
            part.check_room(new.len())?;
            part = part_with(part, new).await?;
            return Ok(part.state.there());
        }
        let mut held = BytesMut::new();
        loop {
            let chunk = incoming.chunk().await;
            let Ok(Some(mut chunk)) = chunk else {
                part = part_with(part, held.freeze()).await?;
                chunk?;
                return Ok(part.state.there());
            };
            let passed = known.min(chunk.len() as u64);
            known -= passed;
            held.extend_from_slice(&chunk.split_off(passed as usize));
            part.check_room(held.len())?;
            if held.len() >= AT_ONCE {
                part = part_with(part, held.split().freeze()).await?;
            }
        }
    }
}

impl Part {
    /// Refuses more bytes than were announced.
    fn check_room(&self, more: usize) -> Result<()> {
        match more as u64 > self.bytes - self.state.there() {
            true => Err(Error::Invalid(format!(
                "more than the {} bytes announced",
                self.bytes
            ))),
            false => Ok(()),
        }
    }
}

type Owned = tokio::sync::OwnedMutexGuard<Part>;

/// The part with some bytes more, written where nobody waits for others.
async fn part_with(part: Owned, bytes: Bytes) -> Result<Owned> {
    if bytes.is_empty() {
        return Ok(part);
    }
    let write = move || {
        let path = &part.path;
        let mut file = disk::create(path)?;
        // Looked at behind the opening: what is opened before it is given up is its own.
        if part.state.gone.load(Ordering::SeqCst) {
            return Err(Error::Stopped(
                "the model made room for others, or was removed".into(),
            ));
        }
        let written = file.write_all(&bytes);
        // Of what was written in part nobody knows how much: it is as if it had not come.
        if let Err(error) = written {
            let _ = file.set_len(part.state.there());
            return Err(disk::failed(path)(error));
        }
        part.state
            .there
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(part)
    };
    let written = tokio::task::spawn_blocking(write).await;
    written.map_err(|error| Error::Disk(error.to_string()))?
}
