//! Any sequence of what is asked of a worker's sessions: opened, asked, asked again, closed, left alone, trimmed, expired. It is
//! held against a list of what must be open, and of what each was last told.

#![no_main]

/// What sessions refuse, by the names that the worker has for it: its other refusals know of HTTP and of tensors.
mod error {
    pub type Result<T, E = Error> = std::result::Result<T, E>;

    #[derive(Debug)]
    #[expect(dead_code, reason = "what is in them is read where it is printed")]
    pub enum Error {
        UnknownSession(String),
        Sequence { want: u64, got: u64 },
        Repeated(u64),
        Dropped(u64),
        Busy(&'static str),
    }
}

/// The worker's own file.
#[path = "../../worker/src/sessions.rs"]
mod sessions;

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use error::Error;
use libfuzzer_sys::fuzz_target;
use sessions::{Guest, Lane, Room, Session, Sessions};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Mutex, OwnedMutexGuard};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime of one thread")
});

/// Longer than any run.
const HOUR: Duration = Duration::from_secs(3600);

/// A session that must be open.
struct Open {
    name: String,
    program: u8,
    guest: Guest,
    /// What tells its place from others', and what it takes there.
    place: String,
    batch: usize,
    /// Once it was used.
    session: Option<Arc<Mutex<Session<u8>>>>,
    /// While a request is worked on.
    held: Option<OwnedMutexGuard<Session<u8>>>,
    /// The last request that was answered, and the reply while it is kept.
    sequence: u64,
    digest: blake3::Hash,
    reply: Option<Bytes>,
}

/// Sessions, and what must be true of them.
struct Checked {
    room: Room,
    /// Bytes of replies that are kept at most.
    kept: usize,
    sessions: Sessions<u8>,
    open: Vec<Open>,
}

fn guest(number: u8) -> Guest {
    blake3::hash(&[number % 3])
}

impl Checked {
    fn new(sizes: u8, mode: u8, kept: u8) -> Self {
        let at_most = |shift: u8| usize::from(sizes >> shift & 3) + 1;
        let room = Room {
            pictures: at_most(0),
            batch: at_most(2),
            each: at_most(4),
            idle: HOUR,
            // No time at all, of those that can be told without a clock.
            unused: if mode % 3 == 1 { Duration::ZERO } else { HOUR },
            total: if mode % 3 == 2 { Duration::ZERO } else { HOUR },
        };
        assert!(room.least_patience() <= room.idle);
        Self {
            room,
            kept: kept.into(),
            sessions: Sessions::new(room),
            open: Vec::new(),
        }
    }

    /// Those that are open after a look at the clock.
    fn expire(&mut self) -> usize {
        let before = self.open.len();
        let room = self.room;
        let stays = |open: &Open| open.session.is_some() || !room.unused.is_zero();
        self.open.retain(|open| stays(open) && !room.total.is_zero());
        before - self.open.len()
    }

    fn places(&self, of: Option<Guest>) -> BTreeSet<&str> {
        let open = self.open.iter();
        let open = open.filter(|open| of.is_none_or(|guest| guest == open.guest));
        open.map(|open| open.place.as_str()).collect()
    }

    fn open(&mut self, who: u8, what: u8) {
        let (guest, batch) = (guest(who), usize::from(what >> 2 & 3) + 1);
        let picture = (what & 3 > 0).then(|| format!("picture {}", what & 3));
        let lane = Lane {
            picture: picture.clone(),
            batch,
            guest,
        };
        self.expire();
        let of_picture = picture.map(|picture| format!("{}/{picture}", guest.to_hex()));
        let beside = |place: &String| {
            let lanes = self.open.iter().filter(|open| open.place == *place);
            lanes.map(|open| open.batch).sum::<usize>()
        };
        // A lane that its picture has no room for is another picture.
        let place = of_picture.filter(|place| beside(place) + batch <= self.room.batch);
        let (all, own) = (self.places(None), self.places(Some(guest)));
        let is_new = place.as_ref().is_none_or(|place| !all.contains(place.as_str()));
        let fits = all.len() < self.room.pictures && own.len() < self.room.each;
        let opening = self.sessions.open(|| Ok(what), lane, Duration::ZERO);
        match RUNTIME.block_on(opening) {
            Ok(name) => {
                assert!(!is_new || fits, "one too many is open");
                assert!(self.open.iter().all(|open| open.name != name));
                self.open.push(Open {
                    place: place.unwrap_or_else(|| name.clone()),
                    name,
                    program: what,
                    guest,
                    batch,
                    session: None,
                    held: None,
                    sequence: 0,
                    digest: blake3::hash(&[]),
                    reply: None,
                });
            }
            Err(Error::Busy(_)) => assert!(is_new && !fits, "there was room"),
            Err(error) => panic!("{error:?}"),
        }
    }

