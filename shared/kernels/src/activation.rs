//! Point-wise non-linear functions.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::exp::{gelu, silu as silu_of};
use super::simd::vectorised;
use super::{Target, filled};

/// Values that one task takes: long enough to be worth a task, short enough for the cache.
const CHUNK: usize = 16 * 1024;

vectorised! {
    fn silu_into(x: &[f32], y: &mut [MaybeUninit<f32>]) {
        for (y, x) in y.iter_mut().zip(x) {
            y.write(silu_of::<FMA>(*x));
        }
    }
}

vectorised! {
    fn geglu_into(value: &[f32], gate: &[f32], y: &mut [MaybeUninit<f32>]) {
        for ((y, value), gate) in y.iter_mut().zip(value).zip(gate) {
            y.write(value * gelu::<FMA>(*gate));
        }
    }
}

/// `x / (1 + e^-x)` of every value.
pub fn silu(x: &[f32]) -> Vec<f32> {
    let write = |out: Target| {
        x.par_chunks(CHUNK).enumerate().for_each(|(i, x)| {
            // SAFETY: chunk i of the result, which only this task has.
            silu_into(x, unsafe { out.slice(i * CHUNK, x.len()) });
        });
    };
    // SAFETY: the chunks are the whole.
    unsafe { filled(x.len(), write) }
}

/// `h * gelu(g)` of rows `[h, g]` that are `2 * width` long: `[rows, width]`.
///
/// # Panics
/// When `x` is not such rows.
pub fn geglu(x: &[f32], width: usize) -> Vec<f32> {
    if x.is_empty() {
        return Vec::new();
    }
    assert!(
        width > 0 && x.len().is_multiple_of(2 * width),
        "rows of a gated activation"
    );
    let rows = x.len() / (2 * width);
    let step = CHUNK.div_ceil(width);
    let write = |out: Target| {
        x.par_chunks(2 * width * step)
            .enumerate()
            .for_each(|(i, block)| {
                for (j, row) in block.chunks_exact(2 * width).enumerate() {
                    let (value, gate) = row.split_at(width);
                    // SAFETY: a row of block i, which only this task has.
                    geglu_into(value, gate, unsafe {
                        out.slice((i * step + j) * width, width)
                    });
                }
            });
    };
    // SAFETY: the blocks hold every row.
    unsafe { filled(rows * width, write) }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{difference, wave};
    use super::*;

    #[test]
    fn silu_is_the_formula() {
        for len in [0, 1, 31, CHUNK + 3] {
            let x: Vec<f32> = wave(len, 0.1).iter().map(|x| 6.0 * x).collect();
            let want: Vec<f64> = x
                .iter()
                .map(|x| f64::from(*x))
                .map(|x| x / (1.0 + (-x).exp()))
                .collect();
            if len > 0 {
                let off = difference(&silu(&x), &want);
                assert!(off < 2e-7, "{off}");
            }
        }
        assert!(silu(&[]).is_empty());
    }
}
