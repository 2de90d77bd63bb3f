//! What was sent to a worker, and what it saw and did.

use std::collections::BTreeMap;
use std::ops::Range;

use lacuna_protocol::placement::Tile;
use serde::{Deserialize, Serialize};

use super::config::WorkerConfig;

/// Kinds of layers, as the paper's tables have them. Statistics that travel with a convolution's
/// halo count as the convolution's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Convolutions.
    Conv,
    /// Linear maps of tokens.
    Linear,
    /// Attentions.
    Attention,
    /// Group normalisations.
    GroupNorm,
    /// The noisy latents and the prediction.
    Latents,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Conv => "conv",
            Self::Linear => "linear",
            Self::Attention => "attention",
            Self::GroupNorm => "group_norm",
            Self::Latents => "latents",
        })
    }
}

/// Bytes each way; the bodies of requests and replies, without HTTP's headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Number of requests.
    pub requests: u64,
    /// From the user.
    pub bytes_up: u64,
    /// To the user.
    pub bytes_down: u64,
    /// Of those from the user, the tensors' numbers.
    pub payload_up: u64,
    /// Of those to the user, the tensors' numbers.
    pub payload_down: u64,
}

/// The size of a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// All of it.
    pub bytes: usize,
    /// The tensors' numbers.
    pub payload: usize,
}

impl Traffic {
    /// Adds another account to this one.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.bytes_up += other.bytes_up;
        self.bytes_down += other.bytes_down;
        self.payload_up += other.payload_up;
        self.payload_down += other.payload_down;
    }
}

/// One worker's account.
#[derive(Clone, Debug)]
pub struct Tally {
    /// The worker's address.
    pub url: String,
    /// Whose it is.
    pub provider: String,
    /// Bytes by kind of layer.
    pub kinds: BTreeMap<Kind, Traffic>,
    /// Work done, multiply and add counted as two.
    pub flop: u64,
    /// What it was shown.
    pub seen: Seen,
}

/// What a session showed to whom.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shown {
    /// The worker's address.
    pub url: String,
    /// Whose it is.
    pub provider: String,
    /// What it was shown.
    pub seen: Seen,
}

impl From<&Tally> for Shown {
    fn from(tally: &Tally) -> Self {
        Self {
            url: tally.url.clone(),
            provider: tally.provider.clone(),
            seen: tally.seen.clone(),
        }
    }
}

impl From<Shown> for Tally {
    /// An account of which nothing else is known.
    fn from(shown: Shown) -> Self {
        Self {
            url: shown.url,
            provider: shown.provider,
            kinds: BTreeMap::new(),
            flop: 0,
            seen: shown.seen,
        }
    }
}

/// What a worker is shown of a picture.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// Rows that it computes, over all layers.
    pub rows: Coverage,
    /// Rows that it is sent, halos included, over all layers.
    pub rows_with_halo: Coverage,
    /// Parts of the queries, and of the keys and values, that it gets permuted and rotated.
    pub tiles: [Coverage; 2],
    /// Words that are uniform to it whatever the picture is.
    pub words: Words,
}

/// Words of shares, by their number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Words {
    /// That a worker is sent.
    pub sent: u64,
    /// That it draws from a seed.
    pub drawn: u64,
}

impl Words {
    /// Adds all of `other`.
    pub fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.drawn += other.drawn;
    }

    /// Whether there are none.
    pub fn are_none(&self) -> bool {
        *self == Self::default()
    }
}

impl Seen {
    /// Adds all of `other`.
    pub fn extend(&mut self, other: &Self) {
        self.rows.extend(&other.rows);
        self.rows_with_halo.extend(&other.rows_with_halo);
        for (part, other) in self.tiles.iter_mut().zip(&other.tiles) {
            part.extend(other);
        }
        self.words.add(other.words);
    }

