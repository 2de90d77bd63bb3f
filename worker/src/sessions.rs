//! Who is talking to this worker, and what they were last told.
//!
//! There is room for so many pictures at a time. A picture's lanes are sessions of their own that share its
//! place, as long as their batch entries together are no more than one picture may have.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use crate::error::{Error, Result};

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
    /// The reply to it, kept so that a retried request is answered and not computed again.
    reply: Bytes,
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
    /// [`Error::Sequence`] when it is neither, [`Error::Repeated`] when another request had its number.
    pub fn replay(&self, sequence: u64, digest: &blake3::Hash) -> Result<Option<Bytes>> {
        let last = self.answered.as_ref().map_or(0, |last| last.sequence);
        match &self.answered {
            Some(last) if sequence == last.sequence => match last.digest == *digest {
                true => Ok(Some(last.reply.clone())),
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
            reply,
        });
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
}

/// What a session is of.
#[derive(Clone, Debug)]
pub struct Lane {
    /// The picture's name, where it may have several sessions.
    pub picture: Option<String>,
    /// Its batch entries.
    pub batch: usize,
}

/// The open sessions, each with a program `P`.
#[derive(Debug)]
pub struct Sessions<P> {
    open: Mutex<HashMap<String, Entry<P>>>,
    room: Room,
}

