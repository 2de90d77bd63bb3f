//! What pictures side by side save on a long way: one picture, and several at once, over an emulated link, in one run:
//! `side_by_side [MODEL [PICTURES [ROUND TRIP IN MS [STEPS]]]]`.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use lacuna_model::device::OpenDevice;
use lacuna_model::whole::Conditioning;
use lacuna_orchestrator::arguments::sampling::draw_noise;
use lacuna_orchestrator::fleet::emulated::EmulatedLink;
use lacuna_orchestrator::fleet::link::Link;
use lacuna_orchestrator::fleet::local::LocalWorkers;
use lacuna_orchestrator::generator::order::{Order, load_whole};
use lacuna_orchestrator::generator::{Generator, Request};
use lacuna_orchestrator::noise::TorchRng;
use lacuna_orchestrator::pipeline::Pipeline;
use lacuna_orchestrator::schemes::Options;
use lacuna_orchestrator::schemes::resident::Resident;
use lacuna_orchestrator::side_by_side::side_by_side;
use lacuna_orchestrator::text::Prompt;
use lacuna_worker::Model;
use tokio::task::block_in_place;

const PROMPT: &str = "a large red circle above a small blue square on a yellow background";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut given = std::env::args().skip(1);
    let mut next = |otherwise: &str| given.next().unwrap_or_else(|| otherwise.to_owned());
    let model = next("assets/demo-model");
    let pictures: usize = next("4").parse()?;
    let rtt_ms: f64 = next("20").parse()?;
    let steps: usize = next("10").parse()?;

    let device = OpenDevice::cpu();
    let pipeline = Pipeline::open(Path::new(&model), None, &[], &device.device)?;
    let pipeline = Arc::new(pipeline);
    let sampling = pipeline.sampling(steps, None);
    let shape = pipeline.latent_shape(None, None)?;
    let conditioning = pipeline.encode(&Prompt::new(PROMPT), &sampling, shape)?;
    let [_, _, rows, columns] = shape;
    let weights = load_whole(pipeline.source()).await?;
    let held = Model::new(pipeline.unet().clone(), weights, pipeline.digest());
    let held = Arc::new(held);
    let latents = [sampling.batch(), rows, columns];
    let workers = LocalWorkers::start(4, &held, &device, latents).await?;
    let link = Link {
        uplink_mbps: 1000.0,
        downlink_mbps: 1000.0,
        rtt_ms,
    };
    let link = EmulatedLink::start(workers.config(), link).await?;
    let order = Order {
        pipeline,
        device,
        sampling,
        scheme: Resident::default().scheme(),
        shape,
        whole: None,
        fleet: Some(link.config().clone()),
        workers: None,
    };
    let ready = order.ready().await?;
    let setting = ready.setting.clone();
    let generator = ready.generator(setting, None);

    let seconds = |at_once: usize| -> anyhow::Result<f64> {
        let start = Instant::now();
        block_in_place(|| {
            side_by_side(at_once, 0..at_once, |seed| {
                picture(&generator, &conditioning, shape, seed as u64)
            })
        })?;
        Ok(start.elapsed().as_secs_f64())
    };
    // The first one pays for what is loaded once.
    seconds(1)?;
    println!("{steps} steps, {rtt_ms} ms there and back");
    for round in 1..=3 {
        let (one, several) = (seconds(1)?, seconds(pictures)?);
        println!(
            "round {round}: one picture {one:.2} s, {pictures} at once {several:.2} s: {:.2} times",
            several / one
        );
    }
    Ok(())
}

fn picture(
    generator: &Generator,
    conditioning: &Conditioning,
    shape: [usize; 4],
    seed: u64,
) -> lacuna_orchestrator::Result<()> {
    let mut rng = TorchRng::new(seed);
    let noise = draw_noise(&mut rng, shape)?;
    let request = Request::new(conditioning.clone(), noise, rng);
    generator.picture(request, &mut |_| ControlFlow::Continue(()))?;
    Ok(())
}
