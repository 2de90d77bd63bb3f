//! The fastest placement that a policy allows.

use std::sync::Arc;

use lacuna_model::unet::UNet;
use lacuna_protocol::placement::{Latents, Prompt, SelfAttention, Wire};
use serde::Serialize;

use super::ledger::Ledger;
use super::{Policy, Quality};
use crate::cost::time::{Seconds, Speeds};
use crate::error::{Error, Result};
use crate::fleet::config::FleetConfig;
use crate::schemes::count::Count;
use crate::schemes::{Scheme, Setting};

/// A placement with what it takes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How to compute.
    pub setting: Setting,
    /// What each provider will see.
    pub ledger: Ledger,
    /// What one U-Net call sends.
    pub count: Count,
    /// Seconds of one U-Net call, but for the first.
    pub seconds: Seconds,
    /// Seconds of a call on the average of the picture's, where it is known how many there are; what one plan is
    /// better than another by.
    pub average: f64,
}

/// What leaving one rule out would save.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Relaxed {
    /// The rule, as the policy names it.
    pub rule: &'static str,
    /// Seconds of one U-Net call without it, on the average.
    pub seconds: f64,
}

/// The fastest way of filling in what `setting`'s scheme leaves open that `policy` allows on `fleet`.
///
/// # Errors
/// [`Error::Policy`], the rule that the first choice breaks, when none is allowed;
/// [`lacuna_model::Error::TooManyStrips`].
pub fn choose(
    unet: &UNet,
    policy: &Policy,
    setting: &Setting,
    fleet: &FleetConfig,
    speeds: &Speeds,
) -> Result<Plan> {
    let consider = |scheme: Arc<dyn Scheme>| -> Result<Plan> {
        let setting = setting.by(scheme);
        let ledger = Ledger::foresee(unet, &setting, fleet, &[])?;
        policy.check(&setting, &ledger)?;
        let [first, count] = setting.first_calls(unet, fleet.workers.len())?;
        let seconds = speeds.seconds(&count);
        let later = seconds.total();
        let average = match setting.scheme.calls() {
            Some(calls) if calls > 0 => {
                let first = speeds.seconds(&first).total();
                later + (first - later) / calls as f64
            }
            _ => later,
        };
        Ok(Plan {
            setting,
            ledger,
            count,
            seconds,
            average,
        })
    };
    let rules = policy.rules();
    let mut choices = setting.scheme.choices(&rules);
    if choices.is_empty() {
        choices.push(setting.scheme.clone());
    }
    let mut best: Option<Plan> = None;
    let mut refused = None;
    for scheme in choices {
        match consider(scheme) {
            Ok(plan) => {
                if best.as_ref().is_none_or(|b| plan.average < b.average) {
                    best = Some(plan);
                }
            }
            // Of the rules the first that is broken, and only where no rule is what the scheme cannot do.
            Err(error @ Error::Policy { .. }) => {
                if !matches!(refused, Some(Error::Policy { .. })) {
                    refused = Some(error);
                }
            }
            Err(error @ Error::Workers(_)) => {
                refused.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    let Some(mut best) = best else {
        let nothing = || Error::Request("the policy allows no placement".into());
        return Err(refused.unwrap_or_else(nothing));
    };
    // What one part takes does not depend on the others, so each is chosen by itself.
    let levels = setting.sizes.levels;
    for part in 0.. {
        let chosen = best.setting.scheme.clone();
        let Some(variants) = setting.scheme.variants(&*chosen, part, levels, &rules) else {
            break;
        };
        for scheme in variants {
            let plan = consider(scheme)?;
            if plan.average < best.average {
                best = plan;
            }
        }
    }
    Ok(best)
}

/// What each rule costs: the time without it, all others kept; and without the two that bound the wires, down
/// to the quality of the paper.
///
/// # Errors
/// As [`choose`].
pub fn relax(
    unet: &UNet,
    policy: &Policy,
    setting: &Setting,
    fleet: &FleetConfig,
    speeds: &Speeds,
) -> Result<Vec<Relaxed>> {
    let changed = |change: fn(&mut Policy)| {
        let mut policy = policy.clone();
        change(&mut policy);
        policy
    };
    let without = [
        ("max_rows", changed(|p| p.max_rows = 1.0)),
        ("prompt", changed(|p| p.prompt = Prompt::Shared)),
        ("latents", changed(|p| p.latents = Latents::Shared)),
        (
            "self_attention",
            changed(|p| p.self_attention = ATTENTIONS.to_vec()),
        ),
        ("wires", changed(|p| p.wires = Wire::ALL.to_vec())),
        ("quality", changed(|p| p.quality = Quality::Psnr(0.0))),
        // Neither gives much without the other.
        (
            "wires and quality",
            changed(|p| {
                p.wires = Wire::ALL.to_vec();
                p.quality = Quality::Psnr(36.9);
            }),
        ),
    ];
    let relaxed = without.into_iter().map(|(rule, policy)| {
        let plan = choose(unet, &policy, setting, fleet, speeds)?;
        let seconds = plan.average;
        Ok(Relaxed { rule, seconds })
    });
    relaxed.collect()
}

const ATTENTIONS: [SelfAttention; 6] = [
    SelfAttention::Paired,
    SelfAttention::Fused,
    SelfAttention::Tokens,
    SelfAttention::Qkv,
    SelfAttention::Tiled,
    SelfAttention::Broadcast,
];

impl Plan {
    /// The placement and what a call by it takes, in words.
    pub fn summary(&self) -> String {
        let [up, down] = self.count.total();
        let seconds = self.seconds;
        format!(
            "{}\n\
             one U-Net call: {:.2} s (link {:.2}, workers {:.2}, you {:.2}, saved by lanes {:.2}), {:.1} MB up, \
             {:.1} MB down, {} round trips",
            self.setting.scheme.in_words(),
            seconds.total(),
            seconds.link,
            seconds.workers,
            seconds.user,
            seconds.overlap,
            up as f64 / 1e6,
            down as f64 / 1e6,
            self.count.round_trips()
        )
    }

    /// Every exchange of a call, as lines of a table.
    pub fn exchanges(&self, speeds: &Speeds) -> String {
        let mb = |bytes: &[usize]| bytes.iter().sum::<usize>() as f64 / 1e6;
        let mut lines = vec![format!(
            "{:<60} {:>8} {:>8} {:>9} {:>9} {:>8}",
            "exchange", "MB up", "MB down", "GFLOP", "yours", "ms"
        )];
        let link = speeds.link;
        lines.extend(self.count.exchanges.iter().map(|e| {
            let sum = |bytes: &[usize]| bytes.iter().sum::<usize>() as u64;
            let waits = usize::from(sum(&e.up) > 0);
            let workers = self.count.workers_flop.len();
            let share = e.workers_flop / workers.max(1) as u64;
            let seconds = link.seconds([sum(&e.up), sum(&e.down)], waits)
                + speeds.slowest(std::iter::repeat_n(share, workers))
                + e.user_flop as f64 / (speeds.user_gflops * 1e9);
            format!(
                "{:<60} {:>8.3} {:>8.3} {:>9.2} {:>9.2} {:>8.1}",
                e.label,
                mb(&e.up),
                mb(&e.down),
                e.workers_flop as f64 / 1e9,
                e.user_flop as f64 / 1e9,
                seconds * 1e3
            )
        }));
        lines.join("\n")
    }
}
