//! Where pictures of each size are computed: planned and checked under the policy, with the user's part loaded.

use std::sync::{Arc, Mutex, PoisonError};

use lacuna_model::memory;
use lacuna_model::weights::Weights;
use lacuna_orchestrator::cost::time::Speeds;
use lacuna_orchestrator::error::Result;
use lacuna_orchestrator::fleet::config::FleetConfig;
use lacuna_orchestrator::generator::denoiser::Denoiser;
use lacuna_orchestrator::output::console::Console;
use lacuna_orchestrator::policy::Policy;
use lacuna_orchestrator::policy::foretold::Run;
use lacuna_orchestrator::policy::ledger::Ledger;
use lacuna_orchestrator::policy::plan::choose;
use lacuna_orchestrator::report::Report;
use lacuna_orchestrator::schemes::{Setting, Sizes};
use lacuna_orchestrator::unet_source::UNetSource;

/// Sizes whose user's part stays loaded: a picture, and one of another size beside it.
const LOADED: usize = 2;

/// Under which terms others compute.
#[derive(Clone, Debug)]
pub struct Terms {
    /// What every picture keeps to.
    pub policy: Policy,
    /// Who computes.
    pub fleet: FleetConfig,
    /// How fast everything is.
    pub speeds: Speeds,
    /// Whether there are adapters, as in [`Run`].
    pub adapted: bool,
    /// Whether workers may be reached in plain.
    pub insecure: bool,
}

/// Where pictures are computed.
pub struct Places {
    /// The U-Net.
    pub unet: Arc<UNetSource>,
    /// The scheme, with what is open of it, for pictures of the usual size.
    setting: Setting,
    denoiser: Denoiser,
    terms: Option<Terms>,
    console: Console,
    loaded: Mutex<Vec<Arc<Place>>>,
    /// What was done and seen so far.
    report: Mutex<Report>,
}

/// Where pictures of one size are computed.
pub struct Place {
    /// Makes their U-Net calls.
    pub denoiser: Denoiser,
    /// Of the user's part.
    pub weights: Weights,
    /// What each provider will see, in lines.
    pub seen: Vec<String>,
}

impl Places {
    /// For pictures by `setting`'s scheme, whose sizes are the usual ones and of which nothing needs to be chosen yet, and by
    /// `denoiser`, under `terms` if there are any. What providers will see is said on the `console` where a size changes it.
    pub fn new(
        unet: Arc<UNetSource>,
        setting: Setting,
        denoiser: Denoiser,
        terms: Option<Terms>,
        console: Console,
    ) -> Self {
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            scheme: setting.scheme.name().to_owned(),
            model: unet.digest().to_owned(),
            ..Report::default()
        };
        Self {
            unet,
            setting,
            denoiser,
            terms,
            console,
            loaded: Mutex::default(),
            report: Mutex::new(report),
        }
    }

    /// The place for pictures whose latents are of `latents` (batch, rows, columns), with prompts of `tokens` tokens. Blocks
    /// while what is needed here is loaded.
    ///
    /// # Errors
    /// [`lacuna_orchestrator::Error::Policy`], naming the rule; as [`Denoiser::weights`].
    pub fn of(&self, latents: [usize; 3], tokens: usize) -> Result<Arc<Place>> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let sizes = Sizes {
            latents,
            tokens,
            ..self.setting.sizes
        };
        let place = match loaded
            .iter()
            .position(|place| place.denoiser.setting.sizes == sizes)
        {
            Some(at) => loaded.remove(at),
            None => Arc::new(self.prepare(sizes)?),
        };
        // The one that was used last is dropped last.
        loaded.truncate(LOADED - 1);
        loaded.insert(0, place.clone());
        Ok(place)
    }

    fn prepare(&self, sizes: Sizes) -> Result<Place> {
        let unet = self.unet.layers();
        let open = Setting {
            sizes,
            ..self.setting.clone()
        };
        let (setting, seen) = match &self.terms {
            None => (open, Vec::new()),
            Some(terms) => {
                let (policy, fleet) = (&terms.policy, &terms.fleet);
                let setting = choose(unet, policy, &open, fleet, &terms.speeds)?.setting;
                let seen = terms.run().foretell(unet, &setting)?;
                (setting, seen)
            }
        };
        let [batch, rows, columns] = sizes.latents;
        self.console.line(format_args!(
            "pictures of {rows} x {columns} latents, {batch} at a time: {}",
            match seen.is_empty() {
                true => setting.scheme.label(),
                false => seen.join("\n  "),
            }
        ));
        let denoiser = self.denoiser.by(setting);
        Ok(Place {
            weights: denoiser.weights()?,
            denoiser,
            seen,
        })
    }

    /// Takes the accounts of pictures that ended into the report.
    pub fn settle(&self, place: &Place) {
        let setting = &place.denoiser.setting;
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        let mut accounts = self.denoiser.accounts();
        // A service may run for long, and must not keep every picture's.
        let pictures = std::mem::take(&mut accounts.pictures);
        report.seconds.connect = accounts.connect.as_secs_f64();
        report.seconds.denoise = accounts.denoise.as_secs_f64();
        report.user.gflop = accounts.user_flop as f64 / 1e9;
        drop(accounts);
        report.placement = setting.scheme.placement();
        report.ledger.add(Ledger::of_run(setting, &pictures));
        pictures
            .iter()
            .for_each(|tallies| report.add_tallies(tallies));
    }

    /// What was done, and who saw what, of all pictures that ended.
    pub fn report(&self) -> Report {
        let report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        Report {
            peak_memory: memory::peak(),
            ..report.clone()
        }
    }
}

impl Terms {
    fn run(&self) -> Run<'_> {
        Run {
            policy: &self.policy,
            fleet: &self.fleet,
            adapted: self.adapted,
            // The library's pipeline knows.
            given: false,
            insecure: self.insecure,
        }
    }
}
