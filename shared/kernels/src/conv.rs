//! 2-D convolution as a matrix product: the weights as stored, `[C_out, C_in K K]`, times the
//! patches of the input (im2col), some output positions and some input channels at a time.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::matmul::{Matrix, even_part, product};
use super::simd::vectorised;
pub use super::sizes::Sizes;
use super::{Target, filled, scratch, values, winograd};

/// Most output positions of one task.
const PIXELS: usize = 512;
/// Most values of a patch that are taken at a time: 512 positions of so many stay in the core's own
/// cache. The same for every number of positions, so that a strip has the bits of the whole.
const DEPTH: usize = 512;

/// Which output positions (counted through the batch) a task computes.
struct Blocks {
    span: usize,
    size: usize,
    each: usize,
    count: usize,
}

impl Blocks {
    fn new(pixels: usize, batch: usize) -> Self {
        // Small maps are taken together, to read the weights once.
        let span = if pixels >= PIXELS {
            pixels
        } else {
            pixels * batch
        };
        let size = span.div_ceil(span.div_ceil(PIXELS)).next_multiple_of(16);
        let each = span.div_ceil(size);
        Self {
            span,
            size,
            each,
            count: pixels * batch / span * each,
        }
    }

    fn get(&self, i: usize) -> Range<usize> {
        let start = i % self.each * self.size;
        let end = (start + self.size).min(self.span);
        let base = i / self.each * self.span;
        base + start..base + end
    }
}

vectorised! {
    /// The patches of `channels` at output positions `pixels`: `[channels K K, pixels]`.
    fn gather(x: &[f32], s: &Sizes, channels: Range<usize>, pixels: Range<usize>, patches: &mut [f32]) {
        let ([h, w], [h_out, w_out]) = (s.size, s.out_size());
        let mut rows = patches.chunks_exact_mut(pixels.len());
        for c in channels {
            for ky in 0..s.kernel {
                for kx in 0..s.kernel {
                    let Some(mut row) = rows.next() else { return };
                    // Output columns whose input column is inside.
                    let inside = s.padding[1].saturating_sub(kx).div_ceil(s.stride)
                        ..(w + s.padding[1]).saturating_sub(kx).div_ceil(s.stride);
                    let (mut b, mut oy) = (pixels.start / (h_out * w_out), pixels.start / w_out % h_out);
                    let mut ox = pixels.start % w_out;
                    while !row.is_empty() {
                        let n = row.len().min(w_out - ox);
                        let (part, rest) = row.split_at_mut(n);
                        let iy = (oy * s.stride + ky).wrapping_sub(s.padding[0]);
                        let from = inside.start.clamp(ox, ox + n);
                        let to = inside.end.clamp(from, ox + n);
                        if iy >= h || from == to {
                            part.fill(0.0);
                        } else {
                            part[..from - ox].fill(0.0);
                            part[to - ox..].fill(0.0);
                            let line = &x[((b * s.c_in + c) * h + iy) * w..][..w];
                            let first = from * s.stride + kx - s.padding[1];
                            let part = &mut part[from - ox..to - ox];
                            if s.stride == 1 {
                                part.copy_from_slice(&line[first..][..part.len()]);
                            } else {
                                for (y, x) in part.iter_mut().zip(line[first..].iter().step_by(s.stride)) {
                                    *y = *x;
                                }
                            }
                        }
                        row = rest;
                        ox = 0;
                        oy += 1;
                        if oy == h_out {
                            (b, oy) = (b + 1, 0);
                        }
                    }
                }
            }
        }
    }
}

