//! 3x3 convolutions of stride 1 by Winograd's minimal filtering, as `super::super::winograd` has it of f32, in a ring: 16
//! multiplications for four outputs instead of 36.
//!
//! Its transform of a kernel halves sums of weights, which integers do not bear. Here they stay whole, and the outer sums
//! of the last transform count twice instead, both ways: of integers that is four times the output, and so of words that
//! wrap, whose two upper bits are lost. The lower 30 are exact. A transformed weight is no larger than 3 times the norm of
//! its kernel.

use std::ops::Range;

use rayon::prelude::*;

use super::Weights;
use super::product::even;
use super::tile::{self, COLUMNS, Features, ROWS, Sums, in_halves, two};
use crate::simd::{Width, vectorised};
use crate::sizes::Sizes;
use crate::{Target, filled, scratch_words};

/// Bits of a product that are exact.
pub(super) const EXACT: u32 = 30;

/// Taps of a transformed kernel.
pub(super) const TAPS: usize = 16;

/// Most pairs of channels that are taken at a time.
const DEPTH: usize = 64;

/// Most panels of a task.
const PANELS: usize = 2;

/// One value of [`COLUMNS`] tiles, at each place of a patch or of a transformed kernel.
type Patches = [[i32; COLUMNS]; TAPS];

/// Whether a convolution is one that this is faster for: of tiles that fill a panel.
pub(super) fn suits(sizes: &Sizes) -> bool {
    let [rows, columns] = tiles(sizes);
    sizes.kernel == 3 && sizes.stride == 1 && sizes.batch * rows * columns >= COLUMNS
}

/// Rows and columns of tiles.
fn tiles(sizes: &Sizes) -> [usize; 2] {
    sizes.out_size().map(|size| size.div_ceil(2))
}

/// The kernel `[3, 3]` of one input and output, transformed; none where that does not fit 16 bits.
fn transformed(kernel: &[i16; 9]) -> Option<[i16; TAPS]> {
    let three = |[a, b, c]: [i32; 3]| [a, a + b + c, a - b + c, c];
    let columns = [0, 1, 2].map(|x| three([0, 3, 6].map(|y| i32::from(kernel[y + x]))));
    let mut taps = [0; TAPS];
    for (y, taps) in taps.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let row = three(columns.map(|column| column[y]));
        for (tap, value) in taps.iter_mut().zip(row) {
            *tap = i16::try_from(value).ok()?;
        }
    }
    Some(taps)
}

/// `weights` `[outputs, inputs, 3, 3]` transformed, `[outputs, inputs, 16]`; none where one does not fit 16 bits.
pub(super) fn transform(weights: &[i16]) -> Option<Vec<i16>> {
    let mut all = vec![0; weights.len() / 9 * TAPS];
    let kernels = weights.as_chunks::<9>().0.par_iter();
    let fit = kernels.zip(all.as_chunks_mut::<TAPS>().0.par_iter_mut());
    let fit = fit.map(|(kernel, taps)| transformed(kernel).map(|values| *taps = values));
    fit.all(|one| one.is_some()).then_some(all)
}

vectorised! {
    /// `B^T d B` of patches d of two channels, as pairs.
    fn transform_patches(halves: bool, both: &mut [Patches; 2], to: &mut [Features; TAPS]) {
        let line = |[a, b, c, d]: [i32; 4]| {
            [a.wrapping_sub(c), b.wrapping_add(c), c.wrapping_sub(b), b.wrapping_sub(d)]
        };
        for d in both.iter_mut() {
            // Rows and then columns.
            for (step, along) in [(1, 4), (4, 1)] {
                for i in 0..4 {
                    let at = |j: usize| i * along + j * step;
                    let from = [0, 1, 2, 3].map(|j| d[at(j)]);
                    let mut to = [[0; COLUMNS]; 4];
                    for k in 0..COLUMNS {
                        let values = line([from[0][k], from[1][k], from[2][k], from[3][k]]);
                        for j in 0..4 {
                            to[j][k] = values[j];
                        }
                    }
                    for (j, to) in to.into_iter().enumerate() {
                        d[at(j)] = to;
                    }
                }
            }
        }
        let [first, second] = both;
        for ((to, first), second) in to.iter_mut().zip(first.iter()).zip(second.iter()) {
            let [low, high] = to;
            for k in 0..COLUMNS {
                [low[k], high[k]] = match halves {
                    true => two::<true>(first[k], second[k]),
                    false => two::<false>(first[k], second[k]),
                };
            }
        }
    }
}

