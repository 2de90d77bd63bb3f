//! Colours by a linear map of the latents. Its weights are fitted to what the model's own VAE decodes, so every model has one.

use lacuna_wire::HostTensor;

use crate::error::Result;
use crate::noise::TorchRng;
use crate::pipeline::Pipeline;

/// Rows (and columns) of latents in a patch of one value, and of patches in the sample that is decoded.
const PATCH: usize = 4;
const PATCHES: usize = 6;

/// What it is fitted to is drawn by this seed, so that previews of one model are alike.
const SEED: u64 = 0;

/// A colour for each position of the latents.
pub struct Linear {
    /// Of red, green and blue: the weights of each channel, and a constant.
    weights: [Vec<f32>; 3],
}

impl Linear {
    /// Least squares over patches of latents of one value each, as the VAE of `pipeline` decodes them. Its decoder is loaded for that.
    ///
    /// # Errors
    /// As [`Pipeline::decode`].
    pub fn fit(pipeline: &Pipeline) -> Result<Self> {
        let channels = pipeline.unet().latent_channels();
        let side = PATCH * PATCHES;
        let mut rng = TorchRng::new(SEED);
        let drawn = rng.randn(channels * PATCHES * PATCHES);
        let value = |i: usize| {
            let (channel, at) = (i / (side * side), i % (side * side));
            let patch = at / side / PATCH * PATCHES + at % side / PATCH;
            drawn[channel * PATCHES * PATCHES + patch]
        };
        let latents = (0..channels * side * side).map(value).collect();
        let picture = pipeline.decode(HostTensor::new([1, channels, side, side], latents)?)?;
        // The middle of each patch, where its neighbours count least.
        let pixels = pipeline.pixels_per_latent();
        let inner = (PATCH - 2) * pixels;
        let mean = |patch: usize, colour: usize| {
            let plane = &picture.rgb[colour * picture.width * picture.height..];
            let (top, left) = (patch / PATCHES * PATCH + 1, patch % PATCHES * PATCH + 1);
            let rows = (0..inner).map(|y| (top * pixels + y) * picture.width + left * pixels);
            let sum: f32 = rows
                .map(|at| plane[at..at + inner].iter().sum::<f32>())
                .sum();
            // As the decoder gives it, in -1..1.
            2.0 * f64::from(sum) / (inner * inner) as f64 - 1.0
        };
        let known = |patch: usize| -> Vec<f64> {
            let of = |channel: usize| f64::from(drawn[channel * PATCHES * PATCHES + patch]);
            (0..channels).map(of).chain([1.0]).collect()
        };
        let patches: Vec<Vec<f64>> = (0..PATCHES * PATCHES).map(known).collect();
        let weights = std::array::from_fn(|colour| {
            let colours: Vec<f64> = (0..patches.len())
                .map(|patch| mean(patch, colour))
                .collect();
            least_squares(&patches, &colours)
        });
        Ok(Self { weights })
    }

    /// `[1, C, H, W]` to `[1, 3, H, W]` in about -1..1.
    pub(super) fn decode(&self, latents: HostTensor) -> Result<HostTensor> {
        let [_, _, h, w] = latents.dims()?;
        let colour = |weights: &Vec<f32>| -> Vec<f32> {
            let (constant, each) = weights.split_last().unwrap_or((&0.0, &[]));
            let mut out = vec![*constant; h * w];
            for (weight, channel) in each.iter().zip(latents.data.chunks_exact(h * w)) {
                out.iter_mut()
                    .zip(channel)
                    .for_each(|(out, x)| *out += weight * x);
            }
            out
        };
        let rgb = self.weights.iter().flat_map(colour).collect();
        Ok(HostTensor::new([1, 3, h, w], rgb)?)
    }
}

/// The weights with which the columns of `rows` sum up nearest to `wanted`, by the normal equations with a trace of ridge, which keeps
/// them solvable.
fn least_squares(rows: &[Vec<f64>], wanted: &[f64]) -> Vec<f32> {
    let n = rows.first().map_or(0, Vec::len);
    let mut system: Vec<Vec<f64>> = (0..n)
        .map(|i| {
            let of = |j: usize| rows.iter().map(|row| row[i] * row[j]).sum::<f64>();
            let ridge = |j: usize| if i == j { 1e-9 } else { 0.0 };
            let right: f64 = rows.iter().zip(wanted).map(|(row, y)| row[i] * y).sum();
            (0..n).map(|j| of(j) + ridge(j)).chain([right]).collect()
        })
        .collect();
    // The system is positive definite: no pivots.
    for i in 0..n {
        let pivot = system[i].clone();
        for (_, row) in system.iter_mut().enumerate().filter(|(j, _)| *j != i) {
            let factor = row[i] / pivot[i];
            row.iter_mut()
                .zip(&pivot)
                .for_each(|(x, p)| *x -= factor * p);
        }
    }
    (0..n)
        .map(|i| (system[i][n] / system[i][i]) as f32)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_map_is_found_again() {
        let rows: Vec<Vec<f64>> = (0..6)
            .map(|i| vec![f64::from(i), f64::from(i * i % 5), 1.0])
            .collect();
        let wanted: Vec<f64> = rows.iter().map(|r| 0.5 * r[0] - 2.0 * r[1] + 3.0).collect();
        for (got, want) in least_squares(&rows, &wanted).iter().zip([0.5, -2.0, 3.0]) {
            assert!((got - want).abs() < 1e-5, "{got} is not {want}");
        }
    }
}
