//! Colours by a linear map of the latents. Its weights are fitted to what the model's own VAE makes of colours, so every model has one.

use lacuna_wire::HostTensor;

use crate::error::Result;
use crate::noise::TorchRng;
use crate::pipeline::Pipeline;

/// Rows (and columns) of latents in a patch of one colour, and of patches in the picture that is encoded.
const PATCH: usize = 4;
const PATCHES: usize = 6;

/// The colours are drawn by this seed, so that previews of one model are alike.
const SEED: u64 = 0;

/// A colour for each position of the latents.
pub struct Linear {
    /// Of red, green and blue: the weights of each channel, and a constant.
    weights: [Vec<f32>; 3],
}

impl Linear {
    /// Least squares over patches of one colour each, as the VAE of `pipeline` encodes them. Its encoder is loaded for that.
    ///
    /// # Errors
    /// As [`Pipeline::encode_image`].
    pub fn fit(pipeline: &Pipeline) -> Result<Self> {
        let side = PATCH * PATCHES;
        let mut rng = TorchRng::new(SEED);
        let mut drawn = || 2.0 * rng.below(255) as f32 / 255.0 - 1.0;
        let patches: Vec<[f32; 3]> = (0..PATCHES * PATCHES)
            .map(|_| std::array::from_fn(|_| drawn()))
            .collect();
        let colour_at = |row: usize, column: usize, colour: usize| {
            patches[row / PATCH * PATCHES + column / PATCH][colour]
        };
        let pixels = pipeline.pixels_per_latent();
        let width = side * pixels;
        let value = |i: usize| {
            let (colour, at) = (i / (width * width), i % (width * width));
            colour_at(at / width / pixels, at % width / pixels, colour)
        };
        let picture = (0..3 * width * width).map(value).collect();
        let picture = HostTensor::new([1, 3, width, width], picture)?;
        let latents = pipeline.most_likely(&pipeline.encode_image(picture)?);
        let known = |at: usize| -> Vec<f64> {
            let channels = latents.iter().skip(at).step_by(side * side);
            channels.map(|x| f64::from(*x)).chain([1.0]).collect()
        };
        let positions: Vec<Vec<f64>> = (0..side * side).map(known).collect();
        let weights = std::array::from_fn(|colour| {
            let at = |at: usize| f64::from(colour_at(at / side, at % side, colour));
            let colours: Vec<f64> = (0..side * side).map(at).collect();
            least_squares(&positions, &colours)
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
