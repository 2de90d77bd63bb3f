//! The workers' products of their shares to the layer's output.
//!
//! A product of a share goes back as `round(2^f W share / |w|)` modulo `2^m`, where `|w|` is the norm of the output's row
//! of weights. The user adds all workers', and the carries' product `2^b W e`, centres the sum and multiplies by what it
//! was divided by. Sums wrap on the way; the whole does not, by the choice of the step size.

use crate::error::{Error, Result};
use crate::kind::Shares;
use crate::norms::{norms, norms_by_input, scale};
use crate::pack::Packer;
use crate::precision::{centre, nearest};

/// What products are multiplied with before they are rounded, `2^f / |w|` of each output, from weights `[outputs, K]`.
pub fn scales(weights: &[f32], outputs: usize, fraction: u32) -> Vec<f32> {
    let unit = f64::from(1_u32 << fraction);
    let norms = norms(weights, outputs).into_iter();
    norms.map(|norm| scale(norm, unit)).collect()
}

/// The same from weights by input, `[K, outputs]`, to the last bit.
pub fn scales_by_input(weights: &[f32], outputs: usize, fraction: u32) -> Vec<f32> {
    let unit = f64::from(1_u32 << fraction);
    let norms = norms_by_input(weights, outputs).into_iter();
    norms.map(|norm| scale(norm, unit)).collect()
}

/// Where the values of an output lie: `values` of the first output, then as many of the second, and after the last one
/// the first's again. A feature map `[B, C, H, W]` has `H W` values, tokens `[B, T, C]` have one.
#[derive(Clone, Copy, Debug)]
pub struct Outputs<'a> {
    /// Of [`scales`], or a ring's of [`crate::ring::Integers`].
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

/// A share's products as the words that go back, packed: of their lowest `bits` bits.
///
/// # Errors
/// [`Error::Bits`].
pub fn round(products: &[f32], outputs: Outputs<'_>, bits: u32) -> Result<Vec<u8>> {
    let mut packer = Packer::new(products.len(), bits)?;
    for (output, range) in outputs.each(products.len()) {
        let scale = outputs.scales.get(output).copied().map_or(0.0, f64::from);
        packer.add(&products[range], |product| {
            nearest(f64::from(*product) * scale)
        });
    }
    Ok(packer.packed())
}

/// Outputs from the `words` of all workers and the product `W e` of the carries, which become the outputs, with the `bias`
/// of each, if there is any. Shares of a ring have no carries: whatever is there is
/// written over.
///
/// # Errors
/// [`Error::Words`] where there are not as many of each.
pub fn join(
    words: &[Vec<i32>],
    carried: &mut [f32],
    outputs: Outputs<'_>,
    bias: &[f32],
    step: f64,
    shares: impl Into<Shares>,
) -> Result<()> {
    let shares = shares.into();
    let wanted = carried.len();
    if let Some(words) = words.iter().find(|words| words.len() != wanted) {
        let got = words.len();
        return Err(Error::Words { got, wanted });
    }
    let bits = shares.down();
    let unit = match shares {
        Shares::Carry(precision) => Some(f64::from(precision.up()).exp2()),
        Shares::Ring(_) => None,
    };
    for (output, range) in outputs.each(wanted) {
        let scale = outputs.scales.get(output).copied().map_or(1.0, f64::from);
        let (carry, back) = (unit.map(|unit| scale * unit), step / scale);
        let bias = bias.get(output).copied().map_or(0.0, f64::from);
        let mut sums = [0; AT_ONCE];
        for start in range.clone().step_by(AT_ONCE) {
            let some = start..(start + AT_ONCE).min(range.end);
            let sums = &mut sums[..some.len()];
            let to = &mut carried[some.clone()];
            match carry {
                Some(carry) => {
                    let pairs = sums.iter_mut().zip(&*to);
                    pairs.for_each(|(sum, carried)| *sum = nearest(f64::from(*carried) * carry));
                }
                None => sums.fill(0),
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
    use crate::Precision;
    use crate::pack::unpack;

    fn normal(rng: &mut StdRng) -> f32 {
        (0..12).map(|_| rng.random_range(-0.5..0.5_f32)).sum()
    }

    #[test]
    fn a_row_of_zeros_and_no_rows_are_no_division_by_zero() {
        assert_eq!(scales(&[0.0, 0.0, 3.0, 4.0], 2, 1), [2.0, 0.4]);
        assert!(scales(&[], 0, 1).is_empty());
        let none = Outputs {
            scales: &[],
            values: 0,
        };
        assert_eq!(round(&[], none, 14), Ok(Vec::new()));
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
            let outputs = Outputs {
                scales: &scales,
                values,
            };
            unpack(&round(&products, outputs, 14).unwrap(), 8, 14).unwrap()
        };
        assert_eq!(round(1), [2, 5, 2, 5, 2, 5, 2, 5]);
        assert_eq!(round(2), [2, 2, 5, 5, 2, 2, 5, 5]);
        assert_eq!(round(4), [2, 2, 2, 2, 5, 5, 5, 5]);
    }
}
