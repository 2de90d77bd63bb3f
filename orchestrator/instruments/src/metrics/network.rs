//! What the feature networks are made of: convolutions with ReLU, and pooling.

use burn::tensor::module::{avg_pool2d, max_pool2d};
use burn::tensor::ops::{AvgPoolOptions, MaxPoolOptions, PadMode};
use burn::tensor::{Tensor, activation::relu};
use lacuna_model::error::Result;
use lacuna_model::layers::{Conv2d, Parameter, Parameters};
use lacuna_model::ops;
use lacuna_model::weights::{Checkpoint, Weights};

/// A convolution and ReLU.
///
/// A kernel of one row or one column is the 1x1 convolution over the channels and their shifted copies:
/// `[C_out, C_in, 1, K]` has the values of `[C_out, C_in K, 1, 1]` in the same order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Convolution {
    layer: Conv2d,
    shifts: Option<Shifts>,
}

/// Copies of each channel, shifted along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shifts {
    /// 2 for rows, 3 for columns.
    axis: usize,
    /// `K`, odd.
    copies: usize,
}

impl Convolution {
    /// A square kernel.
    pub(super) fn square(layer: Conv2d) -> Self {
        Self {
            layer,
            shifts: None,
        }
    }

    /// A kernel of `k` values along an axis, 2 (one column) or 3 (one row), that keeps the size.
    pub(super) fn along(axis: usize, name: String, c_in: usize, c_out: usize, k: usize) -> Self {
        Self {
            layer: Conv2d::same(name, c_in * k, c_out, 1),
            shifts: Some(Shifts { axis, copies: k }),
        }
    }

    /// `[B, C_in, H, W]` to `[B, C_out, H_out, W_out]`.
    pub(super) fn forward(&self, weights: &Weights, x: Tensor<4>) -> Result<Tensor<4>> {
        let x = match self.shifts {
            Some(shifts) => shifts.of(x),
            None => x,
        };
        Ok(relu(ops::conv2d(weights, &self.layer, x)?))
    }
}

impl Shifts {
    /// `[B, C, H, W]` to `[B, C K, H, W]`, with zeros from outside.
    fn of(self, x: Tensor<4>) -> Tensor<4> {
        let [b, c, h, w] = x.dims();
        let each = self.copies / 2;
        let mut padding = [(0, 0); 4];
        padding[self.axis] = (each, each);
        let length = x.dims()[self.axis];
        let x = x.pad(padding, PadMode::Constant(0.0));
        let copies = (0..self.copies).map(|k| x.clone().narrow(self.axis, k, length));
        Tensor::stack::<5>(copies.collect(), 2).reshape([b, c * self.copies, h, w])
    }
}

impl Parameters for Convolution {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        self.layer.parameters(out);
    }
}

/// Gives kernels of one row or column the shape that [`Convolution`] has for them.
pub(super) fn flatten_kernels(checkpoint: &mut Checkpoint) {
    checkpoint.adapt(|name, shape| {
        if let [c_out, c_in, h, w] = shape[..]
            && h != w
        {
            *shape = vec![c_out, c_in * h * w, 1, 1];
        }
        Some(name.to_owned())
    });
}

/// The largest value of each `size` x `size` window.
pub(super) fn max_pool(x: Tensor<4>, size: usize, stride: usize, padding: usize) -> Tensor<4> {
    let options = MaxPoolOptions::new([size; 2])
        .with_stride([stride; 2])
        .with_padding([padding; 2]);
    max_pool2d(x, options)
}

/// The mean of each 3x3 window, of the values inside alone (as TensorFlow counts).
pub(super) fn mean_pool(x: Tensor<4>) -> Tensor<4> {
    let options = AvgPoolOptions::new([3; 2])
        .with_stride([1; 2])
        .with_padding([1; 2])
        .with_count_include_pad(false);
    avg_pool2d(x, options)
}
