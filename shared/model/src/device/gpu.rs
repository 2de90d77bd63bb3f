//! Opening a GPU through wgpu (Vulkan on Linux).

use std::sync::OnceLock;

use burn::tensor::Device;

use super::OpenDevice;
use crate::error::{Error, Result};

/// What opening gave: a runtime can be initialised once in a process.
static OPENED: OnceLock<Result<OpenDevice, String>> = OnceLock::new();

pub(super) fn open(allow_software: bool) -> Result<OpenDevice> {
    match OPENED.get_or_init(initialise) {
        Ok(device) if !device.software || allow_software => Ok(device.clone()),
        Ok(device) => Err(Error::Device(format!(
            "{} is a GPU emulated in software, slower than --device cpu; \
             give --allow-software to use it all the same",
            device.adapter
        ))),
        Err(reason) => Err(Error::Device(format!(
            "no GPU can be opened through wgpu: {reason}; install the GPU's Vulkan driver or use --device cpu"
        ))),
    }
}

fn initialise() -> Result<OpenDevice, String> {
    let (device, setup) = Device::wgpu_options()
        .init_with_setup()
        .map_err(|e| e.to_string())?;
    let info = setup.adapter.get_info();
    Ok(OpenDevice {
        device,
        kind: "wgpu",
        adapter: format!("{} ({:?}, {})", info.name, info.backend, info.driver_info),
        software: info.device_type == burn::tensor::wgpu::wgpu::DeviceType::Cpu,
    })
}
