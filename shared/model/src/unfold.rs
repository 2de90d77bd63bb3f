//! Convolution as a product of matrices (im2col), for GPUs.
//!
//! burn's own convolution on wgpu is direct: on an H200 it took 43 ms for 320 channels at 64x64, batch 2, and this 13;
//! and in f16 it sums in f16, wrong by 3 % at 1,280 channels. A product sums in f32 (`docs/performance.md`).

use burn::tensor::{Slice, Tensor};

use crate::layers::Conv2d;

/// Values of the unfolded input that are held at a time: a binding of a buffer is bounded, to 128 MiB on
/// some adapters.
const MOST_VALUES: usize = (120 << 20) / size_of::<f32>();

/// `layer` over `x` `[B, C_in, H, W]` with its `kernel` `[C_out, C_in, K, K]` and `bias` `[C_out]`, zeros of `padding`
/// above and below, left and right: `[B, C_out, H_out, W_out]`. All are of one number type and device.
pub(crate) fn conv2d(
    layer: &Conv2d,
    x: Tensor<4>,
    kernel: Tensor<4>,
    bias: Tensor<1>,
    padding: [usize; 2],
) -> Tensor<4> {
    let [b, c, h, w] = x.dims();
    let (k, stride) = (layer.kernel, layer.stride);
    let out = |size: usize, pad: usize| (size + 2 * pad).saturating_sub(k) / stride + 1;
    let [rows, columns] = [out(h, padding[0]), out(w, padding[1])];
    let padded = match padding {
        [0, 0] => x,
        [y, x_side] => x.pad((x_side, x_side, y, y), 0.0),
    };
    let weight = kernel.reshape([1, layer.c_out, c * k * k]);
    let band = (MOST_VALUES / (b * c * k * k * columns).max(1)).clamp(1, rows);
    let bands = (0..rows).step_by(band).map(|start| {
        let len = band.min(rows - start);
        let unfolded = unfold(&padded, [k, stride], start, [len, columns]);
        weight
            .clone()
            .matmul(unfolded)
            .reshape([b, layer.c_out, len, columns])
    });
    let bands: Vec<_> = bands.collect();
    Tensor::cat(bands, 2) + bias.reshape([1, layer.c_out, 1, 1])
}

/// What each output of `len` rows from `start` on sees, `[B, C K K, len columns]`, in the order of a kernel's values.
fn unfold(
    padded: &Tensor<4>,
    [k, stride]: [usize; 2],
    start: usize,
    [len, columns]: [usize; 2],
) -> Tensor<3> {
    let [b, c, _, _] = padded.dims();
    let every = |first: usize, n: usize| {
        let last = first + (n - 1) * stride;
        Slice::new(first as isize, Some(last as isize + 1), stride as isize)
    };
    let seen = |at: usize| {
        let (dy, dx) = (at / k, at % k);
        let all = |n: usize| Slice::new(0, Some(n as isize), 1);
        padded.clone().slice([
            all(b),
            all(c),
            every(start * stride + dy, len),
            every(dx, columns),
        ])
    };
    if k == 1 {
        return seen(0).reshape([b, c, len * columns]);
    }
    Tensor::stack::<5>((0..k * k).map(seen).collect(), 2).reshape([b, c * k * k, len * columns])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::OpenDevice;
    use crate::host::OnDevice;
    use crate::ops;
    use crate::weights::Weights;
    use lacuna_wire::HostTensor;

    #[test]
    fn the_product_is_the_convolution() {
        let cpu = OpenDevice::cpu().device;
        for (kernel, stride, [h, w]) in [
            (3, 1, [7, 5]),
            (3, 2, [8, 6]),
            (3, 2, [7, 9]),
            (1, 1, [4, 3]),
        ] {
            let layer = Conv2d {
                stride,
                ..Conv2d::same("conv", 6, 10, kernel)
            };
            let weights = Weights::random(&layer, 1, &cpu).unwrap();
            let values = (0..2 * 6 * h * w).map(|i| (i as f32 * 0.731).sin());
            let x = HostTensor::new([2, 6, h, w], values.collect()).unwrap();
            let x: Tensor<4> = x.into_device(&cpu).unwrap();
            for rows in [0, layer.padding] {
                let want = match rows == layer.padding {
                    true => ops::conv2d(&weights, &layer, x.clone()),
                    false => ops::conv2d_of_strip(&weights, &layer, x.clone(), false),
                };
                let want = HostTensor::from_device(want.unwrap()).unwrap();
                let got = conv2d(
                    &layer,
                    x.clone(),
                    weights.kernel("conv.weight").unwrap(),
                    weights.vector("conv.bias").unwrap(),
                    [rows, layer.padding],
                );
                let got = HostTensor::from_device(got).unwrap();
                assert_eq!(got.shape, want.shape);
                for (got, want) in got.data.iter().zip(&want.data) {
                    assert!((got - want).abs() < 1e-5, "{kernel} {stride}: {got} {want}");
                }
            }
        }
    }
}
