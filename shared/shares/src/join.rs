//! The workers' products of their shares to the layer's output.
//!
//! A product of a share goes back as `round(2^f W share / |w|)` modulo `2^m`, where `|w|` is the norm of the output's row
//! of weights. The user adds all workers', and the carries' product `2^b W e`, centres the sum and multiplies by what it
//! was divided by. Sums wrap on the way; the whole does not, by the choice of the step size.

use crate::error::{Error, Result};
use crate::precision::{Precision, centre, nearest};

/// What products are multiplied with before they are rounded, `2^f / |w|` of each output, from weights `[outputs, K]`.
pub fn scales(weights: &[f32], outputs: usize, fraction: u32) -> Vec<f32> {
    let fan_in = weights
        .len()
        .checked_div(outputs)
        .unwrap_or_default()
        .max(1);
    let rows = weights.chunks(fan_in).map(|row| {
        let squares = row.iter().fold(0.0, |sum, w| sum + f64::from(*w).powi(2));
        scale(squares, fraction)
    });
    rows.collect()
}

/// The same from weights by input, `[K, outputs]`, to the last bit.
pub fn scales_by_input(weights: &[f32], outputs: usize, fraction: u32) -> Vec<f32> {
    let mut squares = vec![0.0_f64; outputs];
    for line in weights.chunks_exact(outputs.max(1)) {
        let pairs = squares.iter_mut().zip(line);
        pairs.for_each(|(sum, w)| *sum += f64::from(*w).powi(2));
    }
    squares
        .into_iter()
        .map(|sum| scale(sum, fraction))
        .collect()
}

/// `2^f / |w|` of weights of so large a sum of squares. A row of zeros gives zeros, whatever they are multiplied with.
fn scale(squares: f64, fraction: u32) -> f32 {
    let unit = f64::from(1_u32 << fraction);
    let norm = squares.sqrt();
    (if norm > 0.0 { unit / norm } else { unit }) as f32
}

/// Where the values of an output lie: `values` of the first output, then as many of the second, and after the last one
/// the first's again. A feature map `[B, C, H, W]` has `H W` values, tokens `[B, T, C]` have one.
#[derive(Clone, Copy, Debug)]
pub struct Outputs<'a> {
    /// Of [`scales`].
    pub scales: &'a [f32],
    /// Of each output at a time.
    pub values: usize,
}

impl Outputs<'_> {
    /// Each scale with its range of `len` values, as they lie.
    fn each(self, len: usize) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
        let values = self.values.max(1);
        let starts = (0..len).step_by(values).enumerate();
        let outputs = self.scales.len().max(1);
        starts.map(move |(i, start)| (i % outputs, start..(start + values).min(len)))
    }
}

/// A share's products as the words that go back: of their lowest `m` bits.
pub fn round(products: &[f32], outputs: Outputs<'_>) -> Vec<i32> {
    let mut words = vec![0; products.len()];
    for (output, range) in outputs.each(products.len()) {
        let scale = outputs.scales.get(output).copied().map_or(0.0, f64::from);
        let pairs = words[range.clone()].iter_mut().zip(&products[range]);
        pairs.for_each(|(word, product)| *word = nearest(f64::from(*product) * scale));
    }
    words
}

/// Outputs from the `words` of all workers and the product `W e` of the carries, which become the outputs, with the `bias`
/// of each, if there is any.
///
/// # Errors
/// [`Error::Words`] where there are not as many of each.
pub fn join(
    words: &[Vec<i32>],
    carried: &mut [f32],
    outputs: Outputs<'_>,
    bias: &[f32],
    step: f64,
    precision: Precision,
) -> Result<()> {
    let wanted = carried.len();
    if let Some(words) = words.iter().find(|words| words.len() != wanted) {
        let got = words.len();
        return Err(Error::Words { got, wanted });
    }
    let (unit, bits) = (f64::from(1_u32 << precision.up()), precision.down());
    for (output, range) in outputs.each(wanted) {
        let scale = outputs.scales.get(output).copied().map_or(1.0, f64::from);
        let (carry, back) = (scale * unit, step / scale);
        let bias = bias.get(output).copied().map_or(0.0, f64::from);
        let mut sums = [0; AT_ONCE];
        for start in range.clone().step_by(AT_ONCE) {
            let some = start..(start + AT_ONCE).min(range.end);
            let sums = &mut sums[..some.len()];
            let to = &mut carried[some.clone()];
            for (sum, carried) in sums.iter_mut().zip(&*to) {
                *sum = nearest(f64::from(*carried) * carry);
            }
            for words in words {
                let pairs = sums.iter_mut().zip(&words[some.clone()]);
                pairs.for_each(|(sum, word)| *sum = sum.wrapping_add(*word));
            }
            for (to, sum) in to.iter_mut().zip(&*sums) {
                *to = (f64::from(centre(*sum, bits)) * back + bias) as f32;
            }
        }
    }
    Ok(())
}

