//! Self-attention over tiles: workers compute the products, and do not know of what.
//!
//! Attention does not care for the order of its keys, and orders of queries and of results are the same.
//! Nor does it care for a basis: with an orthogonal `R` of each head, `(q R)(k R)^T = q k^T`, and with
//! another one, `S`, `softmax(..)(v S) = (softmax(..) v) S`. So the user puts queries in one random order,
//! keys and values in another, turns each head's vectors, and hands every worker some queries and some
//! keys ([`lacuna_protocol::placement::Tile`]). What comes back is merged by the sums of exponentials, turned and
//! put back. All of it is drawn anew for every attention of every step. The products between the
//! vectors of a tile stay what they were, lengths among them. A worker knows its own tokens, so it finds them
//! in its tile and solves for the turn; `lacuna audit` does. Only the order stays secret.

use burn::tensor::{Device, Int, Tensor};
use lacuna_model::host::OnDevice;
use lacuna_protocol::placement::Tile;
use lacuna_wire::HostTensor;
use rand::seq::SliceRandom;
use rand_distr::{Distribution, StandardNormal};

use crate::error::Result;

/// What one attention's tiles are hidden by.
pub struct Secret {
    /// Where each token of the tiles comes from.
    queries: Order,
    keys: Order,
    /// For queries and keys, `[1, heads, D, D]`, orthogonal.
    turn: Tensor<4>,
    /// For values, likewise.
    turn_values: Tensor<4>,
}

/// A random order of tokens.
struct Order {
    /// The token that comes to each place.
    from: Tensor<1, Int>,
    /// The place of each token.
    to: Tensor<1, Int>,
}

impl Secret {
    /// Draws one for `tokens` tokens and `heads` heads of `width` channels, from the operating system's
    /// randomness.
    ///
    /// # Errors
    /// Those of the device.
    pub fn draw(tokens: usize, heads: usize, width: usize, device: &Device) -> Result<Self> {
        let mut rng = rand::rng();
        let mut turns = || -> Result<Tensor<4>> {
            let each = (0..heads).flat_map(|_| orthogonal(width, &mut rng));
            let data = HostTensor::new([1, heads, width, width], each.collect())?;
            Ok(data.into_device(device)?)
        };
        let (turn, turn_values) = (turns()?, turns()?);
        Ok(Self {
            queries: Order::draw(tokens, device),
            keys: Order::draw(tokens, device),
            turn,
            turn_values,
        })
    }

    /// Queries, keys and values, `[B, T, C]`, permuted and rotated.
    ///
    /// # Errors
    /// Those of the device.
    pub fn hide(&self, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>) -> Result<[HostTensor; 3]> {
        let hide = |x: Tensor<3>, order: &Order, by: &Tensor<4>| {
            let ordered = x.select(1, order.from.clone());
            HostTensor::from_device(turned(ordered, by.clone()))
        };
        Ok([
            hide(q, &self.queries, &self.turn)?,
            hide(k, &self.keys, &self.turn)?,
            hide(v, &self.keys, &self.turn_values)?,
        ])
    }

    /// The attention `[B, T, C]` that the workers' parts `ys` `[B, Tq, C]`, each of one of `tiles`, come
    /// to, by the logarithms of their `sums` of exponentials `[B, Tq, heads]`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn merge(
        &self,
        tiles: &[Tile],
        ys: Vec<HostTensor>,
        sums: Vec<HostTensor>,
    ) -> Result<Tensor<3>> {
        let device = self.turn.device();
        let heads = self.turn.dims()[1];
        let mut parts: Vec<Vec<Partial>> = Vec::new();
        for ((tile, y), sums) in tiles.iter().zip(ys).zip(sums) {
            parts.resize_with(tile.queries.of, Vec::new);
            let (y, sums): (Tensor<3>, Tensor<3>) =
                (y.into_device(&device)?, sums.into_device(&device)?);
            let [b, t, c] = y.dims();
            parts[tile.queries.index].push(Partial {
                y: y.reshape([b, t, heads, c / heads]),
                sums: sums.reshape([b, t, heads, 1]),
            });
        }
        let merged = parts.into_iter().filter_map(|of_queries| {
            let whole = of_queries.into_iter().reduce(Partial::merge)?;
            let [b, t, heads, d] = whole.y.dims();
            Some(whole.y.reshape([b, t, heads * d]))
        });
        let y = Tensor::cat(merged.collect(), 1);
        let back = self.turn_values.clone().swap_dims(2, 3);
        Ok(turned(y, back).select(1, self.queries.to.clone()))
    }
}

/// Attention to some of the keys.
struct Partial {
    /// `[B, T, heads, D]`.
    y: Tensor<4>,
    /// Logarithm of the sum of exponentials, `[B, T, heads, 1]`.
    sums: Tensor<4>,
}

impl Partial {
    /// Attention to the keys of both (Milakov and Gimelshein 2018, in logarithms).
    fn merge(self, other: Self) -> Self {
        let most = self.sums.clone().max_pair(other.sums.clone());
        let [a, b] = [self.sums, other.sums].map(|sums| (sums - most.clone()).exp());
        let sum = a.clone() + b.clone();
        Self {
            y: self.y * (a / sum.clone()) + other.y * (b / sum.clone()),
            sums: most + sum.log(),
        }
    }
}

/// Each head's vectors of `x` `[B, T, C]` times `by` `[1, heads, D, D]`.
fn turned(x: Tensor<3>, by: Tensor<4>) -> Tensor<3> {
    let [b, t, c] = x.dims();
    let [_, heads, d, _] = by.dims();
    let x = x.reshape([b, t, heads, d]).swap_dims(1, 2);
    x.matmul(by).swap_dims(1, 2).reshape([b, t, c])
}

