//! 3x3 convolution of stride 1 by F(2x2, 3x3) of Winograd's minimal filtering (Lavin and Gray 2016): 16
//! multiplications for four outputs instead of 36. Each 4x4 patch and each kernel is transformed, the
//! products over channels are 16 matrix products, and their sums transform back to 2x2 outputs.
//!
//! The transforms add a few values of like size, so the error stays that of the direct sum, nearly.

use std::ops::Range;

use rayon::prelude::*;

use super::matmul::{Matrix, product};
use super::simd::vectorised;
use super::sizes::Sizes;
use super::{Target, filled, scratch};

/// Most 2x2 tiles of one task.
const TILES: usize = 256;
/// Most output channels of one task.
const CHANNELS: usize = 320;
/// Input channels taken at a time.
const DEPTH: usize = 128;
/// Tiles of one row that are transformed together.
const RUN: usize = 64;
/// Kernels that are transformed together.
const LANES: usize = 16;

/// Whether a convolution is one that this is faster for: wide, on a map that is not tiny. Neither the
/// number of rows nor of batch entries matters, so that a strip is computed as the whole is.
pub(crate) fn suits(sizes: &Sizes) -> bool {
    let [_, columns] = tiles(sizes);
    sizes.kernel == 3 && sizes.stride == 1 && sizes.c_in >= 32 && sizes.c_out >= 32 && columns >= 8
}

/// Rows and columns of tiles.
fn tiles(sizes: &Sizes) -> [usize; 2] {
    let [h, w] = sizes.out_size();
    [(h + usize::from(sizes.odd)).div_ceil(2), w.div_ceil(2)]
}

/// Tiles of one row of tiles of one batch entry.
struct Run {
    batch: usize,
    row: usize,
    column: usize,
    /// Number of tiles.
    len: usize,
    /// Place of the first among the task's tiles.
    place: usize,
}

/// Cuts `range`, counted through the batch, at the ends of rows.
#[inline(always)]
fn runs([rows, columns]: [usize; 2], range: Range<usize>) -> impl Iterator<Item = Run> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let column = at % columns;
        let run = Run {
            batch: at / columns / rows,
            row: at / columns % rows,
            column,
            len: (columns - column).min(range.end - at).min(RUN),
            place: at - range.start,
        };
        at += run.len;
        Some(run)
    })
}

vectorised! {
    /// `B^T d B` of the patches d of `channels` at `tiles`: `v` is `[16, channels, tiles]`.
    fn transform_input(x: &[f32], s: &Sizes, channels: Range<usize>, range: Range<usize>, v: &mut [f32]) {
        let ([h, w], [pad_rows, pad_columns]) = (s.size, s.padding);
        // A tile's lower row does not read the tile's first line, so that may be a zero beyond the strip.
        let pad_rows = pad_rows + usize::from(s.odd);
        let (depth, count) = (channels.len(), range.len());
        let mut t = [[[0f32; RUN]; 4]; 4];
        for run in runs(tiles(s), range) {
            let n = run.len;
            let left = 2 * run.column;
            // Columns left..left + 2n + 2 of the padded input; those inside are from..to.
            let from = pad_columns.clamp(left, left + 2 * n + 2);
            let to = (w + pad_columns).clamp(from, left + 2 * n + 2);
            for (c, channel) in channels.clone().enumerate() {
                let plane = &x[(run.batch * s.c_in + channel) * h * w..][..h * w];
                for (i, t) in t.iter_mut().enumerate() {
                    let mut line = [0f32; 2 * RUN + 2];
                    let y = (2 * run.row + i).wrapping_sub(pad_rows);
                    if y < h && from < to {
                        let inside = &plane[y * w + from - pad_columns..][..to - from];
                        line[from - left..to - left].copy_from_slice(inside);
                    }
                    let [t0, t1, t2, t3] = t;
                    for k in 0..n {
                        let d = [line[2 * k], line[2 * k + 1], line[2 * k + 2], line[2 * k + 3]];
                        t0[k] = d[0] - d[2];
                        t1[k] = d[1] + d[2];
                        t2[k] = d[2] - d[1];
                        t3[k] = d[1] - d[3];
                    }
                }
                for j in 0..4 {
                    let rows = t.each_ref().map(|t| &t[j][..n]);
                    let at = |i: usize| ((4 * i + j) * depth + c) * count + run.place;
                    for (v, (a, b)) in v[at(0)..][..n].iter_mut().zip(rows[0].iter().zip(rows[2])) {
                        *v = a - b;
                    }
                    for (v, (a, b)) in v[at(1)..][..n].iter_mut().zip(rows[1].iter().zip(rows[2])) {
                        *v = a + b;
                    }
                    for (v, (a, b)) in v[at(2)..][..n].iter_mut().zip(rows[2].iter().zip(rows[1])) {
                        *v = a - b;
                    }
                    for (v, (a, b)) in v[at(3)..][..n].iter_mut().zip(rows[1].iter().zip(rows[3])) {
                        *v = a - b;
                    }
                }
            }
        }
    }
}

