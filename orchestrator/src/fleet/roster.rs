//! Who computes, who stands by, and who was lost: what is known of the workers from one picture to the next.

use std::time::Duration;

use futures::future::join_all;
use tokio::time::timeout;

use super::client::Client;
use super::config::{FleetConfig, WorkerConfig};

/// How long a worker that was lost may take to say that it is back.
const BACK: Duration = Duration::from_secs(5);

/// The workers of a run.
#[derive(Clone, Debug)]
pub struct Roster {
    /// Those that compute, in the order of their strips, and those that stand by.
    config: FleetConfig,
    /// As it was in the beginning.
    given: FleetConfig,
    /// Those that were lost, the last one last.
    lost: Vec<WorkerConfig>,
}

impl Roster {
    /// Everybody as `config` has them.
    pub fn new(config: FleetConfig) -> Self {
        Self {
            given: config.clone(),
            config,
            lost: Vec::new(),
        }
    }

    /// Those that compute, and those that stand by.
    pub fn config(&self) -> &FleetConfig {
        &self.config
    }

    /// The same as it was in the beginning.
    pub fn given(&self) -> &FleetConfig {
        &self.given
    }

    /// Whether any of those that were given does not compute now.
    pub fn has_lost(&self) -> bool {
        let there = |w: &WorkerConfig| self.config.workers.iter().any(|other| other.url == w.url);
        !self.given.workers.iter().all(there)
    }

    /// Whether fewer compute than in the beginning.
    pub fn is_short(&self) -> bool {
        self.config.workers.len() < self.given.workers.len()
    }

    /// Counts the worker at `url` as lost; a spare takes its place, or its place is gone. It may come back where
    /// `for_now` says so. False when nobody would be left, or it does not compute.
    pub fn lose(&mut self, url: &str, for_now: bool) -> bool {
        let Some(left) = self.config.without(url) else {
            return false;
        };
        let workers = std::mem::replace(&mut self.config, left).workers;
        let lost = workers.into_iter().find(|w| w.url.as_str() == url);
        self.lost.extend(lost.filter(|_| for_now));
        true
    }

    /// Has those that were lost stand by that are well again, the one at `but` apart.
    pub async fn call_back(&mut self, but: Option<&str>) {
        let asked = self.lost.iter().map(async |worker| {
            if but == Some(worker.url.as_str()) {
                return false;
            }
            let well = async { Client::new(worker)?.info().await };
            matches!(timeout(BACK, well).await, Ok(Ok(_)))
        });
        let well = join_all(asked).await;
        let lost = std::mem::take(&mut self.lost);
        for (worker, well) in lost.into_iter().zip(well) {
            match well {
                true => self.config.spares.push(worker),
                false => self.lost.push(worker),
            }
        }
    }

    /// Fills the places that are gone with those that stand by.
    pub fn fill(&mut self) {
        while self.is_short() && !self.config.spares.is_empty() {
            let worker = self.config.spares.remove(0);
            // Where it was, so that the others keep their strips.
            let was = self.given.workers.iter().position(|w| w.url == worker.url);
            let before = |was| {
                let given = self.given.workers.iter().take(was);
                let there = given.filter(|w| self.config.workers.iter().any(|o| o.url == w.url));
                there.count()
            };
            let place = was.map_or(self.config.workers.len(), before);
            self.config.workers.insert(place, worker);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::config::Trust;

    fn roster(spares: &[&str]) -> Roster {
        let worker = |name: &str| WorkerConfig {
            url: format!("http://{name}.invalid/").parse().unwrap(),
            provider: name.to_owned(),
            token: None,
            trust: Trust::default(),
        };
        Roster::new(FleetConfig {
            workers: ["a", "b", "c"].map(worker).to_vec(),
            spares: spares.iter().copied().map(worker).collect(),
        })
    }

    fn names(roster: &Roster) -> String {
        let workers = roster.config().workers.iter();
        workers.map(|w| w.provider.as_str()).collect()
    }

    #[test]
    fn who_was_lost_gets_its_place_back() {
        let mut roster = roster(&[]);
        assert!(roster.lose("http://b.invalid/", true));
        assert!(roster.lose("http://a.invalid/", true));
        assert_eq!(names(&roster), "c");
        assert!(
            !roster.lose("http://b.invalid/", true),
            "it is lost already"
        );
        assert!(!roster.lose("http://c.invalid/", true), "nobody is left");
        assert!(roster.is_short());
        // As if both had answered.
        roster.config.spares = std::mem::take(&mut roster.lost);
        roster.fill();
        assert_eq!(names(&roster), "abc");
        assert!(!roster.is_short());
    }

    #[test]
    fn who_is_of_no_use_does_not_come_back() {
        let mut roster = roster(&[]);
        assert!(roster.lose("http://b.invalid/", false));
        assert!(roster.lose("http://a.invalid/", true));
        let lost = roster.lost.iter().map(|w| w.provider.as_str());
        assert_eq!(lost.collect::<String>(), "a");
    }

    #[test]
    fn a_spare_stays_where_it_stepped_in() {
        let mut roster = roster(&["s"]);
        assert!(roster.lose("http://b.invalid/", true));
        assert_eq!(names(&roster), "asc");
        assert!(!roster.is_short());
        roster.fill();
        assert_eq!(names(&roster), "asc");
    }
}
