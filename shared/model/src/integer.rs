//! Products of integers, for shares of a ring: where the device computes, and with the same bits wherever that is.

use burn::tensor::Device;
use lacuna_kernels::conv::Sizes;
use lacuna_kernels::ring;

use crate::error::Result;

/// A layer's integer weights, where products with them are computed.
pub struct Weights(Kind);

enum Kind {
    Cpu(ring::Weights),
    Gpu(on_gpu::Weights),
}

impl Weights {
    /// Of `weights` `[C_out, C_in, K, K]` of convolutions of such `sizes`, of whose products the lowest `bits` bits count.
    ///
    /// # Panics
    /// When the weights are not of such sizes.
    pub fn of_conv(weights: &[i16], sizes: Sizes, bits: u32, device: &Device) -> Self {
        Self(
            match on_gpu::Weights::new(weights, [sizes.c_out, sizes.kernel], device) {
                Some(on_gpu) => Kind::Gpu(on_gpu),
                None => Kind::Cpu(ring::Weights::of_bits(weights, sizes, bits)),
            },
        )
    }

    /// Of `weights` `[outputs, K]` of a linear map.
    ///
    /// # Panics
    /// When the weights are not of as many outputs.
    pub fn of_linear(weights: &[i16], outputs: usize, device: &Device) -> Self {
        Self(match on_gpu::Weights::new(weights, [outputs, 1], device) {
            Some(on_gpu) => Kind::Gpu(on_gpu),
            None => Kind::Cpu(ring::Weights::new(weights, outputs, 1)),
        })
    }

    /// The convolution of `x` `[B, C_in, H, W]`: `[B, C_out, H_out, W_out]`, of whose lowest bits as many count as was said.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) when a GPU fails.
    ///
    /// # Panics
    /// When the sizes do not agree.
    pub fn conv2d(&self, x: &[i32], sizes: Sizes) -> Result<Vec<i32>> {
        match &self.0 {
            Kind::Cpu(weights) => Ok(ring::conv2d(x, weights, sizes)),
            Kind::Gpu(weights) => weights.conv2d(x, sizes),
        }
    }

    /// The linear map of `x` `[T, K]`: `[T, outputs]`.
    ///
    /// # Errors
    /// As [`Self::conv2d`].
    ///
    /// # Panics
    /// When the sizes do not agree.
    pub fn linear(&self, x: &[i32], tokens: usize) -> Result<Vec<i32>> {
        match &self.0 {
            Kind::Cpu(weights) => Ok(ring::linear(x, weights, tokens)),
            Kind::Gpu(weights) => weights.linear(x, tokens),
        }
    }
}

#[cfg(not(feature = "gpu"))]
mod on_gpu {
    use burn::tensor::Device;
    use lacuna_kernels::conv::Sizes;

    use crate::error::Result;

    /// There are none: this build has no GPU backend.
    pub(super) enum Weights {}

    impl Weights {
        pub(super) fn new(_: &[i16], _: [usize; 2], _: &Device) -> Option<Self> {
            None
        }

        pub(super) fn conv2d(&self, _: &[i32], _: Sizes) -> Result<Vec<i32>> {
            match *self {}
        }

        pub(super) fn linear(&self, _: &[i32], _: usize) -> Result<Vec<i32>> {
            match *self {}
        }
    }
}

#[cfg(feature = "gpu")]
mod on_gpu {
    use burn::backend::Cube;
    use burn::tensor::{Device, Tensor};
    use lacuna_kernels::conv::Sizes;
    use lacuna_kernels::ring::gpu::{self, Client, ServerError};

    use crate::device::is_cpu;
    use crate::error::{Error, Result};

    /// Weights on the GPU that burn computes on.
    pub(super) struct Weights {
        client: Client,
        weights: gpu::Weights,
    }

    impl Weights {
        /// None where the device is not a GPU.
        pub(super) fn new(
            weights: &[i16],
            [outputs, kernel]: [usize; 2],
            device: &Device,
        ) -> Option<Self> {
            if is_cpu(device) {
                return None;
            }
            // A tensor knows who launches kernels on its device.
            let tensor = Tensor::<1>::zeros([1], device);
            let client = tensor.try_into_primitive::<Cube>().ok()?.client;
            Some(Self {
                weights: gpu::Weights::new(&client, weights, outputs, kernel),
                client,
            })
        }

        pub(super) fn conv2d(&self, x: &[i32], sizes: Sizes) -> Result<Vec<i32>> {
            gpu::conv2d(&self.client, x, &self.weights, sizes).map_err(failed)
        }

        pub(super) fn linear(&self, x: &[i32], tokens: usize) -> Result<Vec<i32>> {
            gpu::linear(&self.client, x, &self.weights, tokens).map_err(failed)
        }
    }

    fn failed(error: ServerError) -> Error {
        Error::Device(format!("a product of integers: {error}"))
    }
}
