//! Everything that could be done, side by side: at home, or on workers by each scheme and wire.

use std::fmt::Write;

use serde::Serialize;
use shared::placement::{Wire, Wires};
use shared::unet::UNet;

use super::foretold::sight_in_short;
use super::ledger::Ledger;
use super::plan::{Asked, choose};
use super::{Policy, Quality, name, promised_psnr};
use crate::cost::picture::PictureCost;
use crate::cost::time::Speeds;
use crate::error::{Error, Result};
use crate::fleet::config::FleetConfig;
use crate::schemes::{Scheme, Setting};

/// What is to be compared.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The model.
    pub unet: &'a UNet,
    /// What is allowed.
    pub policy: &'a Policy,
    /// What is asked for of a placement.
    pub asked: &'a Asked,
    /// Sizes and settings; scheme and placement are what differs.
    pub base: Setting,
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
    /// The scheme, and the wire where it has one.
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
    /// Why it is not possible; none where it is.
    pub refused: Option<String>,
}

/// A wire that is not so much faster than a more exact one is no way of its own.
const WORTH_IT: f64 = 0.95;

/// All ways, home first, then from the most exact on.
///
/// # Errors
/// None but those of a walk over shapes: what cannot be done is a way that says so.
pub fn ways(question: &Question<'_>) -> Result<Vec<Way>> {
    let wires = match question.asked.wires {
        Some(wires) => vec![wires],
        None => Wire::ALL.map(Wires::all).to_vec(),
    };
    let each = wires.into_iter().map(|wires| resident(question, wires));
    let each: Vec<Option<Way>> = each.collect::<Result<_>>()?;
    let each: Vec<Way> = each.into_iter().flatten().collect();
    let allowed = each.iter().filter(|way| way.refused.is_none());
    let fastest = allowed
        .map(|way| way.cost.seconds)
        .fold(f64::INFINITY, f64::min);

    let mut ways = vec![home(question)?];
    for way in each {
        let as_fast = |other: &Way| {
            other.refused.is_some() == way.refused.is_some()
                && other.setting.scheme == Scheme::Resident
                && WORTH_IT * other.cost.seconds <= way.cost.seconds
        };
        // The one that a run would take is told in any case.
        let taken = way.refused.is_none() && way.cost.seconds <= fastest;
        if taken || !ways.iter().any(as_fast) {
            ways.push(way);
        }
    }
    let paper = Setting {
        scheme: Scheme::Ppidm,
        ..question.base
    };
    ways.push(question.way("ppidm".into(), paper)?);
    Ok(ways)
}

fn home(question: &Question<'_>) -> Result<Way> {
    let setting = Setting {
        scheme: Scheme::Local,
        ..question.base
    };
    let mut way = question.way("local".into(), setting)?;
    way.refused = question
        .memory
        .filter(|free| way.cost.memory > *free)
        .map(|free| {
            let gigabytes = |bytes: u64| bytes as f64 / 1e9;
            format!(
                "it takes about {:.1} GB of memory, {:.1} are free",
                gigabytes(way.cost.memory),
                gigabytes(free)
            )
        });
    Ok(way)
}

/// The fastest placement with `wires`, whether the policy allows wires, quality and rows or not; none where
/// there is none, or the picture has not enough rows for the workers.
fn resident(question: &Question<'_>, wires: Wires) -> Result<Option<Way>> {
    let free = Policy {
        max_rows: 1.0,
        wires: wires.each().to_vec(),
        quality: Quality::Psnr(0.0),
        ..question.policy.clone()
    };
    let asked = Asked {
        wires: Some(wires),
        ..*question.asked
    };
    let base = Setting {
        scheme: Scheme::Resident,
        ..question.base
    };
    let Question {
        unet,
        fleet,
        speeds,
        ..
    } = question;
    let plan = match choose(unet, &free, &asked, base, fleet, speeds) {
        Ok(plan) => plan,
        Err(Error::Policy { .. } | Error::Shared(shared::Error::TooManyStrips { .. })) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let wire = match wires.halo == wires.attention {
        true => name(&wires.halo),
        false => format!("{}/{}", name(&wires.halo), name(&wires.attention)),
    };
    Ok(Some(
        question.way(format!("resident, {wire}"), plan.setting)?,
    ))
}

impl Question<'_> {
    fn way(&self, name: String, setting: Setting) -> Result<Way> {
        let workers = self.fleet.workers.len();
        let ledger = Ledger::foresee(self.unet, &setting, self.fleet, &[])?;
        let refused = match self.policy.check(&setting, &ledger) {
            Ok(()) => None,
            Err(Error::Policy { rule, reason, .. }) => Some(format!("{rule}: {reason}")),
            Err(error) => return Err(error),
        };
        Ok(Way {
            name,
            setting,
            cost: PictureCost::new(self.unet, &setting, workers, self.calls, self.speeds)?,
            ledger,
            least_psnr: promised_psnr(&setting),
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

/// The ways as lines of a table: those that are possible, and below them why the others are not.
pub fn table(ways: &[Way]) -> String {
    let mut text = format!(
        "{:<17} {:>10} {:>10} {:>10} {:>10}  {:<13}  {}\n",
        "a picture", "seconds", "MB up", "MB down", "memory GB", "quality", "a provider sees"
    );
    let (possible, refused): (Vec<&Way>, Vec<&Way>) =
        ways.iter().partition(|way| way.refused.is_none());
    for way in possible.into_iter().chain(refused) {
        let cost = &way.cost;
        let quality = match way.least_psnr {
            None => "exact".to_owned(),
            Some(db) => format!("{db:.0} dB or more"),
        };
        let last = match &way.refused {
            None => sight_in_short(&way.ledger),
            Some(why) if way.setting.scheme == Scheme::Local => format!("not possible: {why}"),
            Some(why) => format!("not allowed: {why}"),
        };
        // Writing into a String cannot fail.
        let _ = writeln!(
            text,
            "{:<17} {:>10.1} {:>10.1} {:>10.1} {:>10.2}  {:<13}  {last}",
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
