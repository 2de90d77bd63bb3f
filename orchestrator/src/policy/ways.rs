//! Everything that could be done, side by side: at home, or on workers by each scheme and wire.

use std::fmt::Write;
use std::sync::Arc;

use lacuna_model::unet::UNet;
use serde::Serialize;

use super::foretold::sight_in_short;
use super::ledger::Ledger;
use super::plan::choose;
use super::{Policy, Quality};
use crate::cost::picture::PictureCost;
use crate::cost::time::Speeds;
use crate::error::{Error, Result};
use crate::fleet::config::FleetConfig;
use crate::schemes::registry::others;
use crate::schemes::{Scheme, Setting, Sizes};

/// What is to be compared.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// The model.
    pub unet: &'a UNet,
    /// What is allowed.
    pub policy: &'a Policy,
    /// What is compared; options that are left open are filled in.
    pub schemes: Vec<Arc<dyn Scheme>>,
    /// Sizes of the U-Net calls.
    pub sizes: Sizes,
    /// Whether the U-Net has adapters.
    pub adapted: bool,
    /// Who would compute.
    pub fleet: &'a FleetConfig,
    /// How fast everything is.
    pub speeds: &'a Speeds,
    /// U-Net calls of a picture.
    pub calls: usize,
    /// Bytes of memory that are free on the user's machine, where that is known.
    pub memory: Option<u64>,
}

/// One way to make a picture.
#[derive(Clone, Debug, Serialize)]
pub struct Way {
    /// The scheme, in a few words.
    pub name: String,
    /// How to compute.
    #[serde(skip)]
    pub setting: Setting,
    /// What it takes.
    pub cost: PictureCost,
    /// What each provider sees.
    pub ledger: Ledger,
    /// The least PSNR against the uncut picture, in dB; none where that is met to rounding.
    pub least_psnr: Option<f64>,
    /// Why it is not allowed or not possible; none where it is both.
    pub refused: Option<String>,
}

