//! `lacuna cost`: what a scheme sends and computes, from a model's config alone.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use shared::unet::{UNet, UNetConfig};

use super::SchemeArguments;
use crate::cost::count::{Count, count};
use crate::cost::{Link, OfKind, by_kind, paper};
use crate::error::{Error, Result};
use crate::fleet::config::MAX_WORKERS;
use crate::fleet::tally::Kind;
use crate::schemes::Scheme;

/// Tokens that CLIP makes of any prompt.
const PROMPT_TOKENS: usize = 77;
/// Pixels for each row (and column) of the latents of every published Stable Diffusion.
const PIXELS: usize = 8;

/// Arguments of `lacuna cost`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// A diffusers model directory; only unet/config.json is read.
    #[arg(long, env = "LACUNA_MODEL", default_value = "configs/models/sd15")]
    model: PathBuf,
    /// Columns x rows of the picture, in pixels.
    #[arg(long, default_value = "512x512", value_parser = parse_size)]
    size: [usize; 2],
    /// Pixels of the picture for each row of the latents.
    #[arg(long, default_value_t = PIXELS)]
    pixels_per_latent: usize,
    /// Number of workers.
    #[arg(long, default_value_t = 4)]
    workers: usize,
    /// Where the U-Net is computed.
    #[arg(long, default_value_t = Scheme::Resident)]
    scheme: Scheme,
    #[command(flatten)]
    settings: SchemeArguments,
    /// Batch entries of one call; guidance takes two.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Your uplink, in 10^6 bits a second [default: the paper's 5G].
    #[arg(long, default_value_t = 81.14)]
    uplink_mbps: f64,
    /// Your downlink, in 10^6 bits a second [default: the paper's 5G].
    #[arg(long, default_value_t = 340.56)]
    downlink_mbps: f64,
    /// Milliseconds to the workers and back.
    #[arg(long, default_value_t = 20.0)]
    rtt_ms: f64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print the tables VIII, IX and X of PPIDM and its times beside what its accounting gives.
    #[arg(long)]
    paper_tables: bool,
}

/// What one U-Net call costs.
#[derive(Debug, Serialize)]
struct Summary {
    scheme: String,
    workers: usize,
    batch: usize,
    kinds: BTreeMap<Kind, OfKind>,
    /// Bytes of tensors to all workers.
    bytes_up: u64,
    /// Bytes of tensors from all workers.
    bytes_down: u64,
    round_trips: usize,
    /// Of each worker, multiply and add counted as two, in 10^9.
    workers_gflop: Vec<f64>,
    user_gflop: f64,
    link: Link,
    /// On the link, without any computation.
    seconds: f64,
}

/// Runs the command.
///
/// # Errors
/// A config that cannot be read, or sizes that no latents have.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = arguments.model.join("unet/config.json");
    let unet = UNetConfig::from_file(&config)
        .context("cannot read the U-Net's config")?
        .build();
    if arguments.paper_tables {
        print_paper(&unet, arguments.json)?;
        return Ok(());
    }
    let summary = summarise(&unet, &arguments)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        println!("{}", summary.table());
    }
    Ok(())
}

fn summarise(unet: &UNet, arguments: &Arguments) -> Result<Summary> {
    let refuse = |reason: String| Err(Error::Request(reason));
    let pixels = arguments.pixels_per_latent;
    let [width, height] = arguments.size;
    for (name, size) in [("width", width), ("height", height)] {
        if size == 0 || pixels == 0 || !size.is_multiple_of(pixels) {
            return refuse(format!(
                "--size: a {name} of {size} is no multiple of {pixels}"
            ));
        }
    }
    if !(1..=MAX_WORKERS).contains(&arguments.workers) {
        return refuse(format!(
            "--workers {}: from 1 to {MAX_WORKERS}",
            arguments.workers
        ));
    }
    if arguments.batch == 0 {
        return refuse("--batch 0: at least one".into());
    }
    for (flag, value) in [
        ("--uplink-mbps", arguments.uplink_mbps),
        ("--downlink-mbps", arguments.downlink_mbps),
    ] {
        if !(value.is_finite() && value > 0.0) {
            return refuse(format!("{flag} {value}: it must be above zero"));
        }
    }
    if !(arguments.rtt_ms.is_finite() && arguments.rtt_ms >= 0.0) {
        return refuse(format!(
            "--rtt-ms {}: it must not be below zero",
            arguments.rtt_ms
        ));
    }
    let latents = [arguments.batch, height / pixels, width / pixels];
    let setting = arguments
        .settings
        .setting(arguments.scheme, latents, PROMPT_TOKENS);
    let count: Count = count(unet, &setting, arguments.workers)?;
    let [bytes_up, bytes_down] = count.total();
    let link = Link {
        uplink_mbps: arguments.uplink_mbps,
        downlink_mbps: arguments.downlink_mbps,
        rtt_ms: arguments.rtt_ms,
    };
    Ok(Summary {
        scheme: arguments.scheme.to_string(),
        workers: arguments.workers,
        batch: arguments.batch,
        kinds: by_kind(&count),
        bytes_up,
        bytes_down,
        round_trips: count.round_trips(),
        workers_gflop: count.workers_flop.iter().map(|f| *f as f64 / 1e9).collect(),
        user_gflop: count.user_flop as f64 / 1e9,
        link,
        seconds: link.seconds([bytes_up, bytes_down], count.round_trips()),
    })
}

impl Summary {
    fn table(&self) -> String {
        let mb = |bytes: usize| bytes as f64 / 1e6;
        let mut lines = vec![
            format!(
                "one U-Net call of batch {} under {}, {} workers",
                self.batch, self.scheme, self.workers
            ),
            format!(
                "{:<12} {:>9} | {:>29} | {:>29}",
                "MB a worker", "exchanges", "up: min, max, all", "down: min, max, all"
            ),
        ];
        lines.extend(self.kinds.iter().map(|(kind, of)| {
            let (up, down) = (of.up_per_worker, of.down_per_worker);
            format!(
                "{:<12} {:>9} | {:>8.4} {:>8.4} {:>11.4} | {:>8.4} {:>8.4} {:>11.4}",
                kind.to_string(),
                of.exchanges,
                mb(up.min),
                mb(up.max),
                mb(up.total),
                mb(down.min),
                mb(down.max),
                mb(down.total)
            )
        }));
        let workers: f64 = self.workers_gflop.iter().sum();
        let all = workers + self.user_gflop;
        lines.push(format!(
            "all workers  {:.1} MB up, {:.1} MB down, {} round trips",
            self.bytes_up as f64 / 1e6,
            self.bytes_down as f64 / 1e6,
            self.round_trips
        ));
        lines.push(format!(
            "work         {all:.1} GFLOP, {:.1} % of it the workers'",
            100.0 * workers / all.max(f64::MIN_POSITIVE)
        ));
        lines.push(format!(
            "link         {:.2} s ({} Mbit/s up, {} down, {} ms), computation apart",
            self.seconds, self.link.uplink_mbps, self.link.downlink_mbps, self.link.rtt_ms
        ));
        lines.join("\n")
    }
}

fn print_paper(unet: &UNet, json: bool) -> anyhow::Result<()> {
    let cells = paper::cells(unet)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&cells)?);
    } else {
        print!("{}", paper::table(&cells));
    }
    Ok(())
}

fn parse_size(text: &str) -> Result<[usize; 2], String> {
    let sides = text.split_once('x').and_then(|(width, height)| {
        Some([width.trim().parse().ok()?, height.trim().parse().ok()?])
    });
    sides.ok_or_else(|| "columns x rows in pixels, such as 512x768".into())
}