/// Values that are joined at a time: few enough for the nearest cache.
const AT_ONCE: usize = 1024;

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::split::{Extent, split};
    use crate::stream::Masks;

    const OUTPUTS: usize = 48;
    const TOKENS: usize = 12;

    fn normal(rng: &mut StdRng) -> f32 {
        (0..12).map(|_| rng.random_range(-0.5..0.5_f32)).sum()
    }

    /// What a layer of `fan_in` features gives, in f64 and by shares: signal to noise in dB.
    fn signal_to_noise(fan_in: usize, precision: Precision, workers: usize) -> f64 {
        let mut rng = StdRng::seed_from_u64(fan_in as u64);
        let weights: Vec<f32> = (0..OUTPUTS * fan_in).map(|_| normal(&mut rng)).collect();
        let x: Vec<f32> = (0..TOKENS * fan_in)
            .map(|i| {
                let x = normal(&mut rng);
                // Some channels are much larger than the others, as in every diffusion model.
                if i % 97 == 0 { 12.0 * x } else { x }
            })
            .collect();
        let step = Extent::of_tokens(&x, fan_in)
            .unwrap()
            .step(precision, workers);
        let bits = precision.masks(workers).unwrap().into_iter();
        let mut shares: Vec<Vec<i32>> = bits
            .map(|bits| Masks::fresh().unwrap().draw(x.len(), bits).unwrap())
            .collect();
        let (share, carries) = split(&x, step, &shares, precision).unwrap();
        shares.push(share);
        let scales = scales(&weights, OUTPUTS, precision.fraction());
        let outputs = Outputs {
            scales: &scales,
            values: 1,
        };
        let product = |x: &dyn Fn(usize) -> f32| -> Vec<f32> {
            let each = (0..TOKENS).flat_map(|token| (0..OUTPUTS).map(move |o| (token, o)));
            each.map(|(token, output)| {
                // Sixteen sums side by side, as a vector has them: one alone loses more of wide shares.
                let mut lanes = [0.0_f32; 16];
                for (i, w) in weights[output * fan_in..][..fan_in].iter().enumerate() {
                    lanes[i % 16] += w * x(token * fan_in + i);
                }
                lanes.iter().sum::<f32>()
            })
            .collect()
        };
        let words: Vec<Vec<i32>> = (shares.iter())
            .map(|share| round(&product(&|i| share[i] as f32), outputs))
            .collect();
        let mut got = vec![0.0_f32; TOKENS * OUTPUTS];
        for (at, times) in carries.at.iter().zip(&carries.times) {
            let (token, i) = (*at as usize / fan_in, *at as usize % fan_in);
            for output in 0..OUTPUTS {
                got[token * OUTPUTS + output] += *times as f32 * weights[output * fan_in + i];
            }
        }
        join(&words, &mut got, outputs, &[], step, precision).unwrap();
        let (mut signal, mut noise) = (0.0, 0.0);
        for (i, got) in got.iter().enumerate() {
            let (token, output) = (i / OUTPUTS, i % OUTPUTS);
            let pairs = weights[output * fan_in..].iter();
            let exact: f64 = pairs
                .zip(&x[token * fan_in..][..fan_in])
                .map(|(w, x)| f64::from(*w) * f64::from(*x))
                .sum();
            signal += exact.powi(2);
            noise += (exact - f64::from(*got)).powi(2);
        }
        10.0 * (signal / noise).log10()
    }

    /// Layers with the fan-in of 3x3 convolutions of 320 and 1280 channels: 44.8 and 39.0 dB for speed, 64.5 and 58.8
    /// for quality; about 40 and 32 for speed with four workers, of whose wide shares f32 loses more than rounding does.
    /// What is lost with the fan-in is Cauchy's and Schwarz's room, of which a product of independent numbers takes one
    /// part in the square root of it.
    #[test]
    fn a_layer_by_shares_is_as_near_as_its_bits_promise() {
        for (precision, workers, least) in [
            (Precision::SPEED, 2, [44.0, 38.0]),
            (Precision::QUALITY, 2, [64.0, 58.0]),
            (Precision::SPEED, 4, [37.0, 29.0]),
        ] {
            for (fan_in, least) in [2880, 11520].into_iter().zip(least) {
                let db = signal_to_noise(fan_in, precision, workers);
                println!("{precision:?}, {workers} workers, K {fan_in}: {db:.1} dB");
                assert!(
                    db > least,
                    "{precision:?}, {workers} workers, K {fan_in}: {db:.1} dB"
                );
            }
        }
    }

    #[test]
    fn a_row_of_zeros_and_no_rows_are_no_division_by_zero() {
        assert_eq!(scales(&[0.0, 0.0, 3.0, 4.0], 2, 1), [2.0, 0.4]);
        assert!(scales(&[], 0, 1).is_empty());
        let none = Outputs {
            scales: &[],
            values: 0,
        };
        assert!(round(&[], none).is_empty());
        assert_eq!(
            join(&[vec![]], &mut [], none, &[], 1.0, Precision::SPEED),
            Ok(())
        );
        let short = join(&[vec![1]], &mut [0.0; 2], none, &[], 1.0, Precision::SPEED);
        assert_eq!(short, Err(Error::Words { got: 1, wanted: 2 }));
    }

    #[test]
    fn scales_are_the_same_whichever_way_the_weights_lie() {
        let mut rng = StdRng::seed_from_u64(3);
        let (outputs, fan_in) = (7, 1001);
        let rows: Vec<f32> = (0..outputs * fan_in).map(|_| normal(&mut rng)).collect();
        let by_input = |at: usize| rows[at % outputs * fan_in + at / outputs];
        let by_input: Vec<f32> = (0..rows.len()).map(by_input).collect();
        assert_eq!(
            scales(&rows, outputs, 2),
            scales_by_input(&by_input, outputs, 2)
        );
        assert!(scales_by_input(&[], 0, 1).is_empty());
    }

    #[test]
    fn the_values_of_an_output_may_lie_together_or_apart() {
        let products = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        let scales = [2.0, 5.0];
        let round = |values| {
            round(
                &products,
                Outputs {
                    scales: &scales,
                    values,
                },
            )
        };
        assert_eq!(round(1), [2, 5, 2, 5, 2, 5, 2, 5]);
        assert_eq!(round(2), [2, 2, 5, 5, 2, 2, 5, 5]);
        assert_eq!(round(4), [2, 2, 2, 2, 5, 5, 5, 5]);
    }
}