vectorised! {
    /// Two rows of outputs from the sums of one output's tiles by tap.
    fn transform_sums(m: &[&[i32; COLUMNS]; TAPS], rows: &mut [[i32; 2 * COLUMNS]; 2]) {
        let line = |[a, b, c, d]: [i32; 4]| {
            let [outer, last] = [a.wrapping_add(a), d.wrapping_add(d)];
            [
                outer.wrapping_add(b).wrapping_add(c),
                b.wrapping_sub(c).wrapping_sub(last),
            ]
        };
        let [upper, lower] = rows;
        for k in 0..COLUMNS {
            let mut s = [[0; 4]; 2];
            for j in 0..4 {
                [s[0][j], s[1][j]] = line([m[j][k], m[4 + j][k], m[8 + j][k], m[12 + j][k]]);
            }
            [upper[2 * k], upper[2 * k + 1]] = line(s[0]).map(|four| four >> 2);
            [lower[2 * k], lower[2 * k + 1]] = line(s[1]).map(|four| four >> 2);
        }
    }
}

/// Tiles that follow each other in a row of tiles of one batch entry, within a panel.
struct Run {
    entry: usize,
    row: usize,
    column: usize,
    len: usize,
    /// The first one's place in its panel.
    place: usize,
}

/// The runs of the tiles of a panel, counted through the batch; `rows` and `columns` of tiles has a map.
fn runs([rows, columns]: [usize; 2], tiles: Range<usize>) -> Vec<Run> {
    let (mut runs, mut at) = (Vec::new(), tiles.start);
    while at < tiles.end {
        let column = at % columns;
        let len = (columns - column).min(tiles.end - at);
        runs.push(Run {
            entry: at / columns / rows,
            row: at / columns % rows,
            column,
            len,
            place: at - tiles.start,
        });
        at += len;
    }
    runs
}

/// As [`super::conv2d`] with transformed `weights`, for an output that is not empty.
pub(super) fn conv2d(width: Width, x: &[i32], weights: &Weights, sizes: Sizes) -> Vec<i32> {
    let [h_out, w_out] = sizes.out_size();
    let tiles = tiles(&sizes);
    let all = sizes.batch * tiles[0] * tiles[1];
    let threads = rayon::current_num_threads();
    let (panels, rows) = (all.div_ceil(COLUMNS), sizes.c_out.div_ceil(ROWS));
    let blocks = panels
        .div_ceil(PANELS)
        .next_multiple_of(threads)
        .min(panels);
    let cuts = threads.div_ceil(blocks).min(rows);
    let write = |out: Target<i32>| {
        (0..blocks * cuts).into_par_iter().for_each(|task| {
            let panels = even(panels, blocks, task % blocks);
            let panels = panels.map(|panel| {
                let start = panel * COLUMNS;
                runs(tiles, start..(start + COLUMNS).min(all))
            });
            let task = Task {
                width,
                x,
                weights,
                sizes,
                rows: even(rows, cuts, task / blocks),
                panels: panels.collect(),
            };
            task.run(out);
        });
    };
    // SAFETY: the tasks are every tile of every output, and the tiles cover the map.
    unsafe { filled(sizes.batch * sizes.c_out * h_out * w_out, write) }
}

/// Some rows of tiles of the product, at some panels of tiles of the map.
struct Task<'a> {
    width: Width,
    x: &'a [i32],
    weights: &'a Weights,
    sizes: Sizes,
    rows: Range<usize>,
    panels: Vec<Vec<Run>>,
}

