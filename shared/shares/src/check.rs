//! Whether a worker multiplied its share as it should have, for a fraction of the work.
//!
//! With secret small integers `c` of each output, drawn once a picture, the words that come back must satisfy
//! `c . words = (c scaled W) . share` modulo `2^m`, but for what rounding them dropped. That is one product of a share's
//! length at each position in place of one for each output (Freivalds 1977, with rounding). The share is known to the
//! user, and is uniform whatever the features are, so what the check says tells nothing of them.

use crate::error::Result;
use crate::precision::Precision;
use crate::stream::{Key, Place};

/// The largest coefficient.
const LARGEST: i32 = 15;

/// Variance of what is dropped when a uniform number is rounded to units.
const ROUNDING: f64 = 1.0 / 12.0;

/// The quantile of the normal distribution beyond which one in 10^9 lies.
const RARE: f64 = 5.9978;

/// A check of one layer's products.
#[derive(Clone, Debug)]
pub struct Check {
    coefficients: Vec<i32>,
    /// `sum over outputs of c scale W`, `[K]`.
    weights: Vec<f64>,
    precision: Precision,
}

impl Check {
    /// With coefficients from `key`, which no worker may know, for weights `[outputs, K]` whose products are multiplied
    /// with `scales`.
    ///
    /// # Errors
    /// None: coefficients have as many bits as words may have.
    pub fn new(
        key: &Key,
        place: Place,
        weights: &[f32],
        scales: &[f32],
        precision: Precision,
    ) -> Result<Self> {
        // Of five bits -16 is left out, so that both signs are as frequent.
        let drawn = key.mask(place, scales.len(), 5)?;
        let coefficients: Vec<i32> = drawn.into_iter().map(|c| c.max(-LARGEST)).collect();
        let fan_in = weights.len().checked_div(scales.len()).unwrap_or_default();
        let mut sums = vec![0.0; fan_in];
        let rows = weights.chunks_exact(fan_in.max(1));
        for ((row, c), scale) in rows.zip(&coefficients).zip(scales) {
            let factor = f64::from(*c) * f64::from(*scale);
            let pairs = sums.iter_mut().zip(row);
            pairs.for_each(|(sum, weight)| *sum += factor * f64::from(*weight));
        }
        Ok(Self {
            coefficients,
            weights: sums,
            precision,
        })
    }

    /// `(c scaled W) . share`: what the words' sum must be near, modulo `2^m`.
    pub fn expected(&self, share: impl IntoIterator<Item = i32>) -> f64 {
        let pairs = self.weights.iter().zip(share);
        pairs.map(|(weight, share)| weight * f64::from(share)).sum()
    }

    /// How far the words of all outputs at one position are from what was expected of them, squared, in variances of
    /// rounding: 1 on average where all is well.
    pub fn residual(&self, words: impl IntoIterator<Item = i32>, expected: f64) -> f64 {
        let pairs = self.coefficients.iter().zip(words);
        let sum: i64 = pairs.map(|(c, word)| i64::from(*c) * i64::from(word)).sum();
        let modulus = f64::from(self.precision.down()).exp2();
        // Both are reduced before they are compared: the difference of large numbers would have lost its units.
        let apart = sum.rem_euclid(modulus as i64) as f64 - expected.rem_euclid(modulus);
        let apart = apart - modulus * (apart / modulus).round();
        let squares: f64 = self
            .coefficients
            .iter()
            .map(|c| f64::from(*c).powi(2))
            .sum();
        apart.powi(2) / (ROUNDING * squares).max(ROUNDING)
    }
}

