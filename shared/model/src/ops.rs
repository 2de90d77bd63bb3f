//! The tensor operations of the networks, each in one place, over burn.
//!
//! On the CPU device those that burn-flex does slowly go to [`lacuna_kernels`]; on a GPU convolutions are
//! products of matrices (`crate::unfold`) and the rest is burn's own. There the weights may be in half precision: what meets them is brought to their type
//! ([`like`]), and the statistics of norms are taken in f32.

use burn::tensor::activation::{gelu, silu as burn_silu};
use burn::tensor::module::{attention as burn_attention, layer_norm as burn_layer_norm};
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{DType, Tensor, TensorData};

use crate::dense::{Dense, tensor};
use crate::error::{Error, Result};
use crate::host::OnDevice;
use crate::layers::{Conv2d, GroupNorm, LayerNorm, Linear};
use crate::unfold;
use crate::weights::Weights;
use lacuna_kernels::stats::Moments;
use lacuna_wire::{Error as TensorError, HostTensor};

/// `x` in the number type of `other`.
pub fn like<const D: usize, const E: usize>(x: Tensor<D>, other: &Tensor<E>) -> Tensor<D> {
    in_type(x, other.dtype())
}

/// `x` in a number type; itself when it is of that type.
fn in_type<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    match x.dtype() == dtype {
        true => x,
        false => x.cast(dtype),
    }
}

/// `a + b` in the number type of `a`.
pub fn add<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    let b = like(b, &a);
    a + b
}

/// `layer` over `[B, C_in, H, W]` with the layer's own padding on all four sides.
///
/// # Errors
/// [`TensorError::MissingTensor`] when `weights` lacks the layer.
pub fn conv2d(weights: &Weights, layer: &Conv2d, x: Tensor<4>) -> Result<Tensor<4>> {
    let bias = weights.vector(&format!("{}.bias", layer.name))?;
    convolve(weights, layer, x, bias, (layer.padding, false))
}

/// [`conv2d`] without the bias.
///
/// # Errors
/// As [`conv2d`].
pub fn conv2d_unbiased(weights: &Weights, layer: &Conv2d, x: Tensor<4>) -> Result<Tensor<4>> {
    let like = weights.vector(&format!("{}.bias", layer.name))?;
    convolve(weights, layer, x, like.zeros_like(), (layer.padding, false))
}

/// `layer` over rows that bring their own neighbours, with the layer's own padding only left and
/// right. `odd` says whether the first output row is an odd one of the picture; on the CPU device
/// the result then has the bits that [`conv2d`] of the whole has there.
///
/// # Errors
/// As [`conv2d`].
pub fn conv2d_of_strip(
    weights: &Weights,
    layer: &Conv2d,
    x: Tensor<4>,
    odd: bool,
) -> Result<Tensor<4>> {
    let bias = weights.vector(&format!("{}.bias", layer.name))?;
    convolve(weights, layer, x, bias, (0, odd))
}

/// [`conv2d_of_strip`] without the bias.
///
/// # Errors
/// As [`conv2d`].
pub fn conv2d_of_strip_unbiased(
    weights: &Weights,
    layer: &Conv2d,
    x: Tensor<4>,
    odd: bool,
) -> Result<Tensor<4>> {
    let like = weights.vector(&format!("{}.bias", layer.name))?;
    convolve(weights, layer, x, like.zeros_like(), (0, odd))
}

fn convolve(
    weights: &Weights,
    layer: &Conv2d,
    x: Tensor<4>,
    bias: Tensor<1>,
    (pad_rows, odd): (usize, bool),
) -> Result<Tensor<4>> {
    let kernel = weights.kernel(&format!("{}.weight", layer.name))?;
    if let (Some(x), Some(kernel), Some(bias)) =
        (Dense::of(&x), Dense::of(&kernel), Dense::of(&bias))
    {
        let [batch, c_in, h, w] = x.shape();
        check_channels(&layer.name, layer.c_in, c_in)?;
        let sizes = lacuna_kernels::conv::Sizes {
            batch,
            c_in,
            c_out: layer.c_out,
            size: [h, w],
            kernel: layer.kernel,
            stride: layer.stride,
            padding: [pad_rows, layer.padding],
            odd,
        };
        let y = lacuna_kernels::conv::conv2d(x.values(), kernel.values(), bias.values(), sizes);
        let [h, w] = sizes.out_size();
        return Ok(tensor(y, [batch, layer.c_out, h, w]));
    }
    check_channels(&layer.name, layer.c_in, x.dims()[1])?;
    let x = like(x, &kernel);
    let padding = [pad_rows, layer.padding];
    Ok(unfold::conv2d(layer, x, kernel, bias, padding))
}

