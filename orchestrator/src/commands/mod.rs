//! The commands of the `lacuna` binary, one file each.
//!
//! What several need: `placed` (the making of pictures), `networks` (those of the metrics), `terms` (what
//! workers may see), and the arguments here.

pub mod audit;
pub mod bench;
pub mod cost;
pub mod eval;
pub mod generate;
pub mod metrics;
mod networks;
mod placed;
pub mod plan;
mod terms;
pub mod workers;

use std::path::PathBuf;

use anyhow::Context;
use burn::tensor::Device;
use clap::Args;
use serde::de::DeserializeOwned;
use shared::device::DeviceChoice;
use shared::placement::{Attentions, Latents, Prompt, SelfAttention, Wires};
use shared::speed;
use shared::unet::{UNet, UNetConfig};

use crate::cost::Link;
use crate::cost::time::{Source, Sources, Speeds};
use crate::error::{Error, Result};
use crate::fleet::config::FleetConfig;
use crate::policy::plan::Asked;
use crate::schemes::ppidm::{GroupNormMode, Offload};
use crate::schemes::{Scheme, Setting};

/// Tokens that CLIP makes of any prompt.
pub const PROMPT_TOKENS: usize = 77;

/// Which model, and where the user's part of it runs.
#[derive(Args, Clone, Debug)]
pub struct ModelArguments {
    /// A diffusers model directory.
    #[arg(long, env = "LACUNA_MODEL", default_value = "assets/demo-model")]
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

/// How a scheme computes.
#[derive(Args, Clone, Copy, Debug, PartialEq)]
pub struct SchemeArguments {
    /// ppidm: how strips' statistics become a group normalisation; all but exact lose quality.
    #[arg(long, value_enum, default_value_t)]
    pub groupnorm: GroupNormMode,
    /// ppidm: which kinds of layers workers compute: conv, attention, norm, or some of them.
    #[arg(long, default_value_t)]
    pub offload: Offload,
    /// resident: who attends to the whole picture, at each level from the finest, the last for all
    /// further ones. The user: paired (with the cross-attention, in one exchange), fused (with the
    /// normalisation before, too), tokens or qkv (by what workers send). Workers: tiled (parts of
    /// the queries and keys, in secret order and turned) or broadcast (gives the picture away) [default:
    /// paired; under a policy, what is fastest].
    #[arg(long, value_parser = parse_attentions)]
    pub self_attention: Option<Attentions>,
    /// resident: whether workers may know the prompt: hidden or shared [default: hidden; under a policy, what
    /// is fastest].
    #[arg(long, value_parser = by_name::<Prompt>)]
    pub workers_prompt: Option<Prompt>,
    /// resident: whether the two halves of a guided step go side by side, so that one computes while the
    /// other waits for the link: true or false [default: true, but for workers on loopback].
    #[arg(long)]
    pub lanes: Option<bool>,
    /// resident: whether workers get their rows of the noisy latents: hidden (the first and the last
    /// convolution stay with you) or shared [default: shared; under a policy, what is fastest].
    #[arg(long, value_parser = by_name::<Latents>)]
    pub workers_latents: Option<Latents>,
    /// resident: how features travel: f32 (exact), f16, bf16, int8, delta8 or delta4 (the change since
    /// the last step in 8 or 4 bits); or one for each use: halo=f16,attention=delta4 [default: f32; under a
    /// policy, what is fastest].
    #[arg(long, value_parser = parse_wires)]
    pub wire: Option<Wires>,
}

impl SchemeArguments {
    /// Whether the halves of a step go side by side: where nothing else was said, when workers are
    /// `linked`. On loopback nothing is waited for.
    pub fn lanes(&self, linked: bool) -> bool {
        self.lanes.unwrap_or(linked)
    }

    /// What is asked for of a placement.
    pub fn asked(&self) -> Asked {
        Asked {
            self_attention: self.self_attention,
            prompt: self.workers_prompt,
            latents: self.workers_latents,
            wires: self.wire,
        }
    }

