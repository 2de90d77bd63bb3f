//! Who is talking to this worker, and what they were last told.
//!
//! There is room for so many pictures at a time. A picture's lanes are sessions of their own that share its
//! place, as long as their batch entries together are no more than one picture may have.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::error::{Error, Result};

/// How many may wait for a place.
const WAITING: usize = 64;
/// How often one who waits looks whether somebody has been idle for too long.
const LOOK: Duration = Duration::from_millis(250);

/// A dialogue of which `P` is the program.
#[derive(Debug)]
pub struct Session<P> {
    /// What is done in it.
    pub program: P,
    /// The last request that was answered; none at first.
    answered: Option<Answered>,
}

/// A request that was answered.
#[derive(Debug)]
struct Answered {
    /// Its number; requests count from 1.
    sequence: u64,
    /// Digest of its bytes.
    digest: blake3::Hash,
    /// The reply to it, kept so that a retried request is answered and not computed again, for as long as there is room.
    reply: Option<Bytes>,
}

impl<P> Session<P> {
    /// A dialogue in which nothing was said yet.
    fn new(program: P) -> Self {
        Self {
            program,
            answered: None,
        }
    }

    /// The kept reply if the request `sequence` of `digest` is a retry, or none if it is the next request.
    ///
    /// # Errors
    /// [`Error::Sequence`] when it is neither, [`Error::Repeated`] when another request had its number, [`Error::Dropped`]
    /// when the reply is not there any more.
    pub fn replay(&self, sequence: u64, digest: &blake3::Hash) -> Result<Option<Bytes>> {
        let last = self.answered.as_ref().map_or(0, |last| last.sequence);
        match &self.answered {
            Some(last) if sequence == last.sequence => match last.digest == *digest {
                true => match &last.reply {
                    Some(reply) => Ok(Some(reply.clone())),
                    None => Err(Error::Dropped(sequence)),
                },
                false => Err(Error::Repeated(sequence)),
            },
            _ if sequence == last + 1 => Ok(None),
            _ => Err(Error::Sequence {
                want: last + 1,
                got: sequence,
            }),
        }
    }

    /// Whether the request `sequence` is the next one.
    pub fn is_due(&self, sequence: u64) -> bool {
        sequence == self.answered.as_ref().map_or(0, |last| last.sequence) + 1
    }

    /// Keeps the reply to the request `sequence` of `digest`.
    pub fn answered(&mut self, sequence: u64, digest: blake3::Hash, reply: Bytes) {
        self.answered = Some(Answered {
            sequence,
            digest,
            reply: Some(reply),
        });
    }

    /// Bytes of the reply that is kept.
    fn kept(&self) -> usize {
        let reply = self.answered.as_ref().and_then(|last| last.reply.as_ref());
        reply.map_or(0, Bytes::len)
    }

    /// Keeps the reply no longer.
    fn drop_reply(&mut self) {
        if let Some(last) = &mut self.answered {
            last.reply = None;
        }
    }
}

/// How many sessions there may be, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Pictures at a time.
    pub pictures: usize,
    /// Batch entries of one picture at most, over all its sessions.
    pub batch: usize,
    /// A session idle for so long is closed.
    pub idle: Duration,
    /// One that was never used is closed after so long: whoever opened it is gone.
    pub unused: Duration,
    /// And any, whatever is done in it.
    pub total: Duration,
    /// Pictures of one guest at a time.
    pub each: usize,
}

/// Who opens a session, and alone may use it: the digest of a token.
pub type Guest = blake3::Hash;

/// What a session is of.
#[derive(Clone, Debug)]
pub struct Lane {
    /// The picture's name, where it may have several sessions.
    pub picture: Option<String>,
    /// Its batch entries.
    pub batch: usize,
    /// Whose it is.
    pub guest: Guest,
}

/// The open sessions, each with a program `P`.
#[derive(Debug)]
pub struct Sessions<P> {
    open: Mutex<HashMap<String, Entry<P>>>,
    room: Room,
    /// The first of those who wait for a place holds it.
    turn: tokio::sync::Mutex<()>,
    /// How many wait.
    waiting: AtomicUsize,
    /// A place may be free.
    left: Notify,
}

#[derive(Debug)]
struct Entry<P> {
    /// Locked for as long as a request is worked on, so that a retry waits for the first try.
    session: Arc<tokio::sync::Mutex<Session<P>>>,
    /// When it was last used, or opened.
    used: Instant,
    opened: Instant,
    guest: Guest,
    /// Whether it was ever used.
    begun: bool,
    /// The place that it takes: of its picture, or one of its own.
    place: String,
    batch: usize,
}

impl<P> Sessions<P> {
    /// None yet, and as much room as `room` says.
    pub fn new(room: Room) -> Self {
        Self {
            open: Mutex::new(HashMap::new()),
            room,
            turn: tokio::sync::Mutex::new(()),
            waiting: AtomicUsize::new(0),
            left: Notify::new(),
        }
    }

    /// Opens a session of the program that `make` gives, if need be once a place is free, for which all wait in the order in
    /// which they came. A lane of a picture that has a place does not wait. Its name cannot be guessed.
    ///
    /// # Errors
    /// [`Error::Busy`] where none becomes free within `patience`, or too many wait; those of `make`.
    pub async fn open(
        &self,
        make: impl FnOnce() -> Result<P>,
        lane: Lane,
        patience: Duration,
    ) -> Result<String> {
        let mut make = Some(make);
        let busy = || Error::Busy("it has no room for another session");
        if self.waiting.load(Ordering::Relaxed) == 0 || self.has_place(&lane) {
            match self.open_now(&mut make, &lane) {
                Err(Error::Busy(_)) => {}
                done => return done,
            }
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(busy());
        }
        let _waiting = Waiting(&self.waiting);
        let opened = async {
            let _turn = self.turn.lock().await;
            loop {
                let left = self.left.notified();
                match self.open_now(&mut make, &lane) {
                    // Who is idle for too long leaves without a word.
                    Err(Error::Busy(_)) => drop(tokio::time::timeout(LOOK, left).await),
                    done => return done,
                }
            }
        };
        let opened = tokio::time::timeout(patience, opened).await;
        opened.unwrap_or_else(|_| Err(busy()))
    }