/// The input of a layer has the layer's channels.
fn check_channels(layer: &str, want: usize, got: usize) -> Result<()> {
    if got == want {
        return Ok(());
    }
    Err(TensorError::WrongShape {
        name: format!("channels of {layer}'s input"),
        want: vec![want],
        got: vec![got],
    }
    .into())
}

/// `layer` over `[.., D_in]`.
///
/// # Errors
/// As [`conv2d`].
pub fn linear<const D: usize>(
    weights: &Weights,
    layer: &Linear,
    x: Tensor<D>,
) -> Result<Tensor<D>> {
    let weight = weights.matrix(&format!("{}.weight", layer.name))?;
    let bias = layer
        .bias
        .then(|| weights.vector(&format!("{}.bias", layer.name)))
        .transpose()?;
    let x = like(x, &weight);
    Ok(burn::tensor::module::linear(x, weight.transpose(), bias))
}

/// [`linear`] without the bias.
///
/// # Errors
/// As [`conv2d`].
pub fn linear_unbiased<const D: usize>(
    weights: &Weights,
    layer: &Linear,
    x: Tensor<D>,
) -> Result<Tensor<D>> {
    let layer = Linear {
        bias: false,
        ..layer.clone()
    };
    linear(weights, &layer, x)
}

/// `layer` over `[.., width]`.
///
/// # Errors
/// As [`conv2d`].
pub fn layer_norm<const D: usize>(
    weights: &Weights,
    layer: &LayerNorm,
    x: Tensor<D>,
) -> Result<Tensor<D>> {
    let gamma = weights.vector(&format!("{}.weight", layer.name))?;
    let beta = weights.vector(&format!("{}.bias", layer.name))?;
    let single = |t: Tensor<1>| in_type(t, DType::F32);
    let y = burn_layer_norm(
        in_type(x.clone(), DType::F32),
        single(gamma),
        Some(single(beta)),
        layer.eps,
    );
    Ok(like(y, &x))
}

/// `layer` over `[B, C, H, W]` by the tensor's own statistics, then SiLU if `silu`.
///
/// # Errors
/// As [`conv2d`].
pub fn group_norm(
    weights: &Weights,
    layer: &GroupNorm,
    x: Tensor<4>,
    silu: bool,
) -> Result<Tensor<4>> {
    if let Some(y) = group_norm_on_cpu(weights, layer, &x, None, silu)? {
        return Ok(y);
    }
    let [b, c, h, w] = x.dims();
    let count = c / layer.groups * h * w;
    let grouped = in_type(x.clone(), DType::F32).reshape([b * layer.groups, count]);
    let mean = grouped.clone().mean_dim(1);
    let variance = (grouped - mean.clone()).powi_scalar(2).mean_dim(1);
    apply_group_norm(weights, layer, x, mean, variance, silu)
}

/// Statistics of `[B, C, H, W]` over each of `groups` groups: `B * groups` of them, group fastest.
///
/// # Errors
/// [`Error::Device`] when the device fails to deliver them.
pub fn group_moments(x: Tensor<4>, groups: usize) -> Result<Vec<Moments>> {
    let [b, c, h, w] = x.dims();
    let count = c / groups * h * w;
    if let Some(x) = Dense::of(&x) {
        return Ok(lacuna_kernels::norm::group_moments(x.values(), count));
    }
    let grouped = in_type(x, DType::F32).reshape([b * groups, count]);
    let mean = grouped.clone().mean_dim(1);
    let m2 = (grouped - mean.clone()).powi_scalar(2).sum_dim(1);
    let both = HostTensor::from_device(Tensor::cat(vec![mean, m2], 1))?;
    let (pairs, _) = both.data.as_chunks::<2>();
    Ok(pairs
        .iter()
        .map(|&[mean, m2]| Moments {
            count: count as f64,
            mean: mean.into(),
            m2: m2.into(),
        })
        .collect())
}

