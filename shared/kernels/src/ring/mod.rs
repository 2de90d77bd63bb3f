//! Products of integers modulo `2^32`: what workers multiply shares of a ring with. Features are words of 32 bits, weights
//! of 16, and sums wrap. So they are exact, whichever way they are computed: on every machine they have the same bits.
//!
//! - `tile`: the inner loop, for each width of vectors.
//! - `planes` and `tokens`: which features of an input a tile's positions meet.
//! - `product`: how tasks go through all of it.
//! - `winograd`: the same of 3x3 kernels with fewer multiplications, of products of up to 30 bits.
//! - `gpu`: the same on GPUs, with the feature of that name.
//!
//! Weights are brought once into the order in which products read them ([`Weights`]).

#[cfg(feature = "gpu")]
pub mod gpu;
mod planes;
mod product;
mod tile;
mod tokens;
mod winograd;

use rayon::prelude::*;

use self::planes::Planes;
use self::tile::ROWS;
use self::tokens::Tokens;
use super::simd::{Width, width};
use super::sizes::Sizes;
use super::{Target, filled, values};

/// A layer's weights as products read them.
#[derive(Clone, Debug)]
pub struct Weights {
    /// Of each two inputs and tap of the kernel a word for each of [`ROWS`] outputs: `[rows, pairs, taps]`; of transformed
    /// ones `[taps, rows, pairs]`.
    panels: Vec<tile::Weights>,
    outputs: usize,
    inputs: usize,
    kernel: usize,
    transformed: bool,
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
        Self {
            panels: panels(weights, [outputs, inputs, taps], |row, place| {
                [row, place / taps, place % taps]
            }),
            outputs,
            inputs,
            kernel,
            transformed: false,
        }
    }

    /// Of `weights` `[C_out, C_in, K, K]` of convolutions of such `sizes`, of whose products the lowest `bits` bits count, and
    /// the others are anything: of up to 30 bits, of 3x3 kernels with a stride of 1, and of weights that allow it, products
    /// take less than half of the multiplications. Those are allowed whose norm of any 3x3 kernel is at most 10922, and
    /// most others.
    ///
    /// # Panics
    /// When the weights are not of such sizes.
    pub fn of_bits(weights: &[i16], sizes: Sizes, bits: u32) -> Self {
        let (outputs, inputs) = (sizes.c_out, sizes.c_in);
        let plain = |weights| {
            let plain = Self::new(weights, outputs, sizes.kernel);
            assert_eq!(plain.inputs, inputs, "inputs of a convolution");
            plain
        };
        if bits > winograd::EXACT || !winograd::suits(&sizes) {
            return plain(weights);
        }
        let Some(taps) = winograd::transform(weights) else {
            return plain(weights);
        };
        let all = values([outputs, inputs, 9]);
        assert_eq!(weights.len(), all, "weights of a convolution");
        let (rows, pairs) = (outputs.div_ceil(ROWS), inputs.div_ceil(2));
        Self {
            panels: panels(&taps, [outputs, inputs, winograd::TAPS], |row, place| {
                // The list of all panels is in another order than that of each row's.
                let at = row * pairs * winograd::TAPS + place;
                let (tap, rest) = (at / (rows * pairs), at % (rows * pairs));
                [rest / pairs, rest % pairs, tap]
            }),
            outputs,
            inputs,
            kernel: 3,
            transformed: true,
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

/// `weights` `[outputs, inputs, taps]` by twos in words. `of` tells of a row of as many words as `[pairs, taps]`, and of the
/// place in it, which rows, pair and tap belong there.
fn panels(
    weights: &[i16],
    [outputs, inputs, taps]: [usize; 3],
    of: impl Fn(usize, usize) -> [usize; 3] + Sync,
) -> Vec<tile::Weights> {
    let depth = inputs.div_ceil(2) * taps;
    let mut panels = vec![[0; ROWS]; outputs.div_ceil(ROWS) * depth];
    let each = panels.par_chunks_mut(depth.max(1)).enumerate();
    each.for_each(|(i, panel)| {
        for (place, words) in panel.iter_mut().enumerate() {
            let [row, pair, tap] = of(i, place);
            let outputs = (row * ROWS..outputs).zip(words);
            for (output, word) in outputs {
                let weight = |input: usize| {
                    let at = (output * inputs + input) * taps + tap;
                    if input < inputs { weights[at] } else { 0 }
                };
                *word = tile::pair(weight(2 * pair), weight(2 * pair + 1));
            }
        }
    });
    panels
}

/// The convolution of `x`, `[B, C_in, H, W]`, modulo `2^32`: `[B, C_out, H_out, W_out]`. A strip has the bits of the whole
/// whether it is `odd` or not.
///
/// # Panics
/// When the sizes do not agree, the kernel or the stride is zero, or the stride is not 1 where the weights are
/// [`Weights::of_bits`].
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
    if weights.transformed {
        assert_eq!(sizes.stride, 1, "stride of a transformed convolution");
        return winograd::conv2d(width, x, weights, sizes);
    }
    let planes = Planes::of_maps(width, x, sizes);
    let write = |out: Target<i32>| {
        product::multiply(width, &planes, weights, batch * map, |tile| {
            for (output, line) in tile.outputs.zip(tile.sums) {
                let (mut at, mut line) = (tile.positions.start, &line[..tile.positions.len()]);
                while !line.is_empty() {
                    // To the end of the batch's entry.
                    let (part, rest) = line.split_at(line.len().min(map - at % map));
                    let start = (at / map * outputs + output) * map + at % map;
                    // SAFETY: each output has one value at each position.
                    unsafe { out.slice(start, part.len()) }.write_copy_of_slice(part);
                    (at, line) = (at + part.len(), rest);
                }
            }
        });
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
    let source = Tokens {
        x,
        features: weights.inputs,
        halves: tile::in_halves(width),
    };
    let write = |out: Target<i32>| {
        product::multiply(width, &source, weights, tokens, |tile| {
            for (i, token) in tile.positions.enumerate() {
                let line = tile.sums.each_ref().map(|sums| sums[i]);
                let (start, len) = (token * outputs + tile.outputs.start, tile.outputs.len());
                // SAFETY: each output has one value for each token.
                unsafe { out.slice(start, len) }.write_copy_of_slice(&line[..len]);
            }
        });
    };
    // SAFETY: the product has every output of every token.
    unsafe { filled(len, write) }
}

#[cfg(test)]
mod tests;