/// What the mean residual of so many positions stays below but once in 10^9 honest tensors: a chi-square's quantile
/// (Wilson and Hilferty 1931).
pub fn threshold(positions: usize) -> f64 {
    let part = 2.0 / (9.0 * positions.max(1) as f64);
    (1.0 - part + RARE * part.sqrt()).powi(3)
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::join::{rounded, scales};
    use crate::stream::KEY;

    const OUTPUTS: usize = 64;
    const FAN_IN: usize = 96;
    const POSITIONS: usize = 64;

    fn place(step: u32) -> Place {
        Place {
            step,
            call: 0,
            layer: 0,
            half: 0,
            attempt: 0,
        }
    }

    struct Layer {
        weights: Vec<f32>,
        scales: Vec<f32>,
        rng: StdRng,
        precision: Precision,
    }

    impl Layer {
        fn new(precision: Precision) -> Self {
            let mut rng = StdRng::seed_from_u64(4);
            let weights: Vec<f32> = (0..OUTPUTS * FAN_IN)
                .map(|_| rng.random_range(-1.0..1.0))
                .collect();
            Self {
                scales: scales(&weights, OUTPUTS, precision),
                weights,
                rng,
                precision,
            }
        }

        /// Mean residual of a tensor's words, of which `tamper` makes what it likes.
        fn mean(&mut self, trial: u32, tamper: impl Fn(usize, &mut [i32])) -> f64 {
            let key = Key::received([8; KEY]);
            let check = Check::new(
                &key,
                place(trial),
                &self.weights,
                &self.scales,
                self.precision,
            );
            let check = check.unwrap();
            let half = 1 << (self.precision.up() - 1);
            let mut sum = 0.0;
            for position in 0..POSITIONS {
                let share: Vec<i32> = (0..FAN_IN)
                    .map(|_| self.rng.random_range(-half..half))
                    .collect();
                let rows = self.weights.chunks_exact(FAN_IN).zip(&self.scales);
                let mut words: Vec<i32> = rows
                    .map(|(row, scale)| {
                        let product = row.iter().zip(&share).map(|(w, s)| w * *s as f32).sum();
                        rounded(product, *scale, self.precision)
                    })
                    .collect();
                tamper(position, &mut words);
                let expected = check.expected(share);
                sum += check.residual(words, expected);
            }
            sum / POSITIONS as f64
        }
    }

    #[test]
    fn the_threshold_is_the_chi_squares() {
        // The quantiles at 1 - 1e-9 of 64 and 256 degrees of freedom, divided by these: 2.45 and 1.62.
        assert!((threshold(64) - 2.45).abs() < 0.02, "{}", threshold(64));
        assert!((threshold(256) - 1.62).abs() < 0.01, "{}", threshold(256));
    }

    #[test]
    fn who_multiplies_as_it_should_passes_and_is_as_far_off_as_rounding() {
        for precision in [Precision::SPEED, Precision::QUALITY] {
            let mut layer = Layer::new(precision);
            let trials = 60;
            let means: Vec<f64> = (0..trials).map(|i| layer.mean(i, |_, _| {})).collect();
            let highest = means.iter().copied().fold(0.0, f64::max);
            let mean = means.iter().sum::<f64>() / f64::from(trials);
            println!("{precision:?}: mean {mean:.3}, highest {highest:.2}");
            assert!((0.9..1.1).contains(&mean), "{precision:?}: {mean}");
            assert!(highest < threshold(POSITIONS), "{precision:?}: {highest}");
        }
    }

    #[test]
    fn who_answers_something_else_is_caught() {
        let mut layer = Layer::new(Precision::SPEED);
        let caught = |mean: f64| mean > threshold(POSITIONS);
        // Every output of every position a little off; one output everywhere; one position much.
        assert!(caught(
            layer.mean(0, |_, words| words.iter_mut().for_each(|w| *w += 3))
        ));
        assert!(caught(
            layer.mean(1, |_, words| words.iter_mut().for_each(|w| *w = 0))
        ));
        assert!(caught(layer.mean(2, |_, words| words.rotate_left(1))));
        let one = layer.mean(3, |position, words| {
            if position == 5 {
                words.iter_mut().for_each(|w| *w = w.wrapping_add(500));
            }
        });
        assert!(caught(one), "{one}");
        // One unit of one word is within rounding, and harmless.
        let little = layer.mean(4, |position, words| words[0] += i32::from(position == 0));
        assert!(!caught(little), "{little}");
    }
}
