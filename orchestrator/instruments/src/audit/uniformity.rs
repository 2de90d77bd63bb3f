//! Whether words are uniform, one by one and in their differences: what a mask leaves that is used once.
//!
//! A mask that hides two inputs leaves their difference. So of all tensors of one layer that one party was sent, of any
//! steps, pictures, sessions and halves of a guided batch, every two are compared.

use std::collections::BTreeMap;

use serde::Serialize;

/// The words of one batch entry of a layer's input, as one party has them.
#[derive(Clone, Debug)]
pub struct Words {
    /// The party, and the layer: only words of the same are compared.
    pub of: String,
    /// Bits of a word.
    pub bits: u32,
    /// Bits of the narrowest words of all that share the input.
    pub narrowest: u32,
    /// Centred.
    pub words: Vec<i32>,
}

/// Chi-square tests of words and of the differences of every two tensors of a party and layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Uniformity {
    /// Number of tests.
    pub tests: usize,
    /// The largest statistic.
    pub largest: f64,
    /// What the largest stays below, but with a probability of [`LEVEL`] at most.
    pub threshold: f64,
}

/// How often uniform words are blamed, at most: the level of all tests together.
pub const LEVEL: f64 = 1e-4;

/// The upper bits of a word that are counted.
const UPPER: u32 = 4;

/// Bins, one more than the degrees of freedom.
const BINS: usize = 1 << UPPER;

impl Uniformity {
    /// Tests all `tensors`.
    pub fn of(tensors: &[Words]) -> Self {
        let mut alike: BTreeMap<(&str, u32, usize), Vec<&[i32]>> = BTreeMap::new();
        for Words {
            of, bits, words, ..
        } in tensors
        {
            // In fewer words than that a bin has too few for the distribution of the statistic.
            if words.len() >= 5 * BINS {
                alike
                    .entry((of, *bits, words.len()))
                    .or_default()
                    .push(words);
            }
        }
        let (mut tests, mut largest) = (0, 0.0_f64);
        for ((_, bits, _), tensors) in alike {
            for (i, words) in tensors.iter().enumerate() {
                let each = std::iter::once(chi_square(words.iter().copied(), bits));
                let pairs = tensors[..i].iter().map(|other| {
                    let pairs = words.iter().zip(*other);
                    chi_square(pairs.map(|(a, b)| a.wrapping_sub(*b)), bits)
                });
                for statistic in each.chain(pairs) {
                    tests += 1;
                    largest = largest.max(statistic);
                }
            }
        }
        Self {
            tests,
            largest,
            threshold: threshold(tests),
        }
    }

    /// Whether nothing tells the words from uniform ones.
    pub fn holds(&self) -> bool {
        self.tests > 0 && self.largest < self.threshold
    }
}

/// The chi-square of the upper four bits of words of `bits` bits, of 15 degrees of freedom (Pearson 1900).
pub fn chi_square(words: impl IntoIterator<Item = i32>, bits: u32) -> f64 {
    let mut counts = [0_u64; BINS];
    for word in words {
        counts[(word >> bits.saturating_sub(UPPER)) as usize & (BINS - 1)] += 1;
    }
    let expected = counts.iter().sum::<u64>() as f64 / BINS as f64;
    let apart = counts.map(|n| (n as f64 - expected).powi(2));
    apart.iter().sum::<f64>() / expected.max(f64::MIN_POSITIVE)
}

/// What the largest of `tests` statistics exceeds with a probability of [`LEVEL`] at most, whatever hangs on what
/// (Bonferroni): a sixteenth degree of freedom makes the tail a sum, and the threshold a little larger than it need be.
fn threshold(tests: usize) -> f64 {
    let tail = |x: f64| {
        let half = x / 2.0;
        let terms = (0..BINS / 2).scan(1.0, |term, i| {
            let this = *term;
            *term *= half / (i + 1) as f64;
            Some(this)
        });
        (-half).exp() * terms.sum::<f64>()
    };
    let wanted = LEVEL / tests.max(1) as f64;
    let (mut low, mut high) = (0.0, 1e3);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if tail(middle) > wanted {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacuna_shares::Precision;
    use lacuna_shares::split::{Extent, split};
    use lacuna_shares::stream::Key;

    const BITS: u32 = 12;
    const FEATURES: usize = 2000;

    /// The shares of one layer's input at so many steps, each a little further than the one before, under masks of the
    /// places `at` of one key's stream.
    fn shares(at: &[u64]) -> Vec<Words> {
        let key = Key::received([7; 32]);
        let share = |(step, at): (usize, &u64)| {
            let features = (0..FEATURES).map(|i| (i as f32).sin() + 0.01 * step as f32);
            let features: Vec<f32> = features.collect();
            let extent = Extent::of_tokens(&features, 50).unwrap();
            let masks = [key.mask(*at, FEATURES, BITS).unwrap()];
            let step = extent.step(Precision::SPEED, 2);
            let (words, _) = split(&features, step, &masks, Precision::SPEED).unwrap();
            Words {
                of: "conv".into(),
                bits: BITS,
                narrowest: BITS,
                words,
            }
        };
        at.iter().enumerate().map(share).collect()
    }

    #[test]
    fn shares_under_masks_of_their_own_are_uniform_and_a_masks_second_use_is_seen() {
        let apart = Uniformity::of(&shares(&[0, 1, 2, 3, 4, 5]));
        assert_eq!(apart.tests, 6 + 15);
        assert!(apart.holds(), "{apart:?}");
        let planted = Uniformity::of(&shares(&[0, 1, 2, 3, 1, 5]));
        assert!(!planted.holds(), "{planted:?}");
        assert!(planted.largest > 10.0 * planted.threshold, "{planted:?}");
    }

    #[test]
    fn features_without_a_mask_are_no_uniform_words() {
        let words = (0..FEATURES).map(|i| (500.0 * (i as f32).sin()) as i32);
        let plain = Words {
            of: "conv".into(),
            bits: BITS,
            narrowest: BITS,
            words: words.collect(),
        };
        assert!(!Uniformity::of(&[plain]).holds());
        assert!(!Uniformity::of(&[]).holds());
    }

    /// Of a table of the distribution of 16 degrees of freedom: 45.925 has a tail of 10^-4.
    #[test]
    fn the_threshold_is_the_distributions_own() {
        assert!((threshold(1) - 45.925).abs() < 0.001, "{}", threshold(1));
        assert!(threshold(1000) > threshold(1));
    }
}
