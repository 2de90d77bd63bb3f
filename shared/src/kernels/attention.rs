//! Attention with the heads side by side, as the projections leave them.

use gemm::Parallelism;
use rayon::prelude::*;

use super::exp::exp;
use super::matmul::{View, product};
use super::simd::vectorised;
use super::{filled, scratch};

/// Scores that one task holds at a time: they should stay in the core's own cache.
const SCORES: usize = 256 * 1024;

/// Sizes of an attention.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Batch entries.
    pub batch: usize,
    /// Queries, T.
    pub queries: usize,
    /// Keys, S.
    pub keys: usize,
    /// Channels of all heads together, C.
    pub channels: usize,
    /// Heads; divides C.
    pub heads: usize,
    /// Whether a query sees only keys up to its own position.
    pub causal: bool,
}

vectorised! {
    /// Turns scores into their exponentials, the largest score as 1; returns their sum.
    fn exponentials(scores: &mut [f32]) -> f32 {
        const LANES: usize = 64;
        let mut largest = [f32::NEG_INFINITY; LANES];
        let (blocks, rest) = scores.as_chunks::<LANES>();
        for block in blocks {
            for (m, s) in largest.iter_mut().zip(block) {
                *m = if *s > *m { *s } else { *m };
            }
        }
        let most = largest.iter().chain(rest).fold(f32::NEG_INFINITY, |m, s| m.max(*s));
        let mut sum = [0f32; LANES];
        let (blocks, rest) = scores.as_chunks_mut::<LANES>();
        for block in blocks {
            for (t, s) in sum.iter_mut().zip(block) {
                *s = exp::<FMA>(*s - most);
                *t += *s;
            }
        }
        for (t, s) in sum.iter_mut().zip(rest) {
            *s = exp::<FMA>(*s - most);
            *t += *s;
        }
        sum.iter().sum()
    }
}

vectorised! {
    fn scale(x: &mut [f32], by: f32) {
        for x in x {
            *x *= by;
        }
    }
}

