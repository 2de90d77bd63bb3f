//! The provider's own rows: what it computes is almost the latents themselves.

use lacuna_wire::HostTensor;

use super::Material;
use crate::audit::corpus::Run;
use crate::audit::ridge::{Linear, column_means};
use crate::audit::view::by_pixel;
use crate::error::Result;

/// The latents `[n, C H W]` of the held-out runs as of one step: the provider's own rows, and elsewhere the
/// training runs' mean. None where the provider has no features of its pixels.
///
/// The latents are read off by a linear map, the same for every pixel: from the noisy latents and the
/// prediction it finds the sampler's own formula, without knowing sampler or guidance.
///
/// # Errors
/// Those of the regression.
pub fn attack(material: &Material<'_>, step: usize) -> Result<Option<HostTensor>> {
    let pixels = material.at_step(step).into_iter().map(|v| v.pixels.clone());
    let Some(pixels) = pixels.collect::<Option<Vec<_>>>() else {
        return Ok(None);
    };
    let own = |run: &Run| -> Result<HostTensor> {
        let range = material.rows.start as isize..material.rows.end as isize;
        let axis = lacuna_model::partition::Rows::OfFeature;
        let rows = lacuna_model::partition::cut(&run.latents, axis, &range)?;
        let by_pixel = by_pixel(&[&rows])?;
        Ok(by_pixel.unwrap_or_else(|| HostTensor::zeros([0, 0])))
    };
    let samples = material.runs[..material.train].iter().zip(&pixels);
    let samples = samples.map(|(run, x)| Ok((x.clone(), own(run)?)));
    let linear = Linear::fit(&samples.collect::<Result<Vec<_>>>()?)?;

    let mean = column_means(&material.targets(|run| &run.latents.data)?);
    let mut guesses = Vec::with_capacity(mean.len() * material.held_out().len());
    for (run, x) in material.runs.iter().zip(&pixels).skip(material.train) {
        let guess = linear.predict(x)?;
        let [_, channels, rows, columns] = run.latents.dims()?;
        let mut latents = mean.clone();
        for (pixel, values) in guess.data.chunks_exact(channels).enumerate() {
            let at = material.rows.start * columns + pixel;
            for (channel, value) in values.iter().enumerate() {
                latents[channel * rows * columns + at] = *value;
            }
        }
        guesses.extend(latents);
    }
    let shape = [material.held_out().len(), mean.len()];
    Ok(Some(HostTensor::new(shape, guesses)?))
}
