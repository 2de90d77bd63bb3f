//! The bridge between burn's tensors of the CPU device and the slices that `lacuna_kernels` works on. Only
//! [`crate::ops`] crosses it.

use burn::backend::Flex;
use burn::tensor::{DType, Device, Shape, Tensor, TensorData};

/// A tensor of the CPU device, seen as its values in row-major order.
pub struct Dense<const D: usize> {
    tensor: burn::backend::flex::FlexTensor,
    shape: [usize; D],
}

impl<const D: usize> Dense<D> {
    /// Looks at `x`, without a copy when it is contiguous; `None` when it is not an f32 tensor of
    /// the CPU device.
    pub fn of(x: &Tensor<D>) -> Option<Self> {
        let shape = x.dims();
        let tensor = x.clone().try_into_primitive::<Flex>().ok()?;
        if tensor.dtype() != DType::F32 {
            return None;
        }
        let tensor = if tensor.is_contiguous() {
            tensor
        } else {
            tensor.to_contiguous()
        };
        Some(Self { tensor, shape })
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> [usize; D] {
        self.shape
    }

    /// The values.
    pub fn values(&self) -> &[f32] {
        // `of` saw to the type and the order, so there is always a slice.
        self.tensor.as_slice().unwrap_or_default()
    }
}

/// A tensor of the CPU device over `values`.
pub fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    let data = TensorData::new(values, Shape::from(shape));
    Tensor::from_data(data, (&Device::flex(), DType::F32))
}
