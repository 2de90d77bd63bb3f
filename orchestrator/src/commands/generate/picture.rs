//! Making one picture of a run.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use burn::tensor::Tensor;
use shared::host::HostTensor;
use shared::weights::Weights;

use super::Arguments;
use crate::commands::placed::{Placed, draw_noise};
use crate::error::Result;
use crate::fleet::Fleet;
use crate::fleet::tally::Tally;
use crate::noise::TorchRng;
use crate::output::numbered;
use crate::pipeline::{Step, write_latents};
use crate::progress::Progress;
use crate::schemes::Finished;

/// What all pictures of a run share.
pub struct Run {
    /// What was asked for.
    pub arguments: Arguments,
    /// The model, and where it is computed.
    pub placed: Placed,
    /// What the prompt became.
    pub context: Tensor<3>,
}

/// A picture that was written.
pub struct Done {
    /// The file.
    pub path: PathBuf,
    /// All sampler steps.
    pub denoise: Duration,
    /// Latents to picture.
    pub decode: Duration,
    /// Work of the user, multiply and add counted as two.
    pub user_flop: u64,
    /// The workers, their sessions still open.
    pub fleet: Option<Fleet>,
    /// Accounts of sessions that were given up.
    pub past: Vec<Tally>,
}

impl Run {
    /// Of the `index`-th picture.
    pub fn seed(&self, index: usize) -> u64 {
        let first = self.arguments.sampling.seed.unwrap_or_default();
        first.wrapping_add(index as u64)
    }

    /// Makes and writes one picture; blocks for as long as it takes. `weights` are dropped before it is
    /// decoded.
    ///
    /// # Errors
    /// Those of the scheme, the sampler and the files; no picture is written then.
    pub fn picture(
        &self,
        index: usize,
        noise: Option<HostTensor>,
        weights: Weights,
        fleet: Option<Fleet>,
    ) -> Result<Done> {
        let start = Instant::now();
        let (latents, finished) = self.denoise(index, noise, weights, fleet)?;
        let Finished {
            user_flop,
            fleet,
            past,
        } = finished;
        let denoise = start.elapsed();

        let start = Instant::now();
        let count = self.arguments.count;
        if let Some(path) = &self.arguments.save_latents {
            write_latents(&numbered(path, index, count), &latents)?;
        }
        let picture = self.placed.pipeline.decode(latents)?;
        let path = numbered(&self.arguments.out, index, count);
        picture.write_png(&path, &self.text(index, picture.width, picture.height))?;
        Ok(Done {
            path,
            denoise,
            decode: start.elapsed(),
            user_flop,
            fleet,
            past,
        })
    }

    fn denoise(
        &self,
        index: usize,
        noise: Option<HostTensor>,
        weights: Weights,
        fleet: Option<Fleet>,
    ) -> Result<(HostTensor, Finished)> {
        let mut rng = TorchRng::new(self.seed(index));
        let noise = match noise {
            Some(noise) => noise,
            None => {
                let [width, height] = self.arguments.size.sides();
                draw_noise(&mut rng, self.placed.pipeline.latent_shape(width, height)?)?
            }
        };
        let bar = Progress::new("step", self.placed.sampling.steps);
        let mut show = |step: Step| {
            let megabytes = |bytes: u64| bytes as f64 / 1e6;
            let bytes = step.traffic.map_or(String::new(), |t| {
                let (up, down) = (megabytes(t.bytes_up), megabytes(t.bytes_down));
                format!(", {up:.1} MB up, {down:.1} MB down")
            });
            bar.about(format!("{:.2} s a step{bytes}", step.took.as_secs_f64()));
            bar.reach(step.done, step.of);
        };
        let context = self.context.clone();
        self.placed
            .denoise(context, noise, &mut rng, (weights, fleet), &mut show)
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
        vec![
            (
                "Software",
                concat!("lacuna ", env!("CARGO_PKG_VERSION")).to_owned(),
            ),
            ("prompt", a.prompt().to_owned()),
            ("negative_prompt", sampling.negative_prompt.clone()),
            ("seed", self.seed(index).to_string()),
            ("steps", sampling.steps.to_string()),
            ("guidance", self.placed.sampling.guidance.to_string()),
            ("scheduler", scheduler),
            ("scheme", a.scheme.to_string()),
            ("size", format!("{width}x{height}")),
            ("model", self.placed.pipeline.digest().to_owned()),
        ]
    }
}
