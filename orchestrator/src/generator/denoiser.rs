//! The U-Net calls of one picture after the other, wherever the U-Net is computed: what pictures are made by, and what
//! benchmarks time and audits overhear.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lacuna_model::layers::Parameter;
use lacuna_model::weights::{Apart, Weights};
use lacuna_model::whole::{Conditioning, Whole};

use super::failover::{Failover, Note, OnLoss, Terms, Told};
use crate::error::Result;
use crate::fleet::config::FleetConfig;
use crate::fleet::roster::Roster;
use crate::fleet::tally::{Shown, Tally};
use crate::fleet::tap::Tap;
use crate::policy::Policy;
use crate::schemes::{Predictor, Setting};
use crate::unet_source::UNetSource;

/// Where a U-Net is computed, and what became of the workers so far.
pub struct Denoiser {
    unet: Arc<UNetSource>,
    /// How the scheme computes.
    pub setting: Setting,
    /// The whole U-Net's weights, where it is computed in this process.
    whole: Option<Weights>,
    /// What a picture must keep to.
    policy: Option<Policy>,
    on_loss: OnLoss,
    /// Who listens to what workers are sent, and to which.
    taps: Vec<(usize, Tap)>,
    /// The workers, if there are any, as the pictures so far left them.
    roster: Option<Arc<Mutex<Roster>>>,
    accounts: Arc<Mutex<Accounts>>,
}

/// What was done and seen, over all pictures.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    /// Work of the user, multiply and add counted as two.
    pub user_flop: u64,
    /// Reaching the workers.
    pub connect: Duration,
    /// All sampler steps.
    pub denoise: Duration,
    /// The accounts of every picture's sessions, also of those that were given up.
    pub pictures: Vec<Vec<Tally>>,
}

impl Denoiser {
    /// Computes `unet` by `setting`, on the workers of `fleet` if there are any, and with `whole` where it is
    /// computed in this process.
    pub fn new(
        unet: Arc<UNetSource>,
        setting: Setting,
        whole: Option<Weights>,
        fleet: Option<FleetConfig>,
    ) -> Self {
        Self {
            unet,
            setting,
            whole,
            policy: None,
            on_loss: OnLoss::default(),
            taps: Vec::new(),
            roster: fleet.map(|fleet| Arc::new(Mutex::new(Roster::new(fleet)))),
            accounts: Arc::default(),
        }
    }

    /// Keeps to `policy`, if there is one.
    pub fn under(self, policy: Option<Policy>) -> Self {
        Self { policy, ..self }
    }

    /// The same U-Net on the same workers by another setting, for pictures of another size: what becomes of the workers, and
    /// the accounts, are of both.
    pub fn by(&self, setting: Setting) -> Self {
        // Nobody else's part of a U-Net that is computed here.
        let workers = setting.scheme.needs_workers();
        Self {
            unet: self.unet.clone(),
            setting,
            whole: self.whole.clone(),
            policy: self.policy.clone(),
            on_loss: self.on_loss,
            taps: Vec::new(),
            roster: self.roster.clone().filter(|_| workers),
            accounts: self.accounts.clone(),
        }
    }

    /// Does `on_loss` when a worker is lost.
    pub fn on_loss(self, on_loss: OnLoss) -> Self {
        Self { on_loss, ..self }
    }

    /// Keeps copies of everything that workers are sent: of each index in its tap.
    pub fn tapped(self, taps: Vec<(usize, Tap)>) -> Self {
        Self { taps, ..self }
    }

    /// The weights that the user's part of the U-Net needs from the first call of a picture to the last.
    ///
    /// # Errors
    /// As [`UNetSource::load`].
    pub fn weights(&self) -> Result<Weights> {
        match &self.whole {
            Some(weights) => Ok(weights.clone()),
            None => {
                let unet = self.unet.layers();
                let parameters = self.setting.user_parameters(unet)?.held;
                match self.apart()? {
                    None => self.unet.load(&parameters),
                    Some(apart) => self.unet.load_apart(&parameters, &apart),
                }
            }
        }
    }

    /// The layers whose weights here are without adapters, where the scheme has such.
    fn apart(&self) -> Result<Option<Apart>> {
        let (unet, sizes) = (self.unet.layers(), &self.setting.sizes);
        match self.whole {
            Some(_) => Ok(None),
            None => self.setting.scheme.apart(unet, sizes),
        }
    }

