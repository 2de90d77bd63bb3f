//! Where a tile's positions find the features of tokens.

use std::ops::Range;

use super::planes::split_row;
use super::product::Source;
use super::tile::{COLUMNS, Features};

/// Pairs of features that are turned at a time.
const TURNED: usize = 16;

/// Tokens `[T, K]`.
pub(super) struct Tokens<'a> {
    pub(super) x: &'a [i32],
    /// Of each.
    pub(super) features: usize,
    /// Whether features are multiplied in halves.
    pub(super) halves: bool,
}

impl Source for Tokens<'_> {
    type Found = Range<usize>;

    fn depth(&self) -> usize {
        self.features.div_ceil(2)
    }

    fn find(&self, positions: Range<usize>) -> Range<usize> {
        positions
    }

    fn gather(&self, positions: &Range<usize>, places: Range<usize>, panels: &mut [Features]) {
        let x = &self.x[positions.start * self.features..positions.end * self.features];
        let tokens = x.chunks(COLUMNS * self.features);
        for (panel, tokens) in panels.chunks_exact_mut(places.len()).zip(tokens) {
            let pairs = places.clone().step_by(TURNED);
            for (pairs, first) in panel.chunks_mut(TURNED).zip(pairs) {
                let mut lines = [[0; COLUMNS]; 2 * TURNED];
                for (t, token) in tokens.chunks_exact(self.features).enumerate() {
                    let token = &token[2 * first..];
                    let mut some = [0; 2 * TURNED];
                    // All of them where there are as many: of a known number. One more is of an odd number of features,
                    // and has weights of zero.
                    match token.first_chunk() {
                        Some(all) => some = *all,
                        None => some[..token.len()].copy_from_slice(token),
                    }
                    for (line, feature) in lines.iter_mut().zip(some) {
                        line[t] = feature;
                    }
                }
                for ([low, high], [a, b]) in pairs.iter_mut().zip(lines.as_chunks().0) {
                    split_row(self.halves, a, b, low, high);
                }
            }
        }
    }
}
