//! `lacuna cost`: what a scheme sends and computes, from a model's config alone.

use std::collections::BTreeMap;

use clap::Args;
use lacuna_model::unet::UNet;
use serde::Serialize;

use lacuna_orchestrator::arguments::scheme::SchemeArguments;
use lacuna_orchestrator::arguments::size::SizeArguments;
use lacuna_orchestrator::arguments::speed::SpeedArguments;
use lacuna_orchestrator::cost::picture::PictureTraffic;
use lacuna_orchestrator::cost::{OfKind, by_kind, paper};
use lacuna_orchestrator::fleet::config::MAX_WORKERS;
use lacuna_orchestrator::fleet::link::Link;
use lacuna_orchestrator::fleet::tally::Kind;
use lacuna_orchestrator::limits;
use lacuna_orchestrator::output::console::print;
use lacuna_orchestrator::schemes::count::once;

/// Arguments of `lacuna cost`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  lacuna cost --model sdxl --workers 4 --wire f16
  lacuna cost --model sd15 --wire f16 --calls 4     all of a picture, too
  lacuna cost --paper-tables")]
pub struct Arguments {
    #[command(flatten)]
    size: SizeArguments,
    /// Number of workers.
    #[arg(long, default_value_t = 4)]
    workers: usize,
    #[command(flatten)]
    scheme: SchemeArguments,
    /// All of a picture of so many U-Net calls, too: its steps, and twice as many for heun, kdpm2 and kdpm2-a, less one.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    calls: Option<u16>,
    #[command(flatten)]
    speed: SpeedArguments,
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
    /// Work of the user and of all workers that only the first call of a picture does, in 10^9: it makes the
    /// prompt's keys and values.
    once_gflop: f64,
    link: Link,
    /// On the link, without any computation.
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    picture: Option<PictureTraffic>,
}

/// Runs the command.
///
/// # Errors
/// A config that cannot be read, or sizes that no latents have.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let unet = arguments.size.unet()?;
    if arguments.paper_tables {
        print_paper(&unet, arguments.json)?;
        return Ok(());
    }
    anyhow::ensure!(
        !arguments.scheme.scheme.stands_for_others(),
        "--scheme auto stands for others; name the one whose cost is to be counted, or compare them by lacuna plan"
    );
    let summary = summarise(&unet, &arguments)?;
    if arguments.json {
        print(serde_json::to_string_pretty(&summary)?)?;
    } else {
        print(summary.table())?;
    }
    Ok(())
}

fn summarise(unet: &UNet, arguments: &Arguments) -> anyhow::Result<Summary> {
    let workers = arguments.workers;
    limits::check("--workers", workers, MAX_WORKERS)?;
    let link = arguments.speed.link()?;
    let usual = match arguments.size.guidance {
        Some(_) => arguments.size.guided_batch()?,
        None => 1,
    };
    let latents = arguments.size.latents(usual)?;
    let tokens = arguments.size.tokens()?;
    let setting = arguments.scheme.setting(unet, latents, tokens);
    let setting = match arguments.calls {
        Some(calls) => setting.of_calls(calls.into()),
        None => setting,
    };
    let counts = setting.first_calls(unet, workers)?;
    let once_flop: u64 = once(&counts).iter().sum();
    let picture = arguments
        .calls
        .map(|calls| PictureTraffic::new(&counts, calls.into(), &link));
    let [_, count] = counts;
    let [bytes_up, bytes_down] = count.total();
    Ok(Summary {
        scheme: setting.scheme.name().to_owned(),
        workers,
        batch: latents[0],
        kinds: by_kind(&count),
        bytes_up,
        bytes_down,
        round_trips: count.round_trips(),
        workers_gflop: count.workers_flop.iter().map(|f| *f as f64 / 1e9).collect(),
        user_gflop: count.user_flop as f64 / 1e9,
        once_gflop: once_flop as f64 / 1e9,
        link,
        seconds: count.link_seconds(&link).iter().sum(),
        picture,
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
        // Of none it is a negative zero.
        let workers = self.workers_gflop.iter().sum::<f64>() + 0.0;
        let all = workers + self.user_gflop;
        lines.push(format!(
            "all workers  {:.1} MB up, {:.1} MB down, {} round trips",
            self.bytes_up as f64 / 1e6,
            self.bytes_down as f64 / 1e6,
            self.round_trips
        ));
        lines.push(format!(
            "work         {all:.1} GFLOP, {:.1} % of it the workers'; {:.1} more once a picture, for the prompt",
            100.0 * workers / all.max(f64::MIN_POSITIVE),
            self.once_gflop
        ));
        lines.push(format!(
            "link         {:.2} s ({} Mbit/s up, {} down, {} ms), computation apart",
            self.seconds, self.link.uplink_mbps, self.link.downlink_mbps, self.link.rtt_ms
        ));
        lines.extend(self.picture.as_ref().map(|picture| {
            format!(
                "picture      {} calls: {:.1} MB up, {:.1} MB down, {} round trips, {:.2} s of link",
                picture.calls,
                picture.bytes_up as f64 / 1e6,
                picture.bytes_down as f64 / 1e6,
                picture.round_trips,
                picture.seconds
            )
        }));
        lines.join("\n")
    }
}

fn print_paper(unet: &UNet, json: bool) -> anyhow::Result<()> {
    let cells = paper::cells(unet)?;
    if json {
        print(serde_json::to_string_pretty(&cells)?)?;
    } else {
        print(paper::table(&cells).trim_end())?;
    }
    Ok(())
}
