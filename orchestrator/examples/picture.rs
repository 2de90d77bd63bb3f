//! One picture by the library, through four workers in this process: `picture [MODEL [PROMPT [FILE]]]`.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use lacuna_model::device::OpenDevice;
use lacuna_orchestrator::arguments::sampling::draw_noise;
use lacuna_orchestrator::generator::order::Order;
use lacuna_orchestrator::generator::{Event, Request};
use lacuna_orchestrator::noise::TorchRng;
use lacuna_orchestrator::pipeline::Pipeline;
use lacuna_orchestrator::schemes::Options;
use lacuna_orchestrator::schemes::resident::Resident;
use lacuna_orchestrator::text::Prompt;
use tokio::task::block_in_place;

const PROMPT: &str = "a large red circle above a small blue square on a yellow background";

#[tokio::main]
async fn main() -> lacuna_orchestrator::Result<()> {
    let mut given = std::env::args().skip(1);
    let mut next = |otherwise: &str| given.next().unwrap_or_else(|| otherwise.to_owned());
    let (model, prompt, file) = (next("assets/demo-model"), next(PROMPT), next("picture.png"));

    let device = OpenDevice::cpu();
    let pipeline = Arc::new(Pipeline::open(
        Path::new(&model),
        None,
        &[],
        &device.device,
    )?);
    let sampling = pipeline.sampling(20, None);
    let shape = pipeline.latent_shape(None, None)?;
    let conditioning = pipeline.encode(&Prompt::new(prompt), &sampling, shape)?;
    let order = Order {
        pipeline,
        device,
        sampling,
        scheme: Resident::default().scheme(),
        shape,
        whole: None,
        fleet: None,
        workers: None,
    };
    let ready = order.ready().await?;
    let setting = ready.setting.clone();
    let generator = ready.generator(setting, None);

    let mut rng = TorchRng::new(42);
    let noise = draw_noise(&mut rng, shape)?;
    let request = Request::new(conditioning, noise, rng);
    let made = block_in_place(|| {
        generator.picture(request, &mut |event| {
            if let Event::Step(step, _) = event {
                eprintln!("step {} of {}", step.done, step.of);
            }
            ControlFlow::Continue(())
        })
    })?;
    made.picture.write_png(Path::new(&file), &[])
}
