//! The transformer layers that CLIP's text and vision models have in common.

use burn::tensor::Tensor;
use burn::tensor::activation::{gelu, gelu_approximate, sigmoid};
use lacuna_model::layers::{Attention, LayerNorm, Linear, Parameter, Parameters};
use lacuna_model::ops;
use lacuna_model::weights::Weights;

use crate::error::Result;

/// The non-linearity of a feed-forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(1.702 x)`.
    QuickGelu,
    /// By the error function.
    Gelu,
    /// By the hyperbolic tangent, which is near the error function (Hendrycks and Gimpel 2016).
    GeluTanh,
}

impl Activation {
    fn of(self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::QuickGelu => x.clone() * sigmoid(x * 1.702),
            Self::Gelu => gelu(x),
            Self::GeluTanh => gelu_approximate(x),
        }
    }
}

/// What the configs of both models say of their transformer layers.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    /// Width `D` of a token.
    pub hidden_size: usize,
    /// Width within a feed-forward.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Heads of each attention; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Of the feed-forwards.
    pub activation: Activation,
    /// Added to the variance in every normalisation.
    pub layer_norm_eps: f64,
}

impl EncoderConfig {
    /// A normalisation over a token's values.
    pub fn norm(&self, name: impl Into<String>) -> LayerNorm {
        LayerNorm {
            name: name.into(),
            width: self.hidden_size,
            eps: self.layer_norm_eps,
        }
    }
}

/// Self-attention and feed-forward, each normalised before and added to its input.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderLayer {
    norm1: LayerNorm,
    attention: Attention,
    norm2: LayerNorm,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl EncoderLayer {
    /// The layers `encoder.layers.0`, `encoder.layers.1` and so on of a model.
    pub fn stack(config: &EncoderConfig) -> Vec<Self> {
        let layers = (0..config.num_hidden_layers).map(|i| {
            let name = format!("encoder.layers.{i}");
            let (width, inner) = (config.hidden_size, config.intermediate_size);
            let project =
                |kind: &str| Linear::new(format!("{name}.self_attn.{kind}"), width, width);
            Self {
                norm1: config.norm(format!("{name}.layer_norm1")),
                attention: Attention {
                    name: format!("{name}.self_attn"),
                    heads: config.num_attention_heads,
                    to_q: project("q_proj"),
                    to_k: project("k_proj"),
                    to_v: project("v_proj"),
                    to_out: project("out_proj"),
                },
                norm2: config.norm(format!("{name}.layer_norm2")),
                up: Linear::new(format!("{name}.mlp.fc1"), width, inner),
                down: Linear::new(format!("{name}.mlp.fc2"), inner, width),
                activation: config.activation,
            }
        });
        layers.collect()
    }

    /// `[B, T, D]` to the same; `causal` hides later tokens from earlier ones.
    ///
    /// # Errors
    /// [`lacuna_wire::Error::MissingTensor`] where `weights` are of another model.
    pub fn forward(&self, weights: &Weights, x: Tensor<3>, causal: bool) -> Result<Tensor<3>> {
        let h = ops::layer_norm(weights, &self.norm1, x.clone())?;
        let attention = &self.attention;
        let q = ops::linear(weights, &attention.to_q, h.clone())?;
        let k = ops::linear(weights, &attention.to_k, h.clone())?;
        let v = ops::linear(weights, &attention.to_v, h)?;
        let h = ops::attention(q, k, v, attention.heads, causal);
        let x = x + ops::linear(weights, &attention.to_out, h)?;

        let h = ops::layer_norm(weights, &self.norm2, x.clone())?;
        let h = ops::linear(weights, &self.up, h)?;
        Ok(x + ops::linear(weights, &self.down, self.activation.of(h))?)
    }
}

impl Parameters for EncoderLayer {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        self.norm1.parameters(out);
        self.attention.parameters(out);
        self.norm2.parameters(out);
        self.up.parameters(out);
        self.down.parameters(out);
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use lacuna_model::device::OpenDevice;
    use lacuna_model::host::OnDevice;
    use lacuna_wire::HostTensor;

    use super::*;

    /// What `transformers.activations.ACT2FN` makes of them.
    #[test]
    fn activations_are_the_references() {
        let x = [-3.0_f32, -1.0, -0.25, 0.0, 0.5, 1.0, 2.5];
        let device = OpenDevice::cpu().device;
        for (activation, want) in [
            (
                Activation::QuickGelu,
                [
                    -0.0180713, -0.1542042, -0.0988003, 0.0, 0.3503884, 0.8457958, 2.465014,
                ],
            ),
            (
                Activation::Gelu,
                [
                    -0.0040502, -0.1586553, -0.1003234, 0.0, 0.3457312, 0.8413447, 2.4844759,
                ],
            ),
            (
                Activation::GeluTanh,
                [
                    -0.0036374, -0.158808, -0.1003246, 0.0, 0.345714, 0.841192, 2.4849157,
                ],
            ),
        ] {
            let x = Tensor::from_data(TensorData::new(x.to_vec(), [1, 1, 7]), &device);
            let got = HostTensor::from_device(activation.of(x)).unwrap().data;
            for (got, want) in got.iter().zip(want) {
                assert!((got - want).abs() < 2e-6, "{activation:?}: {got} {want}");
            }
        }
    }
}