    /// The user's part of the U-Net with `weights` of [`Self::weights`]. What makes keys and values of the prompt alone is
    /// loaded here, one layer after the other, and dropped again: in SDXL that is 1.4 GB.
    fn user_part(&self, weights: Weights, conditioning: Conditioning) -> Result<Whole> {
        let mut whole = Whole::new(weights, conditioning);
        if self.whole.is_some() {
            return Ok(whole);
        }
        let unet = self.unet.layers();
        let parameters = self.setting.user_parameters(unet)?.of_prompt;
        for layer in unet.cross_attentions() {
            let makers = [&layer.to_k.name, &layer.to_v.name];
            let own = parameters.iter();
            let own = own.filter(|own| makers.iter().any(|maker| *maker == own.layer()));
            let own: Vec<Parameter> = own.cloned().collect();
            if !own.is_empty() {
                whole.make_prompt_keys(layer, &self.unet.load(&own)?)?;
            }
        }
        Ok(whole)
    }

    /// Opens sessions on the workers, has `calls` make the U-Net calls of one picture, and closes the sessions, whatever
    /// came of it. The user's part computes with `weights` of [`Self::weights`]. Blocks for as long as it takes, on a
    /// thread of the async runtime that may block.
    ///
    /// # Errors
    /// Those of the scheme and the workers, and those of `calls`.
    pub fn predict<T>(
        &self,
        weights: Weights,
        conditioning: Conditioning,
        calls: impl FnOnce(&mut dyn Predictor) -> Result<T>,
    ) -> Result<T> {
        let note = Box::new(|_: Told<'_>| Ok(()));
        self.predict_on(weights, conditioning, Vec::new(), note, calls)
    }

    /// As [`Self::predict`] of a picture of which sessions in the `past` have shown something; `note` hears of it before more
    /// is shown.
    ///
    /// # Errors
    /// As [`Self::predict`]; those of `note`.
    pub fn predict_on<T>(
        &self,
        weights: Weights,
        conditioning: Conditioning,
        past: Vec<Shown>,
        note: Note<'_>,
        calls: impl FnOnce(&mut dyn Predictor) -> Result<T>,
    ) -> Result<T> {
        // Where adapters stay here, workers hold the model without any.
        let stay = self.apart()?.is_some();
        let digest = match stay {
            true => self.unet.base_digest()?,
            false => self.unet.digest().to_owned(),
        };
        let home = || {
            let weights = match &self.whole {
                Some(weights) => weights.clone(),
                None => {
                    self.unet.check_room()?;
                    self.unet.load_all()?
                }
            };
            Ok(Whole::new(weights, conditioning.clone()))
        };
        let mut setting = self.setting.clone();
        // Prompts of one run may be of different lengths.
        setting.sizes.tokens = conditioning.tokens();
        let whole = self.user_part(weights, conditioning.clone())?;
        let prompt_flop = whole.flop();
        let unet = self.unet.layers();
        let calls = |predictor: &mut dyn Predictor| {
            let start = Instant::now();
            let output = calls(predictor);
            self.accounts().denoise += start.elapsed();
            output
        };
        let Some(roster) = &self.roster else {
            let mut predictor = setting.predictor(unet, whole, None)?;
            let output = calls(&mut *predictor);
            self.accounts().user_flop += predictor.finish().user_flop;
            return output;
        };
        // A picture's own: several may be made side by side.
        let mut own = lock(roster).clone();
        let terms = Terms {
            unet,
            digest: &digest,
            adapted: self.unet.adapted().filter(|_| !stay),
            setting: &setting,
            policy: self.policy.as_ref(),
            on_loss: self.on_loss,
            home: &home,
            taps: &self.taps,
        };
        let start = Instant::now();
        let mut predictor = Failover::new(terms, &mut own, whole, past, note)?;
        let opened = predictor.open();
        self.accounts().connect += start.elapsed();
        let output = opened.and_then(|()| calls(&mut predictor));
        let (user_flop, tallies) = predictor.close();
        lock(roster).learn(&own);
        let mut accounts = self.accounts();
        // Each session's count begins anew.
        accounts.user_flop += prompt_flop + user_flop;
        accounts.pictures.push(tallies);
        output
    }

    /// What was done and seen so far.
    pub fn accounts(&self) -> MutexGuard<'_, Accounts> {
        lock(&self.accounts)
    }
}

/// What a mutex holds: no change of it is left half done, so a panic elsewhere spoils nothing.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