impl Order {
    fn draw(tokens: usize, device: &Device) -> Self {
        let mut from: Vec<i32> = (0..tokens as i32).collect();
        from.shuffle(&mut rand::rng());
        let mut to = vec![0; tokens];
        for (place, token) in from.iter().enumerate() {
            to[*token as usize] = place as i32;
        }
        let [from, to] = [from, to].map(|order| Tensor::from_ints(order.as_slice(), device));
        Self { from, to }
    }
}

/// A random orthogonal `n` x `n` matrix, uniform in the sense of Haar: reflections of shrinking
/// dimension and random signs (Stewart 1980).
fn orthogonal(n: usize, rng: &mut impl rand::Rng) -> Vec<f32> {
    let mut matrix = vec![0f64; n * n];
    for (i, row) in matrix.chunks_exact_mut(n).enumerate() {
        row[i] = 1.0;
    }
    let mut signs = Vec::with_capacity(n);
    for first in 0..n {
        // The reflection that brings the last n - first coordinates of a random vector to one axis.
        let mut v: Vec<f64> = (first..n).map(|_| StandardNormal.sample(rng)).collect();
        let sign = v[0].signum();
        signs.push(-sign);
        v[0] += sign * v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let square: f64 = v.iter().map(|x| x * x).sum();
        if square == 0.0 {
            continue;
        }
        for row in matrix.chunks_exact_mut(n) {
            let row = &mut row[first..];
            let along: f64 = row.iter().zip(&v).map(|(x, v)| x * v).sum();
            let by = 2.0 * along / square;
            row.iter_mut().zip(&v).for_each(|(x, v)| *x -= by * v);
        }
    }
    let columns = signs.into_iter().cycle();
    matrix
        .iter()
        .zip(columns)
        .map(|(x, sign)| (x * sign) as f32)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacuna_model::ops::{attention, attention_part};

    #[test]
    fn a_turn_keeps_products_and_is_never_the_same() {
        let mut rng = rand::rng();
        for n in [1, 2, 5, 40] {
            let turn = orthogonal(n, &mut rng);
            for i in 0..n {
                for j in 0..n {
                    let rows = turn[i * n..][..n].iter().zip(&turn[j * n..][..n]);
                    let product: f64 = rows.map(|(a, b)| f64::from(a * b)).sum();
                    let want = f64::from(u8::from(i == j));
                    assert!((product - want).abs() < 1e-6, "{n}: {i}, {j}: {product}");
                }
            }
            assert!(n == 1 || turn != orthogonal(n, &mut rng));
        }
    }

    /// The mean of a coordinate of a uniform direction is zero, of its square one by `n`.
    #[test]
    fn turns_prefer_no_direction() {
        let mut rng = rand::rng();
        let (n, draws) = (4, 4000);
        let mut sums = vec![[0f64; 2]; n * n];
        for _ in 0..draws {
            for (sum, x) in sums.iter_mut().zip(orthogonal(n, &mut rng)) {
                let x = f64::from(x);
                *sum = [sum[0] + x, sum[1] + x * x];
            }
        }
        // The means are off by 0.008 and 0.004 one time in three: six times that is never seen.
        for [mean, square] in sums.iter().map(|s| s.map(|s| s / f64::from(draws))) {
            assert!(mean.abs() < 0.05, "{mean}");
            assert!((square - 1.0 / n as f64).abs() < 0.025, "{square}");
        }
    }

    #[test]
    fn merged_tiles_are_the_attention() {
        let device = Device::flex();
        let (batch, tokens, heads, width) = (2, 37, 3, 8);
        let wave = |by: f32| {
            let len = batch * tokens * heads * width;
            let data = (0..len).map(|i| 2.0 * (i as f32 * by).sin()).collect();
            let x = HostTensor::new([batch, tokens, heads * width], data).unwrap();
            x.into_device::<3>(&device).unwrap()
        };
        let [q, k, v] = [wave(0.7), wave(1.3), wave(2.1)];
        let want = attention(q.clone(), k.clone(), v.clone(), heads, false);
        let want = HostTensor::from_device(want).unwrap();
        for workers in [1, 2, 3, 4, 7, 12] {
            let secret = Secret::draw(tokens, heads, width, &device).unwrap();
            let hidden = secret.hide(q.clone(), k.clone(), v.clone()).unwrap();
            let [hq, hk, hv] = hidden.map(|x| x.into_device::<3>(&device).unwrap());
            let tiles = Tile::grid(workers);
            let (mut ys, mut sums) = (Vec::new(), Vec::new());
            for tile in &tiles {
                let [rows, keys] = [tile.queries.range(tokens), tile.keys.range(tokens)];
                let part = |x: &Tensor<3>, r: &std::ops::Range<usize>| {
                    x.clone().narrow(1, r.start, r.len())
                };
                let [q, k, v] = [part(&hq, &rows), part(&hk, &keys), part(&hv, &keys)];
                let (y, sum) = attention_part(q, k, v, heads);
                ys.push(HostTensor::from_device(y).unwrap());
                sums.push(HostTensor::from_device(sum).unwrap());
            }
            let got = secret.merge(&tiles, ys, sums).unwrap();
            let got = HostTensor::from_device(got).unwrap();
            let pairs = got.data.iter().zip(&want.data);
            let worst = pairs.fold(0f32, |most, (a, b)| most.max((a - b).abs()));
            assert!(worst < 1e-5, "{workers} workers: off by {worst}");
        }
    }
}
