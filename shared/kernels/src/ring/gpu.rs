//! The products of [`super`] on a GPU, with the same bits: burn's own products of integers are not made to be exact.
//!
//! A convolution is a product of matrices, of which one is not written out: a cube of units keeps [`TILE`] outputs at
//! [`TILE`] positions, and brings the features that they meet, [`DEPTH`] at a time, to where all its units see them.

// What the macro makes of a kernel has no documentation, and more arguments than a person would give it.
#![allow(missing_docs, clippy::too_many_arguments)]

use cubecl::bytes::Bytes;
pub use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;
pub use cubecl::server::ServerError;

use super::Sizes;
use crate::values;

/// Units of a cube, each way.
const SIDE: usize = 16;
/// Outputs of a unit, and positions.
const EACH: usize = 4;
/// Outputs of a cube, and positions.
const TILE: usize = SIDE * EACH;
/// Features of a position that are brought at a time.
const DEPTH: usize = 16;
/// Units of a cube.
const UNITS: usize = SIDE * SIDE;
/// Features of the same position that a unit brings at a time.
const BROUGHT: usize = DEPTH * TILE / UNITS;

/// A layer's weights on a GPU.
#[derive(Clone, Debug)]
pub struct Weights {
    /// Of each two features that follow each other a word for each output: `[K / 2, outputs]`.
    words: Handle,
    len: usize,
    outputs: usize,
    inputs: usize,
    kernel: usize,
}

impl Weights {
    /// As [`super::Weights::new`].
    ///
    /// # Panics
    /// When the weights are not of as many outputs and taps.
    pub fn new(client: &Client, weights: &[i16], outputs: usize, kernel: usize) -> Self {
        let inputs = weights.len().checked_div(outputs * kernel * kernel);
        let inputs = inputs.unwrap_or_default();
        let depth = inputs * kernel * kernel;
        let all = values([outputs, inputs, kernel, kernel]);
        assert_eq!(weights.len(), all, "weights of {outputs} outputs");
        let word = |at: usize| {
            let (pair, output) = (at / outputs, at % outputs);
            let half = |k: usize| match k < depth {
                true => u32::from(weights[output * depth + k].cast_unsigned()),
                false => 0,
            };
            half(2 * pair) | half(2 * pair + 1) << 16
        };
        let words: Vec<u32> = (0..depth.div_ceil(2) * outputs).map(word).collect();
        Self {
            len: words.len(),
            words: client.create(Bytes::from_elems(words)),
            outputs,
            inputs,
            kernel,
        }
    }
}

/// As [`super::conv2d`].
///
/// # Errors
/// Those of the GPU.
///
/// # Panics
/// When the sizes do not agree, or the kernel or the stride is zero.
pub fn conv2d(
    client: &Client,
    x: &[i32],
    weights: &Weights,
    sizes: Sizes,
) -> Result<Vec<i32>, ServerError> {
    let [rows, columns] = sizes.size;
    let [above, left] = sizes.padding;
    let (kernel, outputs) = (sizes.kernel, weights.outputs);
    assert!(kernel > 0 && sizes.stride > 0, "kernel of a convolution");
    assert_eq!(
        x.len(),
        values([sizes.batch, sizes.c_in, rows, columns]),
        "input of a convolution"
    );
    assert_eq!(
        [sizes.c_out, sizes.c_in, kernel],
        [outputs, weights.inputs, weights.kernel],
        "weights of a convolution"
    );
    let [_, out_columns] = sizes.out_size();
    let map = sizes.out_pixels();
    let positions = values([sizes.batch, map]);
    let len = values([positions, outputs]);
    if len == 0 || x.is_empty() {
        return Ok(vec![0; len]);
    }
    let count = |n: usize| u32::try_from(n.div_ceil(TILE)).unwrap_or(u32::MAX);
    let input = client.create(Bytes::from_elems(x.to_vec()));
    let output = client.empty(len * size_of::<u32>());
    multiply::launch(
        client,
        CubeCount::Static(count(positions), count(outputs), 1),
        CubeDim::new_2d(SIDE as u32, SIDE as u32),
        // SAFETY: the buffer was made of as many words.
        unsafe { BufferArg::from_raw_parts(input, x.len()) },
        // SAFETY: as above.
        unsafe { BufferArg::from_raw_parts(weights.words.clone(), weights.len) },
        // SAFETY: as above.
        unsafe { BufferArg::from_raw_parts(output.clone(), len) },
        sizes.c_in,
        rows,
        columns,
        kernel,
        sizes.stride,
        above,
        left,
        out_columns,
        map,
        outputs,
        positions,
    );
    let words = client.read_one(output)?;
    Ok(i32::from_bytes(&words).to_vec())
}

