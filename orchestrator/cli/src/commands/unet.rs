//! `lacuna unet`: the U-Net for other programs on this machine.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use lacuna_model::survey::PROMPT_TOKENS;
use lacuna_model::unet::SampleSize;

use lacuna_orchestrator::arguments::fleet::FleetArguments;
use lacuna_orchestrator::arguments::model::{ModelArguments, load_unet};
use lacuna_orchestrator::arguments::scheme::SchemeArguments;
use lacuna_orchestrator::arguments::size::{PIXELS_PER_LATENT, parse_size};
use lacuna_orchestrator::arguments::speed::{ComputeArguments, SpeedArguments};
use lacuna_orchestrator::arguments::terms::TermsArguments;
use lacuna_orchestrator::error::Result;
use lacuna_orchestrator::generator::denoiser::Denoiser;
use lacuna_orchestrator::generator::failover::OnLoss;
use lacuna_orchestrator::generator::order::Own;
use lacuna_orchestrator::output::console::Console;
use lacuna_orchestrator::output::{Outputs, write_whole};
use lacuna_orchestrator::policy::foretold::Run;
use lacuna_orchestrator::{interrupt, limits};
use lacuna_served::bounds::Bounds;
use lacuna_served::door::{Door, usual_path};
use lacuna_served::facts;
use lacuna_served::place::{Places, Terms};
use lacuna_served::service::Service;

use super::before::{Before, OWN_FLEET};

/// Entries of a guided call: what a pipeline asks for where nobody says otherwise.
const BATCH: usize = 2;
/// Rows and columns of the latents where the model does not say.
const SIDE: usize = 64;

/// Arguments of `lacuna unet`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  lacuna unet -m MODEL --fleet fleet.toml --policy private
  lacuna unet -m MODEL --workers 2                  workers of this machine, to try it

In Python (pip install ./python):
  import lacuna, torch
  pipe = StableDiffusionPipeline.from_pretrained(MODEL, unet=lacuna.UNet.connect(), dtype=torch.float32)")]
// Of the model the U-Net alone is used.
#[command(mut_arg("tokenizer", |arg| arg.hide(true)))]
#[command(mut_arg("vae", |arg| arg.hide(true)))]
#[command(mut_arg("embedding", |arg| arg.hide(true)))]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    scheme: SchemeArguments,
    #[command(flatten)]
    terms: TermsArguments,
    #[command(flatten)]
    speed: SpeedArguments,
    #[command(flatten)]
    compute: ComputeArguments,
    #[command(flatten)]
    workers: FleetArguments,
    /// What becomes of a picture from its current step on when a worker is lost.
    #[arg(
        long,
        value_enum,
        default_value = "home",
        value_name = "WHAT",
        help_heading = "Workers"
    )]
    on_loss: OnLoss,
    /// The port on this machine's loopback; 0 is one that is free.
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 0,
        help_heading = "Serving"
    )]
    port: u16,
    /// The file that tells your programs the address and the token; you alone can read it [default: lacuna/unet.json in
    /// XDG_RUNTIME_DIR, else ~/.lacuna/unet.json].
    #[arg(long, value_name = "FILE", help_heading = "Serving")]
    door: Option<PathBuf>,
    /// Batch entries of a U-Net call at most; guidance takes two for each picture.
    #[arg(long, value_name = "N", default_value_t = 4, help_heading = "Serving")]
    max_batch: usize,
    /// The largest picture, in pixels.
    #[arg(
        long,
        value_name = "WxH",
        default_value = "1024x1024",
        value_parser = parse_size,
        help_heading = "Serving"
    )]
    max_size: [usize; 2],
    /// U-Net calls of your pictures: plans go by it, and what wires of changes promise.
    #[arg(long, value_name = "N", default_value_t = 50, help_heading = "Serving")]
    steps: usize,
    /// Close a picture for which nobody has called for so many seconds; its next call opens it again.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 60,
        help_heading = "Serving"
    )]
    idle: usize,
    /// Where to write at the end what it took and who saw what, as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// What can be refused before anything is loaded. Gives the largest latents.