    /// The same at once or not at all; `make` is there until it is used.
    fn open_now(
        &self,
        make: &mut Option<impl FnOnce() -> Result<P>>,
        lane: &Lane,
    ) -> Result<String> {
        let mut open = self.lock();
        self.expire_of(&mut open);
        let busy = || Error::Busy("it has no room for another session");
        let name = Uuid::new_v4().simple().to_string();
        let place = self.place(&open, lane).unwrap_or_else(|| name.clone());
        let places = |of: &dyn Fn(&Entry<P>) -> bool| {
            let taken = open.values().filter(|entry| of(entry));
            let mut places: HashSet<&str> = taken.map(|entry| entry.place.as_str()).collect();
            places.insert(&place);
            places.len()
        };
        let is_new = !open.values().any(|entry| entry.place == place);
        let own = places(&|entry| entry.guest == lane.guest);
        if is_new && (places(&|_| true) > self.room.pictures || own > self.room.each) {
            return Err(busy());
        }
        let make = make.take().ok_or_else(busy)?;
        let entry = Entry {
            session: Arc::new(tokio::sync::Mutex::new(Session::new(make()?))),
            used: Instant::now(),
            opened: Instant::now(),
            guest: lane.guest,
            begun: false,
            place,
            batch: lane.batch,
        };
        open.insert(name.clone(), entry);
        Ok(name)
    }

    /// The place of the picture that `lane` is of; none where it has no room for the lane.
    fn place(&self, open: &HashMap<String, Entry<P>>, lane: &Lane) -> Option<String> {
        // Another guest's picture is another, whatever it is called.
        let picture = format!("{}/{}", lane.guest.to_hex(), lane.picture.as_ref()?);
        let others = open.values().filter(|entry| entry.place == picture);
        let batch = others.map(|entry| entry.batch).sum::<usize>() + lane.batch;
        (batch <= self.room.batch).then_some(picture)
    }

    /// Whether the picture that `lane` is of has a place, and room for the lane.
    fn has_place(&self, lane: &Lane) -> bool {
        let open = self.lock();
        let place = self.place(&open, lane);
        place.is_some_and(|place| open.values().any(|entry| entry.place == place))
    }

    /// A session of `guest` by name; counts as use.
    ///
    /// # Errors
    /// [`Error::UnknownSession`], also where it is another's.
    pub fn get(&self, name: &str, guest: &Guest) -> Result<Arc<tokio::sync::Mutex<Session<P>>>> {
        let mut open = self.lock();
        let entry = open.get_mut(name).filter(|entry| entry.guest == *guest);
        let entry = entry.ok_or_else(|| Error::UnknownSession(name.to_owned()))?;
        entry.used = Instant::now();
        entry.begun = true;
        Ok(entry.session.clone())
    }

    /// Closes a session of `guest`.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn close(&self, name: &str, guest: &Guest) -> Result<()> {
        let mut open = self.lock();
        if open.get(name).is_none_or(|entry| entry.guest != *guest) {
            return Err(Error::UnknownSession(name.to_owned()));
        }
        open.remove(name);
        self.left.notify_one();
        Ok(())
    }

    /// Forgets replies that are kept for retries, those of sessions that were used longest ago first, until no more bytes are
    /// kept than `most`. Of a session at work nothing is forgotten.
    pub fn trim(&self, most: usize) {
        let mut open = self.lock();
        let mut entries: Vec<&mut Entry<P>> = open.values_mut().collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.used));
        let mut kept = 0;
        for entry in entries {
            if let Ok(mut session) = entry.session.try_lock() {
                kept += session.kept();
                if kept > most {
                    kept -= session.kept();
                    session.drop_reply();
                }
            }
        }
    }

    /// Closes the sessions that were idle for too long; gives their number.
    pub fn expire(&self) -> usize {
        self.expire_of(&mut self.lock())
    }

    fn expire_of(&self, open: &mut HashMap<String, Entry<P>>) -> usize {
        let before = open.len();
        open.retain(|_, entry| {
            // A session that is locked has a request in work: it is in use now, however long ago
            // that request came.
            if entry.session.try_lock().is_err() {
                entry.used = Instant::now();
            }
            entry.used.elapsed() < self.room.patience_with(entry)
                && entry.opened.elapsed() < self.room.total
        });
        let gone = before - open.len();
        if gone > 0 {
            self.left.notify_one();
        }
        gone
    }

    /// How many wait for a place.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Number of open sessions.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Entry<P>>> {
        // Every change is a single insert or remove, so a poisoned map is still whole.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who waits, for as long as it does.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Room {
    /// How long a session may be idle.
    fn patience_with<P>(&self, entry: &Entry<P>) -> Duration {
        match entry.begun {
            true => self.idle,
            false => self.idle.min(self.unused),
        }
    }

    /// The least time after which any session is closed.
    pub fn least_patience(&self) -> Duration {
        self.idle.min(self.unused)
    }
}

#[cfg(test)]
mod tests;
