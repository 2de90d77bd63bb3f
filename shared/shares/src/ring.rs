//! Shares of a ring: of users who do not have the weights.
//!
//! Features are integers modulo `2^k`, and so are weights: of an output's row `w` the integers `round(w T / |w|)`, with a
//! norm of about `T`. A mask is uniform over the whole ring, so that nothing is left over that the user would have to
//! multiply: `x_q = r + u` modulo `2^k`, for any number of workers with shares of as many bits. Products with weights wrap,
//! and their sum is that of the features, which does not. Of each product the upper `m` bits go back. So the user needs
//! `|w| / T` of each output, and no weights.

use crate::error::Result;
use crate::norms::{norms, norms_by_input, scale};
use crate::pack;
use crate::precision::{centre, nearest};

/// Bits of a product that do not go back, at least.
const DROPPED: u32 = 6;

/// How many bits features and products of a ring have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    up: u32,
    down: u32,
}

/// A layer's weights as integers.
#[derive(Clone, Debug, PartialEq)]
pub struct Integers {
    /// `[outputs, K]`, as workers multiply with them.
    pub weights: Vec<i16>,
    /// What a product of f32 weights is multiplied with to be a word: of each output, as [`crate::join::scales`].
    pub scales: Vec<f32>,
}

impl Ring {
    // A layer loses by each as much as by the preset of that name with carries, or less (`tests/layer.rs`).

    /// The fewest bytes for the quality of the paper's pictures: 22 bits up, 11 down.
    pub const PAPER: Self = Self { up: 22, down: 11 };
    /// Few bytes: 26 bits up, 14 down.
    pub const SPEED: Self = Self { up: 26, down: 14 };
    /// A picture near the uncut one: 32 bits up, 18 down.
    pub const QUALITY: Self = Self { up: 32, down: 18 };

    /// Features modulo `2^up`, of whose products the upper `down` bits go back.
    ///
    /// # Errors
    /// [`crate::Error::Bits`].
    pub fn new(up: u32, down: u32) -> Result<Self> {
        pack::check("features of a ring", up, 16, 32)?;
        // Halves are rounded up: of fewer bits that are dropped, that would show.
        pack::check("products of a ring", down, 8, (up - DROPPED).min(24))?;
        Ok(Self { up, down })
    }

    /// Bits of a feature, `k`.
    pub fn up(self) -> u32 {
        self.up
    }

    /// Bits of a product, `m`.
    pub fn down(self) -> u32 {
        self.down
    }

    /// How large a product is whose word is 1: `2^(k - m)`.
    fn unit(self) -> f64 {
        f64::from(1_u32 << (self.up - self.down))
    }

    /// The norm `T` of a row of integer weights, a power of two. Rounding weights loses one part in `T`, and rounding features
    /// one in their norm, and both together have the ring's bits but one: least is lost where each has half of them.
    fn norm(self) -> f64 {
        f64::from(1_u32 << ((self.up - 1) / 2))
    }

    /// The most that features' norm may be, of `fan_in` features and `workers` workers, so that no sum leaves the ring: by
    /// Cauchy and Schwarz a product is no larger than both norms', rounding adds half a unit to each weight and each
    /// feature, and half a unit of what goes back for each worker.
    pub(crate) fn room(self, fan_in: usize, workers: usize) -> f64 {
        let rounded = 0.5 * (fan_in as f64).sqrt();
        let words = f64::from(1_u32 << (self.down - 1)) - 1.0 - 0.5 * workers as f64;
        words * self.unit() / (self.norm() + rounded) - rounded
    }

    /// Integer weights from `weights` `[outputs, K]`: the same on each machine, to the last bit.
    pub fn quantise(self, weights: &[f32], outputs: usize) -> Integers {
        let fan_in = weights.len().checked_div(outputs).unwrap_or_default();
        let norms = norms(weights, outputs);
        let rows = weights.chunks_exact(fan_in.max(1)).zip(&norms);
        let rows = rows.flat_map(|(row, norm)| {
            let factor = self.factor(*norm);
            row.iter().map(move |w| integer(*w, factor))
        });
        Integers {
            weights: rows.collect(),
            scales: self.scales(norms),
        }
    }

    /// The same, also by rows, from weights by input, `[K, outputs]`.
    pub fn quantise_by_input(self, weights: &[f32], outputs: usize) -> Integers {
        let norms = norms_by_input(weights, outputs);
        let rows = norms.iter().enumerate().flat_map(|(output, norm)| {
            let factor = self.factor(*norm);
            let row = weights.iter().skip(output).step_by(outputs);
            row.map(move |w| integer(*w, factor))
        });
        Integers {
            weights: rows.collect(),
            scales: self.scales(norms),
        }
    }

    /// What weights of a row of such a norm are multiplied with before they are rounded; a row of zeros has zeros.
    fn factor(self, norm: f64) -> f64 {
        match norm > 0.0 {
            true => self.norm() / norm,
            false => 0.0,
        }
    }

