//! Products of weights with few features: what carries of shares are multiplied by.
//!
//! Weights lie by input: of each feature the weights of all outputs, one after the other ([`by_input`]), so that a
//! feature adds a line of them to its outputs. Which features there are decides over addresses alone: a carry of zero
//! takes as long as any other.

use std::ops::Range;

use rayon::prelude::*;

use super::simd::{mul_add, vectorised};
use super::sizes::Sizes;

/// Outputs of one task. Their weights of one feature are a few lines of the cache.
const OUTPUTS: usize = 64;

/// Few features of a tensor: which, and how large each is.
#[derive(Clone, Copy, Debug)]
pub struct Sparse<'a> {
    /// Places in the tensor; one that comes several times counts as often.
    pub at: &'a [u32],
    /// The feature there.
    pub values: &'a [i32],
}

impl Sparse<'_> {
    fn each(&self) -> impl Iterator<Item = (usize, f32)> {
        let pairs = self.at.iter().zip(self.values);
        pairs.map(|(at, value)| (*at as usize, *value as f32))
    }
}

/// `[outputs, K]` as `[K, outputs]`.
///
/// # Panics
/// When there are not as many weights.
pub fn by_input(weight: &[f32], outputs: usize) -> Vec<f32> {
    let fan_in = weight.len().checked_div(outputs).unwrap_or_default();
    assert_eq!(
        fan_in * outputs,
        weight.len(),
        "weights of {outputs} outputs"
    );
    let columns = (0..fan_in).flat_map(|i| weight.iter().skip(i).step_by(fan_in));
    columns.copied().collect()
}

vectorised! {
    /// Adds `value` times each weight to each sum.
    fn add(sums: &mut [f32], value: f32, weights: &[f32]) {
        for (sum, weight) in sums.iter_mut().zip(weights) {
            *sum = mul_add::<FMA>(value, *weight, *sum);
        }
    }
}

/// A linear map of `tokens` tokens `[T, K]` of which `x` are the features that are not zero: `[T, outputs]`, with weights
/// of [`by_input`].
///
/// # Panics
/// When the weights are not of as many outputs, or a feature is not of these tokens.
pub fn linear(x: Sparse<'_>, weight: &[f32], [tokens, outputs]: [usize; 2]) -> Vec<f32> {
    let fan_in = weight.len().checked_div(outputs).unwrap_or_default();
    assert_eq!(
        fan_in * outputs,
        weight.len(),
        "weights of {outputs} outputs"
    );
    let mut y = vec![0.0; tokens * outputs];
    let blocks = in_blocks(outputs, |range| {
        let mut sums = vec![0.0; tokens * range.len()];
        for (at, value) in x.each() {
            let (token, i) = (at / fan_in, at % fan_in);
            let sums = &mut sums[token * range.len()..][..range.len()];
            add(sums, value, &weight[i * outputs..][range.clone()]);
        }
        sums
    });
    for (range, sums) in blocks {
        let rows = y
            .chunks_exact_mut(outputs)
            .zip(sums.chunks_exact(range.len()));
        rows.for_each(|(row, sums)| row[range.clone()].copy_from_slice(sums));
    }
    y
}

/// A convolution of `[B, C_in, H, W]` of which `x` are the features that are not zero: `[B, C_out, H_out, W_out]`, without
/// bias, with weights of [`by_input`]: `[C_in, K, K, C_out]`.
///
/// # Panics
/// When the sizes do not agree.
pub fn conv2d(x: Sparse<'_>, weight: &[f32], sizes: Sizes) -> Vec<f32> {
    let Sizes {
        batch,
        c_in,
        c_out,
        size: [h, w],
        kernel,
        stride,
        padding: [above, left],
        ..
    } = sizes;
    assert_eq!(weight.len(), c_in * c_out * kernel * kernel, "weights");
    let [h_out, w_out] = sizes.out_size();
    let pixels = h_out * w_out;
    let mut y = vec![0.0; batch * c_out * pixels];
    let blocks = in_blocks(c_out, |range| {
        // By pixel, so that a feature's line of weights meets a line of sums.
        let mut sums = vec![0.0; batch * pixels * range.len()];
        for (at, value) in x.each() {
            let (entry, at) = (at / (c_in * h * w), at % (c_in * h * w));
            let (channel, at) = (at / (h * w), at % (h * w));
            let (row, column) = (at / w, at % w);
            for down in 0..kernel {
                let Some(row) = output(row + above, down, stride, h_out) else {
                    continue;
                };
                for across in 0..kernel {
                    let Some(column) = output(column + left, across, stride, w_out) else {
                        continue;
                    };
                    let pixel = entry * pixels + row * w_out + column;
                    let tap = (channel * kernel + down) * kernel + across;
                    let sums = &mut sums[pixel * range.len()..][..range.len()];
                    add(sums, value, &weight[tap * c_out..][range.clone()]);
                }
            }
        }
        sums
    });
    for (range, sums) in blocks {
        for (entry, sums) in sums.chunks_exact((pixels * range.len()).max(1)).enumerate() {
            for (i, channel) in range.clone().enumerate() {
                let to = &mut y[(entry * c_out + channel) * pixels..][..pixels];
                let from = sums.iter().skip(i).step_by(range.len());
                to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            }
        }
    }
    y
}

