//! Where the parts of a U-Net call are computed that a strip alone cannot do.

use std::ops::Range;

pub use lacuna_wire::Wire;
use serde::{Deserialize, Serialize};

/// Where the parts of a U-Net call are computed that a strip alone cannot do, and how features travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Who attends to the whole picture.
    pub self_attention: Attentions,
    /// Whether workers may know the prompt.
    pub prompt: Prompt,
    /// Whether workers get the noisy latents.
    #[serde(default)]
    pub latents: Latents,
    /// How features travel.
    pub wires: Wires,
}

/// Levels that a placement tells apart; those beyond are like the last.
const LEVELS: usize = 8;

/// How self-attention is done at each level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<SelfAttention>", into = "Vec<SelfAttention>")]
pub struct Attentions([SelfAttention; LEVELS]);

impl Attentions {
    /// The same at every level.
    pub fn all(how: SelfAttention) -> Self {
        Self([how; LEVELS])
    }

    /// At `level`, from 0, the finest.
    pub fn at(&self, level: usize) -> SelfAttention {
        self.0[level.min(LEVELS - 1)]
    }

    /// The same with `how` at `level`.
    pub fn with(mut self, level: usize, how: SelfAttention) -> Self {
        self.0[level.min(LEVELS - 1)] = how;
        self
    }

    /// Those of the first `levels` levels.
    pub fn of_levels(&self, levels: usize) -> &[SelfAttention] {
        &self.0[..levels.min(LEVELS)]
    }
}

impl TryFrom<Vec<SelfAttention>> for Attentions {
    type Error = String;

    /// One for each level from the finest; further levels are like the last.
    fn try_from(each: Vec<SelfAttention>) -> std::result::Result<Self, String> {
        match each.last() {
            Some(last) if each.len() <= LEVELS => Ok(Self(std::array::from_fn(|level| {
                each.get(level).copied().unwrap_or(*last)
            }))),
            _ => Err(format!("one for each level, 1 to {LEVELS}")),
        }
    }
}

impl From<Attentions> for Vec<SelfAttention> {
    fn from(attentions: Attentions) -> Self {
        let mut each = attentions.0.to_vec();
        // Further levels are like the last anyway.
        while each.len() > 1 && each[each.len() - 1] == each[each.len() - 2] {
            each.pop();
        }
        each
    }
}

/// How self-attention, which needs every row, is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SelfAttention {
    /// The user does both attentions of a block: workers send the block's tokens and get them back.
    #[default]
    Paired,
    /// As paired, and the user does the transformer's normalisation and projection before its first
    /// block too: workers send the feature map.
    Fused,
    /// The user attends, projections included: workers send normalised tokens.
    Tokens,
    /// The user attends: workers project, and send queries, keys and values.
    Qkv,
    /// Workers attend to tiles: some queries and some keys and values of the whole picture, in a secret
    /// order and turned in a secret way, fresh every time; the user merges.
    Tiled,
    /// Workers attend: each gets every row's keys and values, which gives the picture away. For
    /// comparison only.
    Broadcast,
}

impl SelfAttention {
    /// Whether the user does both attentions of a block in one exchange.
    pub fn pairs(self) -> bool {
        matches!(self, Self::Paired | Self::Fused)
    }
}

/// The tile of every self-attention that is a worker's: which part of the queries, and which of the keys
/// and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tile {
    /// The part of the queries.
    pub queries: Part,
    /// The part of the keys and values.
    pub keys: Part,
}

/// The `index`-th of `of` parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// From 0.
    pub index: usize,
    /// At least one.
    pub of: usize,
}

impl Part {
    /// Its tokens of `tokens` in all.
    pub fn range(self, tokens: usize) -> Range<usize> {
        let [start, end] = [self.index, self.index + 1].map(|i| i * tokens / self.of.max(1));
        start..end
    }
}

impl Default for Tile {
    /// All of it.
    fn default() -> Self {
        let all = Part { index: 0, of: 1 };
        Self {
            queries: all,
            keys: all,
        }
    }
}

impl Tile {
    /// The tiles of `workers` workers, in a grid as square as their number allows; where it is not, with
    /// more parts of the keys, which travel twice as heavy as queries.
    pub fn grid(workers: usize) -> Vec<Self> {
        let root = workers.isqrt();
        let queries = (1..=root)
            .rev()
            .find(|n| workers.is_multiple_of(*n))
            .unwrap_or(1);
        let keys = workers / queries;
        let part = |index, of| Part { index, of };
        let tile = |i| Self {
            queries: part(i / keys, queries),
            keys: part(i % keys, keys),
        };
        (0..workers).map(tile).collect()
    }
}

/// Whether the workers may know the prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    /// The user does the cross-attention: workers send queries.
    #[default]
    Hidden,
    /// Workers get the prompt's embedding once a picture.
    Shared,
}

/// Whether the workers get their rows of the noisy latents, and give those of the prediction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Latents {
    /// They do the first and the last convolution.
    #[default]
    Shared,
    /// The user does both, and the last normalisation: features travel in their place.
    Hidden,
}

/// How features travel, by what they travel for. Statistics, latents and predictions are always sent
/// whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wires {
    /// Edge rows for a neighbour's convolution.
    pub halo: Wire,
    /// What the user computes on, attention above all, and what comes of it.
    pub attention: Wire,
}

impl Wires {
    /// The same for all.
    pub fn all(wire: Wire) -> Self {
        Self {
            halo: wire,
            attention: wire,
        }
    }

    /// Each of them.
    pub fn each(self) -> [Wire; 2] {
        [self.halo, self.attention]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_gives_every_query_every_key_once() {
        let shape = |n| {
            let last = *Tile::grid(n).last().unwrap();
            [last.queries.of, last.keys.of]
        };
        assert_eq!(
            [1, 4, 5, 6, 12, 16].map(shape),
            [[1, 1], [2, 2], [1, 5], [2, 3], [3, 4], [4, 4]]
        );
        let tokens = 29;
        for n in 1..=16 {
            let mut pairs = vec![0; tokens * tokens];
            for tile in Tile::grid(n) {
                for q in tile.queries.range(tokens) {
                    tile.keys
                        .range(tokens)
                        .for_each(|k| pairs[q * tokens + k] += 1);
                }
            }
            assert!(pairs.iter().all(|times| *times == 1), "{n} workers");
        }
    }
}
