//! How long a worker is waited for: by what it says of its speed, and by what it was seen to take.
//!
//! Whoever is waited for is asked now and then whether it is there, on a connection of its own. So a worker that is gone, or a machine
//! that was cut off, costs seconds. One that is there may take as long as its speed lets expect, with room for others' work.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long workers are waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Until a worker begins to answer of which nothing is known.
    pub silence: Duration,
    /// The same beside what its speed lets expect.
    pub least: Duration,
    /// Until it says a word of itself, which takes no computing.
    pub word: Duration,
    /// Until it begins to send the answer's body.
    pub pause: Duration,
    /// Until it is asked whether it is there, and asked again.
    pub look: Duration,
    /// Until it has said so. Twice without a word, and it is taken for gone.
    pub sign: Duration,
    /// Bytes a second, both ways: whoever means well is faster.
    pub slowest: f64,
}

/// What is usual.
pub const PATIENCE: Patience = Patience {
    silence: Duration::from_secs(120),
    least: Duration::from_secs(10),
    word: Duration::from_secs(10),
    pause: Duration::from_secs(30),
    look: Duration::from_secs(2),
    sign: Duration::from_secs(3),
    slowest: 16e3,
};

/// How many times longer than expected an answer may take: a worker serves others, too, and clocks of processors rise and fall.
const SLACK: u32 = 20;
/// How many times slower than before bytes may come.
const SLOWER: f64 = 32.0;
/// Fewer bytes than these say nothing of a link's rate.
const TELLING: usize = 256 << 10;

/// What one worker was seen to take, by all that talk with it.
#[derive(Clone, Debug, Default)]
pub struct Pace(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    /// What a U-Net call takes it, by what it says of its speed.
    call: Option<Duration>,
    /// Of the answers that were waited for, the slowest.
    slowest: Duration,
    /// The most bytes a second that came.
    rate: f64,
}

impl Pace {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a U-Net call should take the worker.
    pub fn expect(&self, call: Duration) {
        self.seen().call = Some(call);
    }

    /// An answer began after so long.
    pub fn answered(&self, after: Duration) {
        let mut seen = self.seen();
        seen.slowest = seen.slowest.max(after);
    }

    /// So many bytes came in so long.
    pub fn came(&self, bytes: usize, took: Duration) {
        if bytes >= TELLING {
            let mut seen = self.seen();
            seen.rate = seen.rate.max(bytes as f64 / took.as_secs_f64().max(1e-3));
        }
    }

    /// How long to wait for the beginning of an answer that takes computing.
    pub fn silence(&self, patience: &Patience) -> Duration {
        let seen = self.seen();
        match seen.call {
            Some(call) => {
                let expected = call.max(seen.slowest).saturating_mul(SLACK);
                (patience.least + expected.min(patience.silence)).min(patience.silence)
            }
            None => patience.silence,
        }
    }

    /// What so many bytes may take.
    pub fn transfer(&self, patience: &Patience, bytes: usize) -> Duration {
        let rate = patience.slowest.max(self.seen().rate / SLOWER);
        Duration::from_secs_f64(bytes as f64 / rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_fast_is_waited_for_less() {
        let pace = Pace::default();
        assert_eq!(pace.silence(&PATIENCE), PATIENCE.silence);
        let seconds = Duration::from_secs_f64;
        pace.expect(seconds(0.1));
        assert_eq!(pace.silence(&PATIENCE), seconds(12.0));
        // What is slower than it says is known by then.
        pace.answered(seconds(0.5));
        pace.answered(seconds(0.2));
        assert_eq!(pace.silence(&PATIENCE), seconds(20.0));
        // Nobody buys patience with a low speed.
        pace.expect(seconds(1e9));
        assert_eq!(pace.silence(&PATIENCE), PATIENCE.silence);
    }

    #[test]
    fn a_fast_link_may_not_drip() {
        let pace = Pace::default();
        assert_eq!(pace.transfer(&PATIENCE, 16_000), Duration::from_secs(1));
        pace.came(TELLING, Duration::from_secs_f64(TELLING as f64 / 32e6));
        // A few bytes may well have waited.
        pace.came(100, Duration::from_secs(1));
        assert_eq!(pace.transfer(&PATIENCE, 1_000_000), Duration::from_secs(1));
    }
}
