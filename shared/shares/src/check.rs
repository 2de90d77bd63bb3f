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
//!
//! Of shares of a ring `c W` is integers, and what is expected is exact but for its point: words and expected products of
//! both kinds are compared alike.

use crate::error::{Error, Result};
use crate::join::Outputs;
use crate::kind::Shares;
use crate::precision::Precision;
use crate::ring::{Integers, Ring};
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

/// A check of one layer's products, by weights in f32 or, of a ring's shares, by [`Halves`].
#[derive(Clone, Debug)]
pub struct Check<W = Vec<f32>> {
    /// `[VECTORS, outputs]`.
    coefficients: Vec<i32>,
    /// What the user multiplies shares with.
    weights: W,
    outputs: usize,
    fan_in: usize,
    shares: Shares,
}

/// Integers of 32 bits in halves as weights of a ring are.
#[derive(Clone, Debug)]
pub struct Halves {
    weights: Vec<i16>,
    ring: Ring,
}

/// Coefficients `[VECTORS, outputs]` that nobody else knows.
fn coefficients(secret: &mut Masks, outputs: usize) -> Result<Vec<i32>> {
    // Of five bits -16 is left out, so that both signs are as frequent.
    let drawn = secret.draw(VECTORS * outputs, 5)?;
    Ok(drawn.into_iter().map(|c| c.max(-LARGEST)).collect())
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
        let coefficients = coefficients(secret, outputs)?;
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
            fan_in: weights.len() / outputs.max(1),
            shares: precision.into(),
        })
    }

    /// `c scaled W` of each vector, `[VECTORS, K]`: the weights of as many outputs whose products with the share are what
    /// [`Self::mean`] compares with.
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }
}

impl Check<Halves> {
    /// The same for a ring's `integers`, which may be dropped then.
    ///
    /// # Errors
    /// As [`Check::new`].
    pub fn of_ring(secret: &mut Masks, integers: &Integers, ring: Ring) -> Result<Self> {
        let outputs = integers.scales.len();
        let coefficients = coefficients(secret, outputs)?;
        let fan_in = integers.weights.len() / outputs.max(1);
        let mut combined = vec![0_i32; VECTORS * fan_in];
        let vectors = combined.chunks_exact_mut(fan_in.max(1));
        for (sums, coefficients) in vectors.zip(coefficients.chunks_exact(outputs.max(1))) {
            let rows = integers.weights.chunks_exact(fan_in.max(1));
            for (row, c) in rows.zip(coefficients) {
                let pairs = sums.iter_mut().zip(row);
                pairs.for_each(|(sum, w)| *sum = sum.wrapping_add(c * i32::from(*w)));
            }
        }
        let low = combined.iter().map(|sum| *sum as i16);
        let high = combined.iter().map(|sum| {
            let carried = sum.wrapping_add(1 << 15);
            (carried >> 16) as i16
        });
        let weights = low.chain(high).collect();
        Ok(Self {
            weights: Halves { weights, ring },
            coefficients,
            outputs,
            fan_in,
            shares: ring.into(),
        })
    }

    /// `c W` of each vector, in halves as weights of a ring are: the lower halves of all vectors and then the upper ones, of
    /// as many outputs, `[2 VECTORS, K]`.
    pub fn weights(&self) -> &[i16] {
        &self.weights.weights
    }

    /// What [`Self::mean`] compares with, `[B, VECTORS, positions]`, from the share's `products` with [`Self::weights`]
    /// modulo `2^32`, `[B, 2 VECTORS, positions]`, which lie as `outputs` says.
    pub fn expected(&self, products: &[i32], outputs: Outputs<'_>) -> Vec<f32> {
        let half = VECTORS * outputs.values.max(1);
        let entries = products.chunks_exact(2 * half);
        let each = entries.flat_map(|products| {
            let (low, high) = products.split_at(half);
            low.iter().zip(high)
        });
        let whole = each.map(|(low, high)| low.wrapping_add(high << 16));
        whole.map(|all| self.weights.ring.in_words(all)).collect()
    }
}

impl<W> Check<W> {
    /// Variance of an honest product of shares of `bits` bits, in units: what rounding drops, and what f32 loses of wide
    /// shares, once in the product and once in what is expected of it.
    fn variance(&self, bits: u32) -> f64 {
        let Shares::Carry(precision) = self.shares else {
            return ROUNDING;
        };
        let deviation = f64::from(bits - 1).exp2() / 3.0_f64.sqrt();
        let products = deviation * f64::from(precision.fraction()).exp2();
        let lost = (LOST + (self.fan_in as f64).sqrt()) * f64::from(f32::EPSILON) / 2.0;
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
        let modulus = f64::from(self.shares.down()).exp2();
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
mod tests;