/// Which output the padded input at `place` meets at the `tap`-th place of the kernel, of `outputs`.
fn output(place: usize, tap: usize, stride: usize, outputs: usize) -> Option<usize> {
    let from = place.checked_sub(tap)?;
    let output = from / stride;
    (from.is_multiple_of(stride) && output < outputs).then_some(output)
}

/// What `sums` gives for each range of some outputs.
fn in_blocks(
    outputs: usize,
    sums: impl Fn(Range<usize>) -> Vec<f32> + Sync,
) -> Vec<(Range<usize>, Vec<f32>)> {
    let starts: Vec<usize> = (0..outputs).step_by(OUTPUTS).collect();
    let blocks = starts.into_par_iter().map(|start| {
        let range = start..(start + OUTPUTS).min(outputs);
        (range.clone(), sums(range))
    });
    blocks.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv;
    use crate::testing::wave;

    /// Every seventh feature or so, and some zeros, of which one place comes twice.
    fn some(len: usize) -> (Vec<u32>, Vec<i32>, Vec<f32>) {
        let mut at: Vec<u32> = (0..len as u32).filter(|i| i * i % 7 == 2).collect();
        let mut values: Vec<i32> = at.iter().map(|i| 1 - (i % 3) as i32 * 2).collect();
        at.extend([0, 0, 3]);
        values.extend([0, 0, 4]);
        let mut dense = vec![0.0; len];
        for (at, value) in at.iter().zip(&values) {
            dense[*at as usize] += *value as f32;
        }
        (at, values, dense)
    }

    fn assert_near(got: &[f32], want: &[f32]) {
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 1e-4, "{got} {want}");
        }
    }

    #[test]
    fn a_convolution_of_few_features_is_that_of_the_whole_tensor() {
        for (kernel, stride, padding, size) in [
            (3, 1, [1, 1], [5, 7]),
            (3, 2, [1, 1], [6, 5]),
            (1, 1, [0, 0], [4, 4]),
            (3, 1, [0, 1], [5, 4]),
        ] {
            let sizes = Sizes {
                batch: 2,
                c_in: 3,
                c_out: 70,
                size,
                kernel,
                stride,
                padding,
                odd: false,
            };
            let (at, values, dense) = some(2 * 3 * size[0] * size[1]);
            let weight = wave(70 * 3 * kernel * kernel, 0.3);
            let x = Sparse {
                at: &at,
                values: &values,
            };
            let got = conv2d(x, &by_input(&weight, 70), sizes);
            assert_near(&got, &conv::conv2d(&dense, &weight, &[0.0; 70], sizes));
        }
    }

    #[test]
    fn a_linear_map_of_few_features_is_that_of_all() {
        let (tokens, fan_in, outputs) = (5, 9, 130);
        let (at, values, dense) = some(tokens * fan_in);
        let weight = wave(outputs * fan_in, 0.7);
        let x = Sparse {
            at: &at,
            values: &values,
        };
        let got = linear(x, &by_input(&weight, outputs), [tokens, outputs]);
        let mut want = Vec::new();
        for token in dense.chunks(fan_in) {
            for row in weight.chunks(fan_in) {
                want.push(row.iter().zip(token).map(|(w, x)| w * x).sum());
            }
        }
        assert_near(&got, &want);
    }

    #[test]
    fn nothing_gives_nothing() {
        let none = Sparse {
            at: &[],
            values: &[],
        };
        assert_eq!(linear(none, &[1.0; 6], [2, 3]), [0.0; 6]);
        assert!(linear(none, &[], [2, 0]).is_empty());
        assert!(by_input(&[], 0).is_empty());
    }
}
