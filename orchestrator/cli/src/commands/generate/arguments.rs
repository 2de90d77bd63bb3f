//! What `lacuna generate` is asked for, and what of it can be refused before anything is loaded.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use lacuna_orchestrator::arguments::fleet::FleetArguments;
use lacuna_orchestrator::arguments::init_image::InitImageArguments;
use lacuna_orchestrator::arguments::model::{ModelArguments, check_model};
use lacuna_orchestrator::arguments::preview::PreviewArguments;
use lacuna_orchestrator::arguments::sampling::SamplingArguments;
use lacuna_orchestrator::arguments::scheme::SchemeArguments;
use lacuna_orchestrator::arguments::size::PictureSize;
use lacuna_orchestrator::arguments::speed::{ComputeArguments, SpeedArguments};
use lacuna_orchestrator::arguments::terms::TermsArguments;
use lacuna_orchestrator::error::Result;
use lacuna_orchestrator::generator::failover::OnLoss;
use lacuna_orchestrator::limits;
use lacuna_orchestrator::output::Outputs;

/// Arguments of `lacuna generate`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  lacuna generate \"a large red circle above a small blue square on a yellow background\"
  lacuna generate -m MODEL -p \"a lighthouse at dusk\" -n blurry --seed 7 --steps 30 -o lighthouse.png
  lacuna generate -m MODEL -p \"a lighthouse at dusk\" --fleet fleet.toml --policy private --report report.json
  lacuna generate -m MODEL -p \"a lighthouse at dusk\" --scheme local --size 512x768 --out - | display
  lacuna generate -m MODEL -p \"a lighthouse at night\" --init-image lighthouse.png --strength 0.6
  lacuna generate -m MODEL -p \"a red boat\" --init-image lighthouse.png --mask sea.png
  lacuna generate -m MODEL -p \"a lighthouse at dusk\" --fleet fleet.toml --checkpoint run
  lacuna generate --resume run                      goes on with it, from its last step")]
pub struct Arguments {
    /// What to see; or --prompt.
    #[arg(value_name = "PROMPT", required_unless_present_any = ["prompt", "resume"])]
    pub(super) words: Option<String>,
    /// What to see.
    #[arg(short, long, allow_hyphen_values = true, conflicts_with = "words")]
    pub(super) prompt: Option<String>,
    /// Where to write the picture, a PNG; several are numbered. - is the standard output.
    #[arg(short, long, value_name = "FILE", default_value = "lacuna.png")]
    pub(super) out: PathBuf,
    /// Number of pictures.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) count: usize,
    /// So many pictures at a time: where the way to the workers is long, one computes while another waits.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) parallel: usize,
    /// Leave prompt, negative prompt, seed and settings out of the picture's file, which has them as text.
    #[arg(long)]
    pub(super) no_metadata: bool,
    #[command(flatten)]
    pub(super) model: ModelArguments,
    #[command(flatten)]
    pub(super) sampling: SamplingArguments,
    #[command(flatten)]
    pub(super) size: PictureSize,
    #[command(flatten)]
    pub(super) init_image: InitImageArguments,
    #[command(flatten)]
    pub(super) preview: PreviewArguments,
    /// DDIM's and TCD's amount of fresh noise, 0 to 1.
    #[arg(
        long,
        default_value_t = 0.0,
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    pub(super) eta: f32,
    #[command(flatten)]
    pub(super) scheme: SchemeArguments,
    #[command(flatten)]
    pub(super) terms: TermsArguments,
    #[command(flatten)]
    pub(super) speed: SpeedArguments,
    #[command(flatten)]
    pub(super) compute: ComputeArguments,
    #[command(flatten)]
    pub(super) workers: FleetArguments,
    /// Initial noise, a safetensors file, in place of the seed's.
    #[arg(long, value_name = "FILE", help_heading = "Sampling")]
    pub(super) latents: Option<PathBuf>,
    /// Where to keep the final latents.
    #[arg(long, value_name = "FILE")]
    pub(super) save_latents: Option<PathBuf>,
    /// A new folder to keep every step in until all pictures are written: prompt and latents in the clear, for you alone.
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    pub(super) checkpoint: Option<PathBuf>,
    /// Go on with the run of a --checkpoint from its last step. Its flags need not be given again; those that are, count.
    #[arg(long, value_name = "DIR")]
    pub(super) resume: Option<PathBuf>,
    /// What becomes of a picture from its current step on when a worker is lost.
    #[arg(
        long,
        value_enum,
        default_value = "home",
        value_name = "WHAT",
        help_heading = "Workers"
    )]
    pub(super) on_loss: OnLoss,
    /// The flags that were given, and their values, each as one word.
    #[arg(skip)]
    pub(crate) given: Vec<OsString>,
    /// Where to write what it took and who saw what, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(super) report: Option<PathBuf>,
}

impl Arguments {
    pub(super) fn prompt(&self) -> &str {
        let words = self.prompt.as_deref().or(self.words.as_deref());
        words.unwrap_or_default()
    }
}

/// What can be refused before anything is loaded. Gives the files that will be written.
pub(super) fn check(arguments: &Arguments) -> Result<Outputs> {
    limits::check("--count", arguments.count, limits::PICTURES)?;
    limits::check("--parallel", arguments.parallel, limits::AT_A_TIME)?;
    arguments.workers.check()?;
    let (scheme, way) = (&*arguments.scheme.scheme, &arguments.terms.way);
    let measure = arguments.compute.measure;
    arguments
        .workers
        .check_used(scheme, way.insecure, measure)?;
    arguments.sampling.check()?;
    arguments.init_image.check()?;
    arguments.preview.check()?;
    let mut outputs = Outputs::default();
    let count = arguments.count;
    outputs.add_ending("--out", &arguments.out, count, "png")?;
    if let Some(path) = &arguments.save_latents {
        outputs.add("--save-latents", path, count)?;
    }
    if let Some(path) = &arguments.preview.preview {
        outputs.add_ending("--preview", path, count, "png")?;
    }
    if let Some(path) = &arguments.report {
        outputs.add("--report", path, 1)?;
    }
    outputs.reads("--model", &arguments.model.model);
    for adapter in &arguments.model.lora {
        outputs.reads("--lora", &adapter.path);
    }
    for embedding in &arguments.model.embedding {
        outputs.reads("--embedding", &embedding.path);
    }
    let inputs = [
        ("--fleet", arguments.workers.file()),
        ("--policy", arguments.terms.policy.as_deref()),
        ("--latents", arguments.latents.as_deref()),
        ("--init-image", arguments.init_image.init_image.as_deref()),
        ("--mask", arguments.init_image.mask.as_deref()),
        (
            "--preview-decoder",
            arguments.preview.preview_decoder.as_deref(),
        ),
    ];
    for (flag, path) in inputs {
        path.into_iter().for_each(|path| outputs.reads(flag, path));
    }
    outputs.check()?;
    check_model(&arguments.model)?;
    Ok(outputs)
}
