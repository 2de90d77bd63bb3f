//! Attention with the heads side by side, as the projections leave them.

use rayon::prelude::*;

use super::exp::exp;
use super::matmul::{Matrix, product};
use super::simd::vectorised;
use super::{Target, filled, scratch, values};

/// Most queries of one task: a multiple of the widest product kernel.
const QUERIES: usize = 256;
/// Keys taken at a time: the scores of a block should stay in the core's own cache.
const KEYS: usize = 512;

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
    /// Heads; divides C, and is at least one where there are channels.
    pub heads: usize,
    /// Whether a query sees only keys up to its own position.
    pub causal: bool,
}

vectorised! {
    /// Takes a block of scores, `[keys, queries]`, into each query's running softmax: scores become
    /// exponentials relative to the new `most`, `sum` follows, and `shrink` is what earlier
    /// exponentials must be multiplied by (Milakov and Gimelshein 2018).
    fn exponentials(scores: &mut [f32], most: &mut [f32], sum: &mut [f32], shrink: &mut [f32]) {
        let queries = most.len();
        shrink.copy_from_slice(most);
        for row in scores.chunks_exact(queries) {
            for (m, s) in most.iter_mut().zip(row) {
                *m = if *s > *m { *s } else { *m };
            }
        }
        for ((shrink, m), t) in shrink.iter_mut().zip(&*most).zip(&mut *sum) {
            *shrink = exp::<FMA>(*shrink - m);
            *t *= *shrink;
        }
        for row in scores.chunks_exact_mut(queries) {
            for ((s, m), t) in row.iter_mut().zip(&*most).zip(&mut *sum) {
                *s = exp::<FMA>(*s - m);
                *t += *s;
            }
        }
    }
}

vectorised! {
    fn multiply(x: &mut [f32], by: &[f32]) {
        for (x, by) in x.iter_mut().zip(by) {
            *x *= by;
        }
    }
}

/// `softmax(Q K^T / sqrt(D)) V` of each head: `q` is `[B, T, C]`, `k` and `v` `[B, S, C]`, the result
/// `[B, T, C]`.
///
/// # Panics
/// When the sizes do not agree, there are no keys, or channels without heads.
pub fn attention(q: &[f32], k: &[f32], v: &[f32], sizes: Sizes) -> Vec<f32> {
    attend(q, k, v, sizes, None)
}

/// The same over some of the keys, with what merging it with the others takes: the logarithm of each
/// query's sum of exponentials, `[B, T, heads]`.
///
/// # Panics
/// As [`attention`].
pub fn attention_part(q: &[f32], k: &[f32], v: &[f32], sizes: Sizes) -> [Vec<f32>; 2] {
    if sizes.channels == 0 {
        let y = attend(q, k, v, sizes, None);
        return [y, sums_without_channels(sizes)];
    }
    let mut y = Vec::new();
    let write = |sums| y = attend(q, k, v, sizes, Some(sums));
    // SAFETY: every task writes the sums of its queries, and the tasks are all of them.
    let sums = unsafe { filled(values([sizes.batch, sizes.queries, sizes.heads]), write) };
    [y, sums]
}

/// Without channels every score is zero: the logarithm of the number of keys that each query sees.
fn sums_without_channels(sizes: Sizes) -> Vec<f32> {
    let len = values([sizes.batch, sizes.queries, sizes.heads]);
    let sum = |i: usize| {
        let query = i / sizes.heads % sizes.queries;
        let seen = match sizes.causal {
            true => sizes.keys.min(query + 1),
            false => sizes.keys,
        };
        (seen as f32).ln()
    };
    (0..len).map(sum).collect()
}

fn attend(q: &[f32], k: &[f32], v: &[f32], sizes: Sizes, sums: Option<Target>) -> Vec<f32> {
    let Sizes {
        batch,
        queries,
        keys,
        channels,
        heads,
        ..
    } = sizes;
    let width = channels.checked_div(heads).unwrap_or(0);
    assert_eq!(width * heads, channels, "heads of an attention");
    assert_eq!(
        q.len(),
        values([batch, queries, channels]),
        "queries of an attention"
    );
    assert_eq!(
        k.len(),
        values([batch, keys, channels]),
        "keys of an attention"
    );
    assert_eq!(v.len(), k.len(), "values of an attention");
    assert!(keys > 0, "an attention without keys");
    if q.is_empty() {
        return Vec::new();
    }
    // Enough tasks for the threads.
    let each = (2 * rayon::current_num_threads()).div_ceil(batch * heads);
    let rows = queries.div_ceil(each).next_multiple_of(16).min(QUERIES);
    let blocks = queries.div_ceil(rows);
    let write = |out: Target| {
        (0..batch * heads * blocks)
            .into_par_iter()
            .for_each(|task| {
                let (entry, first) = (task / blocks, task % blocks * rows);
                let (b, h) = (entry / heads, entry % heads);
                let task = Task {
                    k: &k[b * keys * channels + h * width..],
                    v: &v[b * keys * channels + h * width..],
                    sizes,
                    width,
                    first,
                    rows: rows.min(queries - first),
                    sums: sums.map(|sums| (sums, (b * queries + first) * heads + h)),
                };
                let from = (b * queries + first) * channels + h * width;
                task.run(&q[from..], out, from);
            });
    };
    // SAFETY: the tasks are every block of queries of every head.
    unsafe { filled(q.len(), write) }
}

