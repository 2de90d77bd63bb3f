//! A worker's rows of one layer.

use std::ops::Range;

use lacuna_model::layers::Conv2d;
use lacuna_model::partition::{rows_with_halo, strips};

use crate::fleet::tally::Seen;

/// A worker's rows of one layer.
#[derive(Clone, Debug)]
pub(super) struct Strip {
    /// Output rows that it computes.
    pub own: Range<usize>,
    /// Output rows of the whole picture.
    rows: usize,
    /// Input rows that it is sent; those outside the picture are zeros.
    pub sent: Range<isize>,
    /// Input rows of the whole picture.
    of: usize,
}

impl Strip {
    /// `rows` rows in `n` strips that need no halo.
    pub(super) fn plain(rows: usize, n: usize) -> Vec<Self> {
        let strip = |own: Range<usize>| Self {
            sent: own.start as isize..own.end as isize,
            own,
            rows,
            of: rows,
        };
        strips(rows, n).into_iter().map(strip).collect()
    }

    /// The `n` strips of a convolution of `of` rows.
    pub(super) fn convolved(layer: &Conv2d, of: usize, n: usize) -> Vec<Self> {
        let rows = layer.out_size(of);
        let strip = |own: Range<usize>| Self {
            sent: rows_with_halo(layer, &own),
            own,
            rows,
            of,
        };
        strips(rows, n).into_iter().map(strip).collect()
    }

    /// Adds it to the rows that its worker computes, and to those that it is sent.
    pub(super) fn add_to(&self, seen: &mut Seen) {
        let [start, end] = [self.own.start, self.own.end].map(|row| row as isize);
        seen.rows.add(start, end, self.rows);
        if !self.own.is_empty() {
            seen.rows_with_halo
                .add(self.sent.start, self.sent.end, self.of);
        }
    }
}
