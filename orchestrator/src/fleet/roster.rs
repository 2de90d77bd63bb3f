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

    /// Counts the worker at `url` as lost, and goes on in the best way that is `allowed`
    /// ([`FleetConfig::without`]), or in the best one where none is, for the reason to be told. It may come back where
    /// `for_now` says so. False when nobody would be left, or it does not compute.
    pub fn lose(
        &mut self,
        url: &str,
        for_now: bool,
        mut allowed: impl FnMut(&FleetConfig) -> bool,
    ) -> bool {
        let mut ways = self.config.without(url);
        if ways.is_empty() {
            return false;
        }
        let best = ways.iter().position(&mut allowed).unwrap_or(0);
        let left = ways.swap_remove(best);
        let workers = std::mem::replace(&mut self.config, left).workers;
        let lost = workers.into_iter().find(|w| w.url.as_str() == url);
        self.lost.extend(lost.filter(|_| for_now));
        true
    }

    /// Counts as lost whom a picture that began with these workers lost, by its roster at its end.
    pub fn learn(&mut self, picture: &Self) {
        let gone = |worker: &&WorkerConfig| {
            let FleetConfig { workers, spares } = &picture.config;
            !workers.iter().chain(spares).any(|w| w.url == worker.url)
        };
        let FleetConfig { workers, spares } = self.config.clone();
        let for_now = |worker: &WorkerConfig| picture.lost.iter().any(|w| w.url == worker.url);
        for worker in spares.iter().filter(gone) {
            self.config.spares.retain(|w| w.url != worker.url);
            self.lost.extend(for_now(worker).then(|| worker.clone()));
        }
        for worker in workers.iter().filter(gone) {
            // Of the last one it is false: it stays, to be tried again.
            self.lose(worker.url.as_str(), for_now(worker), |_| true);
        }
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

    fn any(_: &FleetConfig) -> bool {
        true
    }

    fn names(roster: &Roster) -> String {
        let workers = roster.config().workers.iter();
        workers.map(|w| w.provider.as_str()).collect()
    }

    #[test]
    fn who_was_lost_gets_its_place_back() {
        let mut roster = roster(&[]);
        assert!(roster.lose("http://b.invalid/", true, any));
        assert!(roster.lose("http://a.invalid/", true, any));
        assert_eq!(names(&roster), "c");
        assert!(
            !roster.lose("http://b.invalid/", true, any),
            "it is lost already"
        );
        assert!(
            !roster.lose("http://c.invalid/", true, any),
            "nobody is left"
        );
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
        assert!(roster.lose("http://b.invalid/", false, any));
        assert!(roster.lose("http://a.invalid/", true, any));
        let lost = roster.lost.iter().map(|w| w.provider.as_str());
        assert_eq!(lost.collect::<String>(), "a");
    }

    #[test]
    fn who_is_not_allowed_does_not_step_in() {
        let mut roster = roster(&["s", "t"]);
        let allowed = |fleet: &FleetConfig| fleet.workers.iter().all(|w| w.provider != "s");
        assert!(roster.lose("http://b.invalid/", true, allowed));
        assert_eq!(names(&roster), "atc");
        // Where nobody is, the best one is taken, and refused with its reason.
        assert!(roster.lose("http://a.invalid/", true, |_| false));
        assert_eq!(names(&roster), "stc");
    }

    #[test]
    fn pictures_side_by_side_teach_what_they_lost() {
        let mut all = roster(&["s", "t"]);
        let [mut first, mut second] = [all.clone(), all.clone()];
        assert!(first.lose("http://b.invalid/", true, any));
        // The spare of the second was of no use.
        assert!(second.lose("http://b.invalid/", true, any));
        assert!(second.lose("http://s.invalid/", false, any));
        all.learn(&first);
        assert_eq!(names(&all), "asc");
        all.learn(&second);
        assert_eq!(names(&all), "atc");
        let lost = all.lost.iter().map(|w| w.provider.as_str());
        assert_eq!(lost.collect::<String>(), "b");
        all.learn(&first);
        assert_eq!(names(&all), "atc", "what is known already changes nothing");
    }

    #[test]
    fn a_spare_stays_where_it_stepped_in() {
        let mut roster = roster(&["s"]);
        assert!(roster.lose("http://b.invalid/", true, any));
        assert_eq!(names(&roster), "asc");
        assert!(!roster.is_short());
        roster.fill();
        assert_eq!(names(&roster), "asc");
    }
}
