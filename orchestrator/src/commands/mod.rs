//! The commands of the `lacuna` binary, one file each.
//!
//! What several need: `placed` (the making of pictures), `networks` (those of the metrics), `terms` (what
//! workers may see), `arguments`, `scheme`, and the arguments here.

mod arguments;
pub mod audit;
pub mod bench;
pub mod cost;
pub mod eval;
pub mod generate;
pub mod metrics;
mod networks;
mod placed;
pub mod plan;
mod scheme;
mod terms;
pub mod workers;

use std::path::{Path, PathBuf};

use anyhow::Context;
use burn::tensor::Device;
use clap::Args;
use shared::config::ConfigReader;
use shared::device::DeviceChoice;
use shared::speed;
use shared::unet::{UNet, UNetConfig};

use crate::cost::time::{Source, Sources, Speeds};
use crate::error::{Error, Result};
use crate::fleet::config::FleetConfig;
use crate::fleet::link::Link;
use crate::limits;
use crate::vae::VaeConfig;
use arguments::PictureSize;
pub use scheme::SchemeArguments;

/// Tokens that CLIP makes of any prompt.
pub const PROMPT_TOKENS: usize = 77;

/// Which model, and where the user's part of it runs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct ModelArguments {
    /// A diffusers model directory.
    #[arg(
        short,
        long,
        value_name = "DIR",
        env = "LACUNA_MODEL",
        default_value = "assets/demo-model"
    )]
    pub model: PathBuf,
    /// Weight file variant, e.g. fp16.
    #[arg(long, env = "LACUNA_VARIANT")]
    pub variant: Option<String>,
    /// auto, cpu or wgpu: where your own part is computed, and workers started here.
    #[arg(long, env = "LACUNA_DEVICE", default_value_t)]
    pub device: DeviceChoice,
    /// Accept a GPU that is emulated in software (llvmpipe).
    #[arg(long, env = "LACUNA_ALLOW_SOFTWARE")]
    pub allow_software: bool,
}

/// How fast the connection is, for a plan.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Connection and machines, for a plan")]
pub struct SpeedArguments {
    /// Your connection: 5g (the paper's), fibre, lan, or up and down in 10^6 bits a second and milliseconds to
    /// the workers and back, such as 100,100,20 [default: 5g].
    #[arg(long, conflicts_with_all = ["uplink_mbps", "downlink_mbps", "rtt_ms"])]
    pub link: Option<Link>,
    /// Your uplink, in 10^6 bits a second [default: the paper's 5G].
    #[arg(long)]
    pub uplink_mbps: Option<f64>,
    /// Your downlink, in 10^6 bits a second [default: the paper's 5G].
    #[arg(long)]
    pub downlink_mbps: Option<f64>,
    /// Milliseconds to the workers and back [default: 20].
    #[arg(long)]
    pub rtt_ms: Option<f64>,
}

impl SpeedArguments {
    /// Whether anything is said of the connection.
    fn is_given(&self) -> bool {
        let numbers = [self.uplink_mbps, self.downlink_mbps, self.rtt_ms];
        self.link.is_some() || numbers.iter().any(Option::is_some)
    }

    /// The connection.
    ///
    /// # Errors
    /// [`Error::Request`], naming the flag that is off.
    pub fn link(&self) -> Result<Link> {
        let usual = self.link.unwrap_or(Link::PAPER);
        let link = Link {
            uplink_mbps: self.uplink_mbps.unwrap_or(usual.uplink_mbps),
            downlink_mbps: self.downlink_mbps.unwrap_or(usual.downlink_mbps),
            rtt_ms: self.rtt_ms.unwrap_or(usual.rtt_ms),
        };
        above_zero("--uplink-mbps", link.uplink_mbps)?;
        above_zero("--downlink-mbps", link.downlink_mbps)?;
        if !(link.rtt_ms.is_finite() && link.rtt_ms >= 0.0) {
            let reason = format!("--rtt-ms {}: it must not be below zero", link.rtt_ms);
            return Err(Error::Request(reason));
        }
        Ok(link)
    }
}

/// How fast the machines compute, for a plan.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Connection and machines, for a plan")]
pub struct ComputeArguments {
    /// Your own machine, in 10^9 operations a second [default: what a layer takes here, measured].
    #[arg(long)]
    pub user_gflops: Option<f64>,
    /// Each worker, in 10^9 operations a second [default: 10000].
    #[arg(long)]
    pub worker_gflops: Option<f64>,
    /// Measure the connection and the workers too, but for what is given. Moves up to 16 MiB each way to each
    /// worker.
    #[arg(long)]
    pub measure: bool,
}

/// Where nobody says, and nothing is measured: a laptop, and a GPU.
const USUAL_GFLOPS: [f64; 2] = [200.0, 10_000.0];

impl ComputeArguments {
    /// What the flags say, and else the usual.
    ///
    /// # Errors
    /// As [`SpeedArguments::link`].
    pub fn given(&self, link: &SpeedArguments, fleet: &FleetConfig) -> Result<Speeds> {
        let [user, worker] = USUAL_GFLOPS;
        let user_gflops = self.user_gflops.unwrap_or(user);
        let worker_gflops = self.worker_gflops.unwrap_or(worker);
        above_zero("--user-gflops", user_gflops)?;
        above_zero("--worker-gflops", worker_gflops)?;
        let source = |given: bool| match given {
            true => Source::Given,
            false => Source::Assumed,
        };
        Ok(Speeds {
            link: link.link()?,
            user_gflops,
            worker_gflops: vec![worker_gflops; fleet.workers.len()],
            sources: Sources {
                link: source(link.is_given()),
                user: source(self.user_gflops.is_some()),
                workers: source(self.worker_gflops.is_some()),
            },
        })
    }