fn check(arguments: &Arguments) -> Result<[usize; 3]> {
    let [width, height] = arguments.max_size;
    for side in [width, height] {
        limits::check_side("--max-size", side, PIXELS_PER_LATENT)?;
    }
    limits::check("--max-batch", arguments.max_batch, limits::COUNT)?;
    let [rows, columns] = [height, width].map(|side| side / PIXELS_PER_LATENT);
    let latents = [arguments.max_batch, rows, columns];
    limits::check_latents("--max-batch and --max-size", latents)?;
    limits::check("--steps", arguments.steps, limits::COUNT)?;
    limits::check("--idle", arguments.idle, limits::COUNT)?;
    arguments.workers.check()?;
    let scheme = &*arguments.scheme.scheme;
    let (fleet, way) = (&arguments.workers, &arguments.terms.way);
    fleet.check_used(scheme, way.insecure, arguments.compute.measure)?;
    let mut outputs = Outputs::default();
    if let Some(path) = &arguments.report {
        outputs.add("--report", path, 1)?;
    }
    outputs.reads("--model", &arguments.model.model);
    outputs.check()?;
    Ok(latents)
}

/// Runs the command: serves until it is asked to end.
///
/// # Errors
/// Anything from a bad argument to a policy that allows nothing, in one line.
pub async fn run(mut arguments: Arguments) -> anyhow::Result<()> {
    let most = check(&arguments)?;
    let fleet = match arguments.workers.file() {
        Some(path) => Some(arguments.terms.way.fleet(path)?),
        None => None,
    };
    let policy = arguments.terms.policy(fleet.as_ref())?;
    arguments.scheme.under(policy.as_ref())?;
    let console = Console::default();
    let model = load_unet(&arguments.model).await?;
    if model.adapters_hold_more {
        console
            .line("what of the adapters (--lora) is not of the U-Net is for your pipeline to load");
    }
    let unet = model.source.layers();
    let side = model.config.sample_size.map(SampleSize::sides);
    let [rows, columns] = side.unwrap_or([SIDE; 2]);
    let usual = [BATCH, rows, columns];
    let usual: [usize; 3] = std::array::from_fn(|i| usual[i].min(most[i]));
    let linked = fleet.is_some();
    let setting = arguments.scheme.setting(unet, usual, PROMPT_TOKENS);
    let setting = setting.adapted(model.source.is_adapted());
    let setting = setting.of_calls(arguments.steps).linked(linked);
    let scheme = setting.scheme.clone();
    let own = match linked {
        true => Own::default(),
        false => {
            let workers = arguments.workers.number();
            Own::start(&model.source, None, &model.device, &*scheme, workers, most).await?
        }
    };
    let local = own.local.as_ref().map(|local| local.config().clone());
    let fleet = fleet.or(local);
    let terms = match (policy, &fleet) {
        (Some(policy), Some(fleet)) => {
            let (adapted, insecure) = (
                !arguments.model.lora.is_empty(),
                arguments.terms.way.insecure,
            );
            let before = Before {
                unet: &model.source,
                device: &model.device.device,
                compute: &arguments.compute,
                link: &arguments.speed,
                run: Run {
                    policy: &policy,
                    fleet,
                    adapted,
                    given: false,
                    insecure,
                },
                calls: arguments.steps,
            };
            let (_, speeds) = before.settle(setting.clone(), &console).await?;
            let fleet = fleet.clone();
            Some(Terms {
                policy,
                fleet,
                speeds,
                adapted,
                insecure,
            })
        }
        _ => {
            if linked {
                console.line(OWN_FLEET);
            }
            None
        }
    };
    let kept = terms.as_ref().map(|terms| terms.policy.clone());
    let denoiser = Denoiser::new(model.source.clone(), setting.clone(), own.whole, fleet);
    let denoiser = denoiser.under(kept).on_loss(arguments.on_loss);
    let files = arguments.model.files()?;
    let folder = files
        .config
        .or(Some(files.model).filter(|model| model.is_dir()));
    let config = facts::config(folder.as_deref(), &model.config, unet);
    let bounds = Bounds::new(unet, most);
    let places = Places::new(
        model.source.clone(),
        setting,
        denoiser,
        terms,
        console.clone(),
    );
    let idle = Duration::from_secs(arguments.idle as u64);
    let service = Service::new(config, bounds, places, idle);
    let path = match arguments.door {
        Some(path) => path,
        None => usual_path()?,
    };
    let mut door = Door::open(arguments.port, &path).await?;
    console.line(format_args!(
        "serving at {} until Ctrl-C; lacuna.UNet.connect() finds it by {}, which has the token",
        door.url(),
        door.path().display()
    ));
    let served = service.serve(&mut door, interrupt::asked()).await;
    drop(door);
    let report = service.report();
    if !report.workers.is_empty() {
        console.line(report.table());
    }
    if let Some(path) = &arguments.report {
        write_whole(path, &serde_json::to_vec_pretty(&report)?)?;
    }
    served?;
    Ok(console.finish()?)
}