/// One head of one batch entry for some queries.
struct Task<'a> {
    /// Keys from this head's first value on.
    k: &'a [f32],
    /// Values, likewise.
    v: &'a [f32],
    sizes: Sizes,
    width: usize,
    /// Position of the first query.
    first: usize,
    /// Number of queries.
    rows: usize,
    /// Where the logarithms of the sums go, and the place there of the first query's.
    sums: Option<(Target, usize)>,
}

impl Task<'_> {
    /// `q` begins with the task's first query, whose place in `out` is `from`.
    fn run(&self, q: &[f32], out: Target, from: usize) {
        let Sizes {
            channels, causal, ..
        } = self.sizes;
        let (rows, width) = (self.rows, self.width);
        let end = self.first + rows;
        let seen = if causal {
            self.sizes.keys.min(end)
        } else {
            self.sizes.keys
        };
        scratch(rows * (KEYS + width + 3), |buffer| {
            let (scores, rest) = buffer.split_at_mut(rows * KEYS);
            let (sums, rest) = rest.split_at_mut(rows * width);
            let (most, rest) = rest.split_at_mut(rows);
            let (total, shrink) = rest.split_at_mut(rows);
            most.fill(f32::NEG_INFINITY);
            total.fill(0.0);
            for start in (0..seen).step_by(KEYS) {
                let scores = &mut scores[..rows * KEYS.min(seen - start)];
                self.score(q, start, scores);
                exponentials(scores, most, total, shrink);
                if start > 0 {
                    sums.chunks_exact_mut(rows)
                        .for_each(|x| multiply(x, shrink));
                }
                self.weigh(scores, start, sums, start > 0);
            }
            for (i, total) in total.iter().enumerate() {
                let scale = total.recip();
                // SAFETY: this head's part of this query's row: this task's alone.
                let y = unsafe { out.slice(from + i * channels, width) };
                for (y, x) in y.iter_mut().zip(sums[i..].iter().step_by(rows)) {
                    y.write(x * scale);
                }
                if let Some((sums, from)) = self.sums {
                    // SAFETY: this head's number of this query's: this task's alone.
                    let sum = unsafe { sums.slice(from + i * self.sizes.heads, 1) };
                    sum[0].write(most[i] + total.ln());
                }
            }
        });
    }

    /// Scores of the keys from `start` on, `[keys, rows]`; of hidden ones minus infinity.
    fn score(&self, q: &[f32], start: usize, scores: &mut [f32]) {
        let Sizes {
            channels, causal, ..
        } = self.sizes;
        let keys = scores.len() / self.rows;
        assert!(q.len() >= (self.rows - 1) * channels + self.width);
        assert!(self.k.len() >= (start + keys - 1) * channels + self.width);
        // SAFETY: the assertions; `scores` is this task's own.
        unsafe {
            product(
                [keys, self.rows, self.width],
                scores.as_mut_ptr(),
                self.rows,
                false,
                Matrix {
                    start: self.k[start * channels..].as_ptr(),
                    rows: channels,
                    columns: 1,
                },
                Matrix {
                    start: q.as_ptr(),
                    rows: 1,
                    columns: channels,
                },
                (self.width as f32).sqrt().recip(),
            );
        }
        if causal {
            for (j, row) in scores.chunks_exact_mut(self.rows).enumerate() {
                let hidden = (start + j).saturating_sub(self.first).min(self.rows);
                row[..hidden].fill(f32::NEG_INFINITY);
            }
        }
    }

    /// The values from `start` on, weighed by `scores`, into `sums`, `[width, rows]`.
    fn weigh(&self, scores: &[f32], start: usize, sums: &mut [f32], add: bool) {
        let channels = self.sizes.channels;
        let keys = scores.len() / self.rows;
        assert!(self.v.len() >= (start + keys - 1) * channels + self.width);
        // SAFETY: the assertion; `sums` is this task's own, and has values when `add`.
        unsafe {
            product(
                [self.width, self.rows, keys],
                sums.as_mut_ptr(),
                self.rows,
                add,
                Matrix {
                    start: self.v[start * channels..].as_ptr(),
                    rows: 1,
                    columns: channels,
                },
                Matrix {
                    start: scores.as_ptr(),
                    rows: self.rows,
                    columns: 1,
                },
                1.0,
            );
        }
    }
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
            (1, 700, 1300, 16, 2, true),
            (1, 1300, 700, 16, 2, true),
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
