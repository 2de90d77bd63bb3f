//! Making one picture of a run.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use burn::tensor::Tensor;
use lacuna_model::weights::AdapterFile;
use lacuna_wire::HostTensor;

use super::arguments::Arguments;
use lacuna_orchestrator::arguments::sampling::draw_noise;
use lacuna_orchestrator::error::Result;
use lacuna_orchestrator::generator::{Event, Generator, Made, Request};
use lacuna_orchestrator::noise::TorchRng;
use lacuna_orchestrator::output::numbered;
use lacuna_orchestrator::pipeline::{Step, write_latents};
use lacuna_orchestrator::progress::Progress;

/// What all pictures of a run share.
pub(super) struct Run {
    /// What was asked for.
    pub arguments: Arguments,
    /// The model, and where it is computed.
    pub generator: Generator,
    /// What the prompt became.
    pub context: Tensor<3>,
}

/// A picture that was written.
pub(super) struct Done {
    /// The file.
    pub path: PathBuf,
    /// The weights of the user's part of the U-Net.
    pub load: Duration,
    /// All sampler steps.
    pub denoise: Duration,
    /// Latents to picture.
    pub decode: Duration,
}

impl Run {
    /// Of the `index`-th picture.
    pub(super) fn seed(&self, index: usize) -> u64 {
        let first = self.arguments.sampling.seed.unwrap_or_default();
        first.wrapping_add(index as u64)
    }

    /// How to go on behind an interrupt in the `index`-th picture.
    pub(super) fn rest(&self, index: usize) -> String {
        let count = self.arguments.count;
        if count == 1 || self.arguments.latents.is_some() {
            let seed = self.seed(0);
            return format!(
                "{index} of {count} pictures are written; the same command with --seed {seed} begins again"
            );
        }
        format!(
            "{index} of {count} pictures are written; for the others give --seed {} --count {} and another --out",
            self.seed(index),
            count - index
        )
    }

    /// Makes and writes one picture from `noise`, or from its seed's; blocks for as long as it takes.
    ///
    /// # Errors
    /// Those of the scheme, the sampler and the files; no picture is written then.
    pub(super) fn picture(&self, index: usize, noise: Option<HostTensor>) -> Result<Done> {
        let Arguments {
            count,
            save_latents,
            out,
            ..
        } = &self.arguments;
        let mut rng = TorchRng::new(self.seed(index));
        let noise = match noise {
            Some(noise) => noise,
            None => {
                let [width, height] = self.arguments.size.sides();
                let shape = self.generator.pipeline.latent_shape(width, height)?;
                draw_noise(&mut rng, shape)?
            }
        };
        let request = Request {
            context: self.context.clone(),
            noise,
            rng,
        };
        let bar = Progress::new("step", self.generator.sampling.steps);
        let mut load = Duration::ZERO;
        let mut kept = Ok(());
        let made = self.generator.picture(request, &mut |event| {
            match event {
                Event::Loaded(took) => load = took,
                Event::Step(step) => show(&bar, step),
                // What was computed is not lost, should the decoder fail.
                Event::Denoised(latents) => {
                    kept = save_latents.as_ref().map_or(Ok(()), |path| {
                        write_latents(&numbered(path, index, *count), latents)
                    });
                }
            }
            match kept {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        });
        drop(bar);
        kept?;
        let Made {
            picture,
            denoise,
            decode,
        } = made?;
        let path = numbered(out, index, *count);
        picture.write_png(&path, &self.text(index, picture.width, picture.height))?;
        Ok(Done {
            path,
            load,
            denoise,
            decode,
        })
    }

    /// The picture's parameters, for the PNG; none where they are not wanted.
    fn text(&self, index: usize, width: usize, height: usize) -> Vec<(&'static str, String)> {
        let a = &self.arguments;
        if a.no_metadata {
            return Vec::new();
        }
        let sampling = &a.sampling;
        let scheduler = sampling
            .scheduler
            .map_or("the model's own".to_owned(), |s| s.to_string());
        let adapter = |file: &AdapterFile| {
            let name = file.path.file_name().unwrap_or_default();
            format!("{}:{}", name.to_string_lossy(), file.strength)
        };
        let adapters: Vec<String> = a.model.lora.iter().map(adapter).collect();
        let mut text = vec![
            (
                "Software",
                concat!("lacuna ", env!("CARGO_PKG_VERSION")).to_owned(),
            ),
            ("prompt", a.prompt().to_owned()),
            ("negative_prompt", sampling.negative_prompt.clone()),
            ("seed", self.seed(index).to_string()),
            ("steps", sampling.steps.to_string()),
            ("guidance", self.generator.sampling.guidance.to_string()),
            ("scheduler", scheduler),
            ("scheme", a.scheme.scheme.name().to_owned()),
            ("size", format!("{width}x{height}")),
            ("model", self.generator.pipeline.digest().to_owned()),
        ];
        if !adapters.is_empty() {
            text.push(("lora", adapters.join(", ")));
        }
        text
    }
}

fn show(bar: &Progress, step: Step) {
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let bytes = step.traffic.map_or(String::new(), |t| {
        let (up, down) = (megabytes(t.bytes_up), megabytes(t.bytes_down));
        format!(", {up:.1} MB up, {down:.1} MB down")
    });
    bar.about(format!("{:.2} s a step{bytes}", step.took.as_secs_f64()));
    bar.reach(step.done, step.of);
}
