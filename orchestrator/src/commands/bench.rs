//! `lacuna bench`: U-Net calls of random weights, timed under several schemes in one run.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use shared::device::{self, DeviceChoice, OpenDevice};
use shared::host::HostTensor;
use shared::unet::{UNet, UNetConfig};
use shared::weights::Weights;
use shared::whole::{Conditioning, Whole};
use tokio::task::spawn_blocking;
use worker::Model;

use super::{PROMPT_TOKENS, SchemeArguments};
use crate::cost::Link;
use crate::fleet::Fleet;
use crate::fleet::link::EmulatedLink;
use crate::fleet::local::LocalWorkers;
use crate::fleet::tally::Traffic;
use crate::noise::TorchRng;
use crate::schemes::{Finished, Scheme, Setting};

/// Arguments of `lacuna bench`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// A U-Net's config.json; the weights are random.
    #[arg(long, default_value = "configs/models/sd15/unet/config.json")]
    config: PathBuf,
    /// Rows of the latents.
    #[arg(long, default_value_t = 64)]
    rows: usize,
    /// Columns of the latents.
    #[arg(long, default_value_t = 64)]
    columns: usize,
    /// Batch entries of one call; guidance takes two.
    #[arg(long, default_value_t = 2)]
    batch: usize,
    /// Calls of each scheme; the schemes take turns, and the first turn is not counted.
    #[arg(long, default_value_t = 3)]
    calls: usize,
    /// Schemes to time; ratios are to the first.
    #[arg(long, value_delimiter = ',', default_values_t = [Scheme::Local, Scheme::Ppidm, Scheme::Resident])]
    schemes: Vec<Scheme>,
    #[command(flatten)]
    settings: SchemeArguments,
    /// Workers in this process, on loopback ports.
    #[arg(long, default_value_t = 4)]
    local_workers: usize,
    /// Emulate a connection to the workers: 5g (the paper's), fibre, lan, or up and down in 10^6 bits a
    /// second and milliseconds, such as 50,200,30.
    #[arg(long)]
    link: Option<Link>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// auto, cpu or wgpu.
    #[arg(long, env = "LACUNA_DEVICE", default_value_t)]
    device: DeviceChoice,
    /// Accept a GPU that is emulated in software (llvmpipe).
    #[arg(long, env = "LACUNA_ALLOW_SOFTWARE")]
    allow_software: bool,
}

/// Runs the command.
///
/// # Errors
/// A config that cannot be read, or a device that fails.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let device = device::open(arguments.device, arguments.allow_software)?;
    let unet = UNetConfig::from_file(&arguments.config)
        .context("cannot read the U-Net's config")?
        .build();
    let weights = Weights::random(&unet, 0, &device.device)?;
    let latents = [arguments.batch, arguments.rows, arguments.columns];
    let model = Arc::new(Model::new(unet.clone(), weights.clone()));
    let workers = LocalWorkers::start(arguments.local_workers, &model, &device, latents).await?;
    let link = match arguments.link {
        Some(link) => Some(EmulatedLink::start(workers.config(), link).await?),
        None => None,
    };
    let config = link.as_ref().map_or(workers.config(), EmulatedLink::config);
    let mut bench = Bench::new(&arguments, unet, weights, &device)?;
    let mut rows: Vec<Row> = arguments.schemes.iter().map(|s| Row::new(*s)).collect();
    for call in 0..=arguments.calls {
        for row in &mut rows {
            let setting =
                arguments
                    .settings
                    .setting(row.scheme, &bench.unet, latents, PROMPT_TOKENS);
            let fleet = if row.scheme.needs_workers() {
                let digest = bench.weights.digest();
                Some(setting.open(config, digest, &bench.unet).await?)
            } else {
                None
            };
            let taken;
            (bench, taken) = spawn_blocking(move || {
                let taken = bench.call(setting, fleet);
                (bench, taken)
            })
            .await?;
            row.add(taken?, call > 0).await;
        }
    }
    let rows: Vec<Summary> = rows.iter_mut().map(Row::summary).collect();
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        println!("{}", table(&rows));
    }
    Ok(())
}

/// One scheme's calls.
struct Row {
    scheme: Scheme,
    seconds: Vec<f64>,
    /// Of the last call.
    user_flop: u64,
    workers_flop: u64,
    traffic: Traffic,
    output: Option<HostTensor>,
}

/// One scheme's calls, in short.
#[derive(Serialize)]
struct Summary {
    scheme: String,
    seconds_median: f64,
    seconds_min: f64,
    seconds_max: f64,
    megabytes_up: f64,
    megabytes_down: f64,
    requests: u64,
    user_gflop: f64,
    workers_gflop: f64,
    #[serde(skip)]
    output: Option<HostTensor>,
}

