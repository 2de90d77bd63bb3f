//! Opening a GPU through wgpu (Vulkan on Linux).

use std::pin::pin;
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};

use burn::tensor::Device;
use burn::tensor::wgpu::wgpu::{AdapterInfo, Backends, DeviceType, Instance, InstanceDescriptor};

use super::{Adapter, OpenDevice};
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
        software: is_software(&info),
    })
}

fn is_software(info: &AdapterInfo) -> bool {
    info.device_type == DeviceType::Cpu
}

pub(super) fn adapters() -> Vec<Adapter> {
    let instance = Instance::new(InstanceDescriptor::new_without_display_handle());
    let found = pin!(instance.enumerate_adapters(Backends::all()));
    // Only in a browser it has to wait.
    let Poll::Ready(found) = found.poll(&mut Context::from_waker(Waker::noop())) else {
        return Vec::new();
    };
    let described = found.iter().map(|adapter| {
        let (info, limits) = (adapter.get_info(), adapter.limits());
        Adapter {
            software: is_software(&info),
            backend: format!("{:?}", info.backend),
            driver: format!("{} {}", info.driver, info.driver_info),
            name: info.name,
            largest_buffer: limits.max_buffer_size,
            largest_binding: limits.max_storage_buffer_binding_size,
        }
    });
    described.collect()
}
