//! What is done to the workers of one picture, as a seed draws it.

use std::fmt;
use std::time::Duration;

use rand::RngExt;
use tests::relay::Relay;
use tests::relay::fault::{Draws, Kind, generator};

/// Pieces of work of a picture to which nothing happens, about: what is done to its workers comes before their end.
const WORKS: usize = 1000;

/// What is done to a worker.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Blow {
    /// SIGKILL; it is started again after a while, or only once the picture is over.
    Kill(Option<Duration>),
    /// SIGSTOP, and SIGCONT after a while.
    Pause(Duration),
    /// Nobody reaches it any more: connections are closed, and refused.
    CutOff,
    /// Nobody hears of it any more, though connections stay.
    Silence,
    /// Each message comes late, from the beginning on.
    Slow(Duration),
    /// Of its messages this share suffers a fault, from the beginning on.
    Faults(f64),
}

/// A blow, and when it comes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strike {
    /// Which worker.
    pub(crate) worker: usize,
    /// Once so many pieces of work were sent to all workers together.
    pub(crate) at: usize,
    pub(crate) blow: Blow,
}

/// How a picture may go on without a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// There is a spare.
    pub(crate) spare: bool,
    /// A policy lets a provider see all rows.
    pub(crate) permission: bool,
}

/// One picture.
#[derive(Clone, Debug)]
pub(crate) struct Round {
    pub(crate) number: u64,
    pub(crate) terms: Terms,
    pub(crate) strikes: Vec<Strike>,
    seed: u64,
    kinds: Vec<Kind>,
}

impl Round {
    /// The picture of this `number`; its relays flip bits where `flips` says so.
    pub(crate) fn draw(seed: u64, number: u64, flips: bool) -> Self {
        let mut rng = generator([seed, number, u64::MAX]);
        let terms = Terms {
            spare: rng.random_bool(0.75),
            permission: rng.random_bool(0.75),
        };
        let strikes = (0..rng.random_range(1..=2)).map(|i| {
            let seconds = Duration::from_secs_f64(rng.random_range(0.2..3.0));
            let blow = match rng.random_range(0..8) {
                0 => Blow::Kill(None),
                1 => Blow::Kill(Some(seconds)),
                2 => Blow::Pause(seconds),
                3 => Blow::CutOff,
                4 => Blow::Silence,
                5 => Blow::Slow(Duration::from_millis(rng.random_range(1..10))),
                _ => Blow::Faults(rng.random_range(0.002..0.02)),
            };
            // A spare is struck only while another is: until then it does nothing.
            let of_all = if terms.spare && i > 0 { 3 } else { 2 };
            Strike {
                worker: rng.random_range(0..of_all),
                at: rng.random_range(1..WORKS),
                blow,
            }
        });
        let strikes = strikes.collect();
        let kinds = Kind::ALL.into_iter();
        let kinds = kinds.filter(|kind| flips || *kind != Kind::Flip).collect();
        Self {
            number,
            terms,
            strikes,
            seed,
            kinds,
        }
    }

    /// The relay before the worker of this number at `url`, with all that comes from the beginning on.
    pub(crate) fn relay(&self, worker: usize, url: &str) -> Relay {
        let of = self.strikes.iter().filter(|strike| strike.worker == worker);
        let (mut latency, mut rate) = (Duration::ZERO, 0.0);
        for strike in of {
            match strike.blow {
                Blow::Slow(by) => latency += by,
                Blow::Faults(share) => rate += share,
                _ => {}
            }
        }
        let draws = Draws {
            seed: self.seed.wrapping_add(1000 * self.number + worker as u64),
            rate,
            kinds: self.kinds.clone(),
        };
        Relay::start(url, [latency; 2], move |request| {
            draws.fault(request.connection, request.message)
        })
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Terms { spare, permission } = self.terms;
        let with = |has: bool| if has { "a" } else { "no" };
        write!(
            f,
            "picture {}, {} spare, {} permission",
            self.number,
            with(spare),
            with(permission)
        )?;
        for Strike { worker, at, blow } in &self.strikes {
            write!(f, "; worker {worker}: ")?;
            match blow {
                Blow::Kill(None) => write!(f, "killed at {at}"),
                Blow::Kill(Some(time)) => {
                    write!(f, "killed at {at}, back in {:.1} s", time.as_secs_f64())
                }
                Blow::Pause(time) => write!(f, "paused at {at} for {:.1} s", time.as_secs_f64()),
                Blow::CutOff => write!(f, "cut off at {at}"),
                Blow::Silence => write!(f, "silent from {at} on"),
                Blow::Slow(by) => write!(f, "slow by {} ms", by.as_millis()),
                Blow::Faults(rate) => write!(f, "faults at {:.1} %", 100.0 * rate),
            }?;
        }
        Ok(())
    }
}
