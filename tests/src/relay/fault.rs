//! What a connection may suffer, and how a seed draws it.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the worker: a request.
    Up,
    /// From the worker: a reply.
    Down,
}

/// What one request or its reply suffers. Bytes are counted from the first of its head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// After so many bytes nothing comes for a while, and then the rest.
    Stall {
        /// Of which message.
        way: Way,
        /// Bytes before.
        after: usize,
        /// How long.
        time: Duration,
    },
    /// The connection is closed in good order after so many bytes.
    Close {
        /// Of which message.
        way: Way,
        /// Bytes before.
        after: usize,
    },
    /// The connection is reset after so many bytes.
    Reset {
        /// Of which message.
        way: Way,
        /// Bytes before.
        after: usize,
    },
    /// The bytes come a few at a time.
    Drip {
        /// Of which message.
        way: Way,
        /// How many.
        piece: usize,
        /// How long after each.
        pause: Duration,
    },
    /// A bit of the body arrives as the other one. A body whose length is not said stays whole.
    Flip {
        /// Of which message.
        way: Way,
        /// Which bit, counted round and round the body.
        bit: u64,
    },
    /// The worker gets the request a second time, by another connection, and nobody reads what it answers there.
    Duplicate,
    /// So many requests, this one first, are answered 503 and never reach the worker.
    Refuse {
        /// How many.
        requests: usize,
    },
    /// The worker has done the work and is gone before anybody hears of it, then and for good.
    Gone,
    /// The worker has done the work, and is cut off before anybody hears of it, then and for good: connections stay, and
    /// nothing more is said.
    Silent,
}

/// Kinds of faults that a seed draws from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A message comes late.
    Delay,
    /// One stops in the middle for a while.
    Stall,
    /// The connection is reset.
    Reset,
    /// A message is cut short.
    Truncation,
    /// One comes a few bytes at a time.
    Drip,
    /// A bit is flipped.
    Flip,
    /// A request comes twice.
    Duplicate,
    /// Some requests are answered 503.
    Burst,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Delay,
        Self::Stall,
        Self::Reset,
        Self::Truncation,
        Self::Drip,
        Self::Flip,
        Self::Duplicate,
        Self::Burst,
    ];

    /// One fault of this kind.
    fn draw(self, rng: &mut StdRng) -> Fault {
        let way = match rng.random_bool(0.5) {
            true => Way::Up,
            false => Way::Down,
        };
        let mut milliseconds = |range| Duration::from_millis(rng.random_range(range));
        match self {
            Self::Delay => Fault::Stall {
                way,
                after: 0,
                time: milliseconds(5..150),
            },
            Self::Stall => Fault::Stall {
                way,
                time: milliseconds(200..1500),
                after: rng.random_range(1..1000),
            },
            Self::Drip => Fault::Drip {
                way,
                pause: milliseconds(1..10),
                piece: rng.random_range(100..2000),
            },
            // As often before the first byte, in the head and in the body.
            Self::Reset => Fault::Reset {
                way,
                after: rng.random_range(0..3) * rng.random_range(0..500),
            },
            Self::Truncation => Fault::Close {
                way,
                after: rng.random_range(0..3) * rng.random_range(0..500),
            },
            Self::Flip => Fault::Flip {
                way,
                bit: rng.random(),
            },
            Self::Duplicate => Fault::Duplicate,
            Self::Burst => Fault::Refuse {
                requests: rng.random_range(1..=4),
            },
        }
    }
}

/// Faults that a seed draws, each by the numbers of its connection and of its message there: whatever came before it, and
/// whenever.
#[derive(Clone, Debug)]
pub struct Draws {
    /// The seed.
    pub seed: u64,
    /// The share of the messages that suffer one.
    pub rate: f64,
    /// Of which kinds, as often each.
    pub kinds: Vec<Kind>,
}

impl Draws {
    /// What the request `message` of the connection `connection` suffers, or its reply.
    pub fn fault(&self, connection: u64, message: u64) -> Option<Fault> {
        let mut rng = generator([self.seed, connection, message]);
        if self.kinds.is_empty() || !rng.random_bool(self.rate) {
            return None;
        }
        let kind = self.kinds[rng.random_range(0..self.kinds.len())];
        Some(kind.draw(&mut rng))
    }
}

/// A generator of random numbers that these three numbers choose, and nothing else.
pub fn generator(numbers: [u64; 3]) -> StdRng {
    let mut seed = [0; 32];
    for (place, number) in seed.chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    StdRng::from_seed(seed)
}
