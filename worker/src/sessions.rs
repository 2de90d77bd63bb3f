//! Who is talking to this worker, and what they were last told.

use std::collections::HashMap;
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

/// The open sessions.
#[derive(Debug)]
pub struct Sessions {
    open: Mutex<HashMap<String, Entry>>,
    max: usize,
    idle: Duration,
}

#[derive(Debug)]
struct Entry {
    /// Locked for as long as a request is worked on, so that a retry waits for the first try.
    session: Arc<tokio::sync::Mutex<Session>>,
    used: Instant,
}

impl Sessions {
    /// Room for `max` sessions, each closed when idle for `idle`.
    pub fn new(max: usize, idle: Duration) -> Self {
        Self {
            open: Mutex::default(),
            max,
            idle,
        }
    }

    /// Opens a session; its name cannot be guessed.
    ///
    /// # Errors
    /// [`Error::Busy`] when there are too many.
    pub fn open(&self, walk: Option<Walk>) -> Result<String> {
        let mut open = self.lock();
        if open.len() >= self.max {
            return Err(Error::Busy("it has no room for another session"));
        }
        let name = Uuid::new_v4().simple().to_string();
        let session = Session {
            walk,
            last: 0,
            reply: Bytes::new(),
        };
        let entry = Entry {
            session: Arc::new(tokio::sync::Mutex::new(session)),
            used: Instant::now(),
        };
        open.insert(name.clone(), entry);
        Ok(name)
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
        let mut open = self.lock();
        let before = open.len();
        open.retain(|_, entry| {
            // A session that is locked has a request in work: it is in use now, however long ago
            // that request came.
            if entry.session.try_lock().is_err() {
                entry.used = Instant::now();
            }
            entry.used.elapsed() < self.idle
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

#[cfg(test)]
mod tests {
    use super::*;

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
        let sessions = Sessions::new(2, Duration::from_secs(60));
        let first = sessions.open(None).unwrap();
        let second = sessions.open(None).unwrap();
        assert_ne!(first, second);
        assert!(matches!(sessions.open(None), Err(Error::Busy(_))));
        sessions.close(&first).unwrap();
        assert!(matches!(
            sessions.close(&first),
            Err(Error::UnknownSession(_))
        ));
        sessions.open(None).unwrap();
    }

    #[test]
    fn idle_sessions_expire_but_not_one_at_work() {
        let minute = Duration::from_secs(60);
        let sessions = Sessions::new(2, minute);
        let busy = sessions.open(None).unwrap();
        let idle = sessions.open(None).unwrap();
        let session = sessions.get(&busy).unwrap();
        let guard = session.try_lock().unwrap();
        assert_eq!(sessions.expire(), 0);
        let pass = || {
            for entry in sessions.lock().values_mut() {
                entry.used = entry.used.checked_sub(minute).unwrap();
            }
        };
        pass();
        assert_eq!(sessions.expire(), 1);
        assert!(sessions.get(&idle).is_err());
        // The time starts with the end of the work, not with its beginning.
        drop(guard);
        assert_eq!(sessions.expire(), 0);
        pass();
        assert_eq!(sessions.expire(), 1);
    }
}