#[derive(Debug)]
struct Entry<P> {
    /// Locked for as long as a request is worked on, so that a retry waits for the first try.
    session: Arc<tokio::sync::Mutex<Session<P>>>,
    /// When it was last used, or opened.
    used: Instant,
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
        }
    }

    /// Opens a session; its name cannot be guessed.
    ///
    /// # Errors
    /// [`Error::Busy`] when there are too many.
    pub fn open(&self, program: P, lane: Lane) -> Result<String> {
        let mut open = self.lock();
        self.expire_of(&mut open);
        let name = Uuid::new_v4().simple().to_string();
        let place = self.place(&open, &lane).unwrap_or_else(|| name.clone());
        let mut places: HashSet<&str> = open.values().map(|entry| entry.place.as_str()).collect();
        if places.insert(&place) && places.len() > self.room.pictures {
            return Err(Error::Busy("it has no room for another session"));
        }
        let entry = Entry {
            session: Arc::new(tokio::sync::Mutex::new(Session::new(program))),
            used: Instant::now(),
            begun: false,
            place,
            batch: lane.batch,
        };
        open.insert(name.clone(), entry);
        Ok(name)
    }

    /// The place of the picture that `lane` is of; none where it has no room for the lane.
    fn place(&self, open: &HashMap<String, Entry<P>>, lane: &Lane) -> Option<String> {
        let picture = lane.picture.as_ref()?;
        let others = open.values().filter(|entry| entry.place == *picture);
        let batch = others.map(|entry| entry.batch).sum::<usize>() + lane.batch;
        (batch <= self.room.batch).then(|| picture.clone())
    }

    /// A session by name; counts as use.
    ///
    /// # Errors
    /// [`Error::UnknownSession`].
    pub fn get(&self, name: &str) -> Result<Arc<tokio::sync::Mutex<Session<P>>>> {
        let mut open = self.lock();
        let entry = open
            .get_mut(name)
            .ok_or_else(|| Error::UnknownSession(name.to_owned()))?;
        entry.used = Instant::now();
        entry.begun = true;
        Ok(entry.session.clone())
    }

    /// Closes a session.
    ///
    /// # Errors
    /// [`Error::UnknownSession`].
    pub fn close(&self, name: &str) -> Result<()> {
        match self.lock().remove(name) {
            Some(_) => Ok(()),
            None => Err(Error::UnknownSession(name.to_owned())),
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
        });
        before - open.len()
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
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn room(pictures: usize) -> Sessions<()> {
        Sessions::new(Room {
            pictures,
            batch: 2,
            idle: 10 * MINUTE,
            unused: MINUTE,
        })
    }

    /// One batch entry of a picture, or of none.
    fn lane(picture: &str) -> Lane {
        Lane {
            picture: (!picture.is_empty()).then(|| picture.to_owned()),
            batch: 1,
        }
    }

    /// Lets time pass.
    fn pass(sessions: &Sessions<()>, time: Duration) {
        for entry in sessions.lock().values_mut() {
            entry.used = entry.used.checked_sub(time).unwrap();
        }
    }

    #[test]
    fn a_retry_gets_the_kept_reply_and_nothing_else_is_out_of_order() {
        let mut session = Session::new(());
        let [one, two] = [b"one", b"two"].map(|bytes| blake3::hash(bytes));
        assert!(matches!(
            session.replay(0, &one),
            Err(Error::Sequence { want: 1, got: 0 })
        ));
        assert_eq!(session.replay(1, &one).unwrap(), None);
        session.answered(1, one, Bytes::from_static(b"reply"));
        assert_eq!(
            session.replay(1, &one).unwrap(),
            Some(Bytes::from_static(b"reply"))
        );
        // Another request under the same number is no retry.
        assert!(matches!(session.replay(1, &two), Err(Error::Repeated(1))));
        assert_eq!(session.replay(2, &two).unwrap(), None);
        for got in [0, 3, u64::MAX] {
            assert!(matches!(
                session.replay(got, &one),
                Err(Error::Sequence { want: 2, .. })
            ));
        }
    }

    #[test]
    fn there_is_room_for_so_many_and_a_closed_one_makes_room() {
        let sessions = room(2);
        let open = || sessions.open((), lane(""));
        let first = open().unwrap();
        let second = open().unwrap();
        assert_ne!(first, second);
        assert!(matches!(open(), Err(Error::Busy(_))));
        sessions.close(&first).unwrap();
        assert!(matches!(
            sessions.close(&first),
            Err(Error::UnknownSession(_))
        ));
        open().unwrap();
    }

    #[test]
    fn the_lanes_of_a_picture_take_one_place() {
        let sessions = room(2);
        let open = |picture| sessions.open((), lane(picture));
        let lanes = [open("a").unwrap(), open("a").unwrap()];
        open("b").unwrap();
        open("b").unwrap();
        assert_eq!(sessions.count(), 4);
        // More batch entries than a picture may have are another's, and there is no room for another.
        for picture in ["a", "b", "c", ""] {
            assert!(matches!(open(picture), Err(Error::Busy(_))), "{picture:?}");
        }
        // A place is free when the last of its lanes is closed.
        sessions.close(&lanes[0]).unwrap();
        assert!(matches!(open("c"), Err(Error::Busy(_))));
        sessions.close(&lanes[1]).unwrap();
        open("c").unwrap();
    }

    #[test]
    fn idle_sessions_expire_but_not_one_at_work() {
        let sessions = room(2);
        let busy = sessions.open((), lane("")).unwrap();
        let idle = sessions.open((), lane("")).unwrap();
        let session = sessions.get(&busy).unwrap();
        sessions.get(&idle).unwrap();
        let guard = session.try_lock().unwrap();
        assert_eq!(sessions.expire(), 0);
        pass(&sessions, 10 * MINUTE);
        assert_eq!(sessions.expire(), 1);
        assert!(sessions.get(&idle).is_err());
        // The time starts with the end of the work, not with its beginning.
        drop(guard);
        assert_eq!(sessions.expire(), 0);
        pass(&sessions, 10 * MINUTE);
        assert_eq!(sessions.expire(), 1);
    }

    #[test]
    fn a_session_that_nobody_used_expires_soon_and_makes_room_at_once() {
        let sessions = room(2);
        let used = sessions.open((), lane("")).unwrap();
        sessions.get(&used).unwrap();
        let unused = sessions.open((), lane("")).unwrap();
        pass(&sessions, MINUTE);
        // Without waiting for the next round.
        sessions.open((), lane("")).unwrap();
        assert!(sessions.get(&unused).is_err());
        assert!(sessions.get(&used).is_ok());
    }
}
