//! `lacuna generate`: a prompt to pictures.

mod arguments;
mod kept;
mod noises;
mod picture;

use std::sync::Arc;
use std::time::Instant;

use lacuna_model::memory;
use lacuna_model::whole::Conditioning;
use tokio::task::spawn_blocking;

use super::before::{Before, OWN_FLEET};
pub use arguments::Arguments;
use arguments::check;
use lacuna_orchestrator::arguments::model::load;
use lacuna_orchestrator::generator::order::Order;
use lacuna_orchestrator::init_image::{Given, InitImage};
use lacuna_orchestrator::output::console::Console;
use lacuna_orchestrator::output::write_whole;
use lacuna_orchestrator::pipeline::{Pipeline, Sampling};
use lacuna_orchestrator::policy::foretold;
use lacuna_orchestrator::preview::Preview;
use lacuna_orchestrator::report::Report;
use noises::Noises;
use picture::Run;

/// Runs the command.
///
/// # Errors
/// Anything from a bad argument to a dead worker, in one line; that picture is not written then, and the
/// report says what was done.
pub async fn run(mut arguments: Arguments) -> anyhow::Result<()> {
    let start = Instant::now();
    let first_seed = match arguments.sampling.seed {
        Some(seed) => seed,
        None => {
            let drawn = random_seed();
            arguments.sampling.seed = Some(drawn);
            // A run that is gone on with draws no other.
            arguments.given.push(format!("--seed={drawn}").into());
            drawn
        }
    };
    let console = Console::new(check(&arguments)?.take_stdout());
    let reading = arguments.init_image.clone();
    let given_image = spawn_blocking(move || reading.read()).await??;
    if given_image.as_ref().is_some_and(Given::keeps_all) {
        console.line("the mask (--mask) is nowhere white, so nothing is painted anew");
    }
    let fleet = match arguments.workers.file() {
        Some(path) => Some(arguments.terms.way.fleet(path)?),
        None => None,
    };
    let policy = arguments.terms.policy(fleet.as_ref())?;
    arguments.scheme.under(policy.as_ref())?;
    let (pipeline, device) = load(&arguments.model).await?;
    let sampling = Sampling {
        from: given_image.as_ref().map(Given::from),
        ..arguments.sampling.settle(&pipeline, arguments.eta)
    };
    pipeline.check_sampling(&sampling)?;
    let prompt = arguments.sampling.words.prompt(arguments.prompt());
    let options = &prompt.options;
    pipeline.check_prompts(options)?;
    let negative = options.negative_prompt.as_deref().unwrap_or_default();
    if !negative.is_empty() && !sampling.guided() {
        console.line("the negative prompt has no part in this picture, which is made without classifier-free guidance");
    }
    let unused = pipeline.unused_embeddings(&prompt)?;
    if !unused.is_empty() {
        console.line(format_args!(
            "neither prompt calls the embedding {}; write its name where it is to count",
            unused.join(", ")
        ));
    }
    let unknown = pipeline.unknown_words(&prompt)?;
    if !unknown.is_empty() {
        console.line(format_args!(
            "this model does not know: {}; what it makes of them is left to chance",
            unknown.join(", ")
        ));
    }
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        scheme: arguments.scheme.scheme.name().to_owned(),
        model: pipeline.digest().to_owned(),
        seed: first_seed,
        ..Report::default()
    };
    report.seconds.load = start.elapsed().as_secs_f64();
    let noises = Noises::prepare(&arguments, &pipeline, given_image.as_ref())?;
    let digests = given_image.as_ref().map(|given| given.digests().clone());
    let conditioning = encode(&arguments, &sampling, noises.shape, &pipeline, &mut report).await?;
    let preview = preview(&arguments, &pipeline).await?;
    let init_image = encode_image(given_image, noises.shape, &pipeline, &mut report).await?;
    let given = fleet.is_some();
    let users = device.device.clone();
    let order = Order {
        pipeline,
        device,
        sampling,
        scheme: arguments.scheme.scheme.clone(),
        shape: noises.shape,
        whole: None,
        fleet,
        workers: arguments.workers.number(),
    };
    let ready = order.ready().await?.of_tokens(conditioning.tokens());
    report.seconds.load += ready.loading.as_secs_f64();
    let setting = match (&policy, &ready.fleet) {
        (Some(policy), Some(fleet)) => {
            let before = Before {
                unet: ready.pipeline.source(),
                device: &users,
                compute: &arguments.compute,
                link: &arguments.speed,
                run: foretold::Run {
                    policy,
                    fleet,
                    adapted: !arguments.model.lora.is_empty(),
                    given: arguments.init_image.init_image.is_some(),
                    insecure: arguments.terms.way.insecure,
                },
                calls: ready.pipeline.calls(&ready.sampling)?,
            };
            before.settle(ready.setting.clone(), &console).await?.0
        }
        (None, Some(_)) if given => {
            console.line(OWN_FLEET);
            ready.setting.clone()
        }
        _ => ready.setting.clone(),
    };
    let scheme = &setting.scheme;
    if scheme.stands_for_others() {
        let lacking = match policy {
            None => "a policy",
            Some(_) => "--fleet, workers of providers,",
        };
        console.line(format_args!(
            "--scheme {}: without {lacking} nothing is planned, so it is {}, at home",
            scheme.name(),
            scheme.label()
        ));
    }
    let generator = ready.generator(setting, policy).on_loss(arguments.on_loss);
    let checkpoint = kept::open(&arguments, &generator, noises.shape, digests)?;
    let run = Arc::new(Run::new(
        arguments,
        generator,
        conditioning,
        noises,
        init_image,
        preview,
        checkpoint,
    ));
    let (making, to) = (run.clone(), console.clone());
    let made = spawn_blocking(move || making.pictures(&to)).await?;
    for done in run.done().values() {
        report.seconds.load += done.load.as_secs_f64();
        report.seconds.decode += done.decode.as_secs_f64();
        report.pictures.push(done.path.display().to_string());
    }
    report.error = made.as_ref().err().map(|error| format!("{error:#}"));
    report.add_accounts(&run.generator);
    report.seconds.total = start.elapsed().as_secs_f64();
    report.peak_memory = memory::peak();
    if made.is_ok() && !report.workers.is_empty() {
        console.line(report.table());
    }
    let reported = match &run.arguments.report {
        Some(path) => write_whole(path, &serde_json::to_vec_pretty(&report)?),
        None => Ok(()),
    };
    // Why there is a picture less says more than why there is no report.
    made?;
    reported?;
    Ok(console.finish()?)
}

