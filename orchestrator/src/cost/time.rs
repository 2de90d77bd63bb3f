//! How long a U-Net call takes.

use serde::Serialize;

use crate::error::Result;
use crate::fleet::config::FleetConfig;
use crate::fleet::link::Link;
use crate::fleet::measure::measure;
use crate::schemes::count::Count;

/// How fast everything is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Speeds {
    /// The user's connection.
    pub link: Link,
    /// The user's machine, 10^9 operations a second.
    pub user_gflops: f64,
    /// Each worker, likewise.
    pub worker_gflops: Vec<f64>,
    /// Where the numbers come from.
    pub sources: Sources,
}

/// Where the numbers of [`Speeds`] come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Sources {
    /// Of the connection.
    pub link: Source,
    /// Of the user's machine.
    pub user: Source,
    /// Of the workers.
    pub workers: Source,
}

/// Where a number comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The user said it.
    Given,
    /// It was measured.
    Measured,
    /// Neither: a usual one.
    Assumed,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Given => "given",
            Self::Measured => "measured",
            Self::Assumed => "assumed",
        })
    }
}

impl std::fmt::Display for Speeds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Link {
            uplink_mbps,
            downlink_mbps,
            rtt_ms,
        } = self.link;
        let Sources {
            link,
            user,
            workers,
        } = self.sources;
        write!(
            f,
            "link {uplink_mbps:.1} Mbit/s up, {downlink_mbps:.1} down, {rtt_ms:.1} ms ({link}); you {:.0} GFLOP/s \
             ({user})",
            self.user_gflops
        )?;
        let each = &self.worker_gflops;
        match each.first() {
            None => Ok(()),
            Some(first) if each.iter().all(|g| g == first) => {
                write!(f, "; workers {first:.0} each ({workers})")
            }
            Some(_) => {
                let each: Vec<String> = each.iter().map(|g| format!("{g:.0}")).collect();
                write!(f, "; workers {} ({workers})", each.join(", "))
            }
        }
    }
}

/// How much of what lanes side by side could save they do save: they share a link, and get into step. Measured
/// with `lacuna bench --model assets/demo-model --schemes resident --wires f32 --steps 8 --link 4,4,2` and
/// `--lanes` true and false: 0.54; 0.45 with `--link 4,16.8,2`, 0.59 with `--link 4,16.8,40`.
const OVERLAP: f64 = 0.5;

impl Speeds {
    /// The same with what is measured of `fleet`, in place of what was assumed.
    ///
    /// # Errors
    /// As [`measure`].
    pub async fn refine(mut self, fleet: &FleetConfig) -> Result<Self> {
        if self.sources.link == Source::Given && self.sources.workers == Source::Given {
            return Ok(self);
        }
        let measured = measure(fleet).await?;
        if self.sources.link == Source::Assumed {
            self.link = measured.link;
            self.sources.link = Source::Measured;
        }
        if self.sources.workers == Source::Assumed {
            for (taken, measured) in self.worker_gflops.iter_mut().zip(measured.worker_gflops) {
                // A worker in this process has this machine's speed, and says nothing of it.
                *taken = measured.unwrap_or(self.user_gflops);
            }
            self.sources.workers = Source::Measured;
        }
        Ok(self)
    }

    /// Seconds until the last of the workers has done its part of the operations in `flop`.
    pub fn slowest(&self, flop: impl Iterator<Item = u64>) -> f64 {
        let each = flop.zip(&self.worker_gflops);
        each.map(|(flop, gflops)| flop as f64 / (gflops * 1e9))
            .fold(0.0, f64::max)
    }

    /// Seconds of one U-Net call. User, link and workers take turns; with several lanes one computes or sends
    /// while the other waits. At best that goes on until something is busy all the time; `OVERLAP` of the
    /// difference is saved.
    pub fn seconds(&self, count: &Count) -> Seconds {
        let [up, down, waits] = count.link_seconds(&self.link);
        let transfer = [up, down];
        let workers = self.slowest(count.workers_flop.iter().copied());
        let user = count.user_flop as f64 / (self.user_gflops * 1e9);
        let work = transfer[0] + transfer[1] + workers + user;
        let lane = waits + work / count.lanes.max(1) as f64;
        let busiest = [transfer[0], transfer[1], workers, user, lane];
        let best = busiest.into_iter().fold(0.0, f64::max);
        Seconds {
            link: waits + transfer[0] + transfer[1],
            workers,
            user,
            overlap: OVERLAP * (waits + work - best),
        }
    }
}

/// Seconds of one U-Net call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Seconds {
    /// On the link.
    pub link: f64,
    /// The slowest worker's computation.
    pub workers: f64,
    /// The user's.
    pub user: f64,
    /// Of all that, what one lane does while another waits.
    pub overlap: f64,
}

impl Seconds {
    /// From the first request to the last answer.
    pub fn total(self) -> f64 {
        self.link + self.workers + self.user - self.overlap
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::tally::Kind;
    use crate::schemes::count::Counted;

    #[test]
    fn lanes_save_half_of_what_they_could() {
        let speeds = Speeds {
            link: Link {
                uplink_mbps: 8.0,
                downlink_mbps: 8.0,
                rtt_ms: 500.0,
            },
            user_gflops: 1.0,
            worker_gflops: vec![1.0; 2],
            sources: Sources {
                link: Source::Given,
                user: Source::Given,
                workers: Source::Given,
            },
        };
        let exchange = Counted {
            label: "layer".into(),
            kind: Kind::Conv,
            up: vec![1_000_000, 1_000_000],
            down: vec![1_000_000, 0],
            bands: 1,
            ahead: 0,
            workers_flop: 0,
            user_flop: 0,
        };
        let count = |lanes| Count {
            exchanges: vec![exchange.clone()],
            workers_flop: vec![3_000_000_000, 1_000_000_000],
            user_flop: 1_500_000_000,
            lanes,
        };
        // Two seconds up, one down, half a second there and back; the slower worker and the user compute.
        let alone = speeds.seconds(&count(1));
        assert_eq!(alone.total(), 2.0 + 1.0 + 0.5 + 3.0 + 1.5);
        assert_eq!(alone.overlap, 0.0);
        // Two lanes could take their half of that work and the wait.
        let two = speeds.seconds(&count(2)).total();
        assert_eq!(two, (alone.total() + 0.5 + 7.5 / 2.0) / 2.0);
        // Many are held up by the worker.
        let many = speeds.seconds(&count(16)).total();
        assert_eq!(many, (alone.total() + 3.0) / 2.0);
    }
}