vectorised! {
    /// `G g G^T` of the kernels g of `c_out` x `c_in`: `u` is `[16, c_out, c_in]`, from `start` on.
    fn transform_kernels(weight: &[f32], all_in: usize, c_out: Range<usize>, c_in: Range<usize>, u: Target, start: usize) {
        let (rows, depth) = (c_out.len(), c_in.len());
        for (r, o) in c_out.enumerate() {
            let kernels = &weight[(o * all_in + c_in.start) * 9..][..depth * 9];
            for (part, kernels) in kernels.chunks(LANES * 9).enumerate() {
                let n = kernels.len() / 9;
                let mut g = [[0f32; LANES]; 9];
                for (lane, kernel) in kernels.as_chunks::<9>().0.iter().enumerate() {
                    for (g, tap) in g.iter_mut().zip(kernel) {
                        g[lane] = *tap;
                    }
                }
                // Rows first: t is G g, [4, 3].
                let mut t = [[0f32; LANES]; 12];
                for j in 0..3 {
                    for l in 0..LANES {
                        let (a, b, c) = (g[j][l], g[3 + j][l], g[6 + j][l]);
                        t[j][l] = a;
                        t[3 + j][l] = 0.5 * (a + b + c);
                        t[6 + j][l] = 0.5 * (a - b + c);
                        t[9 + j][l] = c;
                    }
                }
                for i in 0..4 {
                    let mut out = [[0f32; LANES]; 4];
                    for l in 0..LANES {
                        let (a, b, c) = (t[3 * i][l], t[3 * i + 1][l], t[3 * i + 2][l]);
                        out[0][l] = a;
                        out[1][l] = 0.5 * (a + b + c);
                        out[2][l] = 0.5 * (a - b + c);
                        out[3][l] = c;
                    }
                    for (j, out) in out.iter().enumerate() {
                        let at = start + ((4 * i + j) * rows + r) * depth + part * LANES;
                        // SAFETY: the caller gave this task these kernels.
                        unsafe { u.slice(at, n) }.write_copy_of_slice(&out[..n]);
                    }
                }
            }
        }
    }
}

vectorised! {
    /// `A^T m A` of one channel's and one run's sums, by tap: two rows of outputs.
    fn transform_output(m: &[&[f32]; 16], bias: f32, y: &mut [[f32; 2 * RUN]; 2]) {
        let n = m[0].len();
        let mut s = [[[0f32; RUN]; 2]; 4];
        for (i, s) in s.iter_mut().enumerate() {
            let [m0, m1, m2, m3] = [m[4 * i], m[4 * i + 1], m[4 * i + 2], m[4 * i + 3]].map(|m| &m[..n]);
            let [left, right] = s;
            for k in 0..n.min(RUN) {
                left[k] = m0[k] + m1[k] + m2[k];
                right[k] = m1[k] - m2[k] - m3[k];
            }
        }
        let [upper, lower] = y;
        for k in 0..n.min(RUN) {
            for j in 0..2 {
                upper[2 * k + j] = s[0][j][k] + s[1][j][k] + s[2][j][k] + bias;
                lower[2 * k + j] = s[1][j][k] - s[2][j][k] - s[3][j][k] + bias;
            }
        }
    }
}

