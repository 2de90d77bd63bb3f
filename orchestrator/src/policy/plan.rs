//! The fastest placement that a policy allows.

use serde::Serialize;
use shared::placement::{Attentions, Latents, Placement, Prompt, SelfAttention, Wire, Wires};
use shared::unet::UNet;

use super::ledger::Ledger;
use super::{Policy, Quality, name};
use crate::cost::count::{Count, count};
use crate::cost::time::{Seconds, Speeds};
use crate::error::{Error, Result};
use crate::fleet::config::FleetConfig;
use crate::schemes::Setting;

/// What the user asks for of a placement; what is not asked for is the plan's to choose.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Asked {
    /// Who attends to the whole picture.
    pub self_attention: Option<Attentions>,
    /// Whether workers may know the prompt.
    pub prompt: Option<Prompt>,
    /// Whether workers get the noisy latents.
    pub latents: Option<Latents>,
    /// How features travel.
    pub wires: Option<Wires>,
}

impl Asked {
    /// What is asked for, and else the usual.
    pub fn placement(self) -> Placement {
        Placement {
            self_attention: self.self_attention.unwrap_or_default(),
            prompt: self.prompt.unwrap_or_default(),
            latents: self.latents.unwrap_or_default(),
            wires: self.wires.unwrap_or_default(),
        }
    }
}

/// A placement with what it takes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How to compute.
    pub setting: Setting,
    /// What each provider will see.
    pub ledger: Ledger,
    /// What one U-Net call sends.
    pub count: Count,
    /// Seconds of one U-Net call.
    pub seconds: Seconds,
}

/// What leaving one rule out would save.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Relaxed {
    /// The rule, as the policy names it.
    pub rule: &'static str,
    /// Seconds of one U-Net call without it.
    pub seconds: f64,
}

/// The fastest placement of `setting`'s scheme that is as `asked` and that `policy` allows on `fleet`.
///
/// # Errors
/// [`Error::Policy`], the rule that the first placement breaks, when none is allowed;
/// [`shared::Error::TooManyStrips`].
pub fn choose(
    unet: &UNet,
    policy: &Policy,
    asked: &Asked,
    setting: Setting,
    fleet: &FleetConfig,
    speeds: &Speeds,
) -> Result<Plan> {
    let consider = |placement: Placement| -> Result<Plan> {
        let setting = Setting {
            placement,
            ..setting
        };
        let ledger = Ledger::foresee(unet, &setting, fleet, &[])?;
        policy.check(&setting, &ledger)?;
        let count = count(unet, &setting, fleet.workers.len())?;
        let seconds = speeds.seconds(&count);
        Ok(Plan {
            setting,
            ledger,
            count,
            seconds,
        })
    };
    let mut best: Option<Plan> = None;
    let mut refused = None;
    for placement in placements(policy, asked) {
        match consider(placement) {
            Ok(plan) => {
                let seconds = plan.seconds.total();
                if best.as_ref().is_none_or(|b| seconds < b.seconds.total()) {
                    best = Some(plan);
                }
            }
            Err(error @ Error::Policy { .. }) => {
                refused.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    let Some(mut best) = best else {
        let nothing = || Error::Request("the policy allows no placement".into());
        return Err(refused.unwrap_or_else(nothing));
    };
    if asked.self_attention.is_some() {
        return Ok(best);
    }
    // What one level takes does not depend on the others, so each is chosen by itself.
    for level in 0..setting.levels {
        for how in &policy.self_attention {
            let placement = best.setting.placement;
            let plan = consider(Placement {
                self_attention: placement.self_attention.with(level, *how),
                ..placement
            })?;
            if plan.seconds.total() < best.seconds.total() {
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
    asked: &Asked,
    setting: Setting,
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
        let plan = choose(unet, &policy, asked, setting, fleet, speeds)?;
        let seconds = plan.seconds.total();
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

/// Every placement that is as asked, or, where nothing is asked, that the policy's lists allow. What is asked
/// for and not allowed is found by the policy's own check, which names the rule.
fn placements(policy: &Policy, asked: &Asked) -> Vec<Placement> {
    let prompts = match (asked.prompt, policy.prompt) {
        (Some(prompt), _) => vec![prompt],
        (None, Prompt::Hidden) => vec![Prompt::Hidden],
        (None, Prompt::Shared) => vec![Prompt::Hidden, Prompt::Shared],
    };
    let latents = match (asked.latents, policy.latents) {
        (Some(latents), _) => vec![latents],
        (None, Latents::Hidden) => vec![Latents::Hidden],
        (None, Latents::Shared) => vec![Latents::Shared, Latents::Hidden],
    };
    let wires = match asked.wires {
        Some(wires) => vec![wires],
        None => {
            let pairs = policy.wires.iter().flat_map(|&halo| {
                let with = move |&attention| Wires { halo, attention };
                policy.wires.iter().map(with)
            });
            pairs.collect()
        }
    };
    let attentions = match asked.self_attention {
        Some(attentions) => vec![attentions],
        None => policy
            .self_attention
            .iter()
            .copied()
            .map(Attentions::all)
            .collect(),
    };
    let mut all = Vec::new();
    for &self_attention in &attentions {
        for &prompt in &prompts {
            for &latents in &latents {
                all.extend(wires.iter().map(|&wires| Placement {
                    self_attention,
                    prompt,
                    latents,
                    wires,
                }));
            }
        }
    }
    all
}

impl Plan {
    /// The placement and what a call by it takes, in words.
    pub fn summary(&self) -> String {
        let placement = self.setting.placement;
        let [up, down] = self.count.total();
        let seconds = self.seconds;
        format!(
            "self-attention by level {}, prompt {}, latents {}, wires: halo {}, attention {}\n\
             one U-Net call: {:.2} s (link {:.2}, workers {:.2}, you {:.2}, side by side {:.2}), {:.1} MB up, \
             {:.1} MB down, {} round trips",
            name(&placement.self_attention),
            name(&placement.prompt),
            name(&placement.latents),
            name(&placement.wires.halo),
            name(&placement.wires.attention),
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
