//! Products of weights with few features: what carries of shares are multiplied by.
//!
//! Weights lie by input, `[K, outputs]`: of each feature the weights of all outputs, one after the other, so that a feature
//! adds a line of them to its outputs. What meets at a position is found first, so that its sums stay in registers
//! while one line after the other is added. Which features there are decides over addresses, and over how many meet at
//! which position: a carry of zero is as much work as any other, and so is one at an edge.

use std::ops::Range;

use rayon::prelude::*;

use super::simd::{mul_add, vectorised};
use super::sizes::Sizes;

/// Outputs whose sums are in registers at a time, and that a task has.
const OUTPUTS: usize = 64;

/// Weights of one task's outputs that are read again and again, at most: they stay in a core's own cache.
const WEIGHTS: usize = 1 << 18;

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
    fn each(&self) -> impl Iterator<Item = (usize, f32)> + Clone {
        let pairs = self.at.iter().zip(self.values);
        pairs.map(|(at, value)| (*at as usize, *value as f32))
    }
}

/// One of few features.
#[derive(Clone, Copy)]
struct Feature {
    channel: usize,
    /// Its pixel, of all batch entries'.
    pixel: usize,
    value: f32,
}

/// A feature that meets a line of weights.
#[derive(Clone, Copy, Default)]
struct Meeting {
    /// Which line.
    line: u32,
    value: f32,
}

/// What meets of some channels.
#[derive(Default)]
struct Part {
    meetings: Vec<Meeting>,
    /// Where those of a position begin, and where the last's end. The position behind the last is nobody's.
    starts: Vec<usize>,
}

vectorised! {
    /// Adds to the sums `[positions, len]` of `len` outputs from `first` on of `outputs` what meets at each position.
    fn add(sums: &mut [f32], part: &Part, weight: &[f32], first: usize, len: usize, outputs: usize) {
        let positions = sums.chunks_exact_mut(len).zip(part.starts.windows(2));
        for (sums, starts) in positions {
            let meetings = &part.meetings[starts[0]..starts[1]];
            let (wide, rest) = sums.as_chunks_mut();
            let mut from = first;
            for sums in wide {
                gather::<FMA, OUTPUTS>(sums, meetings, &weight[from..], outputs);
                from += OUTPUTS;
            }
            let (narrow, rest) = rest.as_chunks_mut();
            for sums in narrow {
                gather::<FMA, NARROW>(sums, meetings, &weight[from..], outputs);
                from += NARROW;
            }
            for sum in rest.as_chunks_mut().0 {
                gather::<FMA, 1>(sum, meetings, &weight[from..], outputs);
                from += 1;
            }
        }
    }
}

/// Outputs that are fewer than [`OUTPUTS`] are taken so many at a time.
const NARROW: usize = 16;

/// Adds to the sums of one position the lines that meet there.
#[inline(always)]
fn gather<const FMA: bool, const N: usize>(
    sums: &mut [f32; N],
    meetings: &[Meeting],
    weight: &[f32],
    outputs: usize,
) {
    let mut all = *sums;
    for Meeting { line, value } in meetings {
        let Some(line) = weight[*line as usize * outputs..].first_chunk::<N>() else {
            continue;
        };
        for (sum, weight) in all.iter_mut().zip(line) {
            *sum = mul_add::<FMA>(*value, *weight, *sum);
        }
    }
    *sums = all;
}

