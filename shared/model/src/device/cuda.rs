//! Opening an NVIDIA GPU through CUDA.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use burn::tensor::{Device, Tensor};
use lacuna_kernels::nvidia;
use lacuna_wire::HostTensor;

use super::OpenDevice;
use crate::error::{Error, Result};
use crate::host::OnDevice;

/// What opening gave: it is tried once in a process.
static OPENED: OnceLock<Result<OpenDevice, String>> = OnceLock::new();

pub(super) fn open() -> Result<OpenDevice> {
    OPENED.get_or_init(initialise).clone().map_err(|reason| {
        Error::Device(format!(
            "no GPU can be opened through CUDA: {reason}; install NVIDIA's driver, or start the container with `--gpus all` and \
             NVIDIA_DRIVER_CAPABILITIES=compute,utility, or use --device cpu"
        ))
    })
}

fn initialise() -> Result<OpenDevice, String> {
    let names = nvidia::devices()?;
    let name = names
        .into_iter()
        .next()
        .ok_or("NVIDIA's driver has no GPU")?;
    // burn panics where it finds a driver too old, which cannot be known beforehand.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let device = Device::cuda(0);
        HostTensor::from_device(Tensor::<1>::zeros([1], &device)).map(|_| device)
    }));
    let device = match opened {
        Ok(device) => device.map_err(|error| error.to_string())?,
        Err(_) => return Err(format!("{name}: its driver lacks what burn asks for")),
    };
    Ok(OpenDevice {
        device,
        kind: "cuda",
        adapter: name,
        software: false,
    })
}
