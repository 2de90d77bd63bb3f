//! The initial noise of a run's pictures.

use lacuna_wire::HostTensor;

use super::arguments::Arguments;
use lacuna_orchestrator::error::{Error, Result};
use lacuna_orchestrator::init_image::Given;
use lacuna_orchestrator::pipeline::{Pipeline, read_latents};

/// Initial noise for every picture: given, or by seed.
pub(super) struct Noises {
    given: Option<Vec<HostTensor>>,
    /// `[1, C, H, W]` of each.
    pub shape: [usize; 4],
}

impl Noises {
    /// Reads what is given, and checks that it fits. Without a size it is that of the picture `from` which pictures are made.
    ///
    /// # Errors
    /// [`Error::Input`] or [`Error::Request`], naming the file or the flag.
    pub(super) fn prepare(
        arguments: &Arguments,
        pipeline: &Pipeline,
        from: Option<&Given>,
    ) -> Result<Self> {
        let Some(path) = &arguments.latents else {
            let [width, height] = match (arguments.size.sides(), from) {
                ([None, None], Some(from)) => from.size(pipeline)?.map(Some),
                (sides, _) => sides,
            };
            let shape = pipeline.latent_shape(width, height)?;
            return Ok(Self { given: None, shape });
        };
        let given = read_latents(path)?;
        let refuse = |reason: String| Error::Request(format!("{}: {reason}", path.display()));
        if given.len() != arguments.count {
            return Err(refuse(format!(
                "latents for {} pictures, --count is {}",
                given.len(),
                arguments.count
            )));
        }
        let shape = given[0].dims()?;
        let [_, c, rows, columns] = shape;
        let pixels = pipeline.pixels_per_latent();
        // A size that is given must be that of the latents.
        let [width, height] = arguments.size.sides();
        let wanted = pipeline.latent_shape(
            width.or(Some(columns * pixels)),
            height.or(Some(rows * pixels)),
        )?;
        if wanted != shape {
            return Err(refuse(format!(
                "latents of {c} x {rows} x {columns}, wanted are {} x {} x {}",
                wanted[1], wanted[2], wanted[3]
            )));
        }
        Ok(Self {
            given: Some(given),
            shape,
        })
    }

    /// The `index`-th picture's, where it is given.
    pub(super) fn get(&self, index: usize) -> Option<HostTensor> {
        self.given.as_ref().map(|given| given[index].clone())
    }
}