/// `layer` over `[B, C, H, W]` by given statistics (one for each group of each batch entry), then
/// SiLU if `silu`.
///
/// # Errors
/// [`TensorError::WrongShape`] when `moments` are not one for each group; else as [`conv2d`].
pub fn group_norm_by(
    weights: &Weights,
    layer: &GroupNorm,
    x: Tensor<4>,
    moments: &[Moments],
    silu: bool,
) -> Result<Tensor<4>> {
    let groups = x.dims()[0] * layer.groups;
    if moments.len() != groups {
        return Err(TensorError::WrongShape {
            name: format!("statistics of {}", layer.name),
            want: vec![groups],
            got: vec![moments.len()],
        }
        .into());
    }
    if let Some(y) = group_norm_on_cpu(weights, layer, &x, Some(moments), silu)? {
        return Ok(y);
    }
    let device = x.device();
    let column = |value: fn(&Moments) -> f64| {
        let values: Vec<f32> = moments.iter().map(|m| value(m) as f32).collect();
        Tensor::<2>::from_data(TensorData::new(values, [groups, 1]), &device)
    };
    let (mean, variance) = (column(|m| m.mean), column(Moments::variance));
    apply_group_norm(weights, layer, x, mean, variance, silu)
}

/// `None` when `x` is on another device.
fn group_norm_on_cpu(
    weights: &Weights,
    layer: &GroupNorm,
    x: &Tensor<4>,
    moments: Option<&[Moments]>,
    silu: bool,
) -> Result<Option<Tensor<4>>> {
    let gamma = weights.vector(&format!("{}.weight", layer.name))?;
    let beta = weights.vector(&format!("{}.bias", layer.name))?;
    let (Some(x), Some(gamma), Some(beta)) = (Dense::of(x), Dense::of(&gamma), Dense::of(&beta))
    else {
        return Ok(None);
    };
    check_channels(&layer.name, layer.channels, x.shape()[1])?;
    let affine = lacuna_kernels::norm::Affine {
        gamma: gamma.values(),
        beta: beta.values(),
        groups: layer.groups,
        eps: layer.eps,
        silu,
    };
    let y = lacuna_kernels::norm::group_norm(x.values(), x.shape()[0], affine, moments);
    Ok(Some(tensor(y, x.shape())))
}

/// `mean` and `variance` are `[B * groups, 1]`.
fn apply_group_norm(
    weights: &Weights,
    layer: &GroupNorm,
    x: Tensor<4>,
    mean: Tensor<2>,
    variance: Tensor<2>,
    silu: bool,
) -> Result<Tensor<4>> {
    let single = |kind| {
        let vector = weights.vector(&format!("{}.{kind}", layer.name))?;
        Ok::<_, Error>(in_type(vector, DType::F32))
    };
    let (gamma, beta) = (single("weight")?, single("bias")?);
    let [b, c, h, w] = x.dims();
    let groups = layer.groups;
    let per_channel = |t: Tensor<2>| {
        t.reshape([b, groups, 1])
            .expand([b, groups, c / groups])
            .reshape([b, c, 1, 1])
    };
    let scale = gamma.reshape([1, c, 1, 1]) / (per_channel(variance) + layer.eps).sqrt();
    let shift = beta.reshape([1, c, 1, 1]) - per_channel(mean) * scale.clone();
    let y =
        in_type(x.clone(), DType::F32) * scale.expand([b, c, h, w]) + shift.expand([b, c, h, w]);
    Ok(like(if silu { self::silu(y) } else { y }, &x))
}

/// `x * sigmoid(x)`.
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match Dense::of(&x) {
        Some(x) => tensor(lacuna_kernels::activation::silu(x.values()), x.shape()),
        None => burn_silu(x),
    }
}

/// `h * gelu(g)` with `[h, g]` the halves of the last axis, gelu by the error function (Shazeer 2020).
pub fn geglu(x: Tensor<3>) -> Tensor<3> {
    let half = x.dims()[2] / 2;
    if let Some(x) = Dense::of(&x) {
        let [b, t, _] = x.shape();
        let y = lacuna_kernels::activation::geglu(x.values(), half);
        return tensor(y, [b, t, half]);
    }
    let value = x.clone().narrow(2, 0, half);
    let gate = x.narrow(2, half, half);
    value * gelu(gate)
}

