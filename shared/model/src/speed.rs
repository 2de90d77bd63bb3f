//! How fast a device computes, for plans.

use std::time::Instant;

use crate::device::Target;
use crate::error::Result;
use crate::host::OnDevice;
use crate::layers::Conv2d;
use crate::ops;
use crate::weights::Weights;
use lacuna_wire::HostTensor;

/// Times a layer that Stable Diffusion spends much of its time in, a 3x3 convolution of 320 channels on
/// 64 x 64: 10^9 operations a second, multiply and add counted as two.
///
/// # Errors
/// Those of the device.
pub fn gflops(target: impl Into<Target>) -> Result<f64> {
    let target = target.into();
    const SIDE: usize = 64;
    let layer = Conv2d::same("conv", 320, 320, 3);
    let weights = Weights::random(&layer, 0, target.clone())?;
    let x = HostTensor::zeros([1, layer.c_in, SIDE, SIDE]).into_device::<4>(&target.device)?;
    let x = x.cast(target.precision.dtype());
    let mut best = f64::INFINITY;
    // The first one compiles kernels; reading one value back waits for the device.
    for _ in 0..4 {
        let start = Instant::now();
        let y = ops::conv2d(&weights, &layer, x.clone())?;
        HostTensor::from_device(y.narrow(2, 0, 1).narrow(3, 0, 1))?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(layer.flop(SIDE * SIDE) as f64 / best / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_a_speed() {
        let gflops = gflops(&crate::device::OpenDevice::cpu().device).unwrap();
        assert!(gflops.is_finite() && gflops > 0.0, "{gflops}");
    }
}