/// The convolution of `x`, `[B, C_in, H, W]`, with `weight`, `[C_out, C_in, K, K]`, and `bias`, `[C_out]`:
/// `[B, C_out, H_out, W_out]`.
///
/// # Panics
/// When the sizes do not agree, or the kernel or the stride is zero.
pub fn conv2d(x: &[f32], weight: &[f32], bias: &[f32], sizes: Sizes) -> Vec<f32> {
    let Sizes {
        batch,
        c_in,
        c_out,
        size: [h, w],
        kernel,
        stride,
        ..
    } = sizes;
    assert!(kernel > 0 && stride > 0, "kernel of a convolution");
    assert_eq!(
        x.len(),
        values([batch, c_in, h, w]),
        "input of a convolution"
    );
    assert_eq!(
        weight.len(),
        values([c_out, c_in, kernel, kernel]),
        "weight of a convolution"
    );
    assert_eq!(bias.len(), c_out, "bias of a convolution");
    let [h_out, w_out] = sizes.out_size();
    if values([batch, c_out, h_out, w_out]) == 0 {
        return Vec::new();
    }
    if winograd::suits(&sizes) {
        winograd::conv2d(x, weight, bias, sizes)
    } else {
        direct(x, weight, bias, sizes)
    }
}

/// [`conv2d`] by its definition; there is something to compute.
pub(super) fn direct(x: &[f32], weight: &[f32], bias: &[f32], sizes: Sizes) -> Vec<f32> {
    let pixels = sizes.out_pixels();
    let len = sizes.batch * sizes.c_out * pixels;
    let blocks = Blocks::new(pixels, sizes.batch);
    let cuts = (2 * rayon::current_num_threads()).div_ceil(blocks.count);
    let channels = sizes.c_out.div_ceil(cuts).next_multiple_of(8);
    let cuts = sizes.c_out.div_ceil(channels);
    let write = |out: Target| {
        (0..blocks.count * cuts).into_par_iter().for_each(|task| {
            let first = task % cuts * channels;
            let task = Task {
                x,
                weight,
                bias,
                sizes,
                channels: first..(first + channels).min(sizes.c_out),
                pixels: blocks.get(task / cuts),
            };
            task.run(out);
        });
    };
    // SAFETY: the tasks are every channel at every position.
    unsafe { filled(len, write) }
}

/// A block of the output: some channels at some positions.
struct Task<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    sizes: Sizes,
    channels: Range<usize>,
    pixels: Range<usize>,
}

impl Task<'_> {
    fn run(&self, out: Target) {
        let map = self.sizes.out_pixels();
        let (n, m) = (self.pixels.len(), self.channels.len());
        let b = self.pixels.start / map;
        if self.pixels.end <= (b + 1) * map {
            let start =
                (b * self.sizes.c_out + self.channels.start) * map + self.pixels.start % map;
            let bias = &self.bias[self.channels.clone()];
            for (i, bias) in bias.iter().enumerate() {
                // SAFETY: this task's positions of one of its channels.
                unsafe { out.slice(start + i * map, n) }.fill(MaybeUninit::new(*bias));
            }
            self.accumulate(out.at(start, (m - 1) * map + n), map);
            return;
        }
        let mut block = vec![0.0; n * m];
        for (row, bias) in block
            .chunks_exact_mut(n)
            .zip(&self.bias[self.channels.clone()])
        {
            row.fill(*bias);
        }
        self.accumulate(block.as_mut_ptr(), n);
        for (row, c) in block.chunks_exact(n).zip(self.channels.clone()) {
            let mut from = self.pixels.start;
            while from < self.pixels.end {
                let to = (from / map + 1).saturating_mul(map).min(self.pixels.end);
                let start = (from / map * self.sizes.c_out + c) * map + from % map;
                // SAFETY: this task's positions of one of its channels and one batch entry.
                unsafe { out.slice(start, to - from) }
                    .write_copy_of_slice(&row[from - self.pixels.start..to - self.pixels.start]);
                from = to;
            }
        }
    }

    /// Adds the products to `dst`, whose channels are `rows` apart; it is this task's own.
    fn accumulate(&self, dst: *mut f32, rows: usize) {
        let sizes = &self.sizes;
        if sizes.c_in == 0 {
            return;
        }
        let taps = sizes.kernel * sizes.kernel;
        let n = self.pixels.len();
        let weights = |channel: usize| Matrix {
            start: self.weight[(self.channels.start * sizes.c_in + channel) * taps..].as_ptr(),
            rows: sizes.c_in * taps,
            columns: 1,
        };
        let add = |channels: Range<usize>, patches: Matrix| {
            // SAFETY: `run` has filled `dst` with the bias and gives it to nobody else; the weights of
            // these channels and the patches are inside their slices.
            unsafe {
                product(
                    [self.channels.len(), n, channels.len() * taps],
                    dst,
                    rows,
                    true,
                    weights(channels.start),
                    patches,
                    1.0,
                );
            }
        };
        let map = sizes.out_pixels();
        let b = self.pixels.start / map;
        if sizes.is_pointwise() && self.pixels.end <= (b + 1) * map {
            let start = self.x[b * sizes.c_in * map + self.pixels.start % map..].as_ptr();
            add(
                0..sizes.c_in,
                Matrix {
                    start,
                    rows: map,
                    columns: 1,
                },
            );
            return;
        }
        let step = even_part(sizes.c_in, (DEPTH / taps).max(1));
        scratch(step * taps * n, |patches| {
            let mut from = 0;
            while from < sizes.c_in {
                let to = (from + step).min(sizes.c_in);
                gather(self.x, sizes, from..to, self.pixels.clone(), patches);
                add(
                    from..to,
                    Matrix {
                        start: patches.as_ptr(),
                        rows: n,
                        columns: 1,
                    },
                );
                from = to;
            }
        });
    }
}