    /// Adds a strip, with one row of its neighbours on either side, of `rows` rows.
    pub fn add_strip(&mut self, strip: &Range<usize>, rows: usize) {
        let [start, end] = [strip.start, strip.end].map(|row| row as isize);
        self.rows.add(start, end, rows);
        self.rows_with_halo.add(start - 1, end + 1, rows);
    }

    /// Adds a tile of an attention.
    pub fn add_tile(&mut self, tile: Tile) {
        for (seen, part) in self.tiles.iter_mut().zip([tile.queries, tile.keys]) {
            let index = part.index as isize;
            seen.add(index, index + 1, part.of);
        }
    }
}

impl Tally {
    /// An empty account.
    pub fn new(worker: &WorkerConfig) -> Self {
        Self {
            url: worker.url.to_string(),
            provider: worker.provider.clone(),
            kinds: BTreeMap::new(),
            flop: 0,
            seen: Seen::default(),
        }
    }

    /// Adds another account of the same worker to this one.
    pub fn add(&mut self, other: &Self) {
        for (kind, traffic) in &other.kinds {
            self.kinds.entry(*kind).or_default().add(traffic);
        }
        self.flop += other.flop;
        self.seen.extend(&other.seen);
    }

    /// Counts one request.
    pub fn count_request(&mut self, kind: Kind, size: Size) {
        let traffic = self.kinds.entry(kind).or_default();
        traffic.requests += 1;
        traffic.bytes_up += size.bytes as u64;
        traffic.payload_up += size.payload as u64;
    }

    /// Counts a reply.
    pub fn count_reply(&mut self, kind: Kind, size: Size) {
        let traffic = self.kinds.entry(kind).or_default();
        traffic.bytes_down += size.bytes as u64;
        traffic.payload_down += size.payload as u64;
    }

    /// All kinds together.
    pub fn total(&self) -> Traffic {
        let mut total = Traffic::default();
        self.kinds.values().for_each(|t| total.add(t));
        total
    }
}

/// A part of the picture's height, as a union of intervals in 0..1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Coverage {
    /// Disjoint, sorted.
    intervals: Vec<(f64, f64)>,
}

impl Coverage {
    /// Adds rows `from..to` of `rows`; what lies outside is cut off.
    pub fn add(&mut self, from: isize, to: isize, rows: usize) {
        let part = |row: isize| (row.clamp(0, rows as isize)) as f64 / rows.max(1) as f64;
        self.add_part(part(from), part(to));
    }

    /// Adds all of `other`.
    pub fn extend(&mut self, other: &Self) {
        for &(start, end) in &other.intervals {
            self.add_part(start, end);
        }
    }

    fn add_part(&mut self, mut start: f64, mut end: f64) {
        if start >= end {
            return;
        }
        self.intervals.retain(|&(s, e)| {
            let apart = e < start || s > end;
            if !apart {
                start = start.min(s);
                end = end.max(e);
            }
            apart
        });
        let place = self.intervals.partition_point(|&(s, _)| s < start);
        self.intervals.insert(place, (start, end));
    }

    /// The part's share of the height, 0 to 1.
    pub fn share(&self) -> f64 {
        // The sum of nothing would be minus zero.
        self.intervals.iter().fold(0.0, |all, (s, e)| all + e - s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coverage_is_a_union() {
        let mut coverage = Coverage::default();
        coverage.add(0, 2, 8);
        coverage.add(4, 6, 8);
        assert_eq!(coverage.share(), 0.5);
        coverage.add(1, 5, 8);
        assert_eq!(coverage.share(), 0.75);
        coverage.add(-3, 1, 8);
        assert_eq!(coverage.share(), 0.75);
        coverage.add(3, 9, 4);
        assert_eq!(coverage.share(), 1.0);
        coverage.add(2, 2, 4);
        assert_eq!(coverage.share(), 1.0);
        let [mut top, mut bottom] = [Coverage::default(), Coverage::default()];
        top.add(0, 3, 8);
        bottom.add(2, 4, 8);
        top.extend(&bottom);
        assert_eq!(top.share(), 0.5);
    }
}
