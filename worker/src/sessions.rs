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
use crate::walk::Walk;

/// One picture's dialogue.
#[derive(Debug)]
pub struct Session {
    /// The walk over the worker's strip, in a session that holds one.
    pub walk: Option<Walk>,
    /// Number of the last request answered; requests count from 1.
    last: u64,
    /// The reply to it, kept so that a retried request is answered and not computed again.
    reply: Bytes,
}

impl Session {
    /// The kept reply if `sequence` is a retry, or none if it is the next request.
    ///
    /// # Errors
    /// [`Error::Sequence`] when it is neither.
    pub fn replay(&self, sequence: u64) -> Result<Option<Bytes>> {
        match sequence {
            n if n == self.last && n > 0 => Ok(Some(self.reply.clone())),
            n if n == self.last + 1 => Ok(None),
            got => Err(Error::Sequence {
                want: self.last + 1,
                got,
            }),
        }
    }

    /// Keeps the reply to `sequence`.
    pub fn answered(&mut self, sequence: u64, reply: Bytes) {
        self.last = sequence;
        self.reply = reply;
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

/// The open sessions.
#[derive(Debug)]
pub struct Sessions {
    open: Mutex<HashMap<String, Entry>>,
    room: Room,
}

#[derive(Debug)]
struct Entry {
    /// Locked for as long as a request is worked on, so that a retry waits for the first try.
    session: Arc<tokio::sync::Mutex<Session>>,
    /// When it was last used, or opened.
    used: Instant,
    /// Whether it was ever used.
    begun: bool,
    /// The place that it takes: of its picture, or one of its own.
    place: String,
    batch: usize,
}

impl Sessions {
    /// None yet, and as much room as `room` says.
    pub fn new(room: Room) -> Self {
        Self {
            open: Mutex::default(),
            room,
        }
    }

    /// Opens a session; its name cannot be guessed.
    ///
    /// # Errors
    /// [`Error::Busy`] when there are too many.
    pub fn open(&self, walk: Option<Walk>, lane: Lane) -> Result<String> {
        let mut open = self.lock();
        self.expire_of(&mut open);
        let name = Uuid::new_v4().simple().to_string();
        let place = self.place(&open, &lane).unwrap_or_else(|| name.clone());
        let mut places: HashSet<&str> = open.values().map(|entry| entry.place.as_str()).collect();
        if places.insert(&place) && places.len() > self.room.pictures {
            return Err(Error::Busy("it has no room for another session"));
        }
        let session = Session {
            walk,
            last: 0,
            reply: Bytes::new(),
        };
        let entry = Entry {
            session: Arc::new(tokio::sync::Mutex::new(session)),
            used: Instant::now(),
            begun: false,
            place,
            batch: lane.batch,
        };
        open.insert(name.clone(), entry);
        Ok(name)
    }

    /// The place of the picture that `lane` is of; none where it has no room for the lane.
    fn place(&self, open: &HashMap<String, Entry>, lane: &Lane) -> Option<String> {
        let picture = lane.picture.as_ref()?;
        let others = open.values().filter(|entry| entry.place == *picture);
        let batch = others.map(|entry| entry.batch).sum::<usize>() + lane.batch;
        (batch <= self.room.batch).then(|| picture.clone())
    }

    /// A session by name; counts as use.
    ///
    /// # Errors
    /// [`Error::UnknownSession`].
    pub fn get(&self, name: &str) -> Result<Arc<tokio::sync::Mutex<Session>>> {
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

    fn expire_of(&self, open: &mut HashMap<String, Entry>) -> usize {
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

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Entry>> {
        // Every change is a single insert or remove, so a poisoned map is still whole.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    /// How long a session may be idle.
    fn patience_with(&self, entry: &Entry) -> Duration {
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

    fn room(pictures: usize) -> Sessions {
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
    fn pass(sessions: &Sessions, time: Duration) {
        for entry in sessions.lock().values_mut() {
            entry.used = entry.used.checked_sub(time).unwrap();
        }
    }

    #[test]
    fn a_retry_gets_the_kept_reply_and_nothing_else_is_out_of_order() {
        let mut session = Session {
            walk: None,
            last: 0,
            reply: Bytes::new(),
        };
        assert!(matches!(
            session.replay(0),
            Err(Error::Sequence { want: 1, got: 0 })
        ));
        assert_eq!(session.replay(1).unwrap(), None);
        session.answered(1, Bytes::from_static(b"one"));
        assert_eq!(session.replay(1).unwrap(), Some(Bytes::from_static(b"one")));
        assert_eq!(session.replay(2).unwrap(), None);
        assert!(matches!(
            session.replay(3),
            Err(Error::Sequence { want: 2, got: 3 })
        ));
    }

    #[test]
    fn there_is_room_for_so_many_and_a_closed_one_makes_room() {
        let sessions = room(2);
        let open = || sessions.open(None, lane(""));
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
        let open = |picture| sessions.open(None, lane(picture));
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
        let busy = sessions.open(None, lane("")).unwrap();
        let idle = sessions.open(None, lane("")).unwrap();
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
        let used = sessions.open(None, lane("")).unwrap();
        sessions.get(&used).unwrap();
        let unused = sessions.open(None, lane("")).unwrap();
        pass(&sessions, MINUTE);
        // Without waiting for the next round.
        sessions.open(None, lane("")).unwrap();
        assert!(sessions.get(&unused).is_err());
        assert!(sessions.get(&used).is_ok());
    }
}
