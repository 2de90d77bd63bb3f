//! What a scheme costs, from a model's config alone.
//!
//! - [`time`]: how long that takes, on machines and a link of some speed.
//! - [`picture`]: what all calls of a picture take.
//! - [`paper`]: the tables of PPIDM beside what they should say.
//! - here: summaries.

pub mod paper;
pub mod picture;
pub mod time;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::fleet::tally::Kind;
use crate::schemes::count::{Count, Counted};

/// Bytes of the single layers of a kind: least and most of one, and all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Span {
    /// Of the layer with the fewest.
    pub min: usize,
    /// Of the layer with the most.
    pub max: usize,
    /// Of all.
    pub total: usize,
}

impl Span {
    fn of(layers: &[usize]) -> Self {
        Self {
            min: layers.iter().copied().min().unwrap_or(0),
            max: layers.iter().copied().max().unwrap_or(0),
            total: layers.iter().sum(),
        }
    }
}

/// One kind of layer, for the worker that gets the most of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OfKind {
    /// Number of exchanges.
    pub exchanges: usize,
    /// Bytes that one worker gets.
    pub up_per_worker: Span,
    /// Bytes that one worker hands out.
    pub down_per_worker: Span,
}

/// Bytes by kind of layer, for the worker that gets the most.
pub fn by_kind(count: &Count) -> BTreeMap<Kind, OfKind> {
    let mut kinds: BTreeMap<Kind, Vec<&Counted>> = BTreeMap::new();
    for exchange in &count.exchanges {
        kinds.entry(exchange.kind).or_default().push(exchange);
    }
    let workers = count.workers_flop.len();
    // Only the layers in which anything goes that way.
    let layers = |of: &[&Counted], side: fn(&Counted) -> &[usize], worker: usize| {
        let bytes = of.iter().map(|e| side(e)[worker]);
        Span::of(&bytes.filter(|bytes| *bytes > 0).collect::<Vec<_>>())
    };
    let most = |of: &[&Counted], side: fn(&Counted) -> &[usize]| {
        let spans = (0..workers).map(|worker| layers(of, side, worker));
        spans.max_by_key(|span| span.total).unwrap_or_default()
    };
    kinds
        .into_iter()
        .map(|(kind, of)| {
            let summary = OfKind {
                exchanges: of.len(),
                up_per_worker: most(&of, |e| &e.up),
                down_per_worker: most(&of, |e| &e.down),
            };
            (kind, summary)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worker_that_gets_the_most_counts() {
        let exchange = |up: [usize; 2]| Counted {
            label: "layer".into(),
            kind: Kind::Conv,
            up: up.to_vec(),
            down: vec![1, 1],
            bands: 1,
            ahead: 0,
            workers_flop: 0,
            user_flop: 0,
        };
        let count = Count {
            exchanges: vec![exchange([5, 7]), exchange([0, 3]), exchange([1, 2])],
            ..Count::new(2)
        };
        let kinds = by_kind(&count);
        let span = Span {
            min: 2,
            max: 7,
            total: 12,
        };
        assert_eq!(kinds[&Kind::Conv].up_per_worker, span);
        assert_eq!(kinds[&Kind::Conv].exchanges, 3);
    }
}
