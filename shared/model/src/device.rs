//! Choosing a device at run time, and naming what was chosen.

use std::fmt;
use std::str::FromStr;

use burn::tensor::{DType, Device, Tensor, TensorData};
use half::f16;
use lacuna_wire::HostTensor;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::host::OnDevice;
use crate::memory;

/// `--device`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU where this build and machine have one, by CUDA before wgpu, else the CPU.
    #[default]
    Auto,
    /// The CPU, by burn's flex backend.
    Cpu,
    /// A GPU, by burn's wgpu backend.
    Wgpu,
    /// An NVIDIA GPU, by burn's CUDA backend.
    Cuda,
}

impl DeviceChoice {
    /// What [`Self::Auto`] looks for, in its order.
    pub const EACH: [Self; 3] = [Self::Cuda, Self::Wgpu, Self::Cpu];

    /// Whether this build has the backend.
    pub fn is_built(self) -> bool {
        match self {
            Self::Auto | Self::Cpu => true,
            Self::Wgpu => cfg!(feature = "wgpu"),
            Self::Cuda => cfg!(feature = "cuda"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "wgpu" => Ok(Self::Wgpu),
            "cuda" => Ok(Self::Cuda),
            other => Err(Error::Device(format!(
                "{other:?} is none of auto, cpu, wgpu, cuda"
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
            Self::Cuda => "cuda",
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
    /// `cpu`, `wgpu` or `cuda`.
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

    /// Bytes of its memory that this process holds, in use or kept for the next tensors: of the CPU the resident set. It waits until
    /// a GPU has taken what was given to it before. None where nobody says it.
    pub fn held(&self) -> Option<u64> {
        match is_cpu(&self.device) {
            true => memory::resident(),
            false => Some(self.device.memory_pool_usage()?.bytes_reserved),
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

/// A GPU that wgpu finds on this machine, or what plays one.
#[derive(Clone, Debug, Serialize)]
pub struct Adapter {
    /// Its name.
    pub name: String,
    /// The interface that it is reached by, such as Vulkan.
    pub backend: String,
    /// Its driver.
    pub driver: String,
    /// Whether it is emulated on the CPU.
    pub software: bool,
    /// Most bytes of one buffer.
    pub largest_buffer: u64,
    /// Most bytes of a buffer that a kernel reads or writes.
    pub largest_binding: u64,
}

/// The GPUs that wgpu finds; none where this build is without it.
pub fn adapters() -> Vec<Adapter> {
    #[cfg(feature = "wgpu")]
    return wgpu::adapters();
    #[cfg(not(feature = "wgpu"))]
    Vec::new()
}

/// Opens a device. A GPU that is really software (llvmpipe) is refused unless `allow_software`:
/// it is many times slower than the CPU backend.
///
/// # Errors
/// [`Error::Device`] when the build or the machine has no such device.
pub fn open(choice: DeviceChoice, allow_software: bool) -> Result<OpenDevice> {
    match choice {
        DeviceChoice::Cpu => Ok(OpenDevice::cpu()),
        DeviceChoice::Wgpu => wgpu::open(allow_software),
        DeviceChoice::Cuda => cuda::open(),
        DeviceChoice::Auto => {
            let mut reasons = Vec::new();
            for choice in DeviceChoice::EACH.into_iter().filter(|c| c.is_built()) {
                match open(choice, allow_software) {
                    Ok(device) => {
                        if !reasons.is_empty() {
                            tracing::info!("using {choice} ({})", reasons.join("; "));
                        }
                        return Ok(device);
                    }
                    Err(error) => reasons.push(error.to_string()),
                }
            }
            Ok(OpenDevice::cpu())
        }
    }
}

/// A build without a backend says so.
#[cfg(not(all(feature = "wgpu", feature = "cuda")))]
fn not_built(choice: DeviceChoice) -> Error {
    Error::Device(format!(
        "this build has no backend {choice}; build with --features {choice}"
    ))
}

#[cfg(not(feature = "wgpu"))]
mod wgpu {
    use super::{DeviceChoice, OpenDevice, Result, not_built};

    pub(super) fn open(_: bool) -> Result<OpenDevice> {
        Err(not_built(DeviceChoice::Wgpu))
    }
}

#[cfg(not(feature = "cuda"))]
mod cuda {
    use super::{DeviceChoice, OpenDevice, Result, not_built};

    pub(super) fn open() -> Result<OpenDevice> {
        Err(not_built(DeviceChoice::Cuda))
    }
}

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "wgpu")]
mod wgpu;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_keep_their_values_on_the_cpu() {
        assert!(keeps_halves(&OpenDevice::cpu().device).unwrap());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_a_device_holds_grows_with_its_tensors() {
        // A software adapter lends memory as a GPU does.
        let opened = open(DeviceChoice::Wgpu, true).unwrap_or_else(|_| OpenDevice::cpu());
        let before = opened.held().unwrap();
        let values = vec![1f32; 16 << 20];
        let held = Tensor::<1>::from_data(TensorData::new(values, [16 << 20]), &opened.device);
        opened.device.sync().unwrap();
        let after = opened.held().unwrap();
        assert!(after >= before + (48 << 20), "{before} {after}");
        drop(held);
    }

    #[test]
    fn a_choice_is_read_as_it_is_written() {
        for choice in DeviceChoice::EACH.into_iter().chain([DeviceChoice::Auto]) {
            assert_eq!(choice.to_string().parse::<DeviceChoice>().unwrap(), choice);
        }
        assert!("gpu".parse::<DeviceChoice>().is_err());
    }

    #[test]
    fn what_this_build_or_machine_lacks_is_refused_by_name() {
        for choice in [DeviceChoice::Cuda, DeviceChoice::Wgpu] {
            match open(choice, false) {
                Ok(device) => assert_eq!(device.kind, choice.to_string()),
                Err(error) => {
                    let said = error.to_string().to_lowercase();
                    let named = said.contains(&choice.to_string());
                    assert!(named || said.contains("emulated"), "{said}");
                }
            }
        }
        // Whatever there is, something opens.
        open(DeviceChoice::Auto, false).unwrap();
    }
}
