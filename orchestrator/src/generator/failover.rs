//! Going on without a worker that is lost, at the beginning or in the middle of a picture.
//!
//! The U-Net call that failed is made again: with the same worker, if it only lost the session and is back;
//! else with a spare in its place, or with one that was lost before and is well again; or, without any, with
//! the picture cut anew among those that are left; or, where none of these can be or may be, at home. A worker that is
//! there and of no use (another model, another token, nonsense) is only ever replaced by a spare. What a provider was shown before counts with what it will
//! be shown. What breaks the policy or, without one, shows any provider more rows than all workers that were given
//! would, is not done. Who was lost is known to the next picture.

use clap::ValueEnum;
use lacuna_model::unet::UNet;
use lacuna_model::weights::Stored;
use lacuna_model::whole::Whole;
use lacuna_wire::HostTensor;
use tokio::runtime::Handle;

use crate::error::{Error, Result};
use crate::fleet::adapters;
use crate::fleet::config::FleetConfig;
use crate::fleet::roster::Roster;
use crate::fleet::tally::{Shown, Tally, Traffic};
use crate::fleet::tap::Tap;
use crate::policy::Policy;
use crate::policy::foretold::advice_after_loss;
use crate::policy::ledger::{Ledger, SLACK};
use crate::schemes::predictor::at_home;
use crate::schemes::{Finished, Predictor, Setting};

/// What becomes of a picture whose worker is lost, from its current step on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OnLoss {
    /// A spare steps in, else the picture is cut anew, else this machine goes on alone.
    #[default]
    Home,
    /// A spare steps in, else the picture is cut anew, else it ends.
    Fewer,
    /// A spare steps in, else it ends: fewer workers are another setting.
    Spare,
    /// It ends: what is timed or overheard is one session on each of the workers that were given.
    End,
}

/// Makes the whole U-Net ready here.
pub type Home<'a> = &'a dyn Fn() -> Result<Whole>;

/// What is told of a picture's workers while it is made.
#[derive(Clone, Copy, Debug)]
pub enum Told<'a> {
    /// Sessions are about to be opened, and nothing is sent yet: what they will have shown, with those before of the same
    /// picture.
    Opening(&'a [Shown]),
    /// A worker was lost, and how it went on.
    WentOn(&'a str),
}

/// Hears what is told.
pub type Note<'a> = Box<dyn FnMut(Told<'_>) -> Result<()> + 'a>;

/// What is computed, and under which conditions.
#[derive(Clone, Copy)]
pub struct Terms<'a> {
    /// The U-Net's layers.
    pub unet: &'a UNet,
    /// Digest of its weights.
    pub digest: &'a str,
    /// Its files, where workers must have the adapters that change them.
    pub adapted: Option<&'a Stored<UNet>>,
    /// How the scheme computes.
    pub setting: &'a Setting,
    /// What the run must keep to.
    pub policy: Option<&'a Policy>,
    /// What becomes of the picture when a worker is lost.
    pub on_loss: OnLoss,
    /// The whole U-Net, for when nobody else can go on.
    pub home: Home<'a>,
    /// Who listens to what the workers of which places are sent.
    pub taps: &'a [(usize, Tap)],
}

/// Predicts by a scheme on workers of which some may be lost.
pub struct Failover<'a> {
    terms: Terms<'a>,
    roster: &'a mut Roster,
    /// The largest share of the rows that a provider sees when none is lost.
    most_rows: f64,
    /// From how many workers together everything is hidden when none is lost.
    hidden_from: Option<usize>,
    /// The user's part, to begin again with.
    whole: Whole,
    /// None only while the workers change.
    current: Option<Box<dyn Predictor + 'a>>,
    note: Note<'a>,
    /// Whether every worker was there before, in this picture or one before.
    was_open: bool,
    /// Accounts of the sessions that were given up.
    past: Vec<Tally>,
    past_flop: u64,
    /// Workers that came back to this picture, as often as they did.
    came_back: Vec<String>,
    runtime: Handle,
}

/// How often a worker may come back to one picture. One that is lost again and again would be begun again with for as
/// long as it likes, with all that was shown to it.
const MOST_RETURNS: usize = 2;

impl<'a> Failover<'a> {
    /// A predictor on the workers of `roster` with the user's part in `whole`, of a picture of which the sessions in the
    /// `past` were opened; [`Self::open`] opens the next ones. To be made on a thread of the async runtime, and to be used on
    /// one that may block.
    ///
    /// # Errors
    /// [`lacuna_model::Error::TooManyStrips`].
    pub fn new(
        terms: Terms<'a>,
        roster: &'a mut Roster,
        whole: Whole,
        past: Vec<Shown>,
        note: Note<'a>,
    ) -> Result<Self> {
        let given = Ledger::foresee(terms.unet, terms.setting, roster.given(), &[])?;
        Ok(Self {
            terms,
            most_rows: given.most_rows(),
            hidden_from: given.hidden_from,
            roster,
            whole,
            current: None,
            note,
            was_open: !past.is_empty(),
            past: past.into_iter().map(Tally::from).collect(),
            past_flop: 0,
            came_back: Vec::new(),
            runtime: Handle::current(),
        })
    }

