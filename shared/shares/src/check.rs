//! Whether a worker multiplied its share as it should have, for a fraction of the work.
//!
//! With secret small integers `c` of each output, drawn once a picture, the words that come back must satisfy
//! `c . words = (c scaled W) . share` modulo `2^m`, but for what rounding them dropped. That is one product of a share's
//! length at each position in place of one for each output (Freivalds 1977, with rounding). The share is known to the
//! user, and is uniform whatever the features are, so what the check says tells nothing of them.
//!
//! Words are counted modulo `2^m`, so an error of half of that vanishes wherever the sum of its coefficients is even. So
//! there are [`VECTORS`] of such vectors, drawn apart: whatever the error is, each of them misses it in half of all
//! pictures at most, and all of them in one of `2^VECTORS`.

use crate::error::{Error, Result};
use crate::join::Outputs;
use crate::precision::Precision;
use crate::stream::Masks;

/// How many products are compared of each.
pub const VECTORS: usize = 8;

/// The largest coefficient.
const LARGEST: i32 = 15;

/// Variance of what is dropped when a uniform number is rounded to units.
const ROUNDING: f64 = 1.0 / 12.0;

/// What f32 loses of a product of `K` features, in its last bits of a number as large as products are, is less than this
/// and the root of `K`: workers sum in whichever order is fast, and some orders lose most of the bits that a random walk
/// does.
const LOST: f64 = 6.0;

/// The quantile of the normal distribution beyond which one in 10^9 lies.
const RARE: f64 = 5.9978;

/// A check of one layer's products.
#[derive(Clone, Debug)]
pub struct Check {
    /// `[VECTORS, outputs]`.
    coefficients: Vec<i32>,
    /// `[VECTORS, K]`.
    weights: Vec<f32>,
    outputs: usize,
    precision: Precision,
}

impl Check {
    /// With coefficients from `secret`, which no worker may know, for weights by input, `[K, outputs]`, whose products are
    /// multiplied with `scales`.
    ///
    /// # Errors
    /// None: coefficients have as many bits as words may have.
    pub fn new(
        secret: &mut Masks,
        weights: &[f32],
        scales: &[f32],
        precision: Precision,
    ) -> Result<Self> {
        let outputs = scales.len();
        // Of five bits -16 is left out, so that both signs are as frequent.
        let drawn = secret.draw(VECTORS * outputs, 5)?;
        let coefficients: Vec<i32> = drawn.into_iter().map(|c| c.max(-LARGEST)).collect();
        let each = coefficients.chunks_exact(outputs.max(1));
        let combined = each.flat_map(|coefficients| {
            let factors = coefficients.iter().zip(scales);
            let factors: Vec<f32> = factors.map(|(c, scale)| *c as f32 * scale).collect();
            let lines = weights.chunks_exact(outputs.max(1));
            lines.map(move |line| product(&factors, line))
        });
        Ok(Self {
            weights: combined.collect(),
            coefficients,
            outputs,
            precision,
        })
    }

    /// `c scaled W` of each vector, `[VECTORS, K]`: the weights of as many outputs whose products with the share are what
    /// [`Self::mean`] compares with.
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// Variance of an honest product of shares of `bits` bits, in units: what rounding drops, and what f32 loses of wide
    /// shares, once in the product and once in what is expected of it.
    fn variance(&self, bits: u32) -> f64 {
        let fan_in = self.weights.len() / VECTORS;
        let deviation = f64::from(bits - 1).exp2() / 3.0_f64.sqrt();
        let products = deviation * f64::from(self.precision.fraction()).exp2();
        let lost = (LOST + (fan_in as f64).sqrt()) * f64::from(f32::EPSILON) / 2.0;
        ROUNDING + 2.0 * (products * lost).powi(2)
    }

