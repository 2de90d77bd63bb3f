//! What `lacuna plan` is asked for.

use burn::tensor::Device;
use clap::Args;
use lacuna_model::device::{self, DeviceChoice};
use lacuna_model::unet::UNet;
use lacuna_model::weights::{AdapterFile, Network};

use lacuna_orchestrator::arguments::fleet::FleetArguments;
use lacuna_orchestrator::arguments::init_image::check_strength;
use lacuna_orchestrator::arguments::size::SizeArguments;
use lacuna_orchestrator::arguments::speed::{ComputeArguments, SpeedArguments};
use lacuna_orchestrator::arguments::terms::TermsArguments;
use lacuna_orchestrator::error::{Error, Result};
use lacuna_orchestrator::fleet::config::FleetConfig;
use lacuna_orchestrator::limits;
use lacuna_orchestrator::memory;
use lacuna_orchestrator::policy::Policy;
use lacuna_orchestrator::schedulers::last_steps;
use lacuna_orchestrator::schemes::resident::Resident;
use lacuna_orchestrator::schemes::{Options, Setting};

/// Workers that are planned with where nobody says how many.
const IMAGINED: usize = 4;

/// Arguments of `lacuna plan`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  lacuna plan --policy private --workers 4
  lacuna plan --fleet fleet.toml --measure --model MODEL --size 512x768")]
pub struct Arguments {
    #[command(flatten)]
    pub(super) terms: TermsArguments,
    #[command(flatten)]
    pub(super) size: SizeArguments,
    /// Low-rank adapters (LoRA) of a picture, as `lacuna generate` takes them; repeat it for several.
    #[arg(long, value_name = "FILE[:STRENGTH]", help_heading = "Model")]
    pub(super) lora: Vec<AdapterFile>,
    /// Sampler steps of a picture, of one U-Net call each: for a scheduler that makes more (heun, kdpm2), give the calls.
    #[arg(long, default_value_t = 50)]
    pub(super) steps: usize,
    /// How far a picture that is made from another one may go from it, 0 to 1: so large a share of the steps is made.
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    pub(super) strength: Option<f64>,
    #[command(flatten)]
    pub(super) workers: FleetArguments,
    #[command(flatten)]
    pub(super) speed: SpeedArguments,
    #[command(flatten)]
    pub(super) compute: ComputeArguments,
    /// Your memory, in 10^9 bytes [default: what is free here].
    #[arg(long, value_name = "GB")]
    pub(super) memory_gb: Option<f64>,
    /// auto, cpu, wgpu or cuda: where your own part would be computed.
    #[arg(long, env = "LACUNA_DEVICE", default_value_t)]
    pub(super) device: DeviceChoice,
    /// Accept a GPU that is emulated in software (llvmpipe).
    #[arg(long, env = "LACUNA_ALLOW_SOFTWARE")]
    pub(super) allow_software: bool,
    /// Print every exchange of a U-Net call, too.
    #[arg(long)]
    pub(super) verbose: bool,
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
}

impl Arguments {
    pub(super) fn fleet(&self) -> Result<FleetConfig> {
        self.workers.check()?;
        match self.workers.file() {
            Some(path) if self.compute.measure => self.terms.way.fleet(path),
            // Nobody is reached: it needs neither tokens nor a safe way.
            Some(path) => Ok(FleetConfig::to_plan_with(path)?),
            None => Ok(FleetConfig::imagined(self.imagined())?),
        }
    }

    /// Workers where no file lists them, each of a provider of its own.
    pub(super) fn imagined(&self) -> usize {
        self.workers.number().unwrap_or(IMAGINED)
    }

    pub(super) fn setting(&self, unet: &UNet) -> anyhow::Result<Setting> {
        limits::check("--steps", self.steps, limits::COUNT)?;
        let scheme = Resident::default().scheme();
        let latents = self.size.latents(self.size.guided_batch()?)?;
        let setting = Setting::new(scheme, unet, latents, self.size.tokens()?);
        Ok(setting.of_calls(self.calls()?))
    }

    /// Bytes of what the adapters change of the U-Net; none where that is nothing.
    pub(super) fn adapter_bytes(&self, unet: &UNet) -> Result<Option<u64>> {
        Ok(AdapterFile::bytes_of(&self.lora, Network::UNet, unet)?)
    }

    /// U-Net calls of a picture.
    pub(super) fn calls(&self) -> Result<usize> {
        match self.strength {
            None => Ok(self.steps),
            Some(strength) => {
                check_strength(strength)?;
                Ok(last_steps(self.steps, strength)?)
            }
        }
    }

    /// Bytes that are free at home; none where that is not known.
    pub(super) fn memory(&self, device: &Device) -> Result<Option<u64>> {
        match self.memory_gb {
            Some(gigabytes) if gigabytes.is_finite() && gigabytes > 0.0 => {
                Ok(Some((gigabytes * 1e9) as u64))
            }
            Some(gigabytes) => Err(Error::Request(format!(
                "--memory-gb {gigabytes}: it must be above zero"
            ))),
            None => Ok(device::is_cpu(device).then(memory::available).flatten()),
        }
    }

    pub(super) fn title(&self, setting: &Setting, policy: &Policy) -> Result<String> {
        let pixels = self.size.pixels()?;
        let [batch, rows, columns] = setting.sizes.latents;
        let (width, height) = (columns * pixels, rows * pixels);
        let workers = match self.workers.file() {
            Some(path) => format!("the workers of {}", path.display()),
            None => format!("{} workers, each of a provider of its own", self.imagined()),
        };
        Ok(format!(
            "a picture of {width}x{height}, {}: {} U-Net calls of batch {batch}; {workers}; policy {}",
            self.size.model.display(),
            self.calls()?,
            policy.file.display()
        ))
    }
}
