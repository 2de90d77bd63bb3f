//! What an attacker makes of the views of one provider.
//!
//! - [`counting`]: right answers, and what guessing gets.
//! - [`rows`]: its own rows, pixel by pixel.
//! - [`strip`]: the whole picture, and the prompt, from its strips of the feature maps.
//! - [`samples`]: what a network learns from.
//! - [`decoder`]: the whole picture from strips, by a network.
//! - [`prior`]: the whole picture from own rows, by the model itself.
//! - [`tokens`]: the whole picture from everybody's keys and values.
//! - [`tiles`]: those keys and values from tiles permuted and rotated.
//! - [`words`]: the prompt from what it became.
//!
//! Every attack learns from the first runs, which are the attacker's own, and is scored on the others.

pub mod counting;
pub mod decoder;
pub mod prior;
pub mod rows;
pub mod samples;
pub mod strip;
pub mod tiles;
pub mod tokens;
pub mod words;

use std::ops::Range;

use lacuna_wire::HostTensor;

use super::corpus::Run;
use super::view::View;
use crate::error::Result;
use lacuna_orchestrator::picture::Picture;
use lacuna_orchestrator::pipeline::Pipeline;

/// Runs with what the provider has of each.
pub struct Material<'a> {
    /// Decodes latents, as the attacker can.
    pub pipeline: &'a Pipeline,
    /// All runs.
    pub runs: &'a [Run],
    /// Of each run, one for each audited step.
    pub views: &'a [Vec<View>],
    /// The first of the runs are the attacker's own.
    pub train: usize,
    /// The rows of the latents that the provider holds.
    pub rows: Range<usize>,
}

impl Material<'_> {
    /// The runs that are held out.
    pub fn held_out(&self) -> &[Run] {
        &self.runs[self.train..]
    }

    /// Every run's view of one step.
    pub fn at_step(&self, step: usize) -> Vec<&View> {
        self.views.iter().filter_map(|run| run.get(step)).collect()
    }

    /// Number of audited steps.
    pub fn steps(&self) -> usize {
        self.views.first().map_or(0, Vec::len)
    }

    /// The training runs' `target`s as rows of a matrix.
    pub fn targets<'r>(&'r self, target: impl Fn(&'r Run) -> &'r [f32]) -> Result<HostTensor> {
        let rows: Vec<&[f32]> = self.runs[..self.train].iter().map(target).collect();
        let width = rows.first().map_or(0, |row| row.len());
        Ok(HostTensor::new([rows.len(), width], rows.concat())?)
    }

    /// Pictures from rows of pixels, `[n, 3 H W]`.
    pub fn pictures(&self, pixels: &HostTensor) -> Vec<Picture> {
        let Some(Picture { width, height, .. }) = self.runs.first().map(|run| &run.picture) else {
            return Vec::new();
        };
        let pictures = pixels.data.chunks_exact(3 * width * height);
        pictures
            .map(|rgb| Picture {
                width: *width,
                height: *height,
                rgb: rgb.iter().map(|x| x.clamp(0.0, 1.0)).collect(),
                alpha: None,
            })
            .collect()
    }

    /// `latents` `[n, C H W]` with the provider's own rows as `own` has them.
    pub fn with_own_rows(&self, mut latents: HostTensor, own: Option<&HostTensor>) -> HostTensor {
        let shape = self.runs.first().map(|run| &run.latents.shape[..]);
        if let (Some(own), Some([_, _, rows, columns])) = (own, shape) {
            let part = self.rows.start * columns..self.rows.end * columns;
            let planes = latents.data.chunks_exact_mut(rows * columns);
            for (to, from) in planes.zip(own.data.chunks_exact(rows * columns)) {
                to[part.clone()].copy_from_slice(&from[part.clone()]);
            }
        }
        latents
    }

    /// Pictures from rows of latents, `[n, C H W]`.
    ///
    /// # Errors
    /// Those of the decoder.
    pub fn decoded(&self, latents: &HostTensor) -> Result<Vec<Picture>> {
        let Some(first) = self.runs.first() else {
            return Ok(Vec::new());
        };
        let each = latents.data.chunks_exact(first.latents.data.len());
        each.map(|data| {
            let latents = HostTensor::new(first.latents.shape.clone(), data.to_vec())?;
            Ok(self.pipeline.decode(latents)?)
        })
        .collect()
    }
}