    /// What the flags say; and else the speed of `device`, measured, and the usual.
    ///
    /// # Errors
    /// As [`Self::given`]; those of the device.
    pub fn here(
        &self,
        link: &SpeedArguments,
        fleet: &FleetConfig,
        device: &Device,
    ) -> Result<Speeds> {
        let mut speeds = self.given(link, fleet)?;
        if self.user_gflops.is_none() {
            speeds.user_gflops = speed::gflops(device)?;
            speeds.sources.user = Source::Measured;
        }
        Ok(speeds)
    }
}

fn above_zero(flag: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(Error::Request(format!(
        "{flag} {value}: it must be above zero"
    )))
}

/// A picture's size from the model's config alone.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct SizeArguments {
    /// sd15, sdxl, or a diffusers model directory, of which unet/config.json and vae/config.json are read.
    #[arg(short, long, env = "LACUNA_MODEL", default_value = "sd15")]
    pub model: PathBuf,
    /// Columns and rows of the picture.
    #[command(flatten)]
    pub size: PictureSize,
    /// Pixels of the picture for each row of the latents [default: what the model's VAE makes of one, 8 where it
    /// has none].
    #[arg(long)]
    pub pixels_per_latent: Option<usize>,
    /// Batch entries of one call; guidance takes two [default: 1; of plan, what its guidance takes].
    #[arg(long)]
    pub batch: Option<usize>,
}

/// Configs of U-Nets that this program knows by name: what `configs/models` has.
const KNOWN_MODELS: [(&str, &str); 2] = [
    (
        "sd15",
        include_str!("../../../configs/models/sd15/unet/config.json"),
    ),
    (
        "sdxl",
        include_str!("../../../configs/models/sdxl/unet/config.json"),
    ),
];

/// Pixels for each row of latents of every Stable Diffusion.
const PIXELS_PER_LATENT: usize = 8;

/// The config of a U-Net: of a known name, else of the file that `path` makes of it.
///
/// # Errors
/// Those of the config.
fn unet_config(
    name: &Path,
    path: impl FnOnce() -> PathBuf,
) -> std::result::Result<UNetConfig, shared::Error> {
    match KNOWN_MODELS
        .iter()
        .find(|(known, _)| name == Path::new(known))
    {
        Some((known, text)) => {
            let value = serde_json::from_str(text).map_err(|cause| shared::Error::Json {
                path: known.into(),
                cause,
            })?;
            UNetConfig::read(ConfigReader::new(*known, value)?)
        }
        None => UNetConfig::from_file(&path()),
    }
}

impl SizeArguments {
    fn config(&self) -> anyhow::Result<UNetConfig> {
        let config = unet_config(&self.model, || self.model.join("unet/config.json"));
        config.context("cannot read the U-Net's config (--model takes sd15, sdxl or a directory)")
    }

    /// The U-Net's layers.
    ///
    /// # Errors
    /// Those of the config file.
    pub fn unet(&self) -> anyhow::Result<UNet> {
        Ok(self.config()?.build())
    }

    /// Pixels of the picture for each row of the latents.
    ///
    /// # Errors
    /// [`Error::Request`] for a number that is off; those of the VAE's config.
    pub fn pixels(&self) -> Result<usize> {
        if let Some(pixels) = self.pixels_per_latent {
            limits::check("--pixels-per-latent", pixels, limits::SIDE)?;
            return Ok(pixels);
        }
        let file = self.model.join("vae/config.json");
        match file.is_file() {
            true => Ok(VaeConfig::from_file(&file)?.build().pixels_per_latent()),
            false => Ok(PIXELS_PER_LATENT),
        }
    }

    /// Batch, rows and columns of the latents, with `usual` entries where nobody says how many.
    ///
    /// # Errors
    /// [`Error::Request`] when no latents have that size.
    pub fn latents(&self, usual: usize) -> anyhow::Result<[usize; 3]> {
        let pixels = self.pixels()?;
        let [width, height] = self.size.sides();
        let own = self.config()?.sample_size.map(|size| size.sides());
        let side = |flag: &str, given: Option<usize>, own: Option<usize>| match (given, own) {
            (Some(side), _) => {
                limits::check_side(flag, side, pixels)?;
                Ok(side / pixels)
            }
            (None, Some(own)) => Ok(own),
            (None, None) => Err(Error::Request(
                "the model names no size; give --size".into(),
            )),
        };
        let rows = side("--height", height, own.map(|[rows, _]| rows))?;
        let columns = side("--width", width, own.map(|[_, columns]| columns))?;
        let batch = self.batch.unwrap_or(usual);
        limits::check("--batch", batch, limits::COUNT)?;
        let latents = [batch, rows, columns];
        limits::check_latents("--batch and --size", latents)?;
        Ok(latents)
    }
}

fn parse_size(text: &str) -> std::result::Result<[usize; 2], String> {
    let sides = text
        .split_once(['x', 'X', '\u{d7}'])
        .and_then(|(width, height)| {
            Some([width.trim().parse().ok()?, height.trim().parse().ok()?])
        });
    sides.ok_or_else(|| "columns x rows in pixels, such as 512x768".into())
}
