//! Products of layers' weights with shares of their inputs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::Tensor;
use burn::tensor::ops::PadMode;
use lacuna_kernels::conv::Sizes;
use lacuna_model::device::{Precision, is_cpu, keeps_halves};
use lacuna_model::host::OnDevice;
use lacuna_model::{integer, ops};
use lacuna_protocol::{Error, Result};
use lacuna_shares::Ring;
use lacuna_shares::bands::{Needed, Planes};
use lacuna_wire::HostTensor;

use super::{Model, Owned, expect};

/// Some rows of a share, as a layer multiplies them.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    /// The share, of the input of a convolution, `[B, C, H, W]`, or of a linear map, `[B, T, D]`.
    pub share: &'a [i32],
    /// The same as rows.
    pub planes: Planes,
    /// Those that are multiplied, and the zeros around.
    pub needed: &'a Needed,
    /// Columns that a convolution's input is enlarged to before, as its rows are; none where it is not.
    pub columns: Option<usize>,
}

impl Operand<'_> {
    /// The batch entries, where each has `planes` planes of `width` values in a row, if a width is given.
    fn entries(&self, name: &str, planes: usize, width: Option<usize>) -> Result<usize> {
        let Planes { number, rows, .. } = self.planes;
        let (entries, width) = (number / planes.max(1), width.unwrap_or(self.planes.width));
        let fits = entries * planes == number
            && width == self.planes.width
            && self.share.len() == self.planes.values()
            && self.needed.input.end <= rows
            && !self.share.is_empty();
        expect(
            fits,
            name,
            &[entries, planes, rows, width],
            &[number, rows, self.planes.width],
        )?;
        Ok(entries)
    }
}

impl Model {
    /// That shares can be multiplied with weights as they are in `precision`, to the last bit of each.
    ///
    /// # Errors
    /// [`lacuna_model::Error::Device`] where they cannot, saying what to do.
    pub fn check_shares(&self, precision: Precision) -> lacuna_model::Result<()> {
        let failed = |reason: &str| Err(lacuna_model::Error::Device(reason.into()));
        let device = self.weights.device();
        match (self.weights.precision(), precision) {
            (Precision::F16, Precision::F32) => failed(
                "this worker holds weights in half precision; --share-weights f16 has shares multiplied with those",
            ),
            (Precision::F32, Precision::F16) if !is_cpu(device) => failed(
                "this worker's GPU holds weights in f32, and shares are to be multiplied with half precision; start it with \
                 --precision f16",
            ),
            (Precision::F16, Precision::F16) => {
                let keeps = match self.keeps_halves.get() {
                    Some(keeps) => *keeps,
                    None => {
                        let keeps = keeps_halves(device)?;
                        *self.keeps_halves.get_or_init(|| keeps)
                    }
                };
                match keeps {
                    true => Ok(()),
                    false => failed(
                        "this worker's GPU takes the smallest numbers of half precision for zeros; start it with \
                         --precision f32",
                    ),
                }
            }
            _ => Ok(()),
        }
    }

    /// Some rows of the product of a layer's weights with a share, without the bias. `odd` says whether the first output row
    /// is an odd one.
    ///
    /// # Errors
    /// As [`Self::run`]; [`Error::NoLayer`] for a layer of another kind, or what cannot be enlarged.
    pub fn multiply(
        &self,
        name: &str,
        operand: Operand<'_>,
        (odd, precision): (bool, Precision),
    ) -> Result<HostTensor> {
        let device = self.weights.device();
        let weights = &self.weights.widened(name, precision)?;
        let Operand {
            share,
            planes,
            needed,
            columns,
        } = operand;
        let rows = needed.input.len();
        let taken = |shape: Vec<usize>, zeros| {
            let x = planes.take_as(share, &needed.input, zeros, |word| word as f32);
            HostTensor::new(shape, x)
        };
        match (self.layers.get(name), columns) {
            (Some(Owned::Conv(conv)), _) => {
                let (b, c) = (operand.entries(name, conv.c_in, None)?, conv.c_in);
                // A convolution has zeros of its own around the whole.
                let is_whole = needed.zeros == [conv.padding; 2];
                let zeros = if is_whole { [0, 0] } else { needed.zeros };
                let x: Tensor<4> = match columns {
                    None => {
                        let rows = zeros.iter().sum::<usize>() + rows;
                        taken(vec![b, c, rows, planes.width], zeros)?.into_device(device)?
                    }
                    Some(columns) => {
                        let x = taken(vec![b, c, rows, planes.width], [0, 0])?;
                        let [skipped, len] = needed.enlarged;
                        let high = 2 * rows;
                        if skipped + len > high {
                            expect(false, name, &[b, c, skipped + len], &[b, c, high])?;
                        }
                        let x = ops::enlarge(x.into_device(device)?, [high, columns]);
                        let [above, below] = zeros;
                        let around = (0, 0, above, below);
                        let zero = PadMode::Constant(0.0);
                        x.narrow(2, skipped, len).pad(around, zero)
                    }
                };
                let y = match is_whole {
                    true => ops::conv2d_unbiased(weights, conv, x)?,
                    false => ops::conv2d_of_strip_unbiased(weights, conv, x, odd)?,
                };
                Ok(HostTensor::from_device(y)?)
            }
            (Some(Owned::Linear(linear)), None) => {
                let b = operand.entries(name, 1, Some(linear.d_in))?;
                let x: Tensor<3> =
                    taken(vec![b, rows, linear.d_in], [0, 0])?.into_device(device)?;
                let y = ops::linear_unbiased(weights, linear, x)?;
                Ok(HostTensor::from_device(y)?)
            }
            _ => Err(self.no_product(name)),
        }
    }