/// A seed that is short enough to be typed: of more bits torch takes the lower 32.
fn random_seed() -> u64 {
    rand::random::<u32>().into()
}

async fn encode(
    arguments: &Arguments,
    sampling: &Sampling,
    shape: [usize; 4],
    pipeline: &Arc<Pipeline>,
    report: &mut Report,
) -> anyhow::Result<Conditioning> {
    let start = Instant::now();
    let prompt = arguments.sampling.words.prompt(arguments.prompt());
    let (sampling, pipeline) = (sampling.clone(), pipeline.clone());
    let conditioning = spawn_blocking(move || pipeline.encode(&prompt, &sampling, shape));
    let conditioning = conditioning.await??;
    report.seconds.text = start.elapsed().as_secs_f64();
    Ok(conditioning)
}

/// What a picture that is given becomes, before anything else takes memory.
async fn encode_image(
    given: Option<Given>,
    shape: [usize; 4],
    pipeline: &Arc<Pipeline>,
    report: &mut Report,
) -> anyhow::Result<Option<InitImage>> {
    let Some(given) = given else {
        return Ok(None);
    };
    let start = Instant::now();
    let pipeline = pipeline.clone();
    let encoded = spawn_blocking(move || InitImage::encode(&pipeline, given, shape)).await??;
    report.seconds.encode = start.elapsed().as_secs_f64();
    Ok(Some(encoded))
}

/// What shows pictures before they are finished, where that is asked for.
async fn preview(
    arguments: &Arguments,
    pipeline: &Arc<Pipeline>,
) -> anyhow::Result<Option<Preview>> {
    if arguments.preview.preview.is_none() {
        return Ok(None);
    }
    let (file, pipeline) = (arguments.preview.preview_decoder.clone(), pipeline.clone());
    let preview = spawn_blocking(move || Preview::of(&pipeline, file.as_deref()));
    Ok(Some(preview.await??))
}
