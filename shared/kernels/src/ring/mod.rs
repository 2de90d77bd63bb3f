//! Products of integers modulo `2^32`: what workers multiply shares of a ring with. Features are words of 32 bits, weights
//! of 16, and sums wrap. So they are exact, whichever way they are computed: on every machine they have the same bits.
//!
//! - `tile`: the inner loop, for each width of vectors.
//! - `planes`: the features of an input, and which of them a tile's positions meet.
//! - `product`: how tasks go through both.
//!
//! Weights are brought once into the order in which products read them ([`Weights`]).

mod planes;
mod product;
mod tile;

use rayon::prelude::*;

use self::planes::Planes;
use self::tile::ROWS;
use super::simd::{Width, width};
use super::sizes::Sizes;
use super::{Target, filled, values};

/// A layer's weights as products read them.
#[derive(Clone, Debug)]
pub struct Weights {
    /// Of each [`ROWS`] outputs: of each two inputs and tap of the kernel a word an output.
    panels: Vec<tile::Weights>,
    outputs: usize,
    inputs: usize,
    kernel: usize,
}

impl Weights {
    /// Of `weights` `[outputs, inputs, K, K]` of a convolution, or of a linear map `[outputs, inputs]` with a `kernel` of 1.
    ///
    /// # Panics
    /// When the weights are not of as many outputs and taps.
    pub fn new(weights: &[i16], outputs: usize, kernel: usize) -> Self {
        let taps = kernel * kernel;
        let inputs = weights.len().checked_div(outputs * taps);
        let inputs = inputs.unwrap_or_default();
        let all = values([outputs, inputs, kernel, kernel]);
        assert_eq!(weights.len(), all, "weights of {outputs} outputs");
        let depth = inputs.div_ceil(2) * taps;
        let mut panels = vec![[0; ROWS]; outputs.div_ceil(ROWS) * depth];
        let each = panels.par_chunks_mut(depth.max(1)).enumerate();
        each.for_each(|(i, panel)| {
            let rows = weights.chunks_exact((inputs * taps).max(1));
            for (r, row) in rows.skip(i * ROWS).take(ROWS).enumerate() {
                for (place, words) in panel.iter_mut().enumerate() {
                    let (input, tap) = (place / taps * 2, place % taps);
                    let of = |input: usize| row.get(input * taps + tap).copied();
                    words[r] = tile::pair(of(input).unwrap_or(0), of(input + 1).unwrap_or(0));
                }
            }
        });
        Self {
            panels,
            outputs,
            inputs,
            kernel,
        }
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Number of inputs: channels of a convolution, features of a token.
    pub fn inputs(&self) -> usize {
        self.inputs
    }
}

/// The convolution of `x`, `[B, C_in, H, W]`, modulo `2^32`: `[B, C_out, H_out, W_out]`.
///
/// # Panics
/// When the sizes do not agree, or the kernel or the stride is zero.
pub fn conv2d(x: &[i32], weights: &Weights, sizes: Sizes) -> Vec<i32> {
    conv2d_in(width(), x, weights, sizes)
}

/// The linear map of `x`, `[T, K]`, modulo `2^32`: `[T, outputs]`.
///
/// # Panics
/// When the sizes do not agree.
pub fn linear(x: &[i32], weights: &Weights, tokens: usize) -> Vec<i32> {
    linear_in(width(), x, weights, tokens)
}

/// [`conv2d`] by vectors of a `width` that the machine has.
fn conv2d_in(width: Width, x: &[i32], weights: &Weights, sizes: Sizes) -> Vec<i32> {
    let [h, w] = sizes.size;
    let (batch, kernel, outputs) = (sizes.batch, sizes.kernel, weights.outputs);
    assert!(kernel > 0 && sizes.stride > 0, "kernel of a convolution");
    assert_eq!(
        x.len(),
        values([batch, sizes.c_in, h, w]),
        "input of a convolution"
    );
    assert_eq!(
        [sizes.c_out, sizes.c_in, kernel],
        [outputs, weights.inputs, weights.kernel],
        "weights of a convolution"
    );
    let map = sizes.out_pixels();
    let len = values([batch, outputs, map]);
    if len == 0 || x.is_empty() {
        return vec![0; len];
    }
    let planes = Planes::of_maps(width, x, sizes);
    let write = |out: Target<i32>| {
        product::multiply(
            width,
            &planes,
            weights,
            batch * map,
            |output, first, line| {
                let (mut at, mut line) = (first, line);
                while !line.is_empty() {
                    // To the end of the batch's entry.
                    let (part, rest) = line.split_at(line.len().min(map - at % map));
                    let start = (at / map * outputs + output) * map + at % map;
                    // SAFETY: each output has one value at each position.
                    unsafe { out.slice(start, part.len()) }.write_copy_of_slice(part);
                    (at, line) = (at + part.len(), rest);
                }
            },
        );
    };
    // SAFETY: the product has every output at every position.
    unsafe { filled(len, write) }
}

/// [`linear`] by vectors of a `width` that the machine has.
fn linear_in(width: Width, x: &[i32], weights: &Weights, tokens: usize) -> Vec<i32> {
    let outputs = weights.outputs;
    assert_eq!(weights.kernel, 1, "kernel of a linear map");
    assert_eq!(
        x.len(),
        values([tokens, weights.inputs]),
        "input of a linear map"
    );
    let len = values([tokens, outputs]);
    if len == 0 || x.is_empty() {
        return vec![0; len];
    }
    let planes = Planes::of_tokens(width, x, [tokens, weights.inputs]);
    let write = |out: Target<i32>| {
        product::multiply(width, &planes, weights, tokens, |output, first, line| {
            for (i, sum) in line.iter().enumerate() {
                // SAFETY: each output has one value for each token.
                unsafe { out.slice((first + i) * outputs + output, 1) }
                    .write_copy_of_slice(&[*sum]);
            }
        });
    };
    // SAFETY: the product has every output of every token.
    unsafe { filled(len, write) }
}

#[cfg(test)]
mod tests;