/// Attention over some of the keys: as [`attention`], with the logarithm of each query's sum of
/// exponentials, `[B, T, heads]`, by which parts are merged (Milakov and Gimelshein 2018).
pub fn attention_part(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    heads: usize,
) -> (Tensor<3>, Tensor<3>) {
    let [b, t, c] = q.dims();
    if let (Some(q), Some(k), Some(v)) = (Dense::of(&q), Dense::of(&k), Dense::of(&v)) {
        let sizes = lacuna_kernels::attention::Sizes {
            batch: b,
            queries: t,
            keys: k.shape()[1],
            channels: c,
            heads,
            causal: false,
        };
        let [y, sums] =
            lacuna_kernels::attention::attention_part(q.values(), k.values(), v.values(), sizes);
        return (tensor(y, [b, t, c]), tensor(sums, [b, t, heads]));
    }
    // Exponentials and their sums are merged with others': in f32.
    let split = |x: Tensor<3>| {
        let [b, t, c] = x.dims();
        in_type(x, DType::F32)
            .reshape([b, t, heads, c / heads])
            .swap_dims(1, 2)
    };
    let scale = ((c / heads) as f32).sqrt().recip();
    let scores = split(q).matmul(split(k).swap_dims(2, 3)) * scale;
    let most = scores.clone().max_dim(3);
    let weights = (scores - most.clone()).exp();
    let sum = weights.clone().sum_dim(3);
    let y = weights.matmul(split(v)) / sum.clone();
    let sums = most + sum.log();
    (
        y.swap_dims(1, 2).reshape([b, t, c]),
        sums.swap_dims(1, 2).reshape([b, t, heads]),
    )
}

/// `softmax(Q K^T / sqrt(D)) V` for each of `heads` heads: `q` is `[B, T, C]`, `k` and `v` are
/// `[B, S, C]`, with the heads side by side in `C`. `causal` lets a token see no later one.
pub fn attention(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    heads: usize,
    causal: bool,
) -> Tensor<3> {
    let [b, t, c] = q.dims();
    if let (Some(q), Some(k), Some(v)) = (Dense::of(&q), Dense::of(&k), Dense::of(&v)) {
        let sizes = lacuna_kernels::attention::Sizes {
            batch: b,
            queries: t,
            keys: k.shape()[1],
            channels: c,
            heads,
            causal,
        };
        let y = lacuna_kernels::attention::attention(q.values(), k.values(), v.values(), sizes);
        return tensor(y, [b, t, c]);
    }
    let (k, v) = (like(k, &q), like(v, &q));
    let split = |x: Tensor<3>| {
        let [b, t, c] = x.dims();
        x.reshape([b, t, heads, c / heads]).swap_dims(1, 2)
    };
    let options = AttentionModuleOptions {
        is_causal: causal,
        ..Default::default()
    };
    let (q, k, v) = (split(q), split(k), split(v));
    let block = match causal {
        true => t,
        false => queries_at_a_time(b * heads * k.dims()[2]),
    };
    let y = if t <= block {
        burn_attention(q, k, v, None, None, options)
    } else {
        let blocks = (0..t).step_by(block).map(|start| {
            let q = q.clone().narrow(2, start, block.min(t - start));
            burn_attention(q, k.clone(), v.clone(), None, None, options)
        });
        Tensor::cat(blocks.collect(), 2)
    };
    y.swap_dims(1, 2).reshape([b, t, c])
}

/// How many queries' scores, each of `scores` values, are held at a time on a GPU: a binding of a buffer
/// is bounded, to 128 MiB on some adapters, and the scores of 4,096 tokens would take 1 GiB.
fn queries_at_a_time(scores: usize) -> usize {
    const VALUES: usize = (120 << 20) / size_of::<f32>();
    (VALUES / scores.max(1)).max(1)
}

/// [`upsample2`], of which `size` rows and columns are kept.
pub fn enlarge(x: Tensor<4>, [h, w]: [usize; 2]) -> Tensor<4> {
    upsample2(x).narrow(2, 0, h).narrow(3, 0, w)
}

/// Every row and column twice (nearest neighbour): `[B, C, H, W] -> [B, C, 2H, 2W]`.
pub fn upsample2(x: Tensor<4>) -> Tensor<4> {
    let [b, c, h, w] = x.dims();
    x.reshape([b * c, h, 1, w])
        .expand([b * c, h, 2, w])
        .reshape([b * c * 2 * h, w, 1])
        .expand([b * c * 2 * h, w, 2])
        .reshape([b, c, 2 * h, 2 * w])
}
