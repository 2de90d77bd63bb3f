//! `lacuna bench`: U-Net calls of random weights, timed under several schemes in one run.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use shared::device::{self, DeviceChoice, OpenDevice};
use shared::host::HostTensor;
use shared::unet::{UNet, UNetConfig};
use shared::weights::Weights;
use shared::whole::{Conditioning, Whole};
use tokio::task::spawn_blocking;
use worker::Model;

use super::SchemeArguments;
use crate::fleet::Fleet;
use crate::fleet::local::LocalWorkers;
use crate::noise::TorchRng;
use crate::schemes::{Scheme, Setting};

/// Tokens of a prompt.
const PROMPT_TOKENS: usize = 77;

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
    #[arg(long, value_delimiter = ',', default_values_t = [Scheme::Local, Scheme::Ppidm])]
    schemes: Vec<Scheme>,
    #[command(flatten)]
    settings: SchemeArguments,
    /// Workers in this process, on loopback ports.
    #[arg(long, default_value_t = 4)]
    local_workers: usize,
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
    let mut bench = Bench::new(&arguments, unet, weights, &device)?;
    let mut seconds = vec![Vec::new(); arguments.schemes.len()];
    for call in 0..=arguments.calls {
        for (i, scheme) in arguments.schemes.iter().enumerate() {
            let setting = arguments.settings.setting(*scheme, latents, PROMPT_TOKENS);
            let fleet = if scheme.needs_workers() {
                let digest = bench.weights.digest();
                Some(setting.open(workers.config(), digest, &bench.unet).await?)
            } else {
                None
            };
            let taken;
            (bench, taken) = spawn_blocking(move || {
                let taken = bench.call(setting, fleet);
                (bench, taken)
            })
            .await?;
            if call > 0 {
                seconds[i].push(taken?);
            }
        }
    }
    println!(
        "{:<10} {:>10} {:>10} {:>10} {:>8}",
        "scheme", "median s", "min s", "max s", "ratio"
    );
    let first = median(&mut seconds[0]);
    for (scheme, seconds) in arguments.schemes.iter().zip(&mut seconds) {
        let median = median(seconds);
        let (min, max) = (seconds.first(), seconds.last());
        println!(
            "{:<10} {median:>10.3} {:>10.3} {:>10.3} {:>8.3}",
            scheme.to_string(),
            min.unwrap_or(&f64::NAN),
            max.unwrap_or(&f64::NAN),
            median / first
        );
    }
    Ok(())
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

    /// Seconds that one call takes.
    fn call(&self, setting: Setting, fleet: Option<Fleet>) -> crate::Result<f64> {
        let whole = Whole::new(self.weights.clone(), self.context.clone());
        let mut predictor = setting.predictor(&self.unet, whole, fleet)?;
        let sample = self.sample.clone();
        let start = Instant::now();
        predictor.predict(sample, 500.0)?;
        Ok(start.elapsed().as_secs_f64())
    }
}

/// The middle value; sorts.
fn median(seconds: &mut [f64]) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
}
