//! Layers without their weights: name, sizes, parameters and work of each.
//!
//! A layer's `name` is the prefix of its tensors in a diffusers file, so a layer can be looked up
//! in any copy of the weights, at the user's or at a worker's.

use serde::{Deserialize, Serialize};

/// A tensor that a layer needs: its name in the weight files, and its shape there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Full name, e.g. `conv_in.weight`.
    pub name: String,
    /// Shape as stored by the reference library.
    pub shape: Vec<usize>,
    /// Whether its rows are looked up, not multiplied with.
    pub table: bool,
}

impl Parameter {
    /// A parameter `layer.kind`.
    pub fn new(layer: &str, kind: &str, shape: impl Into<Vec<usize>>) -> Self {
        Self {
            name: format!("{layer}.{kind}"),
            shape: shape.into(),
            table: false,
        }
    }

    /// The weight of an embedding: `entries` vectors of `width` values.
    pub fn table(layer: &str, entries: usize, width: usize) -> Self {
        Self {
            table: true,
            ..Self::new(layer, "weight", [entries, width])
        }
    }

    /// The layer's tensor prefix.
    pub fn layer(&self) -> &str {
        self.name.rsplit_once('.').map_or("", |(layer, _)| layer)
    }

    /// Number of values.
    pub fn values(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A layer that has parameters.
pub trait Parameters {
    /// Appends the layer's parameters to `out`.
    fn parameters(&self, out: &mut Vec<Parameter>);

    /// What of the arithmetic the shapes of the parameters do not tell: two networks of one set of weights compute the
    /// same where this is the same, too. Nothing, where a network does not travel.
    fn arithmetic(&self) -> String {
        String::new()
    }

    /// Other names that layers have in the files of some tools, each with the layer's own.
    fn aliases(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}

/// A square 2-D convolution, `[B, C_in, H, W] -> [B, C_out, H_out, W_out]`, with bias.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conv2d {
    /// Tensor prefix.
    pub name: String,
    /// `C_in`.
    pub c_in: usize,
    /// `C_out`.
    pub c_out: usize,
    /// Rows and columns of the kernel.
    pub kernel: usize,
    /// Step between outputs.
    pub stride: usize,
    /// Zeros on each side.
    pub padding: usize,
}

impl Conv2d {
    /// A convolution of stride 1 that keeps the size (an odd `kernel`).
    pub fn same(name: impl Into<String>, c_in: usize, c_out: usize, kernel: usize) -> Self {
        Self {
            name: name.into(),
            c_in,
            c_out,
            kernel,
            stride: 1,
            padding: kernel / 2,
        }
    }

    /// The output's rows (or columns) for `size` input rows (or columns).
    pub fn out_size(&self, size: usize) -> usize {
        (size + 2 * self.padding).saturating_sub(self.kernel) / self.stride + 1
    }

    /// Work for `pixels` output positions, multiply and add counted as two.
    pub fn flop(&self, pixels: usize) -> u64 {
        2 * (self.c_in * self.c_out * self.kernel * self.kernel) as u64 * pixels as u64
    }
}

impl Parameters for Conv2d {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        let shape = [self.c_out, self.c_in, self.kernel, self.kernel];
        out.push(Parameter::new(&self.name, "weight", shape));
        out.push(Parameter::new(&self.name, "bias", [self.c_out]));
    }
}

/// A linear map over the last axis, `[.., D_in] -> [.., D_out]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Linear {
    /// Tensor prefix.
    pub name: String,
    /// `D_in`.
    pub d_in: usize,
    /// `D_out`.
    pub d_out: usize,
    /// Whether a bias is added.
    pub bias: bool,
}

impl Linear {
    /// A linear map with bias.
    pub fn new(name: impl Into<String>, d_in: usize, d_out: usize) -> Self {
        Self {
            name: name.into(),
            d_in,
            d_out,
            bias: true,
        }
    }

    /// The same map without bias.
    pub fn without_bias(mut self) -> Self {
        self.bias = false;
        self
    }

    /// Work for `rows` vectors, multiply and add counted as two.
    pub fn flop(&self, rows: usize) -> u64 {
        2 * (self.d_in * self.d_out) as u64 * rows as u64
    }
}

impl Parameters for Linear {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        out.push(Parameter::new(
            &self.name,
            "weight",
            [self.d_out, self.d_in],
        ));
        if self.bias {
            out.push(Parameter::new(&self.name, "bias", [self.d_out]));
        }
    }
}

/// Group normalisation of `[B, C, H, W]` over each group's channels and all pixels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupNorm {
    /// Tensor prefix.
    pub name: String,
    /// `C`.
    pub channels: usize,
    /// Number of groups; divides `C`.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
}

impl Parameters for GroupNorm {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        affine(&self.name, self.channels, out);
    }
}

/// Layer normalisation over the last axis.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerNorm {
    /// Tensor prefix.
    pub name: String,
    /// Size of the last axis.
    pub width: usize,
    /// Added to the variance.
    pub eps: f64,
}

impl Parameters for LayerNorm {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        affine(&self.name, self.width, out);
    }
}

fn affine(name: &str, width: usize, out: &mut Vec<Parameter>) {
    out.push(Parameter::new(name, "weight", [width]));
    out.push(Parameter::new(name, "bias", [width]));
}

/// Multi-head attention with its projections: queries from `[B, T, C]`, keys and values from the
/// same tokens (self-attention) or from the prompt's (cross-attention).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attention {
    /// Tensor prefix.
    pub name: String,
    /// Number of heads; each is `to_q.d_out / heads` wide.
    pub heads: usize,
    /// Queries.
    pub to_q: Linear,
    /// Keys.
    pub to_k: Linear,
    /// Values.
    pub to_v: Linear,
    /// Output.
    pub to_out: Linear,
}

impl Attention {
    /// Attention as the reference U-Net has it: no bias on q, k and v.
    pub fn new(name: impl Into<String>, width: usize, context: usize, heads: usize) -> Self {
        let name = name.into();
        let project =
            |kind: &str, d_in| Linear::new(format!("{name}.{kind}"), d_in, width).without_bias();
        Self {
            heads,
            to_q: project("to_q", width),
            to_k: project("to_k", context),
            to_v: project("to_v", context),
            to_out: Linear::new(format!("{name}.to_out.0"), width, width),
            name,
        }
    }

    /// Work of the two products for `queries` x `keys` pairs, all heads, one batch entry.
    pub fn products_flop(&self, queries: usize, keys: usize) -> u64 {
        attention_flop(queries, keys, self.to_q.d_out)
    }
}

/// Work of `softmax(Q K^T) V` over heads of total width `width`: two products.
pub fn attention_flop(queries: usize, keys: usize, width: usize) -> u64 {
    4 * (queries * keys) as u64 * width as u64
}

impl Parameters for Attention {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        for linear in [&self.to_q, &self.to_k, &self.to_v, &self.to_out] {
            linear.parameters(out);
        }
    }
}

/// The gated feed-forward of a transformer block: `down(h * gelu(g))` with `[h, g] = up(x)` (GEGLU).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedForward {
    /// `C -> 8C`: value and gate side by side.
    pub up: Linear,
    /// `4C -> C`.
    pub down: Linear,
}

impl FeedForward {
    /// A feed-forward of the reference U-Net: four times as wide inside.
    pub fn new(name: &str, width: usize) -> Self {
        Self {
            up: Linear::new(format!("{name}.net.0.proj"), width, 8 * width),
            down: Linear::new(format!("{name}.net.2"), 4 * width, width),
        }
    }
}

impl Parameters for FeedForward {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        self.up.parameters(out);
        self.down.parameters(out);
    }
}
