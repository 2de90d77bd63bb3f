//! The workers' products of their shares to the layer's output.
//!
//! A product of a share goes back as `round(2^f W share / |w|)` modulo `2^m`, where `|w|` is the norm of the output's row
//! of weights. The user adds both, and the carries' product `2^b W e`, centres the sum and multiplies by what it was
//! divided by. Sums wrap on the way; the whole does not, by the choice of the step size.

use crate::precision::{Precision, centre};

/// What products are multiplied with before they are rounded, `2^f / |w|` of each output, from weights `[outputs, K]`.
pub fn scales(weights: &[f32], outputs: usize, precision: Precision) -> Vec<f32> {
    let fan_in = weights
        .len()
        .checked_div(outputs)
        .unwrap_or_default()
        .max(1);
    let rows = weights.chunks(fan_in).map(|row| {
        let squares: f64 = row.iter().map(|w| f64::from(*w).powi(2)).sum();
        let norm = squares.sqrt();
        let unit = f64::from(1_u32 << precision.fraction());
        // A row of zeros gives zeros, whatever they are multiplied with.
        (if norm > 0.0 { unit / norm } else { unit }) as f32
    });
    rows.collect()
}

/// A product of a share as the word that goes back.
pub fn rounded(product: f32, scale: f32, precision: Precision) -> i32 {
    let units = (f64::from(product) * f64::from(scale)).round();
    centre(units as i64, precision.down()) as i32
}

/// An output from the words of both workers and its product `W e` of the carries, without the bias.
pub fn joined(words: [i32; 2], carried: f32, scale: f32, step: f64, precision: Precision) -> f32 {
    let [a, b] = words.map(i64::from);
    let carry = f64::from(carried) * f64::from(scale) * f64::from(1_u32 << precision.up());
    let sum = centre(a + b + carry.round() as i64, precision.down());
    (sum as f64 / f64::from(scale) * step) as f32
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::split::{Extent, split};
    use crate::stream::{KEY, Key, Place};

    const OUTPUTS: usize = 48;
    const TOKENS: usize = 12;

    fn normal(rng: &mut StdRng) -> f32 {
        (0..12).map(|_| rng.random_range(-0.5..0.5_f32)).sum()
    }

    /// What a layer of `fan_in` features gives, in f64 and by shares: signal to noise in dB.
    fn signal_to_noise(fan_in: usize, precision: Precision) -> f64 {
        let mut rng = StdRng::seed_from_u64(fan_in as u64);
        let weights: Vec<f32> = (0..OUTPUTS * fan_in).map(|_| normal(&mut rng)).collect();
        let x: Vec<f32> = (0..TOKENS * fan_in)
            .map(|i| {
                let x = normal(&mut rng);
                // Some channels are much larger than the others, as in every diffusion model.
                if i % 97 == 0 { 12.0 * x } else { x }
            })
            .collect();
        let step = Extent::of_tokens(&x, fan_in).unwrap().step(precision, 2);
        let place = Place {
            step: 0,
            call: 0,
            layer: 0,
            half: 0,
            attempt: 0,
        };
        let mask = Key::received([2; KEY])
            .mask(place, x.len(), precision.up())
            .unwrap();
        let (share, carries) = split(&x, step, &mask, precision).unwrap();
        let scales = scales(&weights, OUTPUTS, precision);
        let times = |x: &dyn Fn(usize) -> f32, token: usize, output: usize| {
            let row = &weights[output * fan_in..][..fan_in];
            let terms = row
                .iter()
                .enumerate()
                .map(|(i, w)| w * x(token * fan_in + i));
            terms.sum::<f32>()
        };
        let mut carried = vec![0.0_f32; TOKENS * OUTPUTS];
        for (at, times) in carries.at.iter().zip(&carries.times) {
            let (token, i) = (*at as usize / fan_in, *at as usize % fan_in);
            for output in 0..OUTPUTS {
                carried[token * OUTPUTS + output] += *times as f32 * weights[output * fan_in + i];
            }
        }
        let (mut signal, mut noise) = (0.0, 0.0);
        for token in 0..TOKENS {
            for output in 0..OUTPUTS {
                let word = |share: &[i32]| {
                    let product = times(&|i| share[i] as f32, token, output);
                    rounded(product, scales[output], precision)
                };
                let words = [word(&mask), word(&share)];
                let carried = carried[token * OUTPUTS + output];
                let got = joined(words, carried, scales[output], step, precision);
                let row = &weights[output * fan_in..][..fan_in];
                let exact: f64 = (row.iter().zip(&x[token * fan_in..]))
                    .map(|(w, x)| f64::from(*w) * f64::from(*x))
                    .sum();
                signal += exact.powi(2);
                noise += (exact - f64::from(got)).powi(2);
            }
        }
        10.0 * (signal / noise).log10()
    }

    /// Layers with the fan-in of 3x3 convolutions of 320 and 1280 channels: 44.8 and 39.0 dB for speed, 64.5 and 58.8
    /// for quality. What is lost with the fan-in is Cauchy's and Schwarz's room, of which a product of independent
    /// numbers takes one part in the square root of it.
    #[test]
    fn a_layer_by_shares_is_as_near_as_its_bits_promise() {
        for (precision, least) in [
            (Precision::SPEED, [44.0, 38.0]),
            (Precision::QUALITY, [64.0, 58.0]),
        ] {
            for (fan_in, least) in [2880, 11520].into_iter().zip(least) {
                let db = signal_to_noise(fan_in, precision);
                println!("{precision:?}, K {fan_in}: {db:.1} dB");
                assert!(db > least, "{precision:?}, K {fan_in}: {db:.1} dB");
            }
        }
    }

    #[test]
    fn a_row_of_zeros_and_no_rows_are_no_division_by_zero() {
        assert_eq!(
            scales(&[0.0, 0.0, 3.0, 4.0], 2, Precision::SPEED),
            [2.0, 0.4]
        );
        assert!(scales(&[], 0, Precision::SPEED).is_empty());
    }
}