    /// Opens a session on every worker.
    ///
    /// # Errors
    /// As [`Setting::open`], when it cannot go on without the worker that is lost; [`Error::NoFailover`].
    pub fn open(&mut self) -> Result<()> {
        if self.roster.is_short() {
            self.runtime.block_on(self.roster.call_back(None));
            self.roster.fill();
        }
        match self.begin() {
            Ok(()) => Ok(()),
            Err(error) if self.terms.on_loss == OnLoss::End => Err(error),
            Err(error) => {
                let was_open = self.was_open;
                self.go_on_without(error, &mut self.most_changes()).or_else(
                    |error| match was_open {
                        true => self.go_home(error),
                        // What was never there is more likely a mistake in the fleet's file than a loss.
                        false => Err(error),
                    },
                )
            }
        }
    }

    /// How often the workers may change for one U-Net call: often enough for everybody to be tried.
    fn most_changes(&self) -> usize {
        let FleetConfig { workers, spares } = self.roster.given();
        2 * (workers.len() + spares.len())
    }

    /// Gives up the sessions.
    fn give_up(&mut self) {
        let Some(current) = self.current.take() else {
            return;
        };
        let Finished {
            user_flop, fleet, ..
        } = current.finish();
        self.past_flop += user_flop;
        if let Some(fleet) = fleet {
            self.past.extend(self.runtime.block_on(fleet.close()));
        }
    }

    /// Whether the picture may go on with the workers of `config`, by what they would then have seen of it.
    fn check(&self, config: &FleetConfig) -> Result<()> {
        let Terms {
            unet,
            setting,
            policy,
            ..
        } = self.terms;
        let ledger = Ledger::foresee(unet, setting, config, &self.past)?;
        if let (Some(before), Some(now)) = (self.hidden_from, ledger.hidden_from)
            && now < before
        {
            let reason = format!(
                "any {before} workers together were to learn nothing, of fewer workers only any {now} would; a spare \
                 (spare = true in the fleet file) keeps it"
            );
            return Err(Error::Workers(reason));
        }
        match policy {
            Some(policy) => {
                policy
                    .check(setting, &ledger)
                    .map_err(|error| match self.roster.has_lost() {
                        true => error.advising(|| advice_after_loss(&ledger)),
                        false => error,
                    })
            }
            None if ledger.most_rows() > self.most_rows + SLACK => {
                let reason = format!(
                    "a provider would see {:.1} % of the rows where {:.1} % was the most; give --policy \
                     fast, which allows it, or a spare (spare = true in the fleet file)",
                    100.0 * ledger.most_rows(),
                    100.0 * self.most_rows
                );
                Err(Error::Request(reason))
            }
            None => Ok(()),
        }
    }

    /// Opens sessions on the workers that are there, in place of those before.
    fn begin(&mut self) -> Result<()> {
        self.give_up();
        let Terms {
            unet,
            digest,
            adapted,
            setting,
            taps,
            ..
        } = self.terms;
        self.check(self.roster.config())?;
        let config = self.roster.config();
        let seen = setting
            .scheme
            .seen(unet, &setting.sizes, config.workers.len())?;
        let before = self.past.iter().map(Shown::from);
        let next = config.workers.iter().zip(seen);
        let next = next.map(|(worker, seen)| Shown {
            url: worker.url.to_string(),
            provider: worker.provider.clone(),
            seen,
        });
        (self.note)(Told::Opening(&before.chain(next).collect::<Vec<_>>()))?;
        if let Some(stored) = adapted {
            self.runtime.block_on(adapters::supply(stored, config))?;
        }
        let mut fleet = self.runtime.block_on(setting.open(config, digest, unet))?;
        // The first call does the most.
        let [first, _] = setting.first_calls(unet, config.workers.len())?;
        fleet.expect(&first.workers_flop);
        for (worker, tap) in taps {
            fleet.tap(*worker, tap);
        }
        let [batch, ..] = setting.sizes.latents;
        let whole = self.whole.of_entries(0, batch);
        self.current = Some(setting.predictor(unet, whole, Some(fleet))?);
        self.was_open = true;
        Ok(())
    }

    /// Goes on alone after `error`, if that is of a worker that is lost.
    fn go_home(&mut self, error: Error) -> Result<()> {
        let lost = error.lost_worker().is_some() || matches!(error, Error::NoFailover { .. });
        if self.terms.on_loss != OnLoss::Home || !lost {
            return Err(error);
        }
        self.give_up();
        let whole = (self.terms.home)().map_err(|at_home| Error::NoFailover {
            lost: error.to_string(),
            reason: format!("at home: {at_home}"),
        })?;
        let [batch, ..] = self.terms.setting.sizes.latents;
        self.current = Some(at_home(self.terms.unet, whole.of_entries(0, batch)));
        self.went_on(&format!(
            "{error}; went on at home, where nobody else computes (--on-loss fewer would have ended it)"
        ))
    }