impl Row {
    fn new(scheme: Scheme) -> Self {
        Self {
            scheme,
            seconds: Vec::new(),
            user_flop: 0,
            workers_flop: 0,
            traffic: Traffic::default(),
            output: None,
        }
    }

    /// Takes a call into account; the first of all only warms up.
    async fn add(&mut self, call: Call, counted: bool) {
        if counted {
            self.seconds.push(call.seconds);
        }
        self.user_flop = call.finished.user_flop;
        (self.traffic, self.workers_flop) = (Traffic::default(), 0);
        if let Some(fleet) = call.finished.fleet {
            for tally in fleet.close().await {
                self.traffic.add(&tally.total());
                self.workers_flop += tally.flop;
            }
        }
        self.output = Some(call.output);
    }

    fn summary(&mut self) -> Summary {
        let seconds_median = median(&mut self.seconds);
        let bound = |seconds: Option<&f64>| seconds.copied().unwrap_or(f64::NAN);
        Summary {
            scheme: self.scheme.to_string(),
            seconds_median,
            seconds_min: bound(self.seconds.first()),
            seconds_max: bound(self.seconds.last()),
            megabytes_up: self.traffic.bytes_up as f64 / 1e6,
            megabytes_down: self.traffic.bytes_down as f64 / 1e6,
            requests: self.traffic.requests,
            user_gflop: self.user_flop as f64 / 1e9,
            workers_gflop: self.workers_flop as f64 / 1e9,
            output: self.output.take(),
        }
    }
}

fn table(rows: &[Summary]) -> String {
    let mut lines = vec![format!(
        "{:<10} {:>9} {:>8} {:>8} {:>6} {:>8} {:>8} {:>9} {:>8} {:>8} {:>14}",
        "scheme",
        "median s",
        "min s",
        "max s",
        "ratio",
        "MB up",
        "MB down",
        "requests",
        "GFLOP",
        "yours",
        "off at most"
    )];
    let first = rows.first();
    lines.extend(rows.iter().map(|row| {
        let ratio = row.seconds_median / first.map_or(f64::NAN, |f| f.seconds_median);
        let off = match (&row.output, first.and_then(|f| f.output.as_ref())) {
            (Some(output), Some(first)) => format!("{:.1e}", off_at_most(output, first)),
            _ => String::new(),
        };
        format!(
            "{:<10} {:>9.3} {:>8.3} {:>8.3} {ratio:>6.3} {:>8.1} {:>8.1} {:>9} {:>8.1} {:>8.1} {off:>14}",
            row.scheme,
            row.seconds_median,
            row.seconds_min,
            row.seconds_max,
            row.megabytes_up,
            row.megabytes_down,
            row.requests,
            row.workers_gflop,
            row.user_gflop,
        )
    }));
    lines.join("\n")
}

/// The largest difference between two predictions, of the largest value.
fn off_at_most(output: &HostTensor, want: &HostTensor) -> f64 {
    let pairs = output.data.iter().zip(&want.data);
    let worst = pairs
        .map(|(a, b)| f64::from((a - b).abs()))
        .fold(0.0, f64::max);
    let largest = want
        .data
        .iter()
        .map(|x| f64::from(x.abs()))
        .fold(0.0, f64::max);
    worst / largest
}

/// One U-Net with one input.
struct Bench {
    unet: UNet,
    weights: Weights,
    sample: HostTensor,
    context: Conditioning,
}

impl Bench {
    fn new(
        arguments: &Arguments,
        unet: UNet,
        weights: Weights,
        device: &OpenDevice,
    ) -> anyhow::Result<Self> {
        let mut rng = TorchRng::new(0);
        let mut noise =
            |shape: Vec<usize>| HostTensor::new(shape.clone(), rng.randn(shape.iter().product()));
        let [b, rows, columns] = [arguments.batch, arguments.rows, arguments.columns];
        let sample = noise(vec![b, unet.in_channels, rows, columns])?;
        let context = noise(vec![b, PROMPT_TOKENS, unet.context_width])?;
        let context = context.into_device(&device.device)?;
        Ok(Self {
            unet,
            weights,
            sample,
            context: Conditioning {
                context,
                added: None,
            },
        })
    }

    /// One call, timed.
    fn call(&self, setting: Setting, fleet: Option<Fleet>) -> crate::Result<Call> {
        let whole = Whole::new(self.weights.clone(), self.context.clone());
        let mut predictor = setting.predictor(&self.unet, whole, fleet)?;
        let sample = self.sample.clone();
        let start = Instant::now();
        let output = predictor.predict(sample, 500.0)?;
        Ok(Call {
            seconds: start.elapsed().as_secs_f64(),
            output,
            finished: predictor.finish(),
        })
    }
}

/// One call.
struct Call {
    seconds: f64,
    output: HostTensor,
    finished: Finished,
}

/// The middle value; sorts.
fn median(seconds: &mut [f64]) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
}
