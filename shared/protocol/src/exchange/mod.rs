//! The exchanges of the `resident` scheme: where a strip needs something from outside, and what
//! travels for it.
//!
//! A worker that walks the U-Net over its strip and the user who conducts it come to the same
//! exchanges in the same order. At each the worker hands something out ([`Exchange::from_worker`])
//! and gets something back ([`Exchange::to_worker`]). Both sides and `lacuna cost` read the names
//! and sizes of these tensors here, so that a promise about bytes is the code that sends them.
//!
//! - here: the exchanges, and a worker's place at each.
//! - [`Item`]: a tensor of one; [`accept`] sees to it that a message brings just what is due.

mod item;

pub use item::{Item, Tensors, Writing, accept, take};

use std::ops::Range;

use serde::{Deserialize, Serialize};

use lacuna_model::layers::{Attention, Conv2d, GroupNorm};
use lacuna_model::partition::Levels;
use lacuna_model::unet::{Transformer, TransformerBlock};

use crate::placement::{Latents, Placement, SelfAttention, Tile};

/// What a worker is told of its part of the picture when a session opens in which it holds a strip.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Batch entries.
    pub batch: usize,
    /// Rows of the latents.
    pub rows: usize,
    /// Columns of the latents.
    pub columns: usize,
    /// Its rows of the coarsest level.
    pub strip: Range<usize>,
    /// Tokens of the prompt.
    pub tokens: usize,
    /// Who does what.
    pub placement: Placement,
    /// Its tile of each self-attention, where workers attend to tiles.
    #[serde(default)]
    pub tile: Tile,
}

/// A worker's place at one level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Number of its rows.
    pub rows: usize,
    /// Number of all rows.
    pub of: usize,
    /// Whether its first row is an odd one of the picture.
    pub odd: bool,
    /// Whether there are rows above it.
    pub above: bool,
    /// Whether there are rows below it.
    pub below: bool,
    /// Its tile of a self-attention.
    pub tile: Tile,
}

impl Seat {
    /// The place at `level` of a worker with the strip `strip` of the coarsest level, and with `tile`.
    pub fn new(levels: &Levels, strip: &Range<usize>, tile: Tile, level: usize) -> Self {
        let rows = levels.scale(strip, level);
        Self {
            rows: rows.len(),
            of: levels.rows(level),
            odd: rows.start % 2 == 1,
            above: strip.start > 0,
            below: strip.end < levels.coarsest(),
            tile,
        }
    }
}

/// A point where every worker needs something from outside its strip.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exchange<'a> {
    /// Of which layers.
    pub of: Of<'a>,
    /// Batch entries.
    pub batch: usize,
    /// Columns of the feature map.
    pub columns: usize,
    /// Level of the feature map.
    pub level: usize,
    /// Whether this is the session's first step, before which nothing was sent.
    pub first: bool,
}

