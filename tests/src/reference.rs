//! The arithmetic that the strips must not change, as plain loops in f64: slow, short, and easy to
//! check by eye against the definitions.

use lacuna_model::layers::Conv2d;
use lacuna_wire::HostTensor;

/// A dense row-major tensor in f64.
#[derive(Clone, Debug, PartialEq)]
pub struct Exact {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// `shape.iter().product()` values.
    pub data: Vec<f64>,
}

/// Count, mean and sum of squared deviations of one group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExactMoments {
    /// Number of values.
    pub count: f64,
    /// Their mean.
    pub mean: f64,
    /// Sum of the squared deviations from the mean.
    pub m2: f64,
}

/// `layer` with `weight` `[C_out, C_in, K, K]` and `bias` `[C_out]` over the whole of `x`
/// `[B, C_in, H, W]`, with zeros all around: `[B, C_out, H_out, W_out]`.
pub fn conv2d(layer: &Conv2d, weight: &HostTensor, bias: &HostTensor, x: &HostTensor) -> Exact {
    let [b, c_in, h, w] = x.dims().unwrap();
    let (c_out, k) = (layer.c_out, layer.kernel);
    let (rows, columns) = (layer.out_size(h), layer.out_size(w));
    let at = |n: usize, c: usize, row: isize, column: isize| {
        let inside = (0..h as isize).contains(&row) && (0..w as isize).contains(&column);
        if inside {
            let (row, column) = (row as usize, column as usize);
            f64::from(x.data[((n * c_in + c) * h + row) * w + column])
        } else {
            0.0
        }
    };
    let mut data = Vec::with_capacity(b * c_out * rows * columns);
    for n in 0..b {
        for o in 0..c_out {
            for row in 0..rows {
                for column in 0..columns {
                    let mut sum = f64::from(bias.data[o]);
                    for c in 0..c_in {
                        for i in 0..k {
                            for j in 0..k {
                                let y = (row * layer.stride + i) as isize - layer.padding as isize;
                                let x =
                                    (column * layer.stride + j) as isize - layer.padding as isize;
                                let weight = weight.data[((o * c_in + c) * k + i) * k + j];
                                sum += f64::from(weight) * at(n, c, y, x);
                            }
                        }
                    }
                    data.push(sum);
                }
            }
        }
    }
    Exact {
        shape: vec![b, c_out, rows, columns],
        data,
    }
}

/// Moments of each of `groups` groups of each batch entry of `x` `[B, C, H, W]`, group fastest.
pub fn group_moments(x: &HostTensor, groups: usize) -> Vec<ExactMoments> {
    let [b, c, h, w] = x.dims().unwrap();
    let size = c / groups * h * w;
    let mut out = Vec::with_capacity(b * groups);
    for group in x.data.chunks_exact(size) {
        let values = || group.iter().map(|v| f64::from(*v));
        let mean = values().sum::<f64>() / size as f64;
        out.push(ExactMoments {
            count: size as f64,
            mean,
            m2: values().map(|v| (v - mean) * (v - mean)).sum(),
        });
    }
    assert_eq!(out.len(), b * groups, "groups do not divide the channels");
    out
}

/// `softmax(Q K^T / sqrt(D)) V` for each of `heads` heads side by side in `C`: `q` `[B, T, C]`, `k`
/// and `v` `[B, S, C]` to `[B, T, C]`.
pub fn attention(q: &HostTensor, k: &HostTensor, v: &HostTensor, heads: usize) -> Exact {
    let [b, t, c] = q.dims().unwrap();
    let [_, s, _] = k.dims().unwrap();
    let d = c / heads;
    let mut data = vec![0.0; b * t * c];
    for n in 0..b {
        for head in 0..heads {
            for query in 0..t {
                let q_at = (n * t + query) * c + head * d;
                let score = |key: usize| -> f64 {
                    let k_at = (n * s + key) * c + head * d;
                    let products =
                        (0..d).map(|i| f64::from(q.data[q_at + i]) * f64::from(k.data[k_at + i]));
                    products.sum::<f64>() / (d as f64).sqrt()
                };
                let scores: Vec<f64> = (0..s).map(score).collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|x| (x - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                for (key, weight) in weights.iter().enumerate() {
                    let v_at = (n * s + key) * c + head * d;
                    for i in 0..d {
                        data[q_at + i] += weight / total * f64::from(v.data[v_at + i]);
                    }
                }
            }
        }
    }
    Exact {
        shape: vec![b, t, c],
        data,
    }
}

/// Peak signal-to-noise ratio in dB of two pictures whose values span `range`; infinite for equal
/// ones.
pub fn psnr(a: &[f64], b: &[f64], range: f64) -> f64 {
    assert_eq!(a.len(), b.len(), "pictures of different sizes");
    let squares = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b));
    let mse = squares.sum::<f64>() / a.len() as f64;
    10.0 * (range * range / mse).log10()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_convolution_by_hand() {
        // One channel, 3 x 3, all weights one: sums of the neighbourhood, zeros outside.
        let layer = Conv2d::same("c", 1, 1, 3);
        let ones = HostTensor::new([1, 1, 3, 3], vec![1.0; 9]).unwrap();
        let bias = HostTensor::new([1], vec![0.5]).unwrap();
        let x = HostTensor::new([1, 1, 3, 3], (1..=9).map(|i| i as f32).collect()).unwrap();
        let y = conv2d(&layer, &ones, &bias, &x);
        assert_eq!(y.shape, [1, 1, 3, 3]);
        assert_eq!(
            y.data,
            [12.5, 21.5, 16.5, 27.5, 45.5, 33.5, 24.5, 39.5, 28.5]
        );
        let halving = Conv2d { stride: 2, ..layer };
        let y = conv2d(&halving, &ones, &bias, &x);
        assert_eq!(y.data, [12.5, 16.5, 24.5, 28.5]);
    }

    #[test]
    fn moments_by_hand() {
        let x = HostTensor::new([1, 2, 1, 2], vec![1.0, 3.0, 5.0, 5.0]).unwrap();
        let both = group_moments(&x, 2);
        assert_eq!((both[0].mean, both[0].m2), (2.0, 2.0));
        assert_eq!((both[1].mean, both[1].m2), (5.0, 0.0));
        assert_eq!(group_moments(&x, 1)[0].mean, 3.5);
    }

    #[test]
    fn attention_by_hand() {
        // Equal scores average the values; a score that is far larger takes all.
        let q = HostTensor::new([1, 2, 1], vec![0.0, 1000.0]).unwrap();
        let k = HostTensor::new([1, 2, 1], vec![1.0, 2.0]).unwrap();
        let v = HostTensor::new([1, 2, 1], vec![4.0, 8.0]).unwrap();
        assert_eq!(attention(&q, &k, &v, 1).data, [6.0, 8.0]);
    }

    #[test]
    fn psnr_by_hand() {
        assert_eq!(psnr(&[0.0, 0.0], &[1.0, 1.0], 10.0), 20.0);
        assert_eq!(psnr(&[0.3], &[0.3], 1.0), f64::INFINITY);
    }
}
