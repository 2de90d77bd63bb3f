//! `lacuna plan`: home or cloud? What a picture takes by every way that a policy allows, which way is best for
//! what, and what the policy's rules cost.

use burn::tensor::Device;
use clap::Args;
use lacuna_model::device::{self, DeviceChoice};
use lacuna_model::survey::PROMPT_TOKENS;
use lacuna_model::unet::UNet;
use serde::Serialize;

use lacuna_orchestrator::arguments::fleet::FleetArguments;
use lacuna_orchestrator::arguments::sampling::DEFAULT_GUIDANCE;
use lacuna_orchestrator::arguments::size::SizeArguments;
use lacuna_orchestrator::arguments::speed::{ComputeArguments, SpeedArguments};
use lacuna_orchestrator::arguments::terms::TermsArguments;
use lacuna_orchestrator::cost::time::{Seconds, Speeds};
use lacuna_orchestrator::error::{Error, Result};
use lacuna_orchestrator::fleet::config::FleetConfig;
use lacuna_orchestrator::limits;
use lacuna_orchestrator::memory;
use lacuna_orchestrator::output::console::{Console, print};
use lacuna_orchestrator::policy::Policy;
use lacuna_orchestrator::policy::ledger::Ledger;
use lacuna_orchestrator::policy::plan::{Plan, Relaxed, choose, relax};
use lacuna_orchestrator::policy::ways::{Best, Question, Way, all_schemes, best, table, ways};
use lacuna_orchestrator::schemes::Options;
use lacuna_orchestrator::schemes::Setting;
use lacuna_orchestrator::schemes::resident::Resident;

/// Workers that are planned with where nobody says how many.
const IMAGINED: usize = 4;

/// Arguments of `lacuna plan`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  lacuna plan --policy private --workers 4
  lacuna plan --fleet fleet.toml --measure --model MODEL --size 512x768")]
pub struct Arguments {
    #[command(flatten)]
    terms: TermsArguments,
    #[command(flatten)]
    size: SizeArguments,
    /// Sampler steps of a picture.
    #[arg(long, default_value_t = 50)]
    steps: usize,
    /// Guidance scale; 1 or less turns guidance off, and halves the work [default: 7.5].
    #[arg(long, conflicts_with = "batch")]
    guidance: Option<f32>,
    #[command(flatten)]
    workers: FleetArguments,
    #[command(flatten)]
    speed: SpeedArguments,
    #[command(flatten)]
    compute: ComputeArguments,
    /// Your memory, in 10^9 bytes [default: what is free here].
    #[arg(long, value_name = "GB")]
    memory_gb: Option<f64>,
    /// auto, cpu or wgpu: where your own part would be computed.
    #[arg(long, env = "LACUNA_DEVICE", default_value_t)]
    device: DeviceChoice,
    /// Accept a GPU that is emulated in software (llvmpipe).
    #[arg(long, env = "LACUNA_ALLOW_SOFTWARE")]
    allow_software: bool,
    /// Print every exchange of a U-Net call, too.
    #[arg(long)]
    verbose: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A plan as JSON.
#[derive(Serialize)]
struct Summary<'a> {
    speeds: &'a Speeds,
    /// Bytes that are free at home, where that is known.
    memory: Option<u64>,
    /// Everything that could be done, home first, each for one picture.
    ways: &'a [Way],
    /// None where nothing is possible.
    best: Option<Best>,
    /// The fastest placement on workers, and what a U-Net call takes by it; none where none is allowed.
    plan: Option<Call<'a>>,
    /// What the policy's rules cost.
    without: &'a [Relaxed],
}

/// A U-Net call as JSON.
#[derive(Serialize)]
struct Call<'a> {
    placement: serde_json::Value,
    seconds: Seconds,
    bytes_up: u64,
    bytes_down: u64,
    round_trips: usize,
    ledger: &'a Ledger,
}

