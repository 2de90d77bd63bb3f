//! Each operation on a device against the same on the CPU, before the device is trusted.
//!
//! GPU kernels have been silently wrong: burn-wgpu with fusion and autotune on Vulkan, for one
//! (burn issues 5122 and 5257). A worker that fails here does not become ready. A kernel that is wrong at
//! 4,096 tokens can pass at 64, so a real GPU is tried at the sizes of Stable Diffusion too.

use std::fmt;
use std::time::Instant;

use burn::tensor::{Device, Tensor};

use crate::device::{OpenDevice, Precision, is_cpu};
use crate::error::{Error, Result};
use crate::host::OnDevice;
use crate::integer;
use crate::layers::{Conv2d, GroupNorm, LayerNorm, Linear, Parameter, Parameters};
use crate::ops;
use crate::weights::Weights;
use lacuna_wire::HostTensor;

/// Sizes at which every operation is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    /// Channels in and out.
    channels: [usize; 2],
    /// Rows and columns.
    size: [usize; 2],
    /// Heads of an attention; divide the channels.
    heads: usize,
    /// Groups of a norm; divide the channels.
    groups: usize,
}

/// What no block or workgroup size divides.
const ODD: Sizes = Sizes {
    channels: [72, 104],
    size: [22, 19],
    heads: 8,
    groups: 8,
};

/// The three levels of SD 1.5 at 512x512.
const STABLE_DIFFUSION: [Sizes; 3] = [
    Sizes {
        channels: [320, 320],
        size: [64, 64],
        heads: 8,
        groups: 32,
    },
    Sizes {
        channels: [640, 640],
        size: [32, 32],
        heads: 8,
        groups: 32,
    },
    Sizes {
        channels: [1280, 1280],
        size: [16, 16],
        heads: 8,
        groups: 32,
    },
];

/// How one operation at one size did.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The operation.
    pub operation: &'static str,
    /// `C H W` of its input.
    pub input: [usize; 3],
    /// Largest difference from the CPU's result in f32, relative to its largest value.
    pub difference: f32,
    /// Time of one run, launched and waited for, with the result left on the device.
    pub milliseconds: f64,
}

/// How a device did.
#[derive(Clone, Debug)]
pub struct Report {
    /// Empty for the CPU.
    pub trials: Vec<Trial>,
    /// What the device computed in.
    pub precision: Precision,
}

impl Report {
    /// A line for every trial.
    pub fn table(&self) -> String {
        let mut out = format!(
            "{:<20} {:>13} {:>12} {:>9}\n",
            "operation", "C x H x W", "difference", "ms"
        );
        for trial in &self.trials {
            let [c, h, w] = trial.input;
            out += &format!(
                "{:<20} {:>13} {:>12.1e} {:>9.3}\n",
                trial.operation,
                format!("{c}x{h}x{w}"),
                trial.difference,
                trial.milliseconds
            );
        }
        out
    }
}

/// Each operation with the largest of its differences.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.trials.is_empty() {
            return f.write_str("skipped, the CPU is what other devices are held against");
        }
        write!(f, "{}: ", self.precision)?;
        let mut seen: Vec<(&str, f32)> = Vec::new();
        for trial in &self.trials {
            match seen.iter_mut().find(|(name, _)| *name == trial.operation) {
                Some((_, worst)) => *worst = worst.max(trial.difference),
                None => seen.push((trial.operation, trial.difference)),
            }
        }
        let each: Vec<String> = seen
            .iter()
            .map(|(name, worst)| format!("{name} {worst:.0e}"))
            .collect();
        f.write_str(&each.join(", "))
    }
}

/// The operation that has one result, and no other.
const EXACT: &str = "product of integers";

/// Largest difference allowed of an operation, relative to the largest value of the CPU's result.
fn tolerance(operation: &str, precision: Precision) -> f32 {
    match precision {
        _ if operation == EXACT => 0.0,
        Precision::F32 => 1e-4,
        // An input rounds by 2^-11; a product of thousands adds up what does not cancel.
        Precision::F16 => 1e-2,
    }
}

/// The layers that are tried.
struct Layers {
    conv: Conv2d,
    halving: Conv2d,
    matmul: Linear,
    up: Linear,
    group_norm: GroupNorm,
    layer_norm: LayerNorm,
}

