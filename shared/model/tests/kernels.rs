//! The kernels against burn's own operations on the CPU device.

use burn::tensor::ops::{AttentionModuleOptions, ConvOptions};
use burn::tensor::{Tensor, activation, module};
use lacuna_kernels::{activation as activation_kernels, attention, conv};
use lacuna_model::dense::tensor;

/// Values between -2 and 2 without a pattern that a wrong index could repeat.
fn wave(len: usize, phase: f32) -> Vec<f32> {
    let value = |i: usize| (i as f32 * 0.731 + phase).sin() + (i as f32 * 0.0173).cos();
    (0..len).map(value).collect()
}

/// Largest difference, relative to the largest value wanted.
fn difference(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0f64, |m, w| m.max(w.abs()));
    let pairs = got.iter().zip(want);
    let off = pairs.map(|(g, w)| (f64::from(*g) - w).abs());
    off.fold(
        0f64,
        |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) },
    ) / largest
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    let values = x.into_data().try_into_vec::<f32>().unwrap();
    values.into_iter().map(f64::from).collect()
}

#[test]
fn conv2d() {
    for (stride, padding) in [(1, [1, 1]), (1, [0, 1]), (2, [1, 1])] {
        let sizes = conv::Sizes {
            batch: 2,
            c_in: 72,
            c_out: 104,
            size: [22, 19],
            kernel: 3,
            stride,
            padding,
            odd: false,
        };
        let x = wave(2 * 72 * 22 * 19, 0.3);
        let (weight, bias) = (wave(104 * 72 * 9, 0.7), wave(104, 1.1));
        let want = module::conv2d(
            tensor(x.clone(), [2, 72, 22, 19]),
            tensor(weight.clone(), [104, 72, 3, 3]),
            Some(tensor(bias.clone(), [104])),
            ConvOptions::new([stride; 2], padding, [1, 1], 1),
        );
        let [h, w] = sizes.out_size();
        assert_eq!(want.dims(), [2, 104, h, w]);
        let off = difference(&conv::conv2d(&x, &weight, &bias, sizes), &values(want));
        assert!(off < 5e-6, "{off}");
    }
}

#[test]
fn attention() {
    for (queries, keys, causal) in [(301, 301, false), (301, 77, false), (77, 77, true)] {
        let (batch, channels, heads) = (2, 72, 3);
        let sizes = attention::Sizes {
            batch,
            queries,
            keys,
            channels,
            heads,
            causal,
        };
        let q = wave(batch * queries * channels, 0.3);
        let k = wave(batch * keys * channels, 0.7);
        let v = wave(batch * keys * channels, 1.1);
        let split = |x: &[f32], tokens| {
            tensor(x.to_vec(), [batch, tokens, heads, channels / heads]).swap_dims(1, 2)
        };
        let options = AttentionModuleOptions {
            is_causal: causal,
            ..Default::default()
        };
        let (qs, ks, vs) = (split(&q, queries), split(&k, keys), split(&v, keys));
        let want = module::attention(qs, ks, vs, None, None, options).swap_dims(1, 2);
        let off = difference(&attention::attention(&q, &k, &v, sizes), &values(want));
        assert!(off < 3e-6, "{off}");
    }
}

#[test]
fn silu() {
    let x = wave(20_011, 0.3);
    let want = values(activation::silu(tensor(x.clone(), [20_011])));
    assert!(difference(&activation_kernels::silu(&x), &want) < 3e-7);
}

#[test]
fn geglu_is_burns() {
    let (rows, width) = (301, 77);
    let x: Vec<f32> = wave(rows * 2 * width, 0.4)
        .iter()
        .map(|x| 4.0 * x)
        .collect();
    let t = tensor(x.clone(), [rows, 2 * width]);
    let gate = activation::gelu(t.clone().narrow(1, width, width));
    let want = (t.narrow(1, 0, width) * gate)
        .into_data()
        .try_into_vec::<f32>()
        .unwrap();
    let want: Vec<f64> = want.into_iter().map(f64::from).collect();
    let off = difference(&activation_kernels::geglu(&x, width), &want);
    assert!(off < 3e-7, "{off}");
}

#[test]
fn burns_linear_map_of_a_strip_has_the_bits_of_the_whole() {
    for (tokens, d_in, d_out) in [(1024, 64, 512), (64, 640, 160), (256, 1280, 320)] {
        let x = tensor(wave(tokens * d_in, 0.3), [1, tokens, d_in]);
        let weight = tensor(wave(d_in * d_out, 0.7), [d_out, d_in]).transpose();
        let whole = module::linear(x.clone(), weight.clone(), None).into_data();
        for n in [2, 4, 8] {
            let parts = x.clone().chunk(n, 1).into_iter();
            let parts = parts
                .map(|x| module::linear(x, weight.clone(), None))
                .collect();
            let got: Tensor<3> = Tensor::cat(parts, 1);
            assert_eq!(got.into_data(), whole, "{tokens} {d_in} {d_out} in {n}");
        }
    }
}