/// As [`super::conv::conv2d`], for sizes that [`suits`] accepts and an output that is not empty.
///
/// # Panics
/// When the slices are shorter than the sizes say.
pub(crate) fn conv2d(x: &[f32], weight: &[f32], bias: &[f32], sizes: Sizes) -> Vec<f32> {
    let [h_out, w_out] = sizes.out_size();
    let [rows, columns] = tiles(&sizes);
    let all = sizes.batch * rows * columns;
    let step = all.div_ceil(all.div_ceil(TILES)).next_multiple_of(16);
    let blocks = all.div_ceil(step);
    let cuts = (2 * rayon::current_num_threads()).div_ceil(blocks);
    let cuts = cuts.max(sizes.c_out.div_ceil(CHANNELS));
    let channels = sizes.c_out.div_ceil(cuts).next_multiple_of(8);
    let cuts = sizes.c_out.div_ceil(channels);
    let ready = (blocks > 1).then(|| transform_all(weight, &sizes, channels));
    let ready = ready.as_deref();
    let write = |out: Target| {
        (0..blocks * cuts).into_par_iter().for_each(|task| {
            let (block, cut) = (task / cuts, task % cuts);
            let task = Task {
                x,
                weight,
                ready,
                bias,
                sizes,
                channels: part(cut, channels, sizes.c_out),
                tiles: part(block, step, all),
            };
            task.run(out);
        });
    };
    // SAFETY: the tasks are every tile of every channel, and the tiles cover the map.
    unsafe { filled(sizes.batch * sizes.c_out * h_out * w_out, write) }
}

/// All kernels transformed, for several blocks of tiles: by parts of [`DEPTH`] input channels, in each by cuts of
/// `channels` output channels, in each as [`transform_kernels`] gives them.
fn transform_all(weight: &[f32], sizes: &Sizes, channels: usize) -> Vec<f32> {
    let [c_in, c_out] = [sizes.c_in, sizes.c_out];
    let cuts = c_out.div_ceil(channels);
    let write = |u: Target| {
        let tasks = (0..c_in.div_ceil(DEPTH) * cuts).into_par_iter();
        tasks.for_each(|task| {
            let from = part(task / cuts, DEPTH, c_in);
            let to = part(task % cuts, channels, c_out);
            let start = place(&from, &to, c_out);
            transform_kernels(weight, c_in, to, from, u, start);
        });
    };
    // SAFETY: the tasks are every kernel of every two channels.
    unsafe { filled(16 * c_in * c_out, write) }
}

/// Where the kernels of a part and a cut begin among all.
fn place(c_in: &Range<usize>, c_out: &Range<usize>, all_out: usize) -> usize {
    16 * (c_in.start * all_out + c_in.len() * c_out.start)
}

/// The `index`-th of the parts of `len` that `all` are cut into.
fn part(index: usize, len: usize, all: usize) -> Range<usize> {
    index * len..((index + 1) * len).min(all)
}

/// A block of the output: some channels of some tiles.
struct Task<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    /// Of [`transform_all`], where several tasks need the same kernels.
    ready: Option<&'a [f32]>,
    bias: &'a [f32],
    sizes: Sizes,
    channels: Range<usize>,
    tiles: Range<usize>,
}