/// Runs the command.
///
/// # Errors
/// A file that cannot be read; or, behind the table, a policy that allows no workers: the rule is named.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let fleet = arguments.fleet()?;
    // Workers that are only imagined are those of providers.
    let policy = arguments.terms.policy(Some(&fleet))?;
    let policy = match policy {
        Some(policy) => policy,
        None => Policy::private()?,
    };
    if arguments.compute.measure && arguments.workers.file().is_none() {
        let reason = "--measure: there is nothing to measure without --fleet";
        return Err(Error::Request(reason.into()).into());
    }
    let device = device::open(arguments.device, arguments.allow_software)?.device;
    let compute = &arguments.compute;
    let memory = arguments.memory(&device)?;
    let unet = arguments.size.unet()?;
    let base = arguments.setting(&unet)?;
    let mut speeds = compute.here(&arguments.speed, &fleet, &device, &unet, &base.sizes)?;
    if compute.measure {
        speeds = speeds.refine(&fleet).await?;
    }
    let ways = ways(&Question {
        unet: &unet,
        policy: &policy,
        schemes: all_schemes()?,
        sizes: base.sizes,
        fleet: &fleet,
        speeds: &speeds,
        calls: arguments.steps,
        memory,
    })?;
    let plan = choose(&unet, &policy, &base, &fleet, &speeds);
    let without = match &plan {
        Ok(_) => relax(&unet, &policy, &base, &fleet, &speeds)?,
        Err(_) => Vec::new(),
    };
    if arguments.json {
        let summary = Summary {
            speeds: &speeds,
            memory,
            best: best(&ways),
            ways: &ways,
            plan: plan.as_ref().ok().map(call),
            without: &without,
        };
        print(serde_json::to_string_pretty(&summary)?)?;
        plan?;
        return Ok(());
    }
    let console = Console::default();
    console.line(arguments.title(&base, &policy)?);
    console.line(circumstances(&speeds, memory));
    console.line(format_args!("\n{}", table(&ways)));
    console.line(
        "memory is of your part of the U-Net; text encoder and VAE take theirs before and after it",
    );
    match best(&ways) {
        Some(best) => console.line(best.line()),
        None => console.line("nothing of that is possible here"),
    }
    let plan = plan?;
    console.line(format_args!("\nthe fastest on workers: {}", plan.summary()));
    let seconds = plan.seconds.total();
    let calls = arguments.steps as f64;
    for relaxed in without {
        let less = seconds - relaxed.seconds;
        // What saves less than a hundredth is no reason to give up a rule.
        if less > 0.01 * seconds {
            console.line(format_args!(
                "without the rule {}: {:.1} s a picture, {:.1} s less",
                relaxed.rule,
                calls * relaxed.seconds,
                calls * less
            ));
        }
    }
    if arguments.verbose {
        console.line(format_args!("\n{}", plan.exchanges(&speeds)));
    }
    Ok(console.finish()?)
}

fn call(plan: &Plan) -> Call<'_> {
    let [bytes_up, bytes_down] = plan.count.total();
    Call {
        placement: plan.setting.scheme.placement(),
        seconds: plan.seconds,
        bytes_up,
        bytes_down,
        round_trips: plan.count.round_trips(),
        ledger: &plan.ledger,
    }
}

impl Arguments {
    fn fleet(&self) -> Result<FleetConfig> {
        self.workers.check()?;
        match self.workers.file() {
            Some(path) if self.compute.measure => self.terms.way.fleet(path),
            // Nobody is reached: it needs neither tokens nor a safe way.
            Some(path) => FleetConfig::to_plan_with(path),
            None => FleetConfig::imagined(self.imagined()),
        }
    }

    /// Workers where no file lists them, each of a provider of its own.
    fn imagined(&self) -> usize {
        self.workers.number().unwrap_or(IMAGINED)
    }

    fn setting(&self, unet: &UNet) -> anyhow::Result<Setting> {
        limits::check("--steps", self.steps, limits::COUNT)?;
        let guidance = self.guidance.unwrap_or(DEFAULT_GUIDANCE);
        if !guidance.is_finite() {
            let reason = format!("--guidance {guidance}: it must be a number");
            return Err(Error::Request(reason).into());
        }
        let guided = guidance > 1.0;
        let scheme = Resident::default().scheme();
        let latents = self.size.latents(if guided { 2 } else { 1 })?;
        Ok(Setting::new(scheme, unet, latents, PROMPT_TOKENS))
    }

    /// Bytes that are free at home; none where that is not known.
    fn memory(&self, device: &Device) -> Result<Option<u64>> {
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

    fn title(&self, setting: &Setting, policy: &Policy) -> Result<String> {
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
            self.steps,
            policy.file.display()
        ))
    }
}

fn circumstances(speeds: &Speeds, memory: Option<u64>) -> String {
    let memory = match memory {
        Some(bytes) => format!("{:.1} GB of memory are free", bytes as f64 / 1e9),
        None => "your free memory is not known".to_owned(),
    };
    format!("for {speeds}; {memory}")
}
