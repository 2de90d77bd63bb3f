//! Going on without a worker that is lost in the middle of a picture.
//!
//! The U-Net call that failed is made again, with a spare in the lost worker's place or, without one,
//! with the picture cut anew among those that are left. What a provider was shown before counts with
//! what it will be shown. If that breaks the policy or, without one, if any provider would see more rows
//! than the picture began with, it ends before anything is sent.

use shared::host::HostTensor;
use shared::unet::UNet;
use shared::whole::Whole;
use tokio::runtime::Handle;

use super::{Finished, Predictor, Setting};
use crate::error::{Error, Result};
use crate::fleet::Fleet;
use crate::fleet::config::FleetConfig;
use crate::fleet::tally::{Tally, Traffic};
use crate::policy::Policy;
use crate::policy::ledger::{Ledger, SLACK};

/// Predicts by a scheme on workers of which some may be lost.
pub struct Failover<'a> {
    unet: &'a UNet,
    setting: Setting,
    policy: Option<&'a Policy>,
    /// Digest of the model.
    digest: &'a str,
    /// The workers that are left.
    config: FleetConfig,
    /// The largest share of the rows that a provider sees when none is lost.
    most_rows: f64,
    /// The user's part, to begin again with.
    whole: Whole,
    /// None only while the workers change.
    current: Option<Box<dyn Predictor + 'a>>,
    /// Accounts of the sessions that were given up.
    past: Vec<Tally>,
    past_flop: u64,
    runtime: Handle,
}

impl<'a> Failover<'a> {
    /// A predictor by `setting` on the `fleet` that was opened on `config` for the model of `digest`, with
    /// the user's part in `whole`. To be made on a thread of the async runtime.
    ///
    /// # Errors
    /// As [`Setting::predictor`].
    pub fn new(
        unet: &'a UNet,
        setting: Setting,
        policy: Option<&'a Policy>,
        digest: &'a str,
        config: FleetConfig,
        fleet: Fleet,
        whole: Whole,
    ) -> Result<Self> {
        let [batch, ..] = setting.latents;
        let most_rows = Ledger::foresee(unet, &setting, &config, &[])?.most_rows();
        let current = setting.predictor(unet, whole.of_entries(0, batch), Some(fleet))?;
        Ok(Self {
            unet,
            setting,
            policy,
            digest,
            config,
            most_rows,
            whole,
            current: Some(current),
            past: Vec::new(),
            past_flop: 0,
            runtime: Handle::current(),
        })
    }

    /// Gives up the sessions and opens others on `config`.
    fn change_to(&mut self, config: FleetConfig) -> Result<()> {
        if let Some(current) = self.current.take() {
            let Finished {
                user_flop, fleet, ..
            } = current.finish();
            self.past_flop += user_flop;
            if let Some(fleet) = fleet {
                self.past.extend(self.runtime.block_on(fleet.close()));
            }
        }
        let ledger = Ledger::foresee(self.unet, &self.setting, &config, &self.past)?;
        match self.policy {
            Some(policy) => policy.check(&self.setting, &ledger)?,
            None if ledger.most_rows() > self.most_rows + SLACK => {
                let reason = format!(
                    "a provider would see {:.1} % of the rows where {:.1} % was the most; give a \
                     --policy that allows it, or name a spare worker",
                    100.0 * ledger.most_rows(),
                    100.0 * self.most_rows
                );
                return Err(Error::Request(reason));
            }
            None => {}
        }
        let open = self.setting.open(&config, self.digest, self.unet);
        let fleet = self.runtime.block_on(open)?;
        let [batch, ..] = self.setting.latents;
        let whole = self.whole.of_entries(0, batch);
        self.current = Some(self.setting.predictor(self.unet, whole, Some(fleet))?);
        self.config = config;
        Ok(())
    }

    /// Goes on without the worker that `error` is of, and without those that are found lost meanwhile.
    fn go_on_without(&mut self, mut error: Error) -> Result<()> {
        loop {
            let left = error.lost_worker().and_then(|url| self.config.without(url));
            let Some(left) = left else {
                return Err(error);
            };
            match self.change_to(left.clone()) {
                Ok(()) => {
                    tracing::warn!("{error}; went on with {} workers", left.workers.len());
                    return Ok(());
                }
                Err(next) if next.lost_worker().is_some() => error = next,
                Err(refusal) => {
                    return Err(Error::NoFailover {
                        lost: error.to_string(),
                        reason: refusal.to_string(),
                    });
                }
            }
            self.config = left;
        }
    }
}

impl Predictor for Failover<'_> {
    fn predict(&mut self, sample: HostTensor, timestep: f64) -> Result<HostTensor> {
        loop {
            let Some(current) = &mut self.current else {
                let reason = "the picture's workers were lost before";
                return Err(Error::Request(reason.into()));
            };
            match current.predict(sample.clone(), timestep) {
                Ok(output) => return Ok(output),
                Err(error) => self.go_on_without(error)?,
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
        let mut finished = self
            .current
            .map_or_else(Finished::default, |current| current.finish());
        finished.user_flop += self.past_flop;
        finished.past.extend(self.past);
        finished
    }
}
