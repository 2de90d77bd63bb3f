//! Each operation on a device against the same on the CPU, before the device is trusted.
//!
//! GPU kernels have been silently wrong: burn-wgpu with fusion and autotune on Vulkan, for one
//! (burn issues 5122 and 5257). A worker that fails here does not become ready.

use burn::tensor::{Device, Tensor};

use crate::device::{OpenDevice, is_cpu};
use crate::error::{Error, Result};
use crate::host::HostTensor;
use crate::layers::{Conv2d, GroupNorm, LayerNorm, Linear, Parameter, Parameters};
use crate::ops;
use crate::weights::Weights;

/// Largest difference allowed, relative to the largest value of the CPU's result.
const TOLERANCE: f32 = 1e-4;

/// The layers that are tried: sizes that no block or workgroup size divides.
struct Layers {
    conv: Conv2d,
    halving: Conv2d,
    matmul: Linear,
    group_norm: GroupNorm,
    layer_norm: LayerNorm,
}

impl Layers {
    fn new() -> Self {
        let (c_in, c_out) = (72, 104);
        Self {
            conv: Conv2d::same("conv", c_in, c_out, 3),
            halving: Conv2d {
                stride: 2,
                ..Conv2d::same("halving", c_in, c_out, 3)
            },
            matmul: Linear::new("matmul", c_in, 4 * c_out),
            group_norm: GroupNorm {
                name: "group_norm".into(),
                channels: c_in,
                groups: 8,
                eps: 1e-5,
            },
            layer_norm: LayerNorm {
                name: "layer_norm".into(),
                width: c_in,
                eps: 1e-5,
            },
        }
    }
}

impl Parameters for Layers {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        self.conv.parameters(out);
        self.halving.parameters(out);
        self.matmul.parameters(out);
        self.group_norm.parameters(out);
        self.layer_norm.parameters(out);
    }
}

/// Tries every operation; gives a line with the differences found.
///
/// # Errors
/// [`Error::SelfTest`] naming the operation that differs.
pub fn run(device: &Device) -> Result<String> {
    if is_cpu(device) {
        return Ok("skipped, the CPU is what other devices are held against".into());
    }
    let cpu = OpenDevice::cpu().device;
    let want = outputs(&cpu)?;
    let got = outputs(device)?;
    let mut report = Vec::with_capacity(want.len());
    for ((operation, want), (_, got)) in want.iter().zip(&got) {
        let difference = difference(want, got);
        // NaN must fail, so the comparison is for success.
        if difference <= TOLERANCE {
            report.push(format!("{operation} {difference:.0e}"));
        } else {
            return Err(Error::SelfTest(format!(
                "{operation} on this device differs from the CPU's by {difference:.1e} of its \
                 largest value; the GPU's driver or burn's kernel is wrong, use --device cpu"
            )));
        }
    }
    Ok(report.join(", "))
}

/// Every operation's result on `device`, by name.
fn outputs(device: &Device) -> Result<Vec<(&'static str, HostTensor)>> {
    let layers = Layers::new();
    let weights = Weights::random(&layers, 1, device)?;
    let feature: Tensor<4> = wave([2, 72, 22, 19]).into_device(device)?;
    let tokens: Tensor<3> = wave([2, 22 * 19, 72]).into_device(device)?;
    let prompt: Tensor<3> = wave([2, 77, 72]).into_device(device)?;
    let attention = |k: &Tensor<3>| ops::attention(tokens.clone(), k.clone(), k.clone(), 8, false);
    let moments = ops::group_moments(feature.clone(), layers.group_norm.groups)?;
    let moments = moments
        .iter()
        .flat_map(|m| [m.mean as f32, m.m2 as f32])
        .collect::<Vec<_>>();
    Ok(vec![
        (
            "convolution",
            HostTensor::from_device(ops::conv2d(&weights, &layers.conv, feature.clone())?)?,
        ),
        (
            "strided convolution",
            HostTensor::from_device(ops::conv2d(&weights, &layers.halving, feature.clone())?)?,
        ),
        (
            "matmul",
            HostTensor::from_device(ops::linear(&weights, &layers.matmul, tokens.clone())?)?,
        ),
        (
            "group norm",
            HostTensor::from_device(ops::group_norm(
                &weights,
                &layers.group_norm,
                feature.clone(),
                true,
            )?)?,
        ),
        (
            "group statistics",
            HostTensor::new([moments.len()], moments)?,
        ),
        (
            "layer norm",
            HostTensor::from_device(ops::layer_norm(
                &weights,
                &layers.layer_norm,
                tokens.clone(),
            )?)?,
        ),
        (
            "self-attention",
            HostTensor::from_device(attention(&tokens))?,
        ),
        (
            "cross-attention",
            HostTensor::from_device(attention(&prompt))?,
        ),
        (
            "GEGLU",
            HostTensor::from_device(ops::geglu(tokens.clone()))?,
        ),
        (
            "upsampling",
            HostTensor::from_device(ops::upsample2(feature))?,
        ),
    ])
}

/// Values between -2 and 2 without a pattern that a wrong index could repeat.
fn wave<const D: usize>(shape: [usize; D]) -> HostTensor {
    let mut tensor = HostTensor::zeros(shape);
    for (i, value) in tensor.data.iter_mut().enumerate() {
        let x = i as f32;
        *value = (x * 0.731).sin() + (x * 0.0173).cos();
    }
    tensor
}

/// Largest difference relative to the largest value wanted; NaN when the result has one.
fn difference(want: &HostTensor, got: &HostTensor) -> f32 {
    if want.shape != got.shape {
        return f32::INFINITY;
    }
    let largest = want.data.iter().fold(0f32, |m, x| m.max(x.abs()));
    let off = want.data.iter().zip(&got.data).map(|(a, b)| (a - b).abs());
    // f32::max drops a NaN; this keeps it.
    off.fold(0f32, |m, d| if d.is_nan() || d > m { d } else { m }) / largest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_sees_a_wrong_value_and_a_nan() {
        let want = wave([3, 50]);
        assert_eq!(difference(&want, &want), 0.0);
        let mut wrong = want.clone();
        wrong.data[77] += 0.5;
        assert!(difference(&want, &wrong) > 0.2);
        wrong.data[77] = f32::NAN;
        assert!(difference(&want, &wrong).is_nan());
    }

    #[test]
    fn every_operation_gives_values_to_compare() {
        for (operation, output) in outputs(&OpenDevice::cpu().device).unwrap() {
            output.check_finite(operation).unwrap();
            let mean = output.data.iter().sum::<f32>() / output.data.len() as f32;
            let spread = output
                .data
                .iter()
                .map(|x| (x - mean).abs())
                .fold(0.0, f32::max);
            assert!(spread > 0.01, "{operation} is flat");
        }
    }
}
