//! `lacuna metrics`: pictures against reference pictures.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;
use serde::Serialize;
use shared::device::{self, DeviceChoice};
use tokio::task::spawn_blocking;

use crate::metrics::folder::{Folder, Pair};
use crate::metrics::frechet::frechet_distance;
use crate::metrics::inception::{FEATURES, InputResize};
use crate::metrics::kid::kernel_distance;
use crate::metrics::lpips::Net;
use crate::metrics::measure::{Fault, Mean, PairMetrics, PairValues};
use crate::metrics::metric::Metric;
use crate::metrics::networks::{Given, MetricArguments, Wanted};
use crate::metrics::sets::{Network, SetFeatures};
use crate::output::console::{note, print};

/// Arguments of `lacuna metrics`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  lacuna metrics ours.png theirs.png
  lacuna metrics ours theirs --metrics psnr,ssim --json")]
pub struct Arguments {
    /// A picture (PNG or JPEG), or a folder of them.
    a: PathBuf,
    /// What it is compared with. Files of two folders pair by their names without ending.
    b: PathBuf,
    #[command(flatten)]
    metrics: MetricArguments,
    /// Print the values of each pair, too.
    #[arg(long)]
    each: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// auto, cpu or wgpu: where the networks run.
    #[arg(long, env = "LACUNA_DEVICE", default_value_t)]
    device: DeviceChoice,
    /// Accept a GPU that is emulated in software (llvmpipe).
    #[arg(long, env = "LACUNA_ALLOW_SOFTWARE")]
    allow_software: bool,
}

/// What was measured.
#[derive(Debug, Default, Serialize)]
struct Summary {
    /// Pairs measured.
    pairs: usize,
    /// Of these, pairs of equal pictures, where PSNR was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    identical: Option<usize>,
    /// Mean over the pairs; infinite (null) where a pair is identical.
    #[serde(skip_serializing_if = "Option::is_none")]
    psnr: Option<f64>,
    /// Mean over the pairs that are not identical.
    #[serde(skip_serializing_if = "Option::is_none")]
    psnr_of_different: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ssim: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lpips: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lpips_net: Option<Net>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fid: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid_std: Option<f64>,
    /// Fréchet distance of the demo features. It is not FID.
    #[serde(skip_serializing_if = "Option::is_none")]
    demo: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fid_resize: Option<InputResize>,
    /// Pictures on each side whose features were taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pictures: Option<[usize; 2]>,
    /// Metrics that lack their weights, and how to get them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    left_out: BTreeMap<Metric, String>,
    /// Pictures and pairs that could not be measured, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    failed: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    each: Option<Vec<PairValues>>,
}

/// Runs the command. A bad picture among many is named and left out; the others are measured, and the
/// run fails at its end.
///
/// # Errors
/// Paths that are not two pictures or two folders of pictures, weights that cannot be read, or any picture
/// that could not be measured.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    spawn_blocking(move || measure(&arguments)).await?
}

fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let sets = Sets::open(&arguments.a, &arguments.b)?;
    let mut summary = Summary::default();
    let given = match sets {
        Sets::Files(_) => Given::Pair,
        Sets::Folders(..) => Given::Sets,
    };
    let open = || Ok(device::open(arguments.device, arguments.allow_software)?.device);
    let wanted = arguments
        .metrics
        .load(given, open, |metric, hint| summary.leave_out(metric, hint))?;
    summary.measure_pairs(&wanted.pairs(), &sets, arguments)?;
    if let Sets::Folders(a, b) = &sets {
        for network in Network::ALL {
            summary.measure_sets(network, [a, b], &wanted, arguments)?;
        }
    }
    if arguments.json {
        print(serde_json::to_string_pretty(&summary)?)?;
    } else {
        print(summary.table())?;
    }
    match summary.failed.len() {
        0 => Ok(()),
        n => bail!("{n} of the pictures or pairs could not be measured; each is named above"),
    }
}

/// What is compared.
enum Sets {
    Files(Pair),
    Folders(Folder, Folder),
}

impl Sets {
    fn open(a: &Path, b: &Path) -> anyhow::Result<Self> {
        match (a.is_dir(), b.is_dir()) {
            (true, true) => Ok(Self::Folders(Folder::list(a)?, Folder::list(b)?)),
            (false, false) => Ok(Self::Files(Pair {
                name: a.file_stem().unwrap_or_default().display().to_string(),
                a: a.to_owned(),
                b: b.to_owned(),
            })),
            _ => bail!(
                "{} and {}: one is a folder and the other is not; give two pictures or two folders",
                a.display(),
                b.display()
            ),
        }
    }
}