    /// How far `words`, which a worker made of shares of `bits` bits and which lie as `outputs` says, are from the `expected`
    /// products `[B, VECTORS, positions]`, squared, in variances of what is honest, on average over the positions, by the
    /// vector that finds most: about 1 where all is well.
    ///
    /// # Errors
    /// [`Error::Words`] where there are not as many as of these positions.
    pub fn mean(
        &self,
        words: &[i32],
        expected: &[f32],
        outputs: Outputs<'_>,
        bits: u32,
    ) -> Result<f64> {
        let wanted = self.outputs * (expected.len() / VECTORS);
        if words.len() != wanted || self.outputs == 0 || expected.is_empty() {
            let got = words.len();
            return Err(Error::Words { got, wanted });
        }
        let positions = (words.len() / self.outputs) as f64;
        let each = self.coefficients.chunks_exact(self.outputs).enumerate();
        let means = each.map(|(vector, coefficients)| {
            let squares: f64 = coefficients.iter().map(|c| f64::from(*c).powi(2)).sum();
            let variance = self.variance(bits) * squares.max(1.0);
            let values = outputs.values.max(1);
            let entries = words.chunks(values * self.outputs);
            let apart = entries.zip(expected.chunks(values * VECTORS));
            let apart = apart.map(|(words, expected)| {
                let expected = &expected[vector * values..][..values];
                self.apart(coefficients, words, expected)
            });
            apart.sum::<f64>() / positions / variance
        });
        Ok(means.fold(0.0, f64::max))
    }

    /// How far one batch entry's `words` by `coefficients` are from what is `expected` of them at each position, squared.
    fn apart(&self, coefficients: &[i32], words: &[i32], expected: &[f32]) -> f64 {
        let mut sums = vec![0_i32; expected.len()];
        for (words, c) in words.chunks(expected.len()).zip(coefficients) {
            let pairs = sums.iter_mut().zip(words);
            pairs.for_each(|(sum, word)| *sum = sum.wrapping_add(c.wrapping_mul(*word)));
        }
        let modulus = f64::from(self.precision.down()).exp2();
        let pairs = sums.iter().zip(expected);
        let each = pairs.map(|(sum, expected)| {
            // Both are reduced before they are compared: the difference of large numbers would have lost its units.
            let sum = f64::from(*sum).rem_euclid(modulus);
            let apart = sum - f64::from(*expected).rem_euclid(modulus);
            (apart - modulus * (apart / modulus).round()).powi(2)
        });
        each.sum()
    }
}

