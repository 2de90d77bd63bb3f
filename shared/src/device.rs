//! Choosing a device at run time, and naming what was chosen.

use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;

use crate::error::{Error, Result};

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

/// A device that was opened.
#[derive(Clone, Debug)]
pub struct OpenDevice {
    /// What tensors are made on.
    pub device: Device,
    /// `cpu` or `wgpu`.
    pub kind: &'static str,
    /// Name of the GPU and its driver, or of the CPU backend.
    pub adapter: String,
}

impl OpenDevice {
    /// The CPU.
    pub fn cpu() -> Self {
        let threads = rayon::current_num_threads();
        Self {
            device: Device::flex(),
            kind: "cpu",
            adapter: format!("{} threads", threads),
        }
    }
}

/// Whether `device` is the CPU.
pub fn is_cpu(device: &Device) -> bool {
    *device == Device::flex()
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
