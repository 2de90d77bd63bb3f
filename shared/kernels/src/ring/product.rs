//! How tasks go through a product.
//!
//! A task takes some positions and all outputs, or a part of them. Of some features at a time it copies what a tile's
//! positions meet into a panel, which stays in the nearest cache while the weights of all outputs pass by it, and
//! adds to the sums of each tile (the loops of Goto and van de Geijn 2008).

use std::ops::Range;

use rayon::prelude::*;

use super::Weights;
use super::tile::{self, COLUMNS, Features, ROWS, Sums};
use crate::matmul::even_part;
use crate::scratch_words;
use crate::simd::Width;

/// Most pairs of features that are taken at a time: of a tile's positions so many fill three quarters of the nearest cache.
const DEPTH: usize = 96;

/// Sums of one task, about: with its panels they stay in a core's own cache.
const SUMS: usize = 1 << 17;

/// Most tiles' positions of one task.
const PANELS: usize = 8;

/// Where a layer's input has the features that positions of the output meet.
pub(super) trait Source: Sync {
    /// Where it has those of some positions.
    type Found;

    /// Pairs of features that an output is a sum of.
    fn depth(&self) -> usize;

    /// Where `positions`, counted through the batch, find what they meet.
    fn find(&self, positions: Range<usize>) -> Self::Found;

    /// Copies the features at `places` of the sum that the positions found before meet to `panels`: of each [`COLUMNS`] of
    /// these as many as there are places.
    fn gather(&self, found: &Self::Found, places: Range<usize>, panels: &mut [Features]);
}

/// A tile of the result: some outputs at some positions.
pub(super) struct Tile<'a> {
    pub(super) outputs: Range<usize>,
    pub(super) positions: Range<usize>,
    /// Of each output; what is beyond those is nothing.
    pub(super) sums: &'a Sums,
}

/// Multiplies what `positions` positions meet in `source` with `weights`, and gives `store` each tile.
pub(super) fn multiply(
    width: Width,
    source: &impl Source,
    weights: &Weights,
    positions: usize,
    store: impl Fn(Tile<'_>) + Sync,
) {
    let threads = rayon::current_num_threads();
    let (panels, rows) = (positions.div_ceil(COLUMNS), weights.outputs.div_ceil(ROWS));
    let most = (SUMS / (rows * ROWS * COLUMNS)).clamp(1, PANELS);
    // As many for each thread.
    let blocks = panels.div_ceil(most).next_multiple_of(threads).min(panels);
    // Fewer positions than threads: each has all of them, and a part of the outputs.
    let cuts = threads.div_ceil(blocks).min(rows);
    (0..blocks * cuts).into_par_iter().for_each(|task| {
        let (block, cut) = (task % blocks, task / blocks);
        let panels = even(panels, blocks, block);
        let task = Task {
            width,
            source,
            weights,
            rows: even(rows, cuts, cut),
            positions: panels.start * COLUMNS..(panels.end * COLUMNS).min(positions),
        };
        task.run(&store);
    });
}

/// The `index`-th of as many as `parts` parts of `all`, which are as large as any other but for one.
pub(super) fn even(all: usize, parts: usize, index: usize) -> Range<usize> {
    all * index / parts..all * (index + 1) / parts
}

/// Some rows of tiles at some positions.
struct Task<'a, S> {
    width: Width,
    source: &'a S,
    weights: &'a Weights,
    rows: Range<usize>,
    positions: Range<usize>,
}

impl<S: Source> Task<'_, S> {
    fn run(&self, store: &impl Fn(Tile<'_>)) {
        let depth = self.source.depth();
        let part = even_part(depth, DEPTH);
        let panels = self.positions.len().div_ceil(COLUMNS);
        let found = self.source.find(self.positions.clone());
        let own = panels * part * 2 * COLUMNS;
        let sums = panels * self.rows.len() * ROWS * COLUMNS;
        scratch_words(own + sums, |buffer| {
            let (own, sums) = buffer.split_at_mut(own);
            let own = own.as_chunks_mut().0.as_chunks_mut().0;
            sums.fill(0);
            let sums = sums.as_chunks_mut().0.as_chunks_mut().0;
            for start in (0..depth).step_by(part) {
                let places = start..(start + part).min(depth);
                let own = &mut own[..panels * places.len()];
                self.source.gather(&found, places.clone(), own);
                let columns = sums.chunks_exact_mut(self.rows.len());
                for (panel, sums) in own.chunks_exact(places.len()).zip(columns) {
                    for (row, sums) in self.rows.clone().zip(sums) {
                        let weights = &self.weights.panels[row * depth..][places.clone()];
                        tile::add(self.width, panel, weights, sums);
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                let output = (self.rows.start + i % self.rows.len()) * ROWS;
                let position = self.positions.start + i / self.rows.len() * COLUMNS;
                store(Tile {
                    outputs: output..(output + ROWS).min(self.weights.outputs),
                    positions: position..(position + COLUMNS).min(self.positions.end),
                    sums,
                });
            }
        });
    }
}
