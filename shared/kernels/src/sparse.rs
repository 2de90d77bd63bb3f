//! Products of weights with few features: what carries of shares are multiplied by.
//!
//! Weights lie by input, `[K, outputs]`: of each feature the weights of all outputs, one after the other, so that a feature
//! adds a line of them to its outputs. Which features there are decides over addresses alone: a carry of zero
//! takes as long as any other.

use std::ops::Range;

use rayon::prelude::*;

use super::simd::{mul_add, vectorised};
use super::sizes::Sizes;

/// The fewest outputs of one task: their weights of one feature are a few lines of the cache.
const OUTPUTS: usize = 64;

/// Sums of one task, about: they stay in a core's own cache, and the more outputs they are of, the longer a line of
/// weights is read on.
const SUMS: usize = 1 << 17;

/// Positions whose outputs are turned at a time.
const POSITIONS: usize = 16;

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

/// A feature that meets a line of weights, and where that goes.
struct Meeting {
    /// Which line.
    weights: usize,
    /// The position whose outputs it is added to; the one behind the last is nobody's.
    position: usize,
    value: f32,
}

vectorised! {
    /// Adds to the sums of each position, of `len` outputs from `first` on of `outputs`, what meets there.
    fn add(sums: &mut [f32], meetings: &[Meeting], weight: &[f32], first: usize, len: usize, outputs: usize) {
        for Meeting { weights, position, value } in meetings {
            let sums = &mut sums[position * len..][..len];
            let line = &weight[weights * outputs + first..][..len];
            for (sum, weight) in sums.iter_mut().zip(line) {
                *sum = mul_add::<FMA>(*value, *weight, *sum);
            }
        }
    }
}

/// A linear map of `tokens` tokens `[T, K]` of which `x` are the features that are not zero: `[T, outputs]`, with weights
/// `[K, outputs]`.
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
    let meetings: Vec<Meeting> = (x.each())
        .map(|(at, value)| Meeting {
            weights: at % fan_in,
            position: at / fan_in,
            value,
        })
        .collect();
    let mut y = vec![0.0; tokens * outputs];
    for (range, sums) in in_blocks(&meetings, weight, tokens, outputs) {
        let rows = y
            .chunks_exact_mut(outputs)
            .zip(sums.chunks_exact(range.len()));
        rows.for_each(|(row, sums)| row[range.clone()].copy_from_slice(sums));
    }
    y
}

/// A convolution of `[B, C_in, H, W]` of which `x` are the features that are not zero: `[B, C_out, H_out, W_out]`, without
/// bias, with weights `[C_in, K, K, C_out]`.
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
    let mut meetings = Vec::with_capacity(x.at.len() * kernel * kernel);
    for (at, value) in x.each() {
        let (plane, at) = (at / (h * w), at % (h * w));
        let (entry, channel) = (plane / c_in, plane % c_in);
        let (row, column) = (at / w, at % w);
        for down in 0..kernel {
            let row = output(row + above, down, stride, h_out);
            for across in 0..kernel {
                let column = output(column + left, across, stride, w_out);
                // Beyond an edge it is as much work, for nobody.
                let pixel = row.zip(column).map(|(row, column)| row * w_out + column);
                let position = pixel.map_or(batch * pixels, |pixel| entry * pixels + pixel);
                meetings.push(Meeting {
                    weights: (channel * kernel + down) * kernel + across,
                    position,
                    value,
                });
            }
        }
    }
    let mut y = vec![0.0; batch * c_out * pixels];
    for (range, sums) in in_blocks(&meetings, weight, batch * pixels, c_out) {
        let len = range.len();
        let entries = y.chunks_exact_mut((c_out * pixels).max(1));
        for (y, sums) in entries.zip(sums.chunks_exact((pixels * len).max(1))) {
            let y = &mut y[range.start * pixels..];
            for (some, sums) in sums.chunks(POSITIONS * len).enumerate() {
                for i in 0..len {
                    let to = y[i * pixels + some * POSITIONS..].iter_mut();
                    let from = sums.iter().skip(i).step_by(len);
                    to.zip(from).for_each(|(to, from)| *to = *from);
                }
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

/// The sums of each range of some outputs, `[positions, len]`.
fn in_blocks(
    meetings: &[Meeting],
    weight: &[f32],
    positions: usize,
    outputs: usize,
) -> Vec<(Range<usize>, Vec<f32>)> {
    let most = outputs.div_ceil(rayon::current_num_threads()).max(OUTPUTS);
    let len = (SUMS / positions.max(1)).clamp(OUTPUTS, most);
    let starts: Vec<usize> = (0..outputs).step_by(len).collect();
    let blocks = starts.into_par_iter().map(|start| {
        let range = start..(start + len).min(outputs);
        // One position more, for what is nobody's.
        let mut sums = vec![0.0; (positions + 1) * range.len()];
        add(&mut sums, meetings, weight, start, range.len(), outputs);
        sums.truncate(positions * range.len());
        (range, sums)
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

    fn by_input(weight: &[f32], outputs: usize) -> Vec<f32> {
        let fan_in = weight.len() / outputs;
        let columns = (0..fan_in).flat_map(|i| weight.iter().skip(i).step_by(fan_in));
        columns.copied().collect()
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
    }
}