impl Summary {
    fn measure_pairs(
        &mut self,
        metrics: &PairMetrics,
        sets: &Sets,
        arguments: &Arguments,
    ) -> anyhow::Result<()> {
        if !metrics.any() {
            return Ok(());
        }
        let (pairs, alone) = match sets {
            Sets::Files(pair) => (vec![pair.clone()], Vec::new()),
            Sets::Folders(a, b) => a.pair(b),
        };
        alone.into_iter().for_each(|fault| self.fail(fault));
        let [mut psnr, mut different, mut ssim, mut lpips] = [Mean::default(); 4];
        let mut each = Vec::new();
        let mut only_fault = None;
        metrics.measure(&pairs, |values| match (values, sets) {
            (Ok(values), _) => {
                self.pairs += 1;
                for (mean, value) in [
                    (&mut psnr, values.psnr),
                    (&mut different, values.psnr.filter(|db| db.is_finite())),
                    (&mut ssim, values.ssim),
                    (&mut lpips, values.lpips),
                ] {
                    value.into_iter().for_each(|value| mean.add(value));
                }
                if arguments.each {
                    each.push(values);
                }
            }
            (Err(fault), Sets::Files(_)) => only_fault = Some(fault),
            (Err(fault), Sets::Folders(..)) => self.fail(fault),
        });
        if let Some(fault) = only_fault {
            bail!("{}: {}", fault.picture, fault.reason);
        }
        self.psnr = psnr.get();
        let identical = psnr.count() - different.count();
        self.identical = psnr.get().map(|_| identical);
        self.psnr_of_different = different.get().filter(|_| identical > 0);
        self.ssim = ssim.get();
        self.lpips = lpips.get();
        self.lpips_net = lpips.get().map(|_| arguments.metrics.lpips_net);
        self.each = arguments.each.then_some(each);
        Ok(())
    }

    fn measure_sets(
        &mut self,
        network: Network,
        folders: [&Folder; 2],
        wanted: &Wanted,
        arguments: &Arguments,
    ) -> anyhow::Result<()> {
        let Some(features) = wanted.network(network) else {
            return Ok(());
        };
        let mut features = |folder: &Folder| {
            let keep = wanted.keeps(network);
            SetFeatures::of(&folder.paths(), &*features, keep, |f| self.fail(f))
        };
        let (a, b) = (features(folders[0])?, features(folders[1])?);
        self.pictures = Some([a.statistics.count(), b.statistics.count()]);
        let (metric, place) = match network {
            Network::Inception => {
                self.fid_resize = Some(wanted.resize);
                (Metric::Fid, &mut self.fid)
            }
            Network::Demo => (Metric::Demo, &mut self.demo),
        };
        if wanted.has(metric) {
            match frechet_distance(&a.statistics, &b.statistics) {
                Ok(distance) => *place = Some(distance),
                Err(error) if arguments.metrics.metrics.is_empty() => {
                    self.leave_out(metric, error.to_string());
                }
                Err(error) => return Err(error.into()),
            }
        }
        if wanted.keeps(network) {
            let kid = kernel_distance(&a.kept, &b.kept, FEATURES, arguments.metrics.subsets())?;
            (self.kid, self.kid_std) = (Some(kid.mean), Some(kid.std));
        }
        Ok(())
    }

    /// Names a picture or pair that could not be measured, once.
    fn fail(&mut self, fault: Fault) {
        if let Entry::Vacant(place) = self.failed.entry(fault.picture) {
            note(format_args!(
                "not measured: {}: {}",
                place.key(),
                fault.reason
            ));
            place.insert(fault.reason);
        }
    }

    fn leave_out(&mut self, metric: Metric, reason: String) {
        note(format_args!("{metric} is left out: {reason}"));
        self.left_out.insert(metric, reason);
    }

    fn table(&self) -> String {
        let mut lines = Vec::new();
        for values in self.each.iter().flatten() {
            let columns = [
                values.psnr.map(|db| format!("{db:>9.4} dB")),
                values.ssim.map(|ssim| format!("{ssim:>10.6}")),
                values.lpips.map(|lpips| format!("{lpips:>10.6}")),
            ];
            let columns = columns.into_iter().flatten().collect::<Vec<_>>().join(" ");
            lines.push(format!("{columns}  {}", values.name));
        }
        if self.pairs > 0 {
            let identical = self
                .identical
                .map_or(String::new(), |n| format!(", {n} identical"));
            lines.push(format!("pairs  {}{identical}", self.pairs));
        }
        let different = self.psnr_of_different.map_or(String::new(), |db| {
            format!(" ({db:.4} dB over those not identical)")
        });
        let mut line = |name: &str, value: Option<String>| {
            lines.extend(value.map(|value| format!("{name:<6} {value}")));
        };
        line("psnr", self.psnr.map(|db| format!("{db:.4} dB{different}")));
        line("ssim", self.ssim.map(|ssim| format!("{ssim:.6}")));
        if let (Some(lpips), Some(net)) = (self.lpips, self.lpips_net) {
            line("lpips", Some(format!("{lpips:.6} ({net})")));
        }
        if let (Some([a, b]), Some(resize)) = (self.pictures, self.fid_resize) {
            let of = format!("{a} and {b} pictures, resized as {resize} does");
            line("fid", self.fid.map(|fid| format!("{fid:.4} ({of})")));
            let kid = self.kid.zip(self.kid_std);
            line(
                "kid",
                kid.map(|(kid, std)| format!("{kid:.6} +- {std:.6} ({of})")),
            );
        }
        line(
            "demo",
            self.demo
                .map(|demo| format!("{demo:.4} (of the demo features: this is not FID)")),
        );
        lines.join("\n")
    }
}
