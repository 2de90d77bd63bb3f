//! Host tensors to a device and back.

use burn::tensor::{DType, Device, Shape, Tensor, TensorData};
use lacuna_wire::HostTensor;

use crate::error::{Error, Result};

/// What a [`HostTensor`] has to do with devices.
pub trait OnDevice: Sized {
    /// Reads a device tensor back; free of copies on the CPU device when the tensor is unshared.
    ///
    /// # Errors
    /// [`Error::Device`] when the device fails to deliver, or holds another type than f32.
    fn from_device<const D: usize>(tensor: Tensor<D>) -> Result<Self>;

    /// Moves the tensor to `device`.
    ///
    /// # Errors
    /// [`lacuna_wire::Error::WrongShape`] when the tensor does not have `D` axes.
    fn into_device<const D: usize>(self, device: &Device) -> Result<Tensor<D>>;
}

impl OnDevice for HostTensor {
    fn from_device<const D: usize>(tensor: Tensor<D>) -> Result<Self> {
        let shape = tensor.dims().to_vec();
        let data = tensor
            .try_into_data()
            .map_err(|e| Error::Device(format!("reading a tensor back: {e:?}")))?;
        let data = data
            .convert::<f32>()
            .try_into_vec::<f32>()
            .map_err(|e| Error::Device(format!("reading a tensor back: {e:?}")))?;
        Ok(Self::new(shape, data)?)
    }

    fn into_device<const D: usize>(self, device: &Device) -> Result<Tensor<D>> {
        self.dims::<D>()?;
        let data = TensorData::new(self.data, Shape::from(self.shape));
        Ok(Tensor::from_data(data, (device, DType::F32)))
    }
}