impl Task<'_> {
    fn run(&self, out: Target<i32>) {
        let pairs = self.sizes.c_in.div_ceil(2);
        let all_rows = self.sizes.c_out.div_ceil(ROWS);
        let (panels, rows) = (self.panels.len(), self.rows.len());
        let own = panels * DEPTH.min(pairs) * TAPS * 2 * COLUMNS;
        let sums = panels * TAPS * rows * ROWS * COLUMNS;
        scratch_words(own + sums, |buffer| {
            let (own, sums) = buffer.split_at_mut(own);
            sums.fill(0);
            let own: &mut [Features] = own.as_chunks_mut().0.as_chunks_mut().0;
            // Of each panel, of each tap.
            let sums: &mut [Sums] = sums.as_chunks_mut().0.as_chunks_mut().0;
            for start in (0..pairs).step_by(DEPTH) {
                let some = start..(start + DEPTH).min(pairs);
                let depth = some.len();
                let own = &mut own[..panels * TAPS * depth];
                for (runs, own) in self.panels.iter().zip(own.chunks_exact_mut(TAPS * depth)) {
                    self.transform_input(runs, some.clone(), own);
                }
                let parts = own.chunks_exact(depth).zip(sums.chunks_exact_mut(rows));
                for (i, (features, sums)) in parts.enumerate() {
                    for (row, sums) in self.rows.clone().zip(sums) {
                        let line = (i % TAPS * all_rows + row) * pairs;
                        let weights = &self.weights.panels[line..][some.clone()];
                        tile::add(self.width, features, weights, sums);
                    }
                }
            }
            let each = self.panels.iter().zip(sums.chunks_exact(TAPS * rows));
            each.for_each(|(runs, sums)| self.store(runs, sums, out));
        });
    }

    /// The transformed patches of `pairs` at the tiles of `runs`: `[16, pairs]`.
    fn transform_input(&self, runs: &[Run], pairs: Range<usize>, to: &mut [Features]) {
        let depth = pairs.len();
        let mut both = [[[0; COLUMNS]; TAPS]; 2];
        let mut taps = [[[0; COLUMNS]; 2]; TAPS];
        for (i, pair) in pairs.enumerate() {
            for (channel, patches) in (2 * pair..self.sizes.c_in).zip(&mut both) {
                self.patches(channel, runs, patches);
            }
            // What an odd number of channels lacks is what was there before, and has weights of zero.
            transform_patches(in_halves(self.width), &mut both, &mut taps);
            for (tap, features) in taps.iter().enumerate() {
                to[tap * depth + i] = *features;
            }
        }
    }

    /// The patches `[4, 4]` of a channel at the tiles of `runs`.
    fn patches(&self, channel: usize, runs: &[Run], patches: &mut Patches) {
        let (sizes, mut line) = (&self.sizes, [0; 2 * COLUMNS + 2]);
        let ([h, w], [above, left]) = (sizes.size, sizes.padding);
        for run in runs {
            let map = &self.x[(run.entry * sizes.c_in + channel) * h * w..][..h * w];
            // Columns of the padded input, of which those inside are from..to.
            let first = 2 * run.column;
            let line = &mut line[..2 * run.len + 2];
            let from = left.clamp(first, first + line.len());
            let to = (w + left).clamp(from, first + line.len());
            for (i, patches) in patches.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let row = (2 * run.row + i).wrapping_sub(above);
                if row < h && from < to {
                    line[..from - first].fill(0);
                    line[to - first..].fill(0);
                    let inside = &map[row * w + from - left..][..to - from];
                    line[from - first..to - first].copy_from_slice(inside);
                } else {
                    line.fill(0);
                }
                for (j, patch) in patches.iter_mut().enumerate() {
                    let every_second = line[j..].iter().step_by(2);
                    let patch = &mut patch[run.place..][..run.len];
                    patch
                        .iter_mut()
                        .zip(every_second)
                        .for_each(|(to, from)| *to = *from);
                }
            }
        }
    }

    /// Transforms the sums `[16, rows]` of a panel back and writes them to their places.
    fn store(&self, runs: &[Run], sums: &[Sums], out: Target<i32>) {
        let (rows, [h_out, w_out]) = (self.rows.len(), self.sizes.out_size());
        let mut lines = [[0; 2 * COLUMNS]; 2];
        for i in 0..rows {
            let first = (self.rows.start + i) * ROWS;
            for (r, output) in (first..self.sizes.c_out).take(ROWS).enumerate() {
                let taps = std::array::from_fn(|tap| &sums[tap * rows + i][r]);
                transform_sums(&taps, &mut lines);
                for run in runs {
                    let map = (run.entry * self.sizes.c_out + output) * h_out;
                    let len = (2 * run.len).min(w_out - 2 * run.column);
                    let rows = (2 * run.row..h_out).zip(&lines);
                    for (row, line) in rows {
                        let at = (map + row) * w_out + 2 * run.column;
                        let line = &line[2 * run.place..][..len];
                        // SAFETY: this task's tiles of one of its outputs.
                        unsafe { out.slice(at, len) }.write_copy_of_slice(line);
                    }
                }
            }
        }
    }
}
