//! Models that were sent to this worker, in a folder of its own.
//!
//! - [`size`]: a number of bytes, as a flag has it.
//! - `disk`: the folder, and what lies where.
//! - [`upload`]: a model that is not all there yet.
//! - `check`: whether files are the model that they were announced as.
//! - here: what is kept, for how long, and what goes when there is no room.

mod check;
mod disk;
pub mod size;
pub mod upload;

use std::collections::HashMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use lacuna_model::unet::Source;
use lacuna_model::weights::AdapterFile;
use lacuna_protocol::models::{
    Adapted, Announcement, CONFIG, FileSize, Kept, ORIGINAL, Stored, StoredAdapter, is_adapter_file,
};

use crate::error::{Error, Result};
use disk::Disk;
pub(crate) use disk::read_adapted;
use upload::{Seat, Upload};

/// Models at most: what a worker says of itself must stay short.
const MOST_MODELS: usize = 64;
/// Uploads at a time.
const MOST_UPLOADS: usize = 16;
/// An upload of which nothing came for so long is given up.
const STALE: Duration = Duration::from_secs(24 * 3600);
/// One of which nothing came for so long makes room for others.
const RESTS: Duration = Duration::from_secs(60);

/// The models that are kept, and those that come.
pub struct Store {
    disk: Disk,
    most: u64,
    /// Bytes of weights in f32 that this machine can hold; none where they go elsewhere.
    memory: Option<u64>,
    state: Mutex<State>,
    /// Nobody else keeps models there.
    _lock: File,
}

#[derive(Default)]
struct State {
    models: HashMap<String, Entry>,
    uploads: HashMap<String, Upload>,
}

/// A model that is kept.
struct Entry {
    bytes: u64,
    used: SystemTime,
    users: Arc<()>,
    /// The digest of the one that it is with adapters.
    adapts: Option<String>,
}

/// Where the files of a model lie that another one adapts, and what keeps them there.
pub type Base = (Source, Option<Lease>);

