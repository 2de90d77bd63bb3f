//! The pictures of two sides, compared by all metrics that are asked for.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use anyhow::bail;
use burn::tensor::Device;
use serde::Serialize;

use super::folder::Fault;
use super::folder::{Folder, Pair};
use super::frechet::frechet_distance;
use super::inception::{FEATURES, InputResize};
use super::kid::kernel_distance;
use super::lpips::Net;
use super::measure::{Mean, PairMetrics, PairValues};
use super::metric::Metric;
use super::networks::{Given, MetricArguments, Wanted};
use super::sets::{Network, SetFeatures};
use lacuna_orchestrator::output::console::note;

/// What was measured of the pictures of two sides.
#[derive(Debug, Default, Serialize)]
pub struct Comparison {
    /// Pairs measured.
    pub pairs: usize,
    /// Of these, pairs of equal pictures, where PSNR was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identical: Option<usize>,
    /// Mean over the pairs; infinite (null) where a pair is identical.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psnr: Option<f64>,
    /// Mean over the pairs that are not identical.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psnr_of_different: Option<f64>,
    /// Mean over the pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssim: Option<f64>,
    /// Mean over the pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lpips: Option<f64>,
    /// The network that LPIPS is of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lpips_net: Option<Net>,
    /// Fréchet distance of the Inception features.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fid: Option<f64>,
    /// Kernel distance of the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kid: Option<f64>,
    /// Its standard deviation over subsets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kid_std: Option<f64>,
    /// Fréchet distance of the demo features. It is not FID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub demo: Option<f64>,
    /// How pictures are brought to the network's size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fid_resize: Option<InputResize>,
    /// Pictures on each side whose features were taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pictures: Option<[usize; 2]>,
    /// Metrics that lack their weights, and how to get them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub left_out: BTreeMap<Metric, String>,
    /// Pictures and pairs that could not be measured, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub failed: BTreeMap<String, String>,
    /// The values of each pair, where they are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub each: Option<Vec<PairValues>>,
}

/// What is compared.
pub enum Sets {
    /// Two pictures.
    Files(Pair),
    /// Two folders of them.
    Folders(Folder, Folder),
}

impl Sets {
    /// What lies at two paths.
    ///
    /// # Errors
    /// Paths that are not two pictures or two folders of pictures.
    pub fn open(a: &Path, b: &Path) -> anyhow::Result<Self> {
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

impl Comparison {
    /// Measures `sets` by what `metrics` asks for, with the values of `each` pair where that is asked for; networks
    /// run on the device that `open` opens. A picture that cannot be read is named, and left out.
    ///
    /// # Errors
    /// Weights that cannot be read; of two pictures, one that cannot be read.
    pub fn of(
        sets: &Sets,
        metrics: &MetricArguments,
        each: bool,
        open: impl Fn() -> anyhow::Result<Device>,
    ) -> anyhow::Result<Self> {
        let mut comparison = Self::default();
        let given = match sets {
            Sets::Files(_) => Given::Pair,
            Sets::Folders(..) => Given::Sets,
        };
        let leave_out = |metric, hint| comparison.leave_out(metric, hint);
        let wanted = metrics.load(given, open, leave_out)?;
        comparison.measure_pairs(&wanted.pairs(), sets, metrics, each)?;
        if let Sets::Folders(a, b) = sets {
            for network in Network::ALL {
                comparison.measure_sets(network, [a, b], &wanted, metrics)?;
            }
        }
        Ok(comparison)
    }

    fn measure_pairs(
        &mut self,
        pairs_by: &PairMetrics,
        sets: &Sets,
        metrics: &MetricArguments,
        keep_each: bool,
    ) -> anyhow::Result<()> {
        if !pairs_by.any() {
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
        pairs_by.measure(&pairs, |values| match (values, sets) {
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
                if keep_each {
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
        self.lpips_net = lpips.get().map(|_| metrics.lpips_net);
        self.each = keep_each.then_some(each);
        Ok(())
    }

    fn measure_sets(
        &mut self,
        network: Network,
        folders: [&Folder; 2],
        wanted: &Wanted,
        metrics: &MetricArguments,
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
                Err(error) if metrics.metrics.is_empty() => {
                    self.leave_out(metric, error.to_string());
                }
                Err(error) => return Err(error.into()),
            }
        }
        if wanted.keeps(network) {
            let kid = kernel_distance(&a.kept, &b.kept, FEATURES, metrics.subsets())?;
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

    /// The values as lines of text.
    pub fn table(&self) -> String {
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