    /// `scheme` with these settings, its workers behind a link.
    pub fn setting(
        &self,
        scheme: Scheme,
        unet: &UNet,
        latents: [usize; 3],
        tokens: usize,
    ) -> Setting {
        Setting {
            scheme,
            groupnorm: self.groupnorm,
            offload: self.offload,
            placement: self.asked().placement(),
            lanes: self.lanes(true),
            latents,
            levels: unet.levels(),
            tokens,
        }
    }
}

fn parse_attentions(text: &str) -> std::result::Result<Attentions, String> {
    let each = text.split(',').map(|name| by_name(name.trim()));
    Attentions::try_from(each.collect::<std::result::Result<Vec<SelfAttention>, _>>()?)
}

fn parse_wires(text: &str) -> std::result::Result<Wires, String> {
    if !text.contains('=') {
        return Ok(Wires::all(by_name(text)?));
    }
    let part = |part: &str| match part.split_once('=') {
        Some((of, wire)) => Ok((of.trim().to_owned(), wire.trim().into())),
        None => Err(format!("{part:?}: halo=WIRE,attention=WIRE")),
    };
    let parts: std::result::Result<serde_json::Map<_, _>, String> =
        text.split(',').map(part).collect();
    serde_json::from_value(parts?.into()).map_err(|e| e.to_string())
}

/// How fast the connection is, for a plan.
#[derive(Args, Clone, Debug)]
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
pub struct SizeArguments {
    /// A diffusers model directory; only unet/config.json is read.
    #[arg(long, env = "LACUNA_MODEL", default_value = "configs/models/sd15")]
    pub model: PathBuf,
    /// Columns x rows of the picture, in pixels.
    #[arg(long, default_value = "512x512", value_parser = parse_size)]
    pub size: [usize; 2],
    /// Pixels of the picture for each row of the latents.
    #[arg(long, default_value_t = 8)]
    pub pixels_per_latent: usize,
    /// Batch entries of one call; guidance takes two [default: 1; of plan, what its guidance takes].
    #[arg(long)]
    pub batch: Option<usize>,
}

impl SizeArguments {
    /// The U-Net's layers.
    ///
    /// # Errors
    /// Those of the config file.
    pub fn unet(&self) -> anyhow::Result<UNet> {
        let config = UNetConfig::from_file(&self.model.join("unet/config.json"));
        Ok(config.context("cannot read the U-Net's config")?.build())
    }

    /// Batch, rows and columns of the latents, with `usual` entries where nobody says how many.
    ///
    /// # Errors
    /// [`Error::Request`] when no latents have that size.
    pub fn latents(&self, usual: usize) -> Result<[usize; 3]> {
        let refuse = |reason: String| Err(Error::Request(reason));
        let pixels = self.pixels_per_latent;
        let [width, height] = self.size;
        for (name, size) in [("width", width), ("height", height)] {
            if size == 0 || pixels == 0 || !size.is_multiple_of(pixels) {
                return refuse(format!(
                    "--size: a {name} of {size} is no multiple of {pixels}"
                ));
            }
        }
        let batch = self.batch.unwrap_or(usual);
        if batch == 0 {
            return refuse("--batch 0: at least one".into());
        }
        Ok([batch, height / pixels, width / pixels])
    }
}

fn parse_size(text: &str) -> std::result::Result<[usize; 2], String> {
    let sides = text.split_once('x').and_then(|(width, height)| {
        Some([width.trim().parse().ok()?, height.trim().parse().ok()?])
    });
    sides.ok_or_else(|| "columns x rows in pixels, such as 512x768".into())
}

/// A value by the name that it has in messages and files.
fn by_name<T: DeserializeOwned>(name: &str) -> std::result::Result<T, String> {
    serde_json::from_value(name.into()).map_err(|e| e.to_string())
}
