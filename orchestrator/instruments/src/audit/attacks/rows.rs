//! The provider's own rows: what it computes is almost the latents themselves.

use lacuna_wire::HostTensor;

use super::Material;
use crate::audit::arrange::by_pixel;
use crate::audit::corpus::Run;
use crate::audit::ridge::{Linear, column_means};
use crate::error::Result;

/// The held-out runs' own rows as the attacker reads them.
pub struct Own {
    /// The latents `[n, C H W]`: the provider's own rows, and elsewhere the training runs' mean.
    pub latents: HostTensor,
    /// What of the own rows' variance is left unexplained of training runs that were set aside, 1 for the mean.
    pub unexplained: f64,
}

/// More than so much of the variance left, and what was read is no knowledge of the rows.
const KNOWN: f64 = 0.25;

impl Own {
    /// The latents, where the attacker has reason to believe in its rows.
    pub fn known(&self) -> Option<&HostTensor> {
        (self.unexplained < KNOWN).then_some(&self.latents)
    }
}

/// The own rows of the held-out runs as of one step. None where the provider has no features of its pixels.
///
/// The latents are read off by a linear map, the same for every pixel: from the noisy latents and the
/// prediction it finds the sampler's own formula, without knowing sampler or guidance.
///
/// # Errors
/// Those of the regression.
pub fn attack(material: &Material<'_>, step: usize) -> Result<Option<Own>> {
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
    let samples = samples.collect::<Result<Vec<_>>>()?;
    let linear = Linear::fit(&samples)?;
    let unexplained = linear.error / variance(samples.iter().map(|(_, y)| y.data.as_slice()));

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
    Ok(Some(Own {
        latents: HostTensor::new(shape, guesses)?,
        unexplained,
    }))
}

/// The mean square distance of `rows` from their mean, each of as many values.
fn variance<'a>(rows: impl Iterator<Item = &'a [f32]>) -> f64 {
    let (mut sums, mut squares, mut count) = (Vec::new(), 0.0, 0.0);
    for row in rows {
        sums.resize(row.len(), 0.0);
        for (sum, x) in sums.iter_mut().zip(row) {
            *sum += f64::from(*x);
            squares += f64::from(*x).powi(2);
        }
        count += 1.0;
    }
    let means: f64 = sums
        .iter()
        .map(|sum| (sum / f64::max(count, 1.0)).powi(2))
        .sum();
    let width = sums.len().max(1) as f64;
    ((squares / f64::max(count, 1.0) - means) / width).max(f64::MIN_POSITIVE)
}