impl Layers {
    fn new(sizes: Sizes) -> Self {
        let [c_in, c_out] = sizes.channels;
        Self {
            conv: Conv2d::same("conv", c_in, c_out, 3),
            halving: Conv2d {
                stride: 2,
                ..Conv2d::same("halving", c_in, c_out, 3)
            },
            matmul: Linear::new("matmul", c_in, c_out),
            up: Linear::new("up", c_in, 8 * c_in),
            group_norm: GroupNorm {
                name: "group_norm".into(),
                channels: c_in,
                groups: sizes.groups,
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
        self.up.parameters(out);
        self.group_norm.parameters(out);
        self.layer_norm.parameters(out);
    }
}

/// Tries every operation on `opened` in `precision`.
///
/// # Errors
/// [`Error::Device`] when it cannot compute in `precision`, [`Error::SelfTest`] naming the operation that differs.
pub fn run(opened: &OpenDevice, precision: Precision) -> Result<Report> {
    if precision != Precision::F32 && is_cpu(&opened.device) {
        return Err(Error::Device(format!(
            "--precision {precision} needs a GPU; the CPU computes in f32"
        )));
    }
    if !opened.device.supports_dtype(precision.dtype()) {
        return Err(Error::Device(format!(
            "{} cannot compute in {precision}; use --precision f32",
            opened.adapter
        )));
    }
    let mut trials = Vec::new();
    if !is_cpu(&opened.device) {
        // Where a CPU plays the GPU, larger sizes take minutes and more memory than it lends.
        let larger = match opened.software {
            true => &[][..],
            false => &STABLE_DIFFUSION[..],
        };
        for &sizes in [ODD].iter().chain(larger) {
            trials.extend(compare(sizes, &opened.device, precision)?);
        }
    }
    let report = Report { trials, precision };
    // NaN must fail, too.
    let wrong =
        |t: &&Trial| t.difference.is_nan() || t.difference > tolerance(t.operation, precision);
    match report.trials.iter().find(wrong) {
        None => Ok(report),
        Some(trial) => Err(Error::SelfTest(format!(
            "{} of {:?} in {precision} on this device differs from the CPU's by {:.1e} of its largest value; \
             the GPU's driver or burn's kernel is wrong, use --device cpu\n{}",
            trial.operation,
            trial.input,
            trial.difference,
            report.table()
        ))),
    }
}

fn compare(sizes: Sizes, device: &Device, precision: Precision) -> Result<Vec<Trial>> {
    let cpu = OpenDevice::cpu().device;
    let want = outputs(sizes, &cpu, Precision::F32)?;
    let got = outputs(sizes, device, precision)?;
    let trials = want.iter().zip(got).map(|(want, got)| Trial {
        operation: got.operation,
        input: [sizes.channels[0], sizes.size[0], sizes.size[1]],
        difference: difference(&want.values, &got.values),
        milliseconds: got.milliseconds,
    });
    Ok(trials.collect())
}

/// An operation's result.
struct Output {
    operation: &'static str,
    values: HostTensor,
    milliseconds: f64,
}

/// Runs an operation until it is warm, then once more with a clock.
fn timed<const D: usize>(
    operation: &'static str,
    mut run: impl FnMut() -> Result<Tensor<D>>,
) -> Result<Output> {
    let start = Instant::now();
    let values = HostTensor::from_device(run()?)?;
    // The first run compiles, and with autotune tries, the kernels: where it hangs, this tells at what.
    tracing::debug!(
        "{operation}: {:.2} s at first",
        start.elapsed().as_secs_f64()
    );
    let mut milliseconds = f64::INFINITY;
    for _ in 0..3 {
        let start = Instant::now();
        let y = run()?;
        // Reading one value back waits for the device.
        HostTensor::from_device(y.flatten::<1>(0, D - 1).narrow(0, 0, 1))?;
        milliseconds = milliseconds.min(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(Output {
        operation,
        values,
        milliseconds,
    })
}

/// Every operation's result on `device`.
fn outputs(sizes: Sizes, device: &Device, precision: Precision) -> Result<Vec<Output>> {
    let layers = Layers::new(sizes);
    let weights = Weights::random(&layers, 1, (device, precision))?;
    let [c, _] = sizes.channels;
    let [h, w] = sizes.size;
    let dtype = precision.dtype();
    let feature: Tensor<4> = wave([2, c, h, w]).into_device(device)?.cast(dtype);
    let tokens: Tensor<3> = wave([2, h * w, c]).into_device(device)?.cast(dtype);
    let prompt: Tensor<3> = wave([2, 77, c]).into_device(device)?.cast(dtype);
    let doubled: Tensor<3> = wave([2, h * w, 2 * c]).into_device(device)?.cast(dtype);
    let attention = |k: &Tensor<3>| {
        let (k, v) = (k.clone(), k.clone());
        Ok(ops::attention(tokens.clone(), k, v, sizes.heads, false))
    };
    let group_norm = &layers.group_norm;
    let statistics = || {
        let moments = ops::group_moments(feature.clone(), sizes.groups)?;
        let pairs = moments.iter().flat_map(|m| [m.mean as f32, m.m2 as f32]);
        let pairs: Vec<f32> = pairs.collect();
        HostTensor::new([pairs.len()], pairs)?.into_device::<1>(&OpenDevice::cpu().device)
    };
    Ok(vec![
        timed("convolution", || {
            ops::conv2d(&weights, &layers.conv, feature.clone())
        })?,
        timed("strided convolution", || {
            ops::conv2d(&weights, &layers.halving, feature.clone())
        })?,
        timed("matmul", || {
            ops::linear(&weights, &layers.matmul, tokens.clone())
        })?,
        timed("matmul to 8 C", || {
            ops::linear(&weights, &layers.up, tokens.clone())
        })?,
        timed("group norm", || {
            ops::group_norm(&weights, group_norm, feature.clone(), true)
        })?,
        timed("group statistics", statistics)?,
        timed("layer norm", || {
            ops::layer_norm(&weights, &layers.layer_norm, tokens.clone())
        })?,
        timed("self-attention", || attention(&tokens))?,
        timed("cross-attention", || attention(&prompt))?,
        timed("attention part", || {
            let (k, v) = (prompt.clone(), prompt.clone());
            Ok(ops::attention_part(tokens.clone(), k, v, sizes.heads).0)
        })?,
        timed(EXACT, || integers([c, layers.conv.c_out], [h, w], device))?,
        timed("GEGLU", || Ok(ops::geglu(doubled.clone())))?,
        timed("upsampling", || Ok(ops::upsample2(feature.clone())))?,
    ])
}

/// Products of integers, which must be exact, without those bits that a number of f32 has no room for: of convolutions with
/// and without a stride, and of a linear map.
fn integers([c, c_out]: [usize; 2], [h, w]: [usize; 2], device: &Device) -> Result<Tensor<1>> {
    let words = |len: usize| {
        let word = |i: usize| (i as i32).wrapping_mul(0x9e37_79b1_u32.cast_signed());
        (0..len).map(word).collect::<Vec<i32>>()
    };
    let halves = |len| words(len).iter().map(|word| (word >> 16) as i16).collect();
    let x = words(2 * c * h * w);
    let kernel: Vec<i16> = halves(c_out * c * 9);
    let mut products = Vec::new();
    for stride in [1, 2] {
        let sizes = lacuna_kernels::conv::Sizes {
            batch: 2,
            c_in: c,
            c_out,
            size: [h, w],
            kernel: 3,
            stride,
            padding: [0, 1],
            odd: false,
        };
        let weights = integer::Weights::of_conv(&kernel, sizes, 32, device);
        products.extend(weights.conv2d(&x, sizes)?);
    }
    let matrix: Vec<i16> = halves(c_out * c);
    let weights = integer::Weights::of_linear(&matrix, c_out, device);
    products.extend(weights.linear(&x, 2 * h * w)?);
    let parts = products.iter().flat_map(|product| {
        let [low, high] = [product & 0xffff, product >> 16];
        [low as f32, high as f32]
    });
    let parts: Vec<f32> = parts.collect();
    HostTensor::new([parts.len()], parts)?.into_device(&OpenDevice::cpu().device)
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
        let cpu = OpenDevice::cpu().device;
        for Output {
            operation,
            values: output,
            ..
        } in outputs(ODD, &cpu, Precision::F32).unwrap()
        {
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
