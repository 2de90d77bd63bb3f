//! The fastest placement that a policy allows.

use serde::Serialize;
use shared::placement::{Attentions, Latents, Placement, Prompt, SelfAttention, Wire, Wires};
use shared::unet::UNet;

use super::ledger::Ledger;
use super::{Policy, Quality, name};
use crate::cost::Link;
use crate::cost::count::{Count, count};
use crate::error::{Error, Result};
use crate::fleet::config::FleetConfig;
use crate::schemes::Setting;

/// How fast everything is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Speeds {
    /// The user's connection.
    pub link: Link,
    /// The user's machine, 10^9 operations a second.
    pub user_gflops: f64,
    /// Each worker, likewise.
    pub worker_gflops: Vec<f64>,
}

impl Speeds {
    /// Seconds until the last of the workers has done its part of the operations in `flop`.
    fn slowest(&self, flop: impl Iterator<Item = u64>) -> f64 {
        let each = flop.zip(&self.worker_gflops);
        each.map(|(flop, gflops)| flop as f64 / (gflops * 1e9))
            .fold(0.0, f64::max)
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

/// Seconds of one U-Net call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Seconds {
    /// On the link.
    pub link: f64,
    /// The slowest worker's computation.
    pub workers: f64,
    /// The user's.
    pub user: f64,
    /// Of all that, what one lane does while another waits.
    pub overlap: f64,
}

impl Seconds {
    /// From the first request to the last answer.
    pub fn total(self) -> f64 {
        self.link + self.workers + self.user - self.overlap
    }
}

/// What leaving one rule out would save.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Relaxed {
    /// The rule, as the policy names it.
    pub rule: &'static str,
    /// Seconds of one U-Net call without it.
    pub seconds: f64,
}

/// The fastest placement of `setting`'s scheme that `policy` allows on `fleet`.
///
/// # Errors
/// [`Error::Policy`], the rule that the first placement breaks, when none is allowed;
/// [`shared::Error::TooManyStrips`].
pub fn choose(
    unet: &UNet,
    policy: &Policy,
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
        let seconds = estimate(&count, speeds);
        Ok(Plan {
            setting,
            ledger,
            count,
            seconds,
        })
    };
    let mut best: Option<Plan> = None;
    let mut refused = None;
    for placement in placements(policy) {
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
        let plan = choose(unet, &policy, setting, fleet, speeds)?;
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

/// Every placement that the policy's lists allow.
fn placements(policy: &Policy) -> Vec<Placement> {
    let prompts: &[Prompt] = match policy.prompt {
        Prompt::Hidden => &[Prompt::Hidden],
        Prompt::Shared => &[Prompt::Hidden, Prompt::Shared],
    };
    let latents: &[Latents] = match policy.latents {
        Latents::Hidden => &[Latents::Hidden],
        Latents::Shared => &[Latents::Shared, Latents::Hidden],
    };
    let wires = policy.wires.iter().flat_map(|&halo| {
        let with = move |&attention| Wires { halo, attention };
        policy.wires.iter().map(with)
    });
    let wires: Vec<Wires> = wires.collect();
    let mut all = Vec::new();
    for &self_attention in &policy.self_attention {
        for &prompt in prompts {
            for &latents in latents {
                all.extend(wires.iter().map(|&wires| Placement {
                    self_attention: Attentions::all(self_attention),
                    prompt,
                    latents,
                    wires,
                }));
            }
        }
    }
    all
}

/// Seconds of one U-Net call. User, link and workers take turns; with several lanes one computes or sends
/// while the other waits, until something is busy all the time.
pub fn estimate(count: &Count, speeds: &Speeds) -> Seconds {
    let [up, down] = count.total();
    let transfer = [[up, 0], [0, down]].map(|bytes| speeds.link.seconds(bytes, 0));
    let waits = speeds.link.seconds([0, 0], count.round_trips());
    let workers = speeds.slowest(count.workers_flop.iter().copied());
    let user = count.user_flop as f64 / (speeds.user_gflops * 1e9);
    let work = transfer[0] + transfer[1] + workers + user;
    let lane = waits + work / count.lanes.max(1) as f64;
    let busiest = [transfer[0], transfer[1], workers, user, lane];
    let total = busiest.into_iter().fold(0.0, f64::max);
    Seconds {
        link: waits + transfer[0] + transfer[1],
        workers,
        user,
        overlap: waits + work - total,
    }
}

impl Plan {
    /// The speeds and the placement in words, and every exchange.
    pub fn table(&self, speeds: &Speeds) -> String {
        let placement = self.setting.placement;
        let mb = |bytes: &[usize]| bytes.iter().sum::<usize>() as f64 / 1e6;
        let workers = speeds.worker_gflops.iter().map(|g| format!("{g:.0}"));
        let mut lines = vec![
            format!(
                "for {:.1} Mbit/s up, {:.1} down, {:.1} ms; you {:.0} GFLOP/s, workers {}",
                speeds.link.uplink_mbps,
                speeds.link.downlink_mbps,
                speeds.link.rtt_ms,
                speeds.user_gflops,
                workers.collect::<Vec<_>>().join(", ")
            ),
            format!(
                "self-attention by level {}, prompt {}, latents {}, wires: halo {}, attention {}",
                name(&placement.self_attention),
                name(&placement.prompt),
                name(&placement.latents),
                name(&placement.wires.halo),
                name(&placement.wires.attention)
            ),
            format!(
                "{:<60} {:>8} {:>8} {:>9} {:>9} {:>8}",
                "exchange", "MB up", "MB down", "GFLOP", "yours", "ms"
            ),
        ];
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
        let [up, down] = self.count.total();
        let seconds = self.seconds;
        lines.push(format!(
            "one U-Net call: {:.2} s (link {:.2}, workers {:.2}, you {:.2}, side by side {:.2}), {:.1} MB up, {:.1} MB down, {} round trips",
            seconds.total(),
            seconds.link,
            seconds.workers,
            seconds.user,
            seconds.overlap,
            up as f64 / 1e6,
            down as f64 / 1e6,
            self.count.round_trips()
        ));
        for (provider, view) in &self.ledger.providers {
            lines.push(format!(
                "provider {provider}: {:.1} % of the rows ({:.1} % with their neighbours), keys and values of {:.1} %, hidden ones of {:.1} %, the prompt: {}",
                100.0 * view.rows,
                100.0 * view.rows_with_halo,
                100.0 * view.keys_and_values,
                100.0 * view.tiles[1],
                if view.prompt { "yes" } else { "no" }
            ));
        }
        lines.join("\n")
    }
}