impl Task<'_> {
    fn run(&self, out: Target) {
        let (m, n) = (self.channels.len(), self.tiles.len());
        let depth = DEPTH.min(self.sizes.c_in);
        let own = match self.ready {
            Some(_) => 0,
            None => 16 * m * depth,
        };
        scratch(16 * (m * n + depth * n) + own, |buffer| {
            let (sums, rest) = buffer.split_at_mut(16 * m * n);
            let (v, own) = rest.split_at_mut(16 * depth * n);
            for start in (0..self.sizes.c_in).step_by(depth) {
                let range = part(start / depth, depth, self.sizes.c_in);
                let k = range.len();
                let v = &mut v[..16 * k * n];
                transform_input(self.x, &self.sizes, range.clone(), self.tiles.clone(), v);
                let u = match self.ready {
                    Some(ready) => {
                        &ready[place(&range, &self.channels, self.sizes.c_out)..][..16 * m * k]
                    }
                    None => {
                        self.transform_own(range, own);
                        &own[..16 * m * k]
                    }
                };
                let operands = v.chunks_exact(k * n).zip(u.chunks_exact(m * k));
                for (sums, (v, u)) in sums.chunks_exact_mut(m * n).zip(operands) {
                    // SAFETY: the three slices are m x n, m x k and k x n; `sums` is this task's own and
                    // has values after the first round.
                    unsafe {
                        product(
                            [m, n, k],
                            sums.as_mut_ptr(),
                            n,
                            start > 0,
                            Matrix {
                                start: u.as_ptr(),
                                rows: k,
                                columns: 1,
                            },
                            Matrix {
                                start: v.as_ptr(),
                                rows: n,
                                columns: 1,
                            },
                            1.0,
                        );
                    }
                }
            }
            self.store(sums, out);
        });
    }

    /// Transforms this task's kernels, those of the input channels `range`.
    fn transform_own(&self, range: Range<usize>, own: &mut [f32]) {
        let target = Target {
            start: own.as_mut_ptr(),
            len: own.len(),
        };
        let channels = self.channels.clone();
        transform_kernels(self.weight, self.sizes.c_in, channels, range, target, 0);
    }

    /// Transforms the sums, `[16, channels, tiles]`, back and writes them to their places.
    fn store(&self, sums: &[f32], out: Target) {
        let (m, n) = (self.channels.len(), self.tiles.len());
        let [h_out, w_out] = self.sizes.out_size();
        let mut y = [[0f32; 2 * RUN]; 2];
        for (c, channel) in self.channels.clone().enumerate() {
            for run in runs(tiles(&self.sizes), self.tiles.clone()) {
                let taps = std::array::from_fn(|i| &sums[(i * m + c) * n + run.place..][..run.len]);
                transform_output(&taps, self.bias[channel], &mut y);
                let plane = (run.batch * self.sizes.c_out + channel) * h_out;
                let columns = (2 * run.len).min(w_out - 2 * run.column);
                // The first tile of an odd strip has its upper row outside.
                let skip = usize::from(self.sizes.odd && run.row == 0);
                let first = 2 * run.row + skip - usize::from(self.sizes.odd);
                for (i, y) in y[skip..].iter().enumerate().take(h_out - first) {
                    let at = (plane + first + i) * w_out + 2 * run.column;
                    // SAFETY: this task's tiles of one of its channels.
                    unsafe { out.slice(at, columns) }.write_copy_of_slice(&y[..columns]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::conv;
    use super::super::testing::{difference, wave};
    use super::*;

    #[test]
    fn winograd_is_the_direct_convolution() {
        let cases = [
            // batch, c_in, c_out, size, padding
            (2, 37, 41, [31, 37], [1, 1]),
            (1, 150, 35, [23, 29], [0, 1]),
            (3, 33, 330, [7, 5], [1, 1]),
            (2, 320, 64, [16, 16], [1, 1]),
            (1, 32, 32, [9, 260], [2, 0]),
            (1, 32, 32, [3, 3], [0, 0]),
        ];
        for (batch, c_in, c_out, size, padding) in cases {
            let sizes = Sizes {
                batch,
                c_in,
                c_out,
                size,
                kernel: 3,
                stride: 1,
                padding,
                odd: false,
            };
            let x = wave(batch * c_in * size[0] * size[1], 0.1);
            let weight = wave(c_out * c_in * 9, 0.8);
            let bias = wave(c_out, 1.9);
            let want = conv::plain(&x, &weight, &bias, sizes);
            let off = difference(&conv2d(&x, &weight, &bias, sizes), &want);
            let direct = difference(&conv::direct(&x, &weight, &bias, sizes), &want);
            println!("{sizes:?}: {off:.1e} of the largest value, the direct sum {direct:.1e}");
            assert!(off < 5e-6, "{sizes:?}: {off}");
        }
    }
}