    fn scales(self, norms: Vec<f64>) -> Vec<f32> {
        let unit = self.norm() / self.unit();
        norms.into_iter().map(|norm| scale(norm, unit)).collect()
    }

    /// A product, of which only the lowest `k` bits count, in units of what goes back.
    pub(crate) fn in_words(self, product: i32) -> f32 {
        (f64::from(centre(product, self.up)) / self.unit()) as f32
    }

    /// A share's `products` with integer weights as the words that go back: their upper bits, rounded.
    pub fn round(self, products: &[i32]) -> Vec<i32> {
        let (unused, dropped) = (32 - self.up, 32 - self.down);
        // Half of the last bit that goes back.
        let half = 1_i32 << (dropped - 1);
        let each = products.iter();
        each.map(|product| (product << unused).wrapping_add(half) >> dropped)
            .collect()
    }
}

/// A weight as an integer: halves to even. The largest norm of a row is one more than an integer may have, where all of it is
/// one weight's.
fn integer(weight: f32, factor: f64) -> i16 {
    let integer = nearest(f64::from(weight) * factor);
    integer.clamp(i16::MIN.into(), i16::MAX.into()) as i16
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn rows(outputs: usize, fan_in: usize) -> Vec<f32> {
        let mut rng = StdRng::seed_from_u64(3);
        (0..outputs * fan_in)
            .map(|_| rng.random_range(-1.0..1.0))
            .collect()
    }

    #[test]
    fn integers_are_the_same_whichever_way_the_weights_lie() {
        let (outputs, fan_in) = (7, 1001);
        let rows = rows(outputs, fan_in);
        let by_input = |at: usize| rows[at % outputs * fan_in + at / outputs];
        let by_input: Vec<f32> = (0..rows.len()).map(by_input).collect();
        for ring in [Ring::PAPER, Ring::SPEED, Ring::QUALITY] {
            let integers = ring.quantise(&rows, outputs);
            assert_eq!(integers, ring.quantise_by_input(&by_input, outputs));
            assert_eq!(integers.weights.len(), rows.len());
        }
        let none = Ring::SPEED.quantise(&[], 0);
        assert_eq!(none, Ring::SPEED.quantise_by_input(&[], 0));
        assert!(none.weights.is_empty() && none.scales.is_empty());
    }

    #[test]
    fn integers_have_the_norm_and_the_scales_bring_them_back() {
        let (outputs, fan_in) = (5, 300);
        let rows = rows(outputs, fan_in);
        for (up, down) in [(16, 8), (25, 12), (26, 14), (32, 18)] {
            let ring = Ring::new(up, down).unwrap();
            let Integers { weights, scales } = ring.quantise(&rows, outputs);
            let rows = rows.chunks(fan_in).zip(weights.chunks(fan_in));
            for ((row, integers), scale) in rows.zip(scales) {
                let squares = integers.iter().map(|w| f64::from(*w).powi(2));
                let norm = squares.sum::<f64>().sqrt();
                let rounded = 0.5 * (fan_in as f64).sqrt();
                assert!((norm - ring.norm()).abs() < rounded, "{ring:?}: {norm}");
                for (w, integer) in row.iter().zip(integers) {
                    let exact = f64::from(*w) * f64::from(scale) * ring.unit();
                    assert!((exact - f64::from(*integer)).abs() < 0.51, "{ring:?}");
                }
            }
        }
    }

    #[test]
    fn a_row_of_one_weight_or_of_none_has_integers() {
        let row = [0.0, 3.0, 0.0, -2.0, 0.0, 0.0];
        let Integers { weights, scales } = Ring::QUALITY.quantise(&row, 3);
        assert_eq!(weights, [0, i16::MAX, 0, i16::MIN, 0, 0]);
        // 2^15 of the row's norm, in units of 2^14; of a row of zeros anything.
        assert_eq!(scales, [2.0 / 3.0, 1.0, 2.0]);
    }

    #[test]
    fn the_upper_bits_are_rounded_whatever_is_above_the_ring() {
        let ring = Ring::new(16, 8).unwrap();
        let above = 0x5a3_0000;
        for (product, word) in [
            (0, 0),
            (127, 0),
            (128, 1),
            (-128, 0),
            (-129, -1),
            (0x7f7f, 127),
            // Beyond the last word is the first.
            (0x7f80, -128),
            (-0x8000, -128),
        ] {
            assert_eq!(
                ring.round(&[product, product + above]),
                [word; 2],
                "{product}"
            );
        }
        assert_eq!(
            Ring::QUALITY.round(&[i32::MAX, i32::MIN, 1 << 13, (1 << 13) - 1]),
            [-1 << 17, -1 << 17, 1, 0]
        );
    }

    #[test]
    fn bits_that_no_ring_has_are_refused() {
        assert!(Ring::new(16, 10).is_ok() && Ring::new(32, 24).is_ok());
        for (up, down) in [(15, 10), (33, 10), (24, 7), (32, 25), (16, 11), (24, 19)] {
            assert!(Ring::new(up, down).is_err(), "{up} {down}");
        }
    }
}
