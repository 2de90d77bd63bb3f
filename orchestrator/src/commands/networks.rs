//! Which metrics are wanted, and the networks that they need.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::metrics::inception::{Inception, InputResize};
use crate::metrics::kid::Subsets;
use crate::metrics::lpips::{Lpips, Net};
use crate::metrics::measure::PairMetrics;

/// What to measure, and how.
#[derive(Args, Clone, Debug)]
pub struct MetricArguments {
    /// What to measure [default: psnr, ssim, lpips, and fid of sets; without what lacks its weights].
    #[arg(long, value_delimiter = ',')]
    pub metrics: Vec<Metric>,
    /// A folder with what scripts/convert_metric_weights.py wrote.
    #[arg(long, env = "LACUNA_METRIC_WEIGHTS", default_value = "metric-weights")]
    pub weights: PathBuf,
    /// The network of LPIPS.
    #[arg(long, default_value_t)]
    pub lpips_net: Net,
    /// Whose way of resizing pictures for FID and KID.
    #[arg(long, default_value_t)]
    pub fid_resize: InputResize,
    /// Subsets of KID.
    #[arg(long, default_value_t = Subsets::default().count)]
    pub kid_subsets: usize,
    /// Most pictures of a subset of KID.
    #[arg(long, default_value_t = Subsets::default().size)]
    pub kid_subset_size: usize,
    /// Of KID's subsets: those that clean-fid draws after numpy.random.seed.
    #[arg(long, default_value_t = Subsets::default().seed)]
    pub kid_seed: u64,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Peak signal-to-noise ratio, in dB.
    Psnr,
    /// Structural similarity.
    Ssim,
    /// Learned perceptual distance.
    Lpips,
    /// Fréchet distance of Inception's features.
    Fid,
    /// Kernel distance of Inception's features; keeps 8 KiB a picture.
    Kid,
}

impl Metric {
    /// Whether it compares sets of pictures, not pairs.
    pub fn of_sets(self) -> bool {
        matches!(self, Self::Fid | Self::Kid)
    }
}

/// The metrics that will be measured, with their networks.
#[derive(Default)]
pub struct Wanted {
    /// In the order in which they were named.
    pub metrics: Vec<Metric>,
    /// For [`Metric::Lpips`].
    pub lpips: Option<Lpips>,
    /// For the metrics of sets.
    pub inception: Option<Inception>,
}

impl Wanted {
    /// Whether `metric` is one of them.
    pub fn has(&self, metric: Metric) -> bool {
        self.metrics.contains(&metric)
    }

    /// Those of pairs.
    pub fn pairs(&self) -> PairMetrics<'_> {
        PairMetrics {
            psnr: self.has(Metric::Psnr),
            ssim: self.has(Metric::Ssim),
            lpips: self.lpips.as_ref(),
        }
    }
}

impl MetricArguments {
    /// Loads what the metrics need, those of sets only for `sets`, to the device that `open` gives if there
    /// is any. Where none were named, those without weights are handed to `leave_out` with the reason.
    ///
    /// # Errors
    /// A metric that was named and lacks its weights or sets; those of the weights' files.
    pub fn load(
        &self,
        sets: bool,
        open: impl FnOnce() -> anyhow::Result<Device>,
        mut leave_out: impl FnMut(Metric, String),
    ) -> anyhow::Result<Wanted> {
        let mut wanted = Wanted::default();
        for metric in self.named_or_default(sets) {
            if metric.of_sets() && !sets {
                bail!("fid and kid compare sets of pictures: give two folders");
            }
            let Some(file) = self.weights_of(metric).filter(|file| !file.is_file()) else {
                wanted.metrics.push(metric);
                continue;
            };
            let hint = format!(
                "there is no {}; scripts/convert_metric_weights.py makes it, see its first lines",
                file.display()
            );
            ensure!(self.metrics.is_empty(), "{metric}: {hint}");
            leave_out(metric, hint);
        }
        if wanted.metrics.iter().any(|m| self.weights_of(*m).is_some()) {
            let device = open()?;
            let cannot = "cannot load the network of a metric";
            if wanted.has(Metric::Lpips) {
                let lpips = Lpips::load(&self.lpips_file(), self.lpips_net, &device);
                wanted.lpips = Some(lpips.context(cannot)?);
            }
            if wanted.metrics.iter().any(|m| m.of_sets()) {
                let inception = Inception::load(&self.inception_file(), &device);
                wanted.inception = Some(inception.context(cannot)?);
            }
        }
        Ok(wanted)
    }

    fn named_or_default(&self, sets: bool) -> Vec<Metric> {
        if !self.metrics.is_empty() {
            return self.metrics.clone();
        }
        let mut metrics = vec![Metric::Psnr, Metric::Ssim, Metric::Lpips];
        metrics.extend(sets.then_some(Metric::Fid));
        metrics
    }

    /// The file that a metric needs.
    pub fn weights_of(&self, metric: Metric) -> Option<PathBuf> {
        match metric {
            Metric::Psnr | Metric::Ssim => None,
            Metric::Lpips => Some(self.lpips_file()),
            Metric::Fid | Metric::Kid => Some(self.inception_file()),
        }
    }

    fn lpips_file(&self) -> PathBuf {
        let name = format!("lpips-{}.safetensors", self.lpips_net);
        self.weights.join(name)
    }

    fn inception_file(&self) -> PathBuf {
        self.weights.join("inception.safetensors")
    }

    /// Those of KID.
    pub fn subsets(&self) -> Subsets {
        Subsets {
            count: self.kid_subsets,
            size: self.kid_subset_size,
            seed: self.kid_seed,
        }
    }
}

impl std::fmt::Display for Metric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Psnr => "psnr",
            Self::Ssim => "ssim",
            Self::Lpips => "lpips",
            Self::Fid => "fid",
            Self::Kid => "kid",
        })
    }
}
