//! What a share holder sees under `blind` does not depend on the picture: a classifier that tells two prompts apart by
//! strips is at chance.
//!
//! Of each run it has one U-Net call, the first of a picture, always of the same noise, so that the prompt is all that
//! differs: nothing in a later call is easier to tell.

use lacuna_instruments::audit::corpus::Run;
use lacuna_instruments::audit::independence::{Told, summary, told};
use lacuna_instruments::audit::prompts::draw;
use lacuna_instruments::audit::target::Target;
use lacuna_model::device::OpenDevice;
use lacuna_model::weights::Weights;
use lacuna_orchestrator::fleet::config::FleetConfig;
use lacuna_orchestrator::fleet::local::LocalWorkers;
use lacuna_orchestrator::noise::TorchRng;
use lacuna_orchestrator::picture::Picture;
use lacuna_orchestrator::pipeline::Pipeline;
use lacuna_orchestrator::schemes::{Setting, Sizes};
use lacuna_orchestrator::text::Prompt;
use lacuna_wire::HostTensor;
use lacuna_worker::Model;
use std::sync::Arc;
use tests::golden::repository;
use tests::scheme::scheme;
use tokio::task::spawn_blocking;

/// What tells the two prompts apart by the views of the second of two workers, of as many `runs` under each scheme.
async fn tell(schemes: &'static [(&'static str, usize)]) -> Vec<Told> {
    let device = OpenDevice::cpu();
    let dir = repository().join("assets/demo-model");
    let pipeline = Pipeline::open(&dir, None, &[], &device.device).unwrap();
    let weights = pipeline.source().load_all().unwrap();
    let model = Model::new(pipeline.unet().clone(), weights.clone(), pipeline.digest());
    let model = Arc::new(model);
    let [_, _, rows, columns] = pipeline.latent_shape(None, None).unwrap();
    let latents = [2, rows, columns];
    let local = LocalWorkers::start(2, &model, &device, latents)
        .await
        .unwrap();
    let told = spawn_blocking(move || {
        let classify = |(name, runs): &(&str, usize)| {
            let sizes = Sizes {
                latents,
                levels: pipeline.unet().levels(),
                tokens: pipeline.tokens(),
            };
            let setting = Setting {
                // Both halves of a guided step come in one message.
                scheme: scheme(name, &[("lanes", "false")]),
                sizes,
                adapted: false,
            };
            of_scheme(&pipeline, &weights, &model, local.config(), &setting, *runs)
        };
        schemes.iter().map(classify).collect()
    });
    told.await.unwrap()
}

fn of_scheme(
    pipeline: &Pipeline,
    weights: &Weights,
    model: &Model,
    fleet: &FleetConfig,
    setting: &Setting,
    runs: usize,
) -> Told {
    let [_, rows, columns] = setting.sizes.latents;
    let channels = pipeline.unet().latent_channels();
    let noise = TorchRng::new(0).randn(channels * rows * columns).repeat(2);
    let noise = HostTensor::new([2, channels, rows, columns], noise).unwrap();
    let run = |prompt: &str| Run {
        context: {
            let (prompt, sampling) = (Prompt::new(prompt), pipeline.sampling(1, Some(5.0)));
            let shape = [1, channels, rows, columns];
            pipeline.encode(&prompt, &sampling, shape).unwrap()
        },
        prompt: draw(1, 0).remove(0),
        calls: vec![(noise.clone(), 951.0)],
        latents: HostTensor::zeros([1, channels, rows, columns]),
        picture: Picture {
            width: 0,
            height: 0,
            rgb: Vec::new(),
            alpha: None,
        },
    };
    let prompts = [
        "a large red circle above a small blue square on a yellow background",
        "a small white star on the left on a purple background",
    ];
    let each = prompts.map(run);
    let target = Target {
        pipeline,
        model,
        fleet,
        workers: vec![1],
    };
    let mut features: Vec<Vec<Vec<f32>>> = Vec::new();
    let labels: Vec<bool> = (0..runs).map(|i| i % 2 == 0).collect();
    for label in &labels {
        let run = std::slice::from_ref(&each[usize::from(*label)]);
        let mut views = target.watch(setting, weights, run, 0, || {}).unwrap();
        let view = views.remove(0).remove(0);
        let words: Vec<Vec<f32>> = view.stages.into_values().collect();
        let summaries = words.iter().flat_map(|words| summary(words)).collect();
        features.push(words.into_iter().chain([summaries]).collect());
    }
    let parts = features.first().map_or(0, Vec::len);
    let parts: Vec<Vec<&[f32]>> = (0..parts)
        .map(|part| features.iter().map(|run| &*run[part]).collect())
        .collect();
    told(&parts, &labels).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_prompts_are_told_apart_by_strips_and_not_by_shares() {
    let told = tell(&[("resident", 10), ("blind", 40)]).await;
    println!("{told:?}");
    assert_eq!(told[0].right, told[0].of, "{told:?}");
    // A fair coin is outside once in 5000 times.
    assert!(told[1].right.abs_diff(20) <= 11, "{told:?}");
}

/// As many runs as tell 50 % from 56 %. A fair coin is outside once in 2500 times.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes; scripts/nightly.sh runs it"]
async fn five_hundred_runs_are_not_told_apart() {
    let told = tell(&[("blind", 500)]).await[0];
    let [low, high] = told.interval().map(|x| 100.0 * x);
    println!(
        "{} of {} runs told right, {:.1} % ({low:.1} to {high:.1})",
        told.right,
        told.of,
        100.0 * told.accuracy()
    );
    assert!(told.right.abs_diff(250) <= 39, "{told:?}");
}