    /// Says how it went on.
    fn went_on(&mut self, how: &str) -> Result<()> {
        tracing::warn!("{how}");
        (self.note)(Told::WentOn(how))
    }

    /// Begins again after `error`, with the worker that it is of if that is back, else without; `changes`
    /// are left.
    fn go_on_after(&mut self, mut error: Error, changes: &mut usize) -> Result<()> {
        if let Some(url) = error.wrong_worker() {
            // Nothing begins anew by itself: that a picture ends must tell nothing but that somebody lied.
            self.roster.lose(url, false, |_| true);
            return Err(error);
        }
        let lost = error.lost_worker().unwrap_or_default().to_owned();
        let returns = self.came_back.iter().filter(|url| **url == lost).count();
        if error.lost_session() && returns < MOST_RETURNS && *changes > 0 {
            *changes -= 1;
            match self.begin() {
                Ok(()) => {
                    self.came_back.push(lost);
                    return self.went_on(&format!("{error}; it is back"));
                }
                // The first word on it says more.
                Err(again) if again.lost_worker() == error.lost_worker() => {}
                Err(other) => error = other,
            }
        }
        self.go_on_without(error, changes)
    }

    /// Begins again without the worker that `error` is of, and without those that are found lost meanwhile;
    /// `changes` are left.
    fn go_on_without(&mut self, mut error: Error, changes: &mut usize) -> Result<()> {
        let mut before = String::new();
        loop {
            let spare = !self.roster.config().spares.is_empty();
            let useless = || error.useless_worker().filter(|_| spare);
            let url = error.lost_worker().or_else(useless);
            let Some(url) = url.filter(|_| *changes > 0) else {
                return Err(match before.is_empty() {
                    true => error,
                    false => Error::NoFailover {
                        lost: before.trim_end_matches("; ").to_owned(),
                        reason: error.to_string(),
                    },
                });
            };
            *changes -= 1;
            if !spare {
                self.runtime.block_on(self.roster.call_back(Some(url)));
            }
            let useless = error.lost_worker().is_none();
            let all = self.roster.given().workers.len();
            let fewer = self.terms.on_loss != OnLoss::Spare;
            let allowed = |config: &FleetConfig| {
                (fewer || config.workers.len() == all) && self.check(config).is_ok()
            };
            let mut roster = self.roster.clone();
            if !roster.lose(url, !useless, allowed) {
                return Err(error);
            }
            *self.roster = roster;
            if !fewer && self.roster.is_short() {
                return Err(Error::NoFailover {
                    lost: format!("{before}{error}"),
                    reason: "there is no spare worker".into(),
                });
            }
            match self.begin() {
                Ok(()) => {
                    let left = self.roster.config().workers.len();
                    return self.went_on(&format!("{before}{error}; went on with {left} workers"));
                }
                Err(next) if next.lost_worker().or(next.useless_worker()).is_some() => {
                    before += &format!("{error}; ");
                    error = next;
                }
                Err(Error::Interrupted) => return Err(Error::Interrupted),
                Err(refusal) => {
                    return Err(Error::NoFailover {
                        lost: format!("{before}{error}"),
                        reason: refusal.to_string(),
                    });
                }
            }
        }
    }

    /// Closes the sessions, and gives the work that the user did and the accounts of all of them.
    pub fn close(mut self) -> (u64, Vec<Tally>) {
        self.give_up();
        (self.past_flop, self.past)
    }
}

impl Predictor for Failover<'_> {
    fn predict(&mut self, sample: HostTensor, timestep: f64) -> Result<HostTensor> {
        let mut changes = self.most_changes();
        loop {
            let Some(current) = &mut self.current else {
                let reason = "the picture has no workers: they were lost before, or never opened";
                return Err(Error::Request(reason.into()));
            };
            if self.terms.on_loss == OnLoss::End {
                return current.predict(sample, timestep);
            }
            match current.predict(sample.clone(), timestep) {
                Ok(output) => return Ok(output),
                Err(error) => self
                    .go_on_after(error, &mut changes)
                    .or_else(|error| self.go_home(error))?,
            }
        }
    }

    fn traffic(&self) -> Option<Traffic> {
        let mut all = Traffic::default();
        self.past.iter().for_each(|tally| all.add(&tally.total()));
        let current = self.current.as_ref().and_then(|current| current.traffic());
        all.add(&current.unwrap_or_default());
        Some(all)
    }

    fn finish(self: Box<Self>) -> Finished {
        let finished = self.current.map(Predictor::finish);
        let mut finished = finished.unwrap_or_default();
        finished.user_flop += self.past_flop;
        finished.past.extend(self.past);
        finished
    }
}
