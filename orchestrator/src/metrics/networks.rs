//! Which metrics are wanted, and the networks that they need.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use burn::tensor::Device;
use clap::Args;

use crate::metrics::clip_score::ClipScore;
use crate::metrics::demo::DemoFeatures;
use crate::metrics::inception::{Inception, InputResize, Prepared};
use crate::metrics::kid::Subsets;
use crate::metrics::lpips::{Lpips, Net};
use crate::metrics::measure::PairMetrics;
use crate::metrics::metric::Metric;
use crate::metrics::sets::{FeatureNetwork, Network};

/// What to measure, and how.
#[derive(Args, Clone, Debug)]
pub struct MetricArguments {
    /// What to measure [default: psnr, ssim, lpips; fid of sets; clip where there are prompts; demo where
    /// there is its network. Without what lacks its weights].
    #[arg(long, value_delimiter = ',')]
    pub metrics: Vec<Metric>,
    /// A folder with what scripts/convert_metric_weights.py wrote.
    #[arg(long, env = "LACUNA_METRIC_WEIGHTS", default_value = "metric-weights")]
    pub weights: PathBuf,
    /// A whole CLIP in the layout of transformers, for clip [default: the folder clip of --weights].
    #[arg(long)]
    pub clip: Option<PathBuf>,
    /// The network of demo: what scripts/train_demo_features.py wrote.
    #[arg(long)]
    pub demo_features: Option<PathBuf>,
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

/// What there is to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// Two pictures.
    Pair,
    /// Two sets of pictures.
    Sets,
    /// Two sets of pictures, and the prompts of the first.
    PromptedSets,
}

/// The metrics that will be measured, with their networks.
#[derive(Default)]
pub struct Wanted {
    /// In the order in which they were named.
    pub metrics: Vec<Metric>,
    /// For [`Metric::Lpips`].
    pub lpips: Option<Lpips>,
    /// For [`Metric::Clip`].
    pub clip: Option<ClipScore>,
    /// For [`Metric::Fid`] and [`Metric::Kid`].
    pub inception: Option<Inception>,
    /// For [`Metric::Demo`].
    pub demo: Option<DemoFeatures>,
    /// Whose way of making pictures Inception's input.
    pub resize: InputResize,
}

impl Wanted {
    /// Whether `metric` is one of them.
    pub fn has(&self, metric: Metric) -> bool {
        self.metrics.contains(&metric)
    }

    /// The network, where any metric needs it.
    pub fn network(&self, network: Network) -> Option<Box<dyn FeatureNetwork + '_>> {
        let resize = self.resize;
        match network {
            Network::Inception => {
                let inception = self.inception.as_ref()?;
                Some(Box::new(Prepared { inception, resize }))
            }
            Network::Demo => Some(Box::new(self.demo.clone()?)),
        }
    }

    /// Whether features are kept one by one.
    pub fn keeps(&self, network: Network) -> bool {
        network == Network::Inception && self.has(Metric::Kid)
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
    /// Loads what the metrics of what is `given` need to the device that `open` gives, if any needs one.
    /// Where none were named, those without weights are handed to `leave_out` with the reason.
    ///
    /// # Errors
    /// A metric that was named and lacks its weights, sets or prompts; those of the weights' files.
    pub fn load(
        &self,
        given: Given,
        open: impl FnOnce() -> anyhow::Result<Device>,
        mut leave_out: impl FnMut(Metric, String),
    ) -> anyhow::Result<Wanted> {
        let mut wanted = Wanted {
            resize: self.fid_resize,
            ..Wanted::default()
        };
        for metric in self.named_or_default(given) {
            if metric.of_sets() && given == Given::Pair {
                bail!("{metric} compares sets of pictures: give two folders");
            }
            if metric == Metric::Clip && given != Given::PromptedSets {
                bail!("clip needs the pictures' prompts: lacuna eval has them");
            }
            if metric == Metric::Demo && self.demo_features.is_none() {
                bail!("demo needs --demo-features: what scripts/train_demo_features.py wrote");
            }
            let Some(file) = self.weights_of(metric).filter(|file| !file.exists()) else {
                wanted.metrics.push(metric);
                continue;
            };
            let file = file.display();
            let hint = match metric {
                Metric::Demo => format!("there is no {file}; --demo-features names the network"),
                Metric::Clip => format!("there is no {file}; --clip names a CLIP's directory"),
                _ => format!(
                    "there is no {file}; scripts/convert_metric_weights.py makes it, see its first lines"
                ),
            };
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
            if wanted.has(Metric::Clip) {
                let clip = ClipScore::load(&self.clip_dir(), &device);
                wanted.clip = Some(clip.context(cannot)?);
            }
            if let Some(file) = self
                .demo_features
                .as_ref()
                .filter(|_| wanted.has(Metric::Demo))
            {
                wanted.demo = Some(DemoFeatures::load(file, &device).context(cannot)?);
            }
            if wanted.has(Metric::Fid) || wanted.has(Metric::Kid) {
                let inception = Inception::load(&self.inception_file(), &device);
                wanted.inception = Some(inception.context(cannot)?);
            }
        }
        Ok(wanted)
    }

    fn named_or_default(&self, given: Given) -> Vec<Metric> {
        if !self.metrics.is_empty() {
            return self.metrics.clone();
        }
        let mut metrics = vec![Metric::Psnr, Metric::Ssim, Metric::Lpips];
        if given == Given::PromptedSets {
            metrics.push(Metric::Clip);
        }
        if given != Given::Pair {
            metrics.push(Metric::Fid);
            metrics.extend(self.demo_features.as_ref().map(|_| Metric::Demo));
        }
        metrics
    }

    /// The file (clip: directory) that a metric needs.
    pub fn weights_of(&self, metric: Metric) -> Option<PathBuf> {
        match metric {
            Metric::Psnr | Metric::Ssim => None,
            Metric::Lpips => Some(self.lpips_file()),
            Metric::Clip => Some(self.clip_dir()),
            Metric::Fid | Metric::Kid => Some(self.inception_file()),
            Metric::Demo => self.demo_features.clone(),
        }
    }

    fn clip_dir(&self) -> PathBuf {
        self.clip
            .clone()
            .unwrap_or_else(|| self.weights.join("clip"))
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