/// The convolution in f64, one product at a time.
#[cfg(test)]
pub(super) fn plain(x: &[f32], weight: &[f32], bias: &[f32], s: Sizes) -> Vec<f64> {
    let ([h, w], [h_out, w_out]) = (s.size, s.out_size());
    let mut out = Vec::new();
    for b in 0..s.batch {
        for (o, bias) in bias.iter().enumerate() {
            for (y, z) in (0..h_out).flat_map(|y| (0..w_out).map(move |z| (y, z))) {
                let mut sum = f64::from(*bias);
                for i in 0..s.c_in {
                    for (ky, kx) in (0..s.kernel).flat_map(|y| (0..s.kernel).map(move |x| (y, x))) {
                        let iy = (y * s.stride + ky).wrapping_sub(s.padding[0]);
                        let ix = (z * s.stride + kx).wrapping_sub(s.padding[1]);
                        if iy < h && ix < w {
                            let tap = weight[((o * s.c_in + i) * s.kernel + ky) * s.kernel + kx];
                            let value = x[((b * s.c_in + i) * h + iy) * w + ix];
                            sum += f64::from(tap) * f64::from(value);
                        }
                    }
                }
                out.push(sum);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::testing::{difference, wave};
    use super::*;

    #[test]
    fn conv2d_is_the_formula() {
        let cases = [
            // batch, c_in, c_out, size, kernel, stride, padding
            (2, 5, 13, [31, 37], 3, 1, [1, 1]),
            (1, 70, 9, [23, 29], 3, 1, [0, 1]),
            (3, 33, 17, [7, 5], 3, 1, [1, 1]),
            (2, 6, 11, [22, 19], 3, 2, [1, 1]),
            (2, 6, 11, [23, 8], 3, 2, [0, 1]),
            (2, 19, 23, [25, 27], 1, 1, [0, 0]),
            (2, 19, 23, [5, 6], 1, 1, [0, 0]),
            (1, 3, 4, [9, 9], 1, 2, [0, 0]),
            (1, 3, 2, [1, 1], 3, 1, [1, 1]),
            (1, 2, 3, [6, 2], 5, 1, [2, 2]),
        ];
        for (batch, c_in, c_out, size, kernel, stride, padding) in cases {
            let sizes = Sizes {
                batch,
                c_in,
                c_out,
                size,
                kernel,
                stride,
                padding,
                odd: false,
            };
            let x = wave(batch * c_in * size[0] * size[1], 0.1);
            let weight = wave(c_out * c_in * kernel * kernel, 0.8);
            let bias = wave(c_out, 1.9);
            let off = difference(
                &direct(&x, &weight, &bias, sizes),
                &plain(&x, &weight, &bias, sizes),
            );
            assert!(off < 3e-6, "{sizes:?}: {off}");
        }
    }
}