/// What an exchange is about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Of<'a> {
    /// A step begins: a strip of the noisy latents with its halo or, where these are hidden, of what the
    /// first convolution made of them; and the timestep's embedding.
    Begin {
        /// The first convolution.
        conv_in: &'a Conv2d,
        /// Whether the workers do it.
        latents: Latents,
        /// Sizes of the embedding.
        embedding: [usize; 2],
        /// Tokens and width of the prompt's embedding, where it comes along.
        prompt: Option<[usize; 2]>,
    },
    /// Normalisation and convolution: statistics, and edge rows before the normalisation.
    NormConv(&'a GroupNorm, &'a Conv2d),
    /// Normalisation alone: statistics.
    Norm(&'a GroupNorm),
    /// Convolution alone: edge rows.
    Halo(&'a Conv2d),
    /// A transformer up to its first block's attentions: the feature map.
    Enter(&'a Transformer),
    /// Both attentions of a block: its tokens. The worker gets them back, or, where the wire rounds, only
    /// what the attentions add, so that the residual stream itself is never rounded.
    Paired(&'a TransformerBlock),
    /// Self-attention by the user or over everybody's keys.
    SelfAttention(&'a Attention, SelfAttention),
    /// Self-attention by tiles begins: queries, keys and values of the strip, for those of the tile.
    Tiles(&'a Attention),
    /// It ends: what the tile gave, for what all tiles of the strip's queries give together.
    Merge(&'a Attention),
    /// Cross-attention by the user: queries.
    CrossAttention(&'a Attention),
    /// A step ends: the strip of the prediction or, where that is hidden, of the feature map before the
    /// last normalisation and convolution.
    End {
        /// The last normalisation.
        norm: &'a GroupNorm,
        /// The last convolution.
        conv_out: &'a Conv2d,
        /// Whether the workers do them.
        latents: Latents,
    },
}

/// Rows beyond a strip that a convolution reads: above, below.
fn halo(layer: &Conv2d) -> [usize; 2] {
    match (layer.kernel, layer.stride) {
        (1, _) => [0, 0],
        // An output row's centre is the upper one of its two input rows.
        (_, 2) => [1, 0],
        _ => [1, 1],
    }
}

impl Exchange<'_> {
    fn item(&self, name: &'static str, shape: impl Into<Vec<usize>>, writing: Writing) -> Item {
        Item {
            name,
            shape: shape.into(),
            writing,
            first: self.first,
        }
    }

    /// Names the exchange in messages; both sides must be at the same one.
    pub fn label(&self) -> String {
        match self.of {
            Of::Begin { .. } => "begin".into(),
            Of::NormConv(_, conv) => format!("norm+conv {}", conv.name),
            Of::Norm(norm) => format!("norm {}", norm.name),
            Of::Halo(conv) => format!("conv {}", conv.name),
            Of::Enter(transformer) => format!("enter {}", transformer.name),
            Of::Paired(block) => format!("attentions {}", block.attn1.name),
            Of::Tiles(layer) => format!("tiles {}", layer.name),
            Of::Merge(layer) | Of::SelfAttention(layer, _) | Of::CrossAttention(layer) => {
                format!("attention {}", layer.name)
            }
            Of::End { .. } => "end".into(),
        }
    }

    /// What a worker at `seat` hands out.
    pub fn from_worker(&self, seat: Seat) -> Vec<Item> {
        match self.of {
            Of::Begin { .. } => Vec::new(),
            Of::NormConv(norm, conv) => {
                let mut items = vec![self.statistics(norm)];
                items.extend(self.edges(conv, seat, ["first", "last"]));
                items
            }
            Of::Norm(norm) => vec![self.statistics(norm)],
            Of::Halo(conv) => self.edges(conv, seat, ["first", "last"]),
            Of::Enter(transformer) => {
                let channels = transformer.norm.channels;
                let shape = [self.batch, channels, seat.rows, self.columns];
                vec![self.item("x", shape, Writing::Attention)]
            }
            Of::Paired(block) => vec![self.tokens("x", seat, block.attn1.to_q.d_in)],
            Of::Tiles(layer) | Of::SelfAttention(layer, SelfAttention::Qkv) => ["q", "k", "v"]
                .map(|name| self.tokens(name, seat, layer.to_q.d_out))
                .to_vec(),
            Of::SelfAttention(layer, SelfAttention::Broadcast) => ["k", "v"]
                .map(|name| self.tokens(name, seat, layer.to_k.d_out))
                .to_vec(),
            Of::Merge(layer) => {
                let [queries, _] = self.tile(seat);
                let sums = [self.batch, queries, layer.heads];
                vec![
                    self.tile_item("y", queries, layer.to_q.d_out),
                    self.item("sums", sums, Writing::Exact),
                ]
            }
            Of::SelfAttention(layer, _) => vec![self.tokens("x", seat, layer.to_q.d_in)],
            Of::CrossAttention(layer) => vec![self.tokens("q", seat, layer.to_q.d_out)],
            Of::End {
                norm,
                conv_out,
                latents,
            } => {
                let (channels, writing) = match latents {
                    Latents::Shared => (conv_out.c_out, Writing::Exact),
                    Latents::Hidden => (norm.channels, Writing::Attention),
                };
                let shape = [self.batch, channels, seat.rows, self.columns];
                vec![self.item("y", shape, writing)]
            }
        }
    }

    /// What a worker at `seat` gets back.
    pub fn to_worker(&self, seat: Seat) -> Vec<Item> {
        match self.of {
            Of::Begin {
                conv_in,
                latents,
                embedding,
                prompt,
            } => {
                let (channels, writing) = match latents {
                    Latents::Shared => (conv_in.c_in, Writing::Exact),
                    Latents::Hidden => (conv_in.c_out, Writing::Attention),
                };
                let shape = [self.batch, channels, seat.rows, self.columns];
                let mut items = vec![
                    self.item("x", shape, writing),
                    self.item("embedding", embedding, Writing::Exact),
                ];
                if latents == Latents::Shared {
                    let edges = self.edges(conv_in, seat, ["above", "below"]);
                    items.extend(edges.into_iter().map(|edge| Item { writing, ..edge }));
                }
                if let Some([tokens, width]) = prompt {
                    let shape = [self.batch, tokens, width];
                    items.push(self.item("prompt", shape, Writing::Exact));
                }
                items
            }
            Of::NormConv(norm, conv) => {
                let mut items = vec![self.statistics(norm)];
                items.extend(self.edges(conv, seat, ["above", "below"]));
                items
            }
            Of::Norm(norm) => vec![self.statistics(norm)],
            Of::Halo(conv) => self.edges(conv, seat, ["above", "below"]),
            Of::Enter(transformer) => {
                let width = transformer.proj_in.width();
                vec![self.tokens("x", seat, width)]
            }
            Of::Paired(block) => vec![self.tokens("x", seat, block.attn1.to_q.d_in)],
            Of::SelfAttention(layer, SelfAttention::Broadcast) => {
                let all = Seat {
                    rows: seat.of,
                    ..seat
                };
                ["k", "v"]
                    .map(|name| self.tokens(name, all, layer.to_k.d_out))
                    .to_vec()
            }
            Of::Tiles(layer) => {
                let [queries, keys] = self.tile(seat);
                [("q", queries), ("k", keys), ("v", keys)]
                    .map(|(name, tokens)| self.tile_item(name, tokens, layer.to_q.d_out))
                    .to_vec()
            }
            Of::Merge(layer) | Of::SelfAttention(layer, SelfAttention::Qkv) => {
                vec![self.tokens("y", seat, layer.to_q.d_out)]
            }
            Of::SelfAttention(layer, _) => vec![self.tokens("y", seat, layer.to_out.d_out)],
            Of::CrossAttention(layer) => vec![self.tokens("y", seat, layer.to_q.d_out)],
            Of::End { .. } => Vec::new(),
        }
    }

    /// Mean and M2 of each group: of the strip up, of the whole down.
    fn statistics(&self, norm: &GroupNorm) -> Item {
        let shape = [self.batch * norm.groups, 2];
        self.item("moments", shape, Writing::Statistics)
    }

    fn tokens(&self, name: &'static str, seat: Seat, width: usize) -> Item {
        let shape = [self.batch, seat.rows * self.columns, width];
        self.item(name, shape, Writing::Attention)
    }

    /// Numbers of queries and of keys of the tile at `seat`.
    fn tile(&self, seat: Seat) -> [usize; 2] {
        let tokens = seat.of * self.columns;
        [seat.tile.queries, seat.tile.keys].map(|part| part.range(tokens).len())
    }

    fn tile_item(&self, name: &'static str, tokens: usize, width: usize) -> Item {
        self.item(name, [self.batch, tokens, width], Writing::Tile)
    }

    /// The rows that travel for `conv`'s halo: as a worker gets them (`above`, `below`), or as it
    /// hands them out (its `first` row is its upper neighbour's `below`).
    fn edges(&self, conv: &Conv2d, seat: Seat, names: [&'static str; 2]) -> Vec<Item> {
        let [above, below] = halo(conv);
        let rows = match names {
            ["first", "last"] => [below, above],
            _ => [above, below],
        };
        let neighbours = [seat.above, seat.below];
        let edges = names.into_iter().zip(rows).zip(neighbours);
        edges
            .filter(|((_, rows), neighbour)| *rows > 0 && *neighbour)
            .map(|((name, rows), _)| {
                let shape = [self.batch, conv.c_in, rows, self.columns];
                self.item(name, shape, Writing::Halo)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacuna_model::partition::strips;

    #[test]
    fn what_one_hands_out_is_what_its_neighbour_gets() {
        let levels = Levels::new(13, 3);
        for stride in [1, 2] {
            let conv = Conv2d {
                stride,
                ..Conv2d::same("conv", 8, 8, 3)
            };
            for n in 1..=4 {
                for level in 0..3 {
                    let exchange = Exchange {
                        of: Of::Halo(&conv),
                        batch: 2,
                        columns: 5,
                        level,
                        first: true,
                    };
                    let seats: Vec<Seat> = strips(levels.coarsest(), n)
                        .iter()
                        .map(|strip| Seat::new(&levels, strip, Tile::default(), level))
                        .collect();
                    let find = |items: Vec<Item>, name| items.into_iter().find(|i| i.name == name);
                    for (i, seat) in seats.iter().enumerate() {
                        let got = exchange.to_worker(*seat);
                        let shape = |item: Option<Item>| item.map(|item| item.shape);
                        let above = i.checked_sub(1).map(|up| exchange.from_worker(seats[up]));
                        let above = above.and_then(|items| find(items, "last"));
                        assert_eq!(shape(find(got.clone(), "above")), shape(above));
                        let below = seats.get(i + 1).map(|seat| exchange.from_worker(*seat));
                        let below = below.and_then(|items| find(items, "first"));
                        assert_eq!(shape(find(got, "below")), shape(below));
                    }
                }
            }
        }
    }
}