/// A linear map of `tokens` tokens `[T, K]` of which `x` are the features that are not zero: `[T, outputs]`, with weights
/// `[K, outputs]`.
///
/// # Panics
/// When the weights are not of as many outputs, or a feature is not of these tokens.
pub fn linear(x: Sparse<'_>, weight: &[f32], [tokens, outputs]: [usize; 2]) -> Vec<f32> {
    let fan_in = weight.len().checked_div(outputs).unwrap_or_default();
    let sizes = Sizes {
        batch: 1,
        c_in: fan_in,
        c_out: outputs,
        size: [1, tokens],
        kernel: 1,
        stride: 1,
        padding: [0, 0],
        odd: false,
    };
    let features = x.each().map(|(at, value)| Feature {
        channel: at % fan_in,
        pixel: at / fan_in,
        value,
    });
    let mut y = vec![0.0; tokens * outputs];
    for (range, sums) in in_blocks(features, weight, sizes) {
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
        batch, c_in, c_out, ..
    } = sizes;
    let [h, w] = sizes.size;
    let [h_out, w_out] = sizes.out_size();
    let pixels = h_out * w_out;
    let features = x.each().map(|(at, value)| {
        let (plane, pixel) = (at / (h * w), at % (h * w));
        Feature {
            channel: plane % c_in,
            pixel: plane / c_in * h * w + pixel,
            value,
        }
    });
    let mut y = vec![0.0; batch * c_out * pixels];
    for (range, sums) in in_blocks(features, weight, sizes) {
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

/// The sums of each range of some outputs, `[positions, len]`.
fn in_blocks(
    features: impl Iterator<Item = Feature> + Clone,
    weight: &[f32],
    sizes: Sizes,
) -> Vec<(Range<usize>, Vec<f32>)> {
    let outputs = sizes.c_out;
    let lines = sizes.c_in * sizes.kernel * sizes.kernel;
    assert_eq!(
        weight.len(),
        lines * outputs,
        "weights of {outputs} outputs"
    );
    let parts = parts(features, sizes);
    let [h, w] = sizes.out_size();
    let positions = sizes.batch * h * w;
    let starts: Vec<usize> = (0..outputs).step_by(OUTPUTS).collect();
    let blocks = starts.into_par_iter().map(|start| {
        let range = start..(start + OUTPUTS).min(outputs);
        // One position more, for what is nobody's.
        let mut sums = vec![0.0; (positions + 1) * range.len()];
        for part in &parts {
            add(&mut sums, part, weight, start, range.len(), outputs);
        }
        sums.truncate(positions * range.len());
        (range, sums)
    });
    blocks.collect()
}

/// What meets where, of so many channels at a time that the weights of a task's outputs stay near.
fn parts(features: impl Iterator<Item = Feature> + Clone, sizes: Sizes) -> Vec<Part> {
    let Sizes { batch, c_in, .. } = sizes;
    let [h, w] = sizes.size;
    let pixels = batch * h * w;
    let taps = sizes.kernel * sizes.kernel;
    let channels = (WEIGHTS / (taps * OUTPUTS)).max(1);
    let number = c_in.div_ceil(channels);
    // Sorted by part and pixel: where each pixel's begin, and then the features.
    let place = |feature: &Feature| feature.channel / channels * pixels + feature.pixel;
    let mut starts = vec![0; number * pixels + 1];
    features.clone().for_each(|x| starts[place(&x) + 1] += 1);
    for i in 1..starts.len() {
        starts[i] += starts[i - 1];
    }
    let mut next = starts.clone();
    let mut sorted = vec![Meeting::default(); starts.last().copied().unwrap_or_default()];
    for feature in features {
        let next = &mut next[place(&feature)];
        sorted[*next] = Meeting {
            line: (feature.channel * taps) as u32,
            value: feature.value,
        };
        *next += 1;
    }
    let of_part = |part: usize| &starts[part * pixels..][..pixels + 1];
    let parts = (0..number).map(|part| meet(&sorted, of_part(part), sizes));
    parts.collect()
}

/// What meets at each position, where the features of each pixel begin at `starts` in `sorted`.
fn meet(sorted: &[Meeting], starts: &[usize], sizes: Sizes) -> Part {
    let Sizes {
        batch,
        size: [h, w],
        kernel,
        stride,
        padding: [above, left],
        ..
    } = sizes;
    let [h_out, w_out] = sizes.out_size();
    // As many outputs as a feature meets at most: at an edge, or between steps, the rest is for nobody.
    let most = kernel.div_ceil(stride).pow(2);
    let all = (starts[starts.len() - 1] - starts[0]) * most;
    let mut part = Part {
        meetings: Vec::with_capacity(all),
        starts: Vec::with_capacity(batch * h_out * w_out + 2),
    };
    part.starts.push(0);
    for entry in 0..batch {
        for row in 0..h_out {
            for column in 0..w_out {
                let down = inside(row * stride, kernel, above, h);
                for (down, row) in down {
                    for (across, column) in inside(column * stride, kernel, left, w) {
                        let pixel = (entry * h + row) * w + column;
                        let tap = (down * kernel + across) as u32;
                        let here = &sorted[starts[pixel]..starts[pixel + 1]];
                        part.meetings.extend(here.iter().map(|x| Meeting {
                            line: x.line + tap,
                            ..*x
                        }));
                    }
                }
                part.starts.push(part.meetings.len());
            }
        }
    }
    part.meetings.resize(all, Meeting::default());
    part.starts.push(all);
    part
}

/// Which taps of a kernel at `place` of the padded rows are on a row, of `rows`, and which row that is.
fn inside(
    place: usize,
    kernel: usize,
    padding: usize,
    rows: usize,
) -> impl Iterator<Item = (usize, usize)> {
    let taps = padding.saturating_sub(place)..kernel.min((rows + padding).saturating_sub(place));
    taps.map(move |tap| (tap, place + tap - padding))
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
