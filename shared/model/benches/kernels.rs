//! Times each CPU kernel against burn's own operation at the shapes of SD 1.5.
//!
//! `cargo bench --no-default-features -p lacuna-model --bench kernels -- [PART OF A NAME]`
#![allow(missing_docs)]

use std::hint::black_box;
use std::time::Duration;

use burn::tensor::ops::{AttentionModuleOptions, ConvOptions};
use burn::tensor::{Tensor, activation, module};
use criterion::{Criterion, criterion_group, criterion_main};
use lacuna_model::dense::{Dense, tensor};

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn wave<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    let len = shape.iter().product::<usize>();
    let wave = |i| (i as f32 * 0.731).sin() + (i as f32 * 0.0173).cos();
    tensor((0..len).map(wave).collect(), shape)
}

/// Both under one name, so that their reports stand side by side.
fn compare<R, S>(
    c: &mut Criterion,
    name: &str,
    mut burns: impl FnMut() -> R,
    mut ours: impl FnMut() -> S,
) {
    let mut group = c.benchmark_group(name);
    group.bench_function("burn", |b| b.iter(|| black_box(burns())));
    group.bench_function("ours", |b| b.iter(|| black_box(ours())));
    group.finish();
}

fn attention(criterion: &mut Criterion) {
    for (t, s, c) in [
        (4096, 4096, 320),
        (4096, 77, 320),
        (1024, 1024, 640),
        (256, 256, 1280),
    ] {
        let name = format!("attention {t}x{s}, 8 of {}", c / 8);
        let (q, k, v) = (wave([2, t, c]), wave([2, s, c]), wave([2, s, c]));
        let split = |x: &Tensor<3>| {
            let [b, t, c] = x.dims();
            x.clone().reshape([b, t, 8, c / 8]).swap_dims(1, 2)
        };
        let burns = || {
            let options = AttentionModuleOptions::default();
            module::attention(split(&q), split(&k), split(&v), None, None, options)
                .swap_dims(1, 2)
                .reshape([2, t, c])
        };
        let ours = || lacuna_model::ops::attention(q.clone(), k.clone(), v.clone(), 8, false);
        compare(criterion, &name, burns, ours);
    }
}

fn convolution(criterion: &mut Criterion) {
    for (c_in, c_out, size, kernel, stride) in [
        (320, 320, 64, 3, 1),
        (640, 640, 32, 3, 1),
        (1280, 1280, 16, 3, 1),
        (2560, 1280, 8, 3, 1),
        (320, 320, 64, 3, 2),
        (4, 320, 64, 3, 1),
        (320, 4, 64, 3, 1),
        (320, 320, 64, 1, 1),
        (1280, 1280, 16, 1, 1),
    ] {
        let name = format!("conv {c_in}->{c_out} {kernel}x{kernel}/{stride} at {size}x{size}");
        let x = wave([2, c_in, size, size]);
        let weight = wave([c_out, c_in, kernel, kernel]);
        let bias = wave([c_out]);
        let pad = kernel / 2;
        let burns = || {
            let options = ConvOptions::new([stride; 2], [pad; 2], [1, 1], 1);
            module::conv2d(x.clone(), weight.clone(), Some(bias.clone()), options)
        };
        let ours = || {
            let sizes = lacuna_kernels::conv::Sizes {
                batch: 2,
                c_in,
                c_out,
                size: [size; 2],
                kernel,
                stride,
                padding: [pad; 2],
                odd: false,
            };
            let (x, weight, bias) = (Dense::of(&x)?, Dense::of(&weight)?, Dense::of(&bias)?);
            Some(lacuna_kernels::conv::conv2d(
                x.values(),
                weight.values(),
                bias.values(),
                sizes,
            ))
        };
        compare(criterion, &name, burns, ours);
    }
}

fn pointwise(criterion: &mut Criterion) {
    {
        let x = wave([2, 4096, 2560]);
        let burns = || {
            let gate = activation::gelu(x.clone().narrow(2, 1280, 1280));
            x.clone().narrow(2, 0, 1280) * gate
        };
        compare(criterion, "geglu 2x4096x2560", burns, || {
            lacuna_model::ops::geglu(x.clone())
        });
    }
    {
        let x = wave([2, 320, 64, 64]);
        compare(
            criterion,
            "silu 2x320x64x64",
            || activation::silu(x.clone()),
            || lacuna_model::ops::silu(x.clone()),
        );
    }
}

fn group_norm(criterion: &mut Criterion) {
    {
        let x = wave([2, 320, 64, 64]);
        let (gamma, beta) = (wave([320]), wave([320]));
        let burns = || {
            let grouped = x.clone().reshape([64, 10 * 4096]);
            let mean = grouped.clone().mean_dim(1);
            let variance = (grouped - mean.clone()).powi_scalar(2).mean_dim(1);
            let per_channel = |t: Tensor<2>| {
                t.reshape([2, 32, 1])
                    .expand([2, 32, 10])
                    .reshape([2, 320, 1, 1])
            };
            let scale =
                gamma.clone().reshape([1, 320, 1, 1]) / (per_channel(variance) + 1e-5).sqrt();
            let shift = beta.clone().reshape([1, 320, 1, 1]) - per_channel(mean) * scale.clone();
            activation::silu(x.clone() * scale + shift)
        };
        let ours = || {
            let (x, gamma, beta) = (Dense::of(&x)?, Dense::of(&gamma)?, Dense::of(&beta)?);
            let affine = lacuna_kernels::norm::Affine {
                gamma: gamma.values(),
                beta: beta.values(),
                groups: 32,
                eps: 1e-5,
                silu: true,
            };
            Some(lacuna_kernels::norm::group_norm(
                x.values(),
                2,
                affine,
                None,
            ))
        };
        compare(criterion, "group norm + silu 2x320x64x64", burns, ours);
    }
}

criterion_group!(
    name = kernels;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = attention, convolution, pointwise, group_norm
);
criterion_main!(kernels);
