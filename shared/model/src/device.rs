//! Choosing a device at run time, and naming what was chosen.

use std::fmt;
use std::str::FromStr;

use burn::tensor::{DType, Device, Tensor, TensorData};
use half::f16;
use lacuna_wire::HostTensor;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::host::OnDevice;

/// `--device`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU where this build and machine have one, else the CPU.
    #[default]
    Auto,
    /// The CPU, by burn's flex backend.
    Cpu,
    /// A GPU, by burn's wgpu backend.
    Wgpu,
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "wgpu" => Ok(Self::Wgpu),
            other => Err(Error::Device(format!(
                "{other:?} is none of auto, cpu, wgpu"
            ))),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Wgpu => "wgpu",
        })
    }
}

/// Number type of the weights on a device, and so of what is computed with them.
///
/// Statistics of norms and sums inside a product are f32 either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision: what pictures are held against.
    #[default]
    F32,
    /// Half precision: half of the memory, and tensor cores where the GPU has them.
    F16,
}

impl Precision {
    /// The type of the tensors.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
        }
    }

    /// Rounds `values` to numbers of this type: to the nearest, of two to the even one, on each machine alike.
    pub fn round(self, values: &mut [f32]) {
        if self == Self::F16 {
            values
                .iter_mut()
                .for_each(|value| *value = f16::from_f32(*value).to_f32());
        }
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "f32" | "fp32" => Ok(Self::F32),
            "f16" | "fp16" => Ok(Self::F16),
            other => Err(Error::Device(format!(
                "precision {other:?} is neither f32 nor f16"
            ))),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        })
    }
}

/// Where weights go, and in which number type.
#[derive(Clone, Debug)]
pub struct Target {
    /// The device.
    pub device: Device,
    /// The type of its weights.
    pub precision: Precision,
}

impl From<&Device> for Target {
    fn from(device: &Device) -> Self {
        (device, Precision::F32).into()
    }
}

impl From<(&Device, Precision)> for Target {
    fn from((device, precision): (&Device, Precision)) -> Self {
        Self {
            device: device.clone(),
            precision,
        }
    }
}

/// A device that was opened.
#[derive(Clone, Debug)]
pub struct OpenDevice {
    /// What tensors are made on.
    pub device: Device,
    /// `cpu` or `wgpu`.
    pub kind: &'static str,
    /// Name of the GPU and its driver, or of the CPU backend.
    pub adapter: String,
    /// Whether it is a GPU that is emulated on the CPU.
    pub software: bool,
}

impl OpenDevice {
    /// The CPU.
    pub fn cpu() -> Self {
        let threads = rayon::current_num_threads();
        Self {
            device: Device::flex(),
            kind: "cpu",
            adapter: format!("{} threads", threads),
            software: false,
        }
    }
}

/// Whether `device` is the CPU.
pub fn is_cpu(device: &Device) -> bool {
    *device == Device::flex()
}

/// Whether halves keep their values in f32 on `device`: a GPU may take the smallest for zeros.
///
/// # Errors
/// [`Error::Device`] when it fails.
pub fn keeps_halves(device: &Device) -> Result<bool> {
    let halves = (0..=u16::MAX).map(f16::from_bits);
    let halves: Vec<f16> = halves.filter(|half| half.is_finite()).collect();
    let wide = halves.iter().map(|half| half.to_f32());
    let wide: Vec<f32> = wide.collect();
    let data = TensorData::new(halves, [wide.len()]);
    let there = Tensor::<1>::from_data(data, (device, DType::F16)).cast(DType::F32);
    Ok(HostTensor::from_device(there)?.data == wide)
}

/// Opens a device. A GPU that is really software (llvmpipe) is refused unless `allow_software`:
/// it is many times slower than the CPU backend.
///
/// # Errors
/// [`Error::Device`] when the build or the machine has no such device.
pub fn open(choice: DeviceChoice, allow_software: bool) -> Result<OpenDevice> {
    match choice {
        DeviceChoice::Cpu => Ok(OpenDevice::cpu()),
        DeviceChoice::Wgpu => gpu::open(allow_software),
        DeviceChoice::Auto => Ok(gpu::open(allow_software).unwrap_or_else(|error| {
            tracing::info!("no GPU, using the CPU ({error})");
            OpenDevice::cpu()
        })),
    }
}

#[cfg(not(feature = "wgpu"))]
mod gpu {
    use super::{Error, OpenDevice, Result};

    pub(super) fn open(_: bool) -> Result<OpenDevice> {
        Err(Error::Device(
            "this build has no GPU backend; build with --features wgpu".into(),
        ))
    }
}

#[cfg(feature = "wgpu")]
mod gpu;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_keep_their_values_on_the_cpu() {
        assert!(keeps_halves(&OpenDevice::cpu().device).unwrap());
    }
}