/// All ways, in the order of the schemes.
///
/// # Errors
/// None but those of a walk over shapes: what cannot be done is a way that says so.
pub fn ways(question: &Question<'_>) -> Result<Vec<Way>> {
    let mut ways = Vec::new();
    for scheme in &question.schemes {
        let knowing = scheme.of_calls(question.calls);
        match question.fill_in(knowing.as_ref().unwrap_or(scheme)) {
            Ok(setting) => ways.push(question.way(setting)?),
            // The picture has not enough rows for the workers, or the scheme is for other workers.
            Err(Error::Model(lacuna_model::Error::TooManyStrips { .. }) | Error::Workers(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ways)
}

/// Every scheme that there is, in each way that a comparison tells apart.
pub fn all_schemes() -> Vec<Arc<dyn Scheme>> {
    let each = others().into_iter().flat_map(|scheme| match scheme.ways() {
        ways if ways.is_empty() => vec![scheme],
        ways => ways,
    });
    each.collect()
}

impl Question<'_> {
    /// The fastest way of filling in what `scheme` leaves open, whether the policy allows its wires, quality and
    /// rows or not.
    fn fill_in(&self, scheme: &Arc<dyn Scheme>) -> Result<Setting> {
        let setting = Setting {
            scheme: scheme.clone(),
            sizes: self.sizes,
            adapted: self.adapted,
        };
        let wires = scheme.uses(self.sizes.levels).wires;
        let free = Policy {
            max_rows: 1.0,
            wires,
            quality: Quality::Psnr(0.0),
            ..self.policy.clone()
        };
        match choose(self.unet, &free, &setting, self.fleet, self.speeds) {
            Ok(plan) => Ok(plan.setting),
            // As it is: the row says why it is not allowed.
            Err(Error::Policy { .. }) => Ok(setting),
            Err(error) => Err(error),
        }
    }

    fn way(&self, setting: Setting) -> Result<Way> {
        let workers = self.fleet.workers.len();
        let ledger = Ledger::foresee(self.unet, &setting, self.fleet, &[])?;
        let cost = PictureCost::new(self.unet, &setting, workers, self.calls, self.speeds)?;
        let gigabytes = |bytes: u64| bytes as f64 / 1e9;
        let refused = match self.policy.check(&setting, &ledger) {
            Ok(()) => self.memory.filter(|free| cost.memory > *free).map(|free| {
                format!(
                    "not possible: it takes about {:.1} GB of memory, {:.1} are free",
                    gigabytes(cost.memory),
                    gigabytes(free)
                )
            }),
            Err(Error::Policy { rule, reason, .. }) => {
                Some(format!("not allowed: {rule}: {reason}"))
            }
            Err(error) => return Err(error),
        };
        Ok(Way {
            name: setting.scheme.label(),
            least_psnr: setting.scheme.promised_psnr(),
            setting,
            cost,
            ledger,
            refused,
        })
    }
}

/// The best of the possible ways by what one may care for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Best {
    /// The name of the fastest.
    pub fastest: String,
    /// The name of that which shows a provider the least.
    pub least_shown: String,
    /// The name of that which takes the least of the user's memory.
    pub least_memory: String,
}

/// The best of `ways`; none where none is possible.
pub fn best(ways: &[Way]) -> Option<Best> {
    let least = |key: &dyn Fn(&Way) -> f64| {
        let possible = ways.iter().filter(|way| way.refused.is_none());
        // Of equals the fastest.
        let better = |a: &&Way, b: &&Way| {
            let seconds = || a.cost.seconds.total_cmp(&b.cost.seconds);
            key(a).total_cmp(&key(b)).then_with(seconds)
        };
        let best = possible.min_by(better);
        best.map(|way| way.name.clone())
    };
    let shown = |way: &Way| match way.ledger.most() {
        None => 0.0,
        // The prompt and everybody's keys and values weigh more than any share of the rows.
        Some(most) => {
            let prompt = f64::from(u8::from(most.prompt));
            most.rows_with_halo + 2.0 * most.keys_and_values + 4.0 * prompt
        }
    };
    Some(Best {
        fastest: least(&|way| way.cost.seconds)?,
        least_shown: least(&shown)?,
        least_memory: least(&|way| way.cost.memory as f64)?,
    })
}

impl Best {
    /// In one line.
    pub fn line(&self) -> String {
        format!(
            "fastest: {}; least shown: {}; least of your memory: {}",
            self.fastest, self.least_shown, self.least_memory
        )
    }
}

/// A wire that is not so much faster than a more exact one is not worth a row.
const WORTH_IT: f64 = 0.95;

/// Those that a table tells: of one scheme's ways those that gain nothing are left out, but for the fastest and those that are the
/// best of all by something.
fn worth_a_row(ways: &[Way]) -> Vec<&Way> {
    let best = best(ways);
    let best = best.iter();
    let best = best.flat_map(|b| [&b.fastest, &b.least_shown, &b.least_memory]);
    let best: Vec<&String> = best.collect();
    let mut told: Vec<&Way> = Vec::new();
    for way in ways {
        let like = |other: &&Way| {
            other.setting.scheme.name() == way.setting.scheme.name()
                && other.refused.is_some() == way.refused.is_some()
        };
        let as_fast = |other: &Way| WORTH_IT * other.cost.seconds <= way.cost.seconds;
        let fastest = ways.iter().filter(like).map(|other| other.cost.seconds);
        let fastest = way.cost.seconds <= fastest.fold(f64::INFINITY, f64::min);
        let taken = way.refused.is_none() && (fastest || best.contains(&&way.name));
        if taken || !told.iter().copied().filter(like).any(as_fast) {
            told.push(way);
        }
    }
    told
}

/// The ways as lines of a table: those that are possible, and below them why the others are not.
pub fn table(ways: &[Way]) -> String {
    let named = worth_a_row(ways);
    let longest = named.iter().map(|way| way.name.len()).max();
    let width = longest.unwrap_or_default().max("a picture".len());
    let mut text = format!(
        "{:<width$} {:>10} {:>10} {:>10} {:>10}  {:<13}  {}\n",
        "a picture", "seconds", "MB up", "MB down", "memory GB", "quality", "a provider sees"
    );
    let (possible, refused): (Vec<&Way>, Vec<&Way>) =
        named.into_iter().partition(|way| way.refused.is_none());
    for way in possible.into_iter().chain(refused) {
        let cost = &way.cost;
        let quality = match way.least_psnr {
            None => "exact".to_owned(),
            Some(db) => format!("{db:.0} dB or more"),
        };
        let last = match &way.refused {
            None => sight_in_short(&way.ledger),
            Some(why) => why.clone(),
        };
        // Writing into a String cannot fail.
        let _ = writeln!(
            text,
            "{:<width$} {:>10.1} {:>10.1} {:>10.1} {:>10.2}  {:<13}  {last}",
            way.name,
            cost.seconds,
            cost.bytes_up as f64 / 1e6,
            cost.bytes_down as f64 / 1e6,
            cost.memory as f64 / 1e9,
            quality,
        );
    }
    text.truncate(text.trim_end().len());
    text
}