    /// The number of one that is open.
    fn chosen(&self, which: u8) -> Option<usize> {
        usize::from(which).checked_rem(self.open.len())
    }

    /// A request of a number near that which is due, with one of two contents.
    fn ask(&mut self, which: u8, what: u8) {
        let Some(chosen) = self.chosen(which) else {
            return;
        };
        let open = &mut self.open[chosen];
        let session = self.sessions.get(&open.name, &open.guest);
        let session = session.expect("it is open");
        open.session = Some(session.clone());
        let mut locked = match open.held.take() {
            Some(held) => held,
            None => session.try_lock_owned().expect("nobody works on it"),
        };
        assert_eq!(locked.program, open.program, "another's program");
        let sequence = (open.sequence + u64::from(what & 3)).saturating_sub(1);
        let digest = blake3::hash(&[what >> 2 & 1]);
        let answered = open.sequence > 0 && sequence == open.sequence;
        let is_next = sequence == open.sequence + 1;
        assert_eq!(locked.is_due(sequence), is_next);
        match locked.replay(sequence, &digest) {
            Ok(None) => {
                assert!(is_next, "{sequence} after {}", open.sequence);
                let reply = Bytes::from(vec![what; usize::from(what >> 3)]);
                locked.answered(sequence, digest, reply.clone());
                (open.sequence, open.digest, open.reply) = (sequence, digest, Some(reply));
            }
            Ok(Some(reply)) => {
                assert!(answered && digest == open.digest);
                assert_eq!(Some(reply), open.reply);
            }
            Err(Error::Repeated(number)) => {
                assert!(answered && number == sequence && digest != open.digest);
            }
            Err(Error::Dropped(number)) => {
                assert!(answered && number == sequence && open.reply.is_none());
            }
            Err(Error::Sequence { want, got }) => {
                assert!(!answered && !is_next);
                assert_eq!((want, got), (open.sequence + 1, sequence));
            }
            Err(error) => panic!("{error:?}"),
        }
        // Sometimes the work goes on while others come.
        open.held = (what & 64 > 0).then_some(locked);
    }

    fn close(&mut self, which: u8, who: u8) {
        let Some(chosen) = self.chosen(which) else {
            return;
        };
        let open = &self.open[chosen];
        let other = guest(who);
        let is_own = other == open.guest;
        assert_eq!(self.sessions.get(&open.name, &other).is_ok(), is_own);
        let closed = self.sessions.close(&open.name, &other);
        if !is_own {
            assert!(matches!(closed, Err(Error::UnknownSession(_))));
            return;
        }
        closed.expect("it is open");
        let closed = self.open.remove(chosen);
        let again = self.sessions.get(&closed.name, &closed.guest);
        assert!(matches!(again, Err(Error::UnknownSession(_))));
    }

    fn trim(&mut self) {
        self.sessions.trim(self.kept);
        let len = |open: &Open| open.reply.as_ref().map_or(0, Bytes::len);
        let free = || self.open.iter().filter(|open| open.held.is_none());
        let enough = free().map(len).sum::<usize>() <= self.kept;
        let mut kept = 0;
        for open in self.open.iter_mut().filter(|open| open.held.is_none()) {
            let Some(session) = &open.session else {
                continue;
            };
            let session = session.try_lock().expect("nobody works on it");
            match session.replay(open.sequence, &open.digest) {
                Ok(Some(reply)) => kept += reply.len(),
                Err(Error::Dropped(_)) => {
                    assert!(!enough || open.reply.is_none(), "forgotten without need");
                    open.reply = None;
                }
                // Nothing was asked yet.
                Err(Error::Sequence { .. }) => assert_eq!(open.sequence, 0),
                other => panic!("{other:?}"),
            }
        }
        assert!(kept <= self.kept, "{kept} bytes are kept");
    }

    fn check(&self) {
        assert_eq!(self.sessions.count(), self.open.len());
        assert_eq!(self.sessions.waiting(), 0);
        assert!(self.places(None).len() <= self.room.pictures);
        for number in 0..3 {
            assert!(self.places(Some(guest(number))).len() <= self.room.each);
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let [sizes, mode, kept, steps @ ..] = bytes else {
        return;
    };
    let mut checked = Checked::new(*sizes, *mode, *kept);
    for step in steps.chunks_exact(3) {
        match step[0] % 6 {
            0 => checked.open(step[1], step[2]),
            1 | 2 => checked.ask(step[1], step[2]),
            3 => checked.close(step[1], step[2]),
            4 => checked.trim(),
            _ => {
                let gone = checked.sessions.expire();
                assert_eq!(gone, checked.expire());
            }
        }
        checked.check();
    }
});