    /// The same of a share of a `ring`: products with integer weights, of which the ring's lowest bits count, of weights as
    /// they are in `precision`.
    ///
    /// # Errors
    /// As [`Self::multiply`].
    pub fn multiply_in(
        &self,
        (ring, precision): (Ring, Precision),
        name: &str,
        operand: Operand<'_>,
    ) -> Result<Vec<i32>> {
        let Operand {
            share,
            planes,
            needed,
            columns,
        } = operand;
        let some = planes.take(share, &needed.input);
        match (self.layers.get(name), columns) {
            (Some(Owned::Conv(conv)), _) => {
                let batch = operand.entries(name, conv.c_in, None)?;
                let some_rows = Planes {
                    rows: needed.input.len(),
                    ..planes
                };
                let (planes, x) = some_rows.padded(&some, needed, columns);
                let sizes = Sizes {
                    batch,
                    c_in: conv.c_in,
                    c_out: conv.c_out,
                    size: [planes.rows, planes.width],
                    kernel: conv.kernel,
                    stride: conv.stride,
                    padding: [0, conv.padding],
                    odd: false,
                };
                let weights = self.integers.of((ring, precision), name, || {
                    let (rows, outputs) = self.rows_of(name, precision)?;
                    let integers = ring.quantise(&rows, outputs).weights;
                    let device = self.weights.device();
                    Ok(integer::Weights::of_conv(
                        &integers,
                        sizes,
                        ring.up(),
                        device,
                    ))
                })?;
                Ok(weights.conv2d(&x, sizes)?)
            }
            (Some(Owned::Linear(linear)), None) => {
                let batch = operand.entries(name, 1, Some(linear.d_in))?;
                let weights = self.integers.of((ring, precision), name, || {
                    let (rows, outputs) = self.rows_of(name, precision)?;
                    let integers = ring.quantise(&rows, outputs).weights;
                    let device = self.weights.device();
                    Ok(integer::Weights::of_linear(&integers, outputs, device))
                })?;
                Ok(weights.linear(&some, batch * needed.input.len())?)
            }
            _ => Err(self.no_product(name)),
        }
    }

    /// A layer's weights `[outputs, K]` by rows, as they are in `precision`, and the number of outputs.
    ///
    /// # Errors
    /// As [`Self::multiply`].
    pub fn rows_of(&self, name: &str, precision: Precision) -> Result<(Vec<f32>, usize)> {
        match self.layers.get(name) {
            Some(Owned::Conv(_) | Owned::Linear(_)) => {
                let weights = self.weights.widened(name, precision)?;
                Ok(weights.by_output(&format!("{name}.weight"))?)
            }
            _ => Err(self.no_product(name)),
        }
    }

    fn no_product(&self, name: &str) -> Error {
        let work = match self.layers.contains_key(name) {
            true => format!("a product with {name:?}"),
            false => format!("{name:?}"),
        };
        Error::NoLayer { work }
    }
}

/// Integer weights of the layers that were multiplied in one ring: they depend on its bits, and on those of the weights.
#[derive(Default)]
pub(super) struct Integers(Mutex<(Of, HashMap<String, Arc<integer::Weights>>)>);

/// Bits of a ring, and what weights were before they were integers.
type Of = (u32, Precision);

impl Integers {
    /// Those of the layer `name`, which `make` makes once for as long as no other ring is asked for.
    fn of(
        &self,
        (ring, precision): (Ring, Precision),
        name: &str,
        make: impl FnOnce() -> Result<integer::Weights>,
    ) -> Result<Arc<integer::Weights>> {
        // Weights are there whole or not at all.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (of, layers) = &mut *known;
        if *of != (ring.up(), precision) {
            layers.clear();
            *of = (ring.up(), precision);
        }
        if let Some(weights) = layers.get(name) {
            return Ok(weights.clone());
        }
        let weights = Arc::new(make()?);
        layers.insert(name.to_owned(), weights.clone());
        Ok(weights)
    }
}