/// `softmax(Q K^T / sqrt(D)) V` of each head: `q` is `[B, T, C]`, `k` and `v` `[B, S, C]`, the result
/// `[B, T, C]`.
///
/// # Panics
/// When the sizes do not agree, or there are no keys.
pub fn attention(q: &[f32], k: &[f32], v: &[f32], sizes: Sizes) -> Vec<f32> {
    let Sizes {
        batch,
        queries,
        keys,
        channels,
        heads,
        causal,
    } = sizes;
    let width = channels / heads;
    assert_eq!(width * heads, channels, "heads of an attention");
    assert_eq!(
        q.len(),
        batch * queries * channels,
        "queries of an attention"
    );
    assert_eq!(k.len(), batch * keys * channels, "keys of an attention");
    assert_eq!(v.len(), k.len(), "values of an attention");
    assert!(keys > 0, "an attention without keys");
    let factor = (width as f32).sqrt().recip();
    // A multiple of 16 rows, at least enough tasks for the threads, scores within the cache.
    let tasks_each = (2 * rayon::current_num_threads()).div_ceil(batch * heads);
    let rows = (SCORES / keys)
        .clamp(16, 256)
        .min(queries.div_ceil(tasks_each).max(1));
    let rows = if rows > 16 { rows / 16 * 16 } else { rows };
    let blocks = queries.div_ceil(rows);
    filled(q.len(), |out| {
        (0..batch * heads * blocks)
            .into_par_iter()
            .for_each(|task| {
                let (entry, block) = (task / blocks, task % blocks);
                let (b, h) = (entry / heads, entry % heads);
                let first = block * rows;
                let rows = rows.min(queries - first);
                let seen = if causal { keys.min(first + rows) } else { keys };
                let from = (b * queries + first) * channels + h * width;
                let others = b * keys * channels + h * width;
                scratch(rows * seen, |scores| {
                    // SAFETY: rows `first..first + rows` and `0..seen` of this head lie inside the slices by the
                    // assertions above; `scores` is this task's own.
                    unsafe {
                        product(
                            [rows, seen, width],
                            scores.as_mut_ptr(),
                            seen,
                            false,
                            View {
                                start: q[from..].as_ptr(),
                                rows: channels,
                                columns: 1,
                            },
                            View {
                                start: k[others..].as_ptr(),
                                rows: 1,
                                columns: channels,
                            },
                            factor,
                            Parallelism::None,
                        );
                    }
                    let mut sums = [0f32; 256];
                    for ((i, row), sum) in scores.chunks_exact_mut(seen).enumerate().zip(&mut sums)
                    {
                        let visible = if causal {
                            seen.min(first + i + 1)
                        } else {
                            seen
                        };
                        let (row, hidden) = row.split_at_mut(visible);
                        *sum = exponentials(row);
                        hidden.fill(0.0);
                    }
                    let last = (rows - 1) * channels + width;
                    // SAFETY: as above; the result's rows of this head are this task's alone.
                    unsafe {
                        product(
                            [rows, width, seen],
                            out.at(from, last),
                            channels,
                            false,
                            View {
                                start: scores.as_ptr(),
                                rows: seen,
                                columns: 1,
                            },
                            View {
                                start: v[others..].as_ptr(),
                                rows: channels,
                                columns: 1,
                            },
                            1.0,
                            Parallelism::None,
                        );
                    }
                    for (i, sum) in sums.iter().enumerate().take(rows) {
                        // SAFETY: a row of this head, written just now, this task's alone.
                        scale(
                            unsafe { out.slice(from + i * channels, width) },
                            sum.recip(),
                        );
                    }
                });
            });
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{difference, wave};
    use super::*;

    fn plain(q: &[f32], k: &[f32], v: &[f32], s: Sizes) -> Vec<f64> {
        let width = s.channels / s.heads;
        let mut out = vec![0f64; q.len()];
        for b in 0..s.batch {
            for h in 0..s.heads {
                for t in 0..s.queries {
                    let at = (b * s.queries + t) * s.channels + h * width;
                    let key = |j: usize| (b * s.keys + j) * s.channels + h * width;
                    let seen = if s.causal { s.keys.min(t + 1) } else { s.keys };
                    let dot = |j: usize| -> f64 {
                        (0..width)
                            .map(|i| f64::from(q[at + i]) * f64::from(k[key(j) + i]))
                            .sum()
                    };
                    let scores: Vec<f64> =
                        (0..seen).map(|j| dot(j) / (width as f64).sqrt()).collect();
                    let most = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(*s));
                    let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
                    for (j, s) in scores.iter().enumerate() {
                        for i in 0..width {
                            out[at + i] += (s - most).exp() / sum * f64::from(v[key(j) + i]);
                        }
                    }
                }
            }
        }
        out
    }

    #[test]
    fn attention_is_the_formula() {
        let cases = [
            (2, 301, 301, 40, 5, false),
            (1, 517, 77, 48, 2, false),
            (2, 77, 77, 24, 3, true),
            (3, 1, 9, 10, 1, false),
            (1, 1, 1, 7, 7, true),
            (1, 67, 1025, 512, 1, false),
        ];
        for (batch, queries, keys, channels, heads, causal) in cases {
            let sizes = Sizes {
                batch,
                queries,
                keys,
                channels,
                heads,
                causal,
            };
            let q: Vec<f32> = wave(batch * queries * channels, 0.1)
                .iter()
                .map(|x| 3.0 * x)
                .collect();
            let k = wave(batch * keys * channels, 0.6);
            let v = wave(batch * keys * channels, 1.7);
            let off = difference(&attention(&q, &k, &v, sizes), &plain(&q, &k, &v, sizes));
            assert!(off < 3e-6, "{sizes:?}: {off}");
        }
    }
}