/// As [`super::linear`].
///
/// # Errors
/// Those of the GPU.
///
/// # Panics
/// When the sizes do not agree.
pub fn linear(
    client: &Client,
    x: &[i32],
    weights: &Weights,
    tokens: usize,
) -> Result<Vec<i32>, ServerError> {
    // A token is a map of one position.
    let sizes = Sizes {
        batch: tokens,
        c_in: weights.inputs,
        c_out: weights.outputs,
        size: [1, 1],
        kernel: 1,
        stride: 1,
        padding: [0, 0],
        odd: false,
    };
    conv2d(client, x, weights, sizes)
}

/// The convolution of `x` `[B, inputs, rows, columns]`, to `out` `[B, outputs, map]`.
#[cube(launch)]
fn multiply(
    x: &[u32],
    weights: &[u32],
    out: &mut [u32],
    inputs: usize,
    rows: usize,
    columns: usize,
    kernel: usize,
    stride: usize,
    above: usize,
    left: usize,
    out_columns: usize,
    map: usize,
    outputs: usize,
    positions: usize,
) {
    let unit = UNIT_POS as usize;
    let (own_output, own_position) = (unit / SIDE, unit % SIDE);
    let first_output = CUBE_POS_Y as usize * TILE;
    let first_position = CUBE_POS_X as usize * TILE;
    let mut features = Shared::<[u32]>::new_slice(DEPTH * TILE);
    let mut factors = Shared::<[u32]>::new_slice(DEPTH * TILE);
    let mut sums = Array::<u32>::new(EACH * EACH);
    #[unroll]
    for i in 0..EACH * EACH {
        sums[i] = 0;
    }
    // Of the tile, the position and the output of which this unit brings features and weights, and the first of those.
    let lane = unit % TILE;
    let first = unit / TILE;
    let position = first_position + lane;
    let entry = position / map;
    let at = position % map;
    let top = at / out_columns * stride;
    let start = at % out_columns * stride;
    let taps = kernel * kernel;
    let depth = inputs * taps;
    let words = depth.div_ceil(2);
    let mut done = 0usize;
    while done < depth {
        #[unroll]
        for i in 0..BROUGHT {
            let slot = first + UNITS / TILE * i;
            let k = done + slot;
            let mut value = 0u32;
            if k < depth && position < positions {
                let (channel, tap) = (k / taps, k % taps);
                let row = top + tap / kernel;
                let column = start + tap % kernel;
                if row >= above && row < rows + above && column >= left && column < columns + left {
                    let line = (entry * inputs + channel) * rows + row - above;
                    value = x[line * columns + column - left];
                }
            }
            features[slot * TILE + lane] = value;
        }
        #[unroll]
        for i in 0..BROUGHT / 2 {
            let pair = first + UNITS / TILE * i;
            let word = done / 2 + pair;
            let output = first_output + lane;
            let mut both = 0u32;
            if word < words && output < outputs {
                both = weights[word * outputs + output];
            }
            // Each half keeps its sign: as words of 32 bits they wrap alike.
            let low = ((both & 0xffff) ^ 0x8000) - 0x8000;
            let high = ((both >> 16) ^ 0x8000) - 0x8000;
            factors[2 * pair * TILE + lane] = low;
            factors[(2 * pair + 1) * TILE + lane] = high;
        }
        sync_cube();
        for k in 0..DEPTH {
            let mut some = Array::<u32>::new(EACH);
            #[unroll]
            for j in 0..EACH {
                some[j] = features[k * TILE + own_position + SIDE * j];
            }
            #[unroll]
            for i in 0..EACH {
                let factor = factors[k * TILE + own_output + SIDE * i];
                #[unroll]
                for j in 0..EACH {
                    sums[i * EACH + j] += factor * some[j];
                }
            }
        }
        sync_cube();
        done += DEPTH;
    }
    #[unroll]
    for j in 0..EACH {
        let position = first_position + own_position + SIDE * j;
        if position < positions {
            let (entry, at) = (position / map, position % map);
            #[unroll]
            for i in 0..EACH {
                let output = first_output + own_output + SIDE * i;
                if output < outputs {
                    out[(entry * outputs + output) * map + at] = sums[i * EACH + j];
                }
            }
        }
    }
}
