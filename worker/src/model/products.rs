//! Products of layers' weights with shares of their inputs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::Tensor;
use lacuna_kernels::conv::Sizes;
use lacuna_model::device::{Precision, is_cpu, keeps_halves};
use lacuna_model::host::OnDevice;
use lacuna_model::{integer, ops};
use lacuna_protocol::{Error, Result};
use lacuna_shares::Ring;
use lacuna_shares::bands::{Needed, Planes};
use lacuna_wire::HostTensor;

use super::{Model, Owned, expect};

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

    /// Some rows of the product of a layer's weights with an input, without the bias: `x` are the rows of the input that
    /// are `needed`, of a convolution's `[B, C, H, W]`, whose columns are `enlarged` before to so many, as its rows are, or
    /// of a linear map's `[B, T, D]`. `odd` says whether the first output row is an odd one.
    ///
    /// # Errors
    /// As [`Self::run`]; [`Error::NoLayer`] for a layer of another kind, or what cannot be enlarged.
    pub fn multiply(
        &self,
        name: &str,
        x: HostTensor,
        needed: &Needed,
        enlarged: Option<usize>,
        (odd, precision): (bool, Precision),
    ) -> Result<HostTensor> {
        let device = self.weights.device();
        let weights = &self.weights.widened(name, precision)?;
        match (self.layers.get(name), enlarged) {
            (Some(Owned::Conv(conv)), _) => {
                let [b, _, h, w] = x.dims()?;
                expect(b * h * w > 0, name, &[b, conv.c_in, h, w], &x.shape)?;
                let mut x: Tensor<4> = x.into_device(device)?;
                if let Some(columns) = enlarged {
                    x = ops::enlarge(x, [2 * h, columns]);
                }
                let [skipped, rows] = needed.enlarged;
                let [b, c, h, w] = x.dims();
                if skipped + rows > h {
                    expect(false, name, &[b, c, skipped + rows, w], &[b, c, h, w])?;
                }
                let x = x.narrow(2, skipped, rows);
                let y = match needed.zeros == [conv.padding; 2] {
                    true => ops::conv2d_unbiased(weights, conv, x)?,
                    false => {
                        let zeros = |rows| Tensor::zeros([b, c, rows, w], (device, x.dtype()));
                        let [above, below] = needed.zeros.map(zeros);
                        let x = Tensor::cat(vec![above, x, below], 2);
                        ops::conv2d_of_strip_unbiased(weights, conv, x, odd)?
                    }
                };
                Ok(HostTensor::from_device(y)?)
            }
            (Some(Owned::Linear(linear)), None) => {
                let [b, t, _] = x.dims()?;
                expect(b * t > 0, name, &[b, t, linear.d_in], &x.shape)?;
                let x: Tensor<3> = x.into_device(device)?;
                let y = ops::linear_unbiased(weights, linear, x)?;
                Ok(HostTensor::from_device(y)?)
            }
            _ => Err(self.no_product(name)),
        }
    }

    /// The same of a share of a `ring`, whose rows that are needed are `x`, of such a `shape`: products with integer weights,
    /// of which the ring's lowest bits count, of weights as they are in `precision`.
    ///
    /// # Errors
    /// As [`Self::multiply`].
    pub fn multiply_in(
        &self,
        (ring, precision): (Ring, Precision),
        name: &str,
        x: Vec<i32>,
        shape: &[usize],
        needed: &Needed,
        enlarged: Option<usize>,
    ) -> Result<Vec<i32>> {
        match (self.layers.get(name), shape, enlarged) {
            (Some(Owned::Conv(conv)), &[b, c, rows, columns], _) => {
                let fits = c == conv.c_in && x.len() == b * c * rows * columns && !x.is_empty();
                expect(fits, name, &[b, conv.c_in, rows, columns], shape)?;
                let planes = Planes {
                    number: b * c,
                    rows,
                    width: columns,
                };
                let (planes, x) = planes.padded(&x, needed, enlarged);
                let sizes = Sizes {
                    batch: b,
                    c_in: c,
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
            (Some(Owned::Linear(linear)), &[b, t, d], None) => {
                let fits = d == linear.d_in && x.len() == b * t * d && !x.is_empty();
                expect(fits, name, &[b, t, linear.d_in], shape)?;
                let weights = self.integers.of((ring, precision), name, || {
                    let (rows, outputs) = self.rows_of(name, precision)?;
                    let integers = ring.quantise(&rows, outputs).weights;
                    let device = self.weights.device();
                    Ok(integer::Weights::of_linear(&integers, outputs, device))
                })?;
                Ok(weights.linear(&x, b * t)?)
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