/// The product of two lists, in f64, in sums side by side.
fn product(a: &[f32], b: &[f32]) -> f32 {
    const SIDES: usize = 8;
    let mut sums = [0.0_f64; SIDES];
    let (whole, rest) = (a.chunks_exact(SIDES), b.chunks_exact(SIDES));
    let last = whole.remainder().iter().zip(rest.remainder());
    let last: f64 = last.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    for (a, b) in whole.zip(rest) {
        for i in 0..SIDES {
            sums[i] += f64::from(a[i]) * f64::from(b[i]);
        }
    }
    (sums.iter().sum::<f64>() + last) as f32
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
    use crate::join::{round, scales};

    const OUTPUTS: usize = 64;
    const FAN_IN: usize = 96;
    const POSITIONS: usize = 64;

    fn by_input(rows: &[f32]) -> Vec<f32> {
        let of = |at: usize| rows[at % OUTPUTS * FAN_IN + at / OUTPUTS];
        (0..rows.len()).map(of).collect()
    }

    struct Layer {
        weights: Vec<f32>,
        scales: Vec<f32>,
        rng: StdRng,
        secret: Masks,
        precision: Precision,
    }

    impl Layer {
        fn new(precision: Precision) -> Self {
            let mut rng = StdRng::seed_from_u64(4);
            let weights: Vec<f32> = (0..OUTPUTS * FAN_IN)
                .map(|_| rng.random_range(-1.0..1.0))
                .collect();
            Self {
                scales: scales(&weights, OUTPUTS, precision.fraction()),
                weights,
                rng,
                secret: Masks::fresh().unwrap(),
                precision,
            }
        }

        /// Mean residual of a tensor's words, of which `tamper` makes what it likes.
        fn mean(&mut self, tamper: impl Fn(usize, &mut [i32])) -> f64 {
            let check = Check::new(
                &mut self.secret,
                &by_input(&self.weights),
                &self.scales,
                self.precision,
            );
            let check = check.unwrap();
            let half = 1 << (self.precision.up() - 1);
            let outputs = Outputs {
                scales: &self.scales,
                values: 1,
            };
            let (mut all, mut expected) = (Vec::new(), Vec::new());
            for position in 0..POSITIONS {
                let share: Vec<i32> = (0..FAN_IN)
                    .map(|_| self.rng.random_range(-half..half))
                    .collect();
                let product = |row: &[f32]| -> f32 {
                    row.iter().zip(&share).map(|(w, s)| w * *s as f32).sum()
                };
                let rows = self.weights.chunks_exact(FAN_IN);
                let products: Vec<f32> = rows.map(product).collect();
                let mut words = round(&products, outputs);
                tamper(position, &mut words);
                all.extend(words);
                expected.extend(check.weights().chunks_exact(FAN_IN).map(product));
            }
            check
                .mean(&all, &expected, outputs, self.precision.up())
                .unwrap()
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
            let means: Vec<f64> = (0..trials).map(|_| layer.mean(|_, _| {})).collect();
            let highest = means.iter().copied().fold(0.0, f64::max);
            let mean = means.iter().sum::<f64>() / f64::from(trials);
            println!("{precision:?}: mean {mean:.3}, highest {highest:.2}");
            // The highest of eight means is above one.
            assert!((0.9..1.6).contains(&mean), "{precision:?}: {mean}");
            assert!(highest < threshold(POSITIONS), "{precision:?}: {highest}");
        }
    }

    #[test]
    fn who_answers_something_else_is_caught() {
        let mut layer = Layer::new(Precision::SPEED);
        let caught = |mean: f64| mean > threshold(POSITIONS);
        // Every output of every position a little off; one output everywhere; one position much.
        assert!(caught(
            layer.mean(|_, words| words.iter_mut().for_each(|w| *w += 3))
        ));
        assert!(caught(
            layer.mean(|_, words| words.iter_mut().for_each(|w| *w = 0))
        ));
        assert!(caught(layer.mean(|_, words| words.rotate_left(1))));
        let one = layer.mean(|position, words| {
            if position == 5 {
                words.iter_mut().for_each(|w| *w = w.wrapping_add(500));
            }
        });
        assert!(caught(one), "{one}");
        // Half of all that is counted modulo, of one output and of two: each vector misses it half of the time.
        for outputs in [1, 2] {
            let half = 1 << (Precision::SPEED.down() - 1);
            let found = (0..20).filter(|_| {
                caught(layer.mean(|_, words| {
                    words[..outputs].iter_mut().for_each(|w| *w ^= half);
                }))
            });
            assert!(found.count() >= 18, "{outputs} outputs");
        }
        // One unit of one word is within rounding, and harmless.
        let little = layer.mean(|position, words| words[0] += i32::from(position == 0));
        assert!(!caught(little), "{little}");
    }

    /// A million honest tensors, of which none is blamed; and of those that are tampered with the share that is caught, by how
    /// much is changed. Takes minutes: `cargo test --release -p lacuna-shares -- --ignored --nocapture`.
    #[test]
    #[ignore = "takes minutes; scripts/nightly.sh runs it"]
    fn a_million_honest_tensors_are_not_blamed() {
        let mut layer = Layer::new(Precision::SPEED);
        let most = threshold(POSITIONS);
        let trials = 1_000_000;
        let mut highest = 0.0_f64;
        let mut blamed = 0;
        for _ in 0..trials {
            let mean = layer.mean(|_, _| {});
            highest = highest.max(mean);
            blamed += usize::from(mean >= most);
        }
        println!("{blamed} of {trials} blamed; highest {highest:.2}, threshold {most:.2}");
        for change in [1, 2, 3, 5, 10, 100] {
            for (what, every) in [
                ("every word", 1),
                ("a word of 64", 64),
                ("one word", usize::MAX),
            ] {
                let caught = (0..200).filter(|_| {
                    let mean = layer.mean(|position, words| {
                        for (i, word) in words.iter_mut().enumerate() {
                            let at = position * OUTPUTS + i;
                            // The sign varies, as that of any error does.
                            let signed = if at.is_multiple_of(3) {
                                -change
                            } else {
                                change
                            };
                            if (every == usize::MAX && at == 99) || at.is_multiple_of(every) {
                                *word = word.wrapping_add(signed);
                            }
                        }
                    });
                    mean >= most
                });
                println!(
                    "{what} changed by {change}: {} of 200 caught",
                    caught.count()
                );
            }
        }
        assert_eq!(blamed, 0);
    }

    #[test]
    fn words_of_other_positions_are_refused() {
        let layer = Layer::new(Precision::SPEED);
        let mut secret = Masks::fresh().unwrap();
        let weights = by_input(&layer.weights);
        let check = Check::new(&mut secret, &weights, &layer.scales, layer.precision);
        let outputs = Outputs {
            scales: &layer.scales,
            values: 1,
        };
        let refused = check
            .unwrap()
            .mean(&[0; OUTPUTS], &[0.0; 2 * VECTORS], outputs, 12);
        assert!(matches!(refused, Err(Error::Words { .. })));
    }
}
