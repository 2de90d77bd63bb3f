//! What workers are doing, by what they say of themselves twice.

use std::time::Duration;

use lacuna_protocol::session::Load;

/// What a worker did between two looks at it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Doing {
    /// Open sessions.
    pub sessions: usize,
    /// Who waits for a place or for the device.
    pub queue: usize,
    /// Exchanges that it computed, a second.
    pub exchanges: f64,
    /// Megabytes that came and went, a second.
    pub megabytes: [f64; 2],
    /// Parts of the time that its work computed, and waited for the device: each from 0 to 1 of one session's time, and more of
    /// several.
    pub compute: f64,
    /// See above.
    pub waiting: f64,
    /// What is left of the sessions' time: the link, and what you and the other workers do meanwhile.
    pub elsewhere: f64,
}

impl Doing {
    /// By what it said `before`, and `after` so long. None where it was started again meanwhile.
    pub fn between(before: &Load, after: &Load, time: Duration) -> Option<Self> {
        let seconds = time.as_secs_f64();
        if seconds <= 0.0 || after.computed < before.computed {
            return None;
        }
        let a_second = |before: f64, after: f64| ((after - before) / seconds).max(0.0);
        let rate = |before: u64, after: u64| after.saturating_sub(before) as f64 / seconds;
        let compute = a_second(before.compute_seconds, after.compute_seconds);
        let waiting = a_second(before.waiting_seconds, after.waiting_seconds);
        let sessions = after.sessions.max(before.sessions) as f64;
        Some(Self {
            sessions: after.sessions,
            queue: after.queue,
            exchanges: rate(before.computed, after.computed),
            megabytes: [
                rate(before.bytes_in, after.bytes_in) / 1e6,
                rate(before.bytes_out, after.bytes_out) / 1e6,
            ],
            compute,
            waiting,
            elsewhere: (sessions - compute - waiting).max(0.0),
        })
    }

    /// The sessions' time as parts of a whole, in percent: computing, waiting, elsewhere. None where there is no session.
    pub fn parts(&self) -> Option<[f64; 3]> {
        let all = self.compute + self.waiting + self.elsewhere;
        let part = |x: f64| 100.0 * x / all;
        (all > 0.0).then(|| [self.compute, self.waiting, self.elsewhere].map(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sessions_time_is_shared_out() {
        let before = Load {
            sessions: 2,
            computed: 10,
            ..Load::default()
        };
        let after = Load {
            sessions: 2,
            queue: 1,
            computed: 30,
            waiting_seconds: 1.0,
            compute_seconds: 2.0,
            bytes_in: 4_000_000,
            bytes_out: 8_000_000,
        };
        let doing = Doing::between(&before, &after, Duration::from_secs(2)).unwrap();
        assert_eq!((doing.exchanges, doing.megabytes), (10.0, [2.0, 4.0]));
        assert_eq!(doing.parts(), Some([50.0, 25.0, 25.0]));
        // A worker that was started again counts from nothing.
        assert_eq!(
            Doing::between(&after, &before, Duration::from_secs(2)),
            None
        );
        let idle = Load::default();
        let doing = Doing::between(&idle, &idle, Duration::from_secs(2)).unwrap();
        assert_eq!(doing.parts(), None);
    }
}
