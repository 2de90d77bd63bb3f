//! Where a tile's positions find the features of maps.

use std::ops::Range;

use rayon::prelude::*;

use super::product::Source;
use super::tile::{COLUMNS, Features, in_halves, two};
use crate::simd::{Width, vectorised};
use crate::sizes::Sizes;

/// Features of maps, each two of which belong together as [`Features`] has them.
pub(super) struct Planes {
    /// `[B, pairs, 2, plane]`: of feature maps with the zeros around them.
    words: Vec<i32>,
    /// Words of a plane.
    plane: usize,
    /// Of those, how many a row has.
    pitch: usize,
    pairs: usize,
    kernel: usize,
    stride: usize,
    /// Rows and columns of the output.
    out: [usize; 2],
}

/// Positions that follow each other in a panel, and whose features do so in a plane.
pub(super) struct Segment {
    /// The first position, counted from the task's first.
    to: usize,
    /// Where the first pair's first half is for it, at the first tap.
    from: usize,
    len: usize,
}

vectorised! {
    /// A row of each of two features, as [`two`] gives it.
    pub(super) fn split_row(halves: bool, a: &[i32], b: &[i32], low: &mut [i32], high: &mut [i32]) {
        let from = a.iter().zip(b);
        let to = low.iter_mut().zip(high);
        if halves {
            to.zip(from).for_each(|((low, high), (a, b))| [*low, *high] = two::<true>(*a, *b));
        } else {
            to.zip(from).for_each(|((low, high), (a, b))| [*low, *high] = two::<false>(*a, *b));
        }
    }
}

impl Planes {
    /// Of feature maps `x` `[B, C_in, H, W]`, of which there are some.
    pub(super) fn of_maps(width: Width, x: &[i32], sizes: Sizes) -> Self {
        let ([h, w], [above, left]) = (sizes.size, sizes.padding);
        let (pairs, pitch) = (sizes.c_in.div_ceil(2), w + 2 * left);
        let plane = (h + 2 * above) * pitch;
        let halves = in_halves(width);
        let mut words = vec![0; sizes.batch * pairs * 2 * plane];
        let each = words.par_chunks_mut(2 * plane).enumerate();
        each.for_each(|(i, both)| {
            let (entry, pair) = (i / pairs, i % pairs);
            // What an odd number of channels lacks has weights of zero.
            let none = vec![0; w];
            let line = |channel: usize, row: usize| match channel < sizes.c_in {
                true => &x[((entry * sizes.c_in + channel) * h + row) * w..][..w],
                false => &none,
            };
            let (low, high) = both.split_at_mut(plane);
            for row in 0..h {
                let (a, b) = (line(2 * pair, row), line(2 * pair + 1, row));
                let at = (row + above) * pitch + left;
                let to = at..at + w;
                split_row(halves, a, b, &mut low[to.clone()], &mut high[to]);
            }
        });
        Self {
            words,
            plane,
            pitch,
            pairs,
            kernel: sizes.kernel,
            stride: sizes.stride,
            out: sizes.out_size(),
        }
    }
}

impl Source for Planes {
    type Found = Vec<Segment>;

    fn depth(&self) -> usize {
        self.pairs * self.kernel * self.kernel
    }

    fn find(&self, positions: Range<usize>) -> Vec<Segment> {
        let [rows, columns] = self.out;
        let (mut segments, mut at) = (Vec::new(), positions.start);
        while at < positions.end {
            let (entry, row, column) = (at / columns / rows, at / columns % rows, at % columns);
            let to = at - positions.start;
            let len = (columns - column)
                .min(COLUMNS - to % COLUMNS)
                .min(positions.end - at);
            segments.push(Segment {
                to,
                from: entry * self.pairs * 2 * self.plane
                    + self.stride * (row * self.pitch + column),
                len,
            });
            at += len;
        }
        segments
    }

    fn gather(&self, segments: &Vec<Segment>, places: Range<usize>, panels: &mut [Features]) {
        let (taps, depth) = (self.kernel * self.kernel, places.len());
        for (i, place) in places.enumerate() {
            let (pair, tap) = (place / taps, place % taps);
            let tap = tap / self.kernel * self.pitch + tap % self.kernel;
            for half in [0, 1] {
                let words = &self.words[(2 * pair + half) * self.plane + tap..];
                for Segment { to, from, len } in segments {
                    let line = &mut panels[to / COLUMNS * depth + i][half];
                    let line = &mut line[to % COLUMNS..][..*len];
                    match self.stride {
                        1 => copy(&words[*from..][..*len], line),
                        stride => {
                            let spread = words[*from..].iter().step_by(stride);
                            line.iter_mut()
                                .zip(spread)
                                .for_each(|(to, from)| *to = *from);
                        }
                    }
                }
            }
        }
    }
}

/// Copies as many, of lengths that come often without a call.
#[inline(always)]
fn copy(from: &[i32], to: &mut [i32]) {
    fn fixed<const N: usize>(from: &[i32], to: &mut [i32]) -> Option<()> {
        *to.as_mut_array::<N>()? = *from.as_array::<N>()?;
        Some(())
    }
    match from.len() {
        32 => fixed::<32>(from, to),
        16 => fixed::<16>(from, to),
        8 => fixed::<8>(from, to),
        _ => None,
    }
    .unwrap_or_else(|| to.copy_from_slice(from));
}