/// Keeps a model's files where they are until it is dropped.
#[derive(Clone, Debug)]
pub struct Lease(#[expect(dead_code, reason = "it is there until it is dropped")] Arc<()>);

/// What goes to make room.
enum Victim {
    Upload(String),
    Model(String),
}

impl Entry {
    fn is_used(&self) -> bool {
        // One is the store's.
        Arc::strong_count(&self.users) > 1
    }
}

impl State {
    /// Bytes that are taken: an upload takes from its beginning what it will be.
    fn taken(&self) -> u64 {
        let models = self.models.values().map(|model| model.bytes);
        models.chain(self.uploads.values().map(Upload::bytes)).sum()
    }

    /// What may go, in the order in which it goes: uploads that rest, then models that nobody uses; of both the one that was used
    /// longest ago.
    fn victims(&self) -> Vec<(Victim, u64)> {
        let uploads = self
            .uploads
            .iter()
            .filter(|(_, upload)| upload.rests(RESTS));
        let mut uploads: Vec<_> = uploads.collect();
        uploads.sort_by_key(|(_, upload)| upload.touched());
        let models = self.models.iter().filter(|(_, model)| !model.is_used());
        let mut models: Vec<_> = models.collect();
        models.sort_by_key(|(_, model)| model.used);
        let uploads = uploads
            .into_iter()
            .map(|(digest, upload)| (Victim::Upload(digest.clone()), upload.bytes()));
        let models = models
            .into_iter()
            .map(|(digest, model)| (Victim::Model(digest.clone()), model.bytes));
        uploads.chain(models).collect()
    }
}

impl Store {
    /// What is kept in the folder `dir`, which is made if it is not there, of `most` bytes at most: what is too much goes. `memory`
    /// is how many bytes of weights in f32 this machine can hold, where it is to hold them.
    ///
    /// # Errors
    /// [`Error::Disk`] when the folder cannot be read or written, or another worker keeps models there.
    pub fn open(dir: &Path, most: u64, memory: Option<u64>) -> Result<Self> {
        let (disk, lock) = Disk::open(dir)?;
        let mut state = State::default();
        for found in disk.models()? {
            let entry = Entry {
                bytes: found.bytes,
                used: found.used,
                users: Arc::default(),
                adapts: found.adapts,
            };
            state.models.insert(found.digest, entry);
        }
        for digest in disk.uploads()? {
            match Upload::resume(&disk.upload(&digest)) {
                Ok(upload) if !upload.rests(STALE) => {
                    state.uploads.insert(digest, upload);
                }
                _ => disk.drop_upload(&digest)?,
            }
        }
        let store = Self {
            disk,
            most,
            memory,
            state: Mutex::new(state),
            _lock: lock,
        };
        // It may be smaller than it was.
        if let Err(error) = store.make_room(&mut store.lock(), 0) {
            tracing::warn!("{}: {error}", dir.display());
        }
        Ok(store)
    }

    /// What is kept.
    pub fn list(&self) -> Stored {
        let state = self.lock();
        let mut models: Vec<_> = state.models.iter().collect();
        models.sort_by_key(|(_, model)| std::cmp::Reverse(model.used));
        let models = models.into_iter().map(|(digest, model)| Kept {
            digest: digest.clone(),
            adapts: model.adapts.clone(),
            bytes: model.bytes,
            idle_seconds: model.used.elapsed().unwrap_or_default().as_secs(),
            used: model.is_used(),
        });
        let mut unfinished: Vec<String> = state.uploads.keys().cloned().collect();
        unfinished.sort();
        Stored {
            models: models.collect(),
            unfinished,
            bytes: state.taken(),
            most: self.most,
        }
    }

    /// Whether the model of `digest` is there.
    pub fn has(&self, digest: &str) -> bool {
        self.lock().models.contains_key(digest)
    }

    /// The model of `digest`, to be used: where it lies, and what keeps it there. None where there is none.
    pub fn lease(&self, digest: &str) -> Option<(PathBuf, Lease)> {
        let mut state = self.lock();
        let model = state.models.get_mut(digest)?;
        model.used = SystemTime::now();
        let path = self.disk.model(digest);
        disk::touch(&path, model.used);
        Some((path, Lease(model.users.clone())))
    }

    /// Begins to take the model of `digest`, or goes on: gives how much of which file is there; none where the model is.
    ///
    /// # Errors
    /// [`Error::Full`] where there is no room that could be made, [`Error::Checking`] where all of it came and is being looked at,
    /// [`Error::Disk`].
    pub fn begin(&self, digest: &str, announced: &Announcement) -> Result<Option<Vec<FileSize>>> {
        let bytes = announced.check()?;
        let mut state = self.lock();
        if state.models.contains_key(digest) {
            return Ok(None);
        }
        if let Some(upload) = state.uploads.get_mut(digest) {
            if upload.is_checked_now() {
                return Err(Error::Checking);
            }
            if upload.is_of(announced) {
                return Ok(Some(upload.there()));
            }
            self.drop_of(&mut state, &Victim::Upload(digest.to_owned()))?;
        }
        self.make_room(&mut state, bytes)?;
        // What may be left where an earlier beginning failed.
        self.disk.drop_upload(digest)?;
        let found = |file: &FileSize| self.same_adapter(&state, file);
        let mut upload = Upload::begin(&self.disk.upload(digest), announced, &found)?;
        let there = upload.there();
        state.uploads.insert(digest.to_owned(), upload);
        Ok(Some(there))
    }

    /// Where an adapter's file lies that is kept of another model: the same one comes with each strength.
    fn same_adapter(&self, state: &State, file: &FileSize) -> Option<PathBuf> {
        if !is_adapter_file(&file.name) {
            return None;
        }
        let adapted = state
            .models
            .iter()
            .filter(|(_, model)| model.adapts.is_some());
        let mut files = adapted.map(|(digest, _)| self.disk.model(digest).join(&file.name));
        files.find(|path| std::fs::metadata(path).is_ok_and(|found| found.len() == file.bytes))
    }

    /// The file `name` of the upload of `digest`, to be written to.
    ///
    /// # Errors
    /// [`Error::NoUpload`] where there is no such upload or file.
    pub fn seat(&self, digest: &str, name: &str) -> Result<Seat> {
        let mut state = self.lock();
        let upload = state.uploads.get_mut(digest);
        let seat = upload.and_then(|upload| upload.seat(name));
        seat.ok_or_else(|| Error::NoUpload(digest.to_owned()))
    }

    /// Notes that something of the upload of `digest` came.
    pub fn touch(&self, digest: &str) {
        if let Some(upload) = self.lock().uploads.get_mut(digest) {
            upload.touch();
        }
    }

    /// Whether the model of `digest` is there, by now: what is wrong with it is said once, and forgotten then. None while it is
    /// being looked at.
    ///
    /// # Errors
    /// [`Error::NoUpload`], [`Error::Refused`].
    pub fn outcome(&self, digest: &str) -> Result<Option<()>> {
        let mut state = self.lock();
        if state.models.contains_key(digest) {
            return Ok(Some(()));
        }
        let upload = state.uploads.get(digest);
        let upload = upload.ok_or_else(|| Error::NoUpload(digest.to_owned()))?;
        if let Some(reason) = upload.refused() {
            let error = Error::Refused(reason.to_owned());
            state.uploads.remove(digest);
            return Err(error);
        }
        Ok(None)
    }

    /// Says that all of the model of `digest` came. False where it is being looked at already, or is there.
    ///
    /// # Errors
    /// [`Error::NoUpload`], [`Error::Unfinished`]; [`Error::Busy`] where somebody still writes.
    pub fn close_upload(&self, digest: &str) -> Result<bool> {
        let mut state = self.lock();
        if state.models.contains_key(digest) {
            return Ok(false);
        }
        let upload = state.uploads.get_mut(digest);
        let upload = upload.ok_or_else(|| Error::NoUpload(digest.to_owned()))?;
        upload.close()
    }

    /// Looks whether what came is the model of `digest`, and keeps it or nothing of it; `base` finds models that it may adapt. It takes a
    /// while.
    pub fn check(&self, digest: &str, base: &dyn Fn(&str) -> Option<Base>) {
        let dir = self.disk.upload(digest);
        // What comes from outside must not leave an upload that is looked at for ever.
        let check = || check::check(&dir, digest, self.memory, base);
        let checked = catch_unwind(AssertUnwindSafe(check));
        let checked = checked.unwrap_or_else(|_| Err(Error::Invalid("it cannot be read".into())));
        let mut state = self.lock();
        let Some(upload) = state.uploads.get_mut(digest) else {
            return;
        };
        let bytes = upload.bytes();
        let kept = checked.and_then(|adapts| {
            self.disk.keep(digest)?;
            Ok(adapts)
        });
        match kept {
            Ok(adapts) => {
                state.uploads.remove(digest);
                let model = Entry {
                    bytes,
                    used: SystemTime::now(),
                    users: Arc::default(),
                    adapts,
                };
                state.models.insert(digest.to_owned(), model);
            }
            Err(error) => {
                upload.refuse(error.to_string());
                if let Err(error) = self.disk.drop_upload(digest) {
                    tracing::warn!("{error}");
                }
            }
        }
    }

    /// Removes the model of `digest`, or what of it came.
    ///
    /// # Errors
    /// [`Error::InUse`] where somebody uses it, [`Error::Checking`], [`Error::NotKept`] where there is nothing of it,
    /// [`Error::Disk`].
    pub fn remove(&self, digest: &str) -> Result<()> {
        let mut state = self.lock();
        match (state.models.get(digest), state.uploads.get(digest)) {
            (Some(model), _) if model.is_used() => Err(Error::InUse),
            (Some(_), _) => self.drop_of(&mut state, &Victim::Model(digest.to_owned())),
            (None, Some(upload)) if upload.is_checked_now() => Err(Error::Checking),
            (None, Some(_)) => self.drop_of(&mut state, &Victim::Upload(digest.to_owned())),
            (None, None) => Err(Error::NotKept(digest.to_owned())),
        }
    }

    /// Gives up uploads of which nothing came for long. Gives their number.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn give_up_stale(&self) -> Result<usize> {
        let mut state = self.lock();
        let stale = state
            .uploads
            .iter()
            .filter(|(_, upload)| upload.rests(STALE));
        let stale: Vec<String> = stale.map(|(digest, _)| digest.clone()).collect();
        for digest in &stale {
            self.drop_of(&mut state, &Victim::Upload(digest.clone()))?;
        }
        Ok(stale.len())
    }

    /// Makes room for `bytes` of one more model; nothing goes where that would not do.
    fn make_room(&self, state: &mut State, bytes: u64) -> Result<()> {
        let full = || Error::Full {
            needed: bytes,
            most: self.most,
        };
        // Of none when the store is opened: then it is only to be no larger than it may be.
        let one = usize::from(bytes > 0);
        let mut going = Vec::new();
        let mut taken = state.taken();
        let [mut models, mut uploads] = [state.models.len(), state.uploads.len()];
        let fits = |taken: u64, models, uploads| {
            let fits = taken.checked_add(bytes).is_some_and(|all| all <= self.most);
            fits && models + uploads + one <= MOST_MODELS && uploads + one <= MOST_UPLOADS
        };
        for (victim, size) in state.victims() {
            if fits(taken, models, uploads) {
                break;
            }
            match victim {
                Victim::Model(_) => models -= 1,
                Victim::Upload(_) => uploads -= 1,
            }
            taken -= size;
            going.push(victim);
        }
        if !fits(taken, models, uploads) {
            return Err(full());
        }
        going
            .iter()
            .try_for_each(|victim| self.drop_of(state, victim))
    }

    fn drop_of(&self, state: &mut State, victim: &Victim) -> Result<()> {
        match victim {
            Victim::Model(digest) => {
                self.disk.drop_model(digest)?;
                state.models.remove(digest);
                tracing::info!(digest = &digest[..12], "a model is not kept any more");
            }
            Victim::Upload(digest) => {
                if let Some(upload) = state.uploads.get_mut(digest) {
                    upload.refuse("it made room for others, or was removed".into());
                }
                self.disk.drop_upload(digest)?;
                state.uploads.remove(digest);
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is a single insert or remove, so a poisoned map is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The files of a model that was sent to `dir`, in either layout.
pub(crate) fn source_of(dir: &Path) -> Source {
    let (path, config) = (dir.join(ORIGINAL), dir.join(CONFIG));
    match path.is_file() {
        true => Source::File {
            path,
            config: config.is_file().then_some(config),
        },
        false => Source::folder(dir),
    }
}

/// The files of the adapters of a model in `dir`.
pub(crate) fn adapter_files(dir: &Path, adapted: &Adapted) -> Vec<AdapterFile> {
    let file = |adapter: &StoredAdapter| AdapterFile {
        path: dir.join(&adapter.file),
        strength: adapter.strength,
    };
    adapted.adapters.iter().map(file).collect()
}

#[cfg(test)]
mod tests;
