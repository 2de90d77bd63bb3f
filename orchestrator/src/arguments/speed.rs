//! How fast connection and machines are, for a plan.

use burn::tensor::Device;
use clap::Args;
use lacuna_model::speed;
use lacuna_model::unet::UNet;

use crate::cost::time::{Source, Sources, Speeds};
use crate::error::{Error, Result};
use crate::fleet::config::FleetConfig;
use crate::fleet::link::Link;
use crate::memory;
use crate::schemes::Sizes;

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
        let wrong = |reason| Error::Request(format!("the connection: {reason}"));
        link.check().map_err(wrong)?;
        Ok(link)
    }
}

/// How fast the machines compute, for a plan.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Connection and machines, for a plan")]
pub struct ComputeArguments {
    /// Your own machine, in 10^9 operations a second [default: what parts of the U-Net take here,
    /// measured].
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

    /// What the flags say; and else the speed of `device` at calls of `unet` of these `sizes`, measured, and the usual.
    ///
    /// # Errors
    /// As [`Self::given`]; those of the device.
    pub fn here(
        &self,
        link: &SpeedArguments,
        fleet: &FleetConfig,
        device: &Device,
        unet: &UNet,
        sizes: &Sizes,
    ) -> Result<Speeds> {
        let mut speeds = self.given(link, fleet)?;
        // Weights are made, placed and repacked: nobody is to run out of memory by a question.
        let room = memory::available().is_none_or(|free| 3 * speed::memory(unet) < free);
        if self.user_gflops.is_none() && room {
            speeds.user_gflops = speed::gflops(unet, sizes.latents, sizes.tokens, device)?;
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
