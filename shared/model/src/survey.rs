//! The U-Net over bare shapes: which operations one call does, on what sizes, at what work.

use crate::error::Error;
use crate::executor::Executor;
use crate::layers::{Attention, Conv2d, FeedForward, GroupNorm, LayerNorm, Linear, attention_flop};
use crate::unet::{TimeEmbedding, UNet};

/// Tokens that CLIP makes of any prompt.
pub const PROMPT_TOKENS: usize = 77;

/// Most tokens of a prompt: thirteen times what CLIP makes of one.
pub const MOST_PROMPT_TOKENS: usize = 1024;

/// What an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A convolution; `kernel` rows and columns.
    Conv {
        /// Rows and columns of the kernel.
        kernel: usize,
    },
    /// A group normalisation.
    GroupNorm,
    /// A layer normalisation.
    LayerNorm,
    /// A linear map.
    Linear,
    /// The two products of a self-attention.
    SelfAttention,
    /// The two products of a cross-attention.
    CrossAttention,
}

/// One operation of the walk.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// What it is.
    pub kind: Kind,
    /// The layer's tensor prefix.
    pub layer: String,
    /// Sizes of the input: `[B, C, H, W]` of a feature map, `[B, T, C, 1]` of tokens.
    pub input: [usize; 4],
    /// Sizes of the output, likewise.
    pub output: [usize; 4],
    /// Rows and columns before the input was enlarged; none where it was not.
    pub enlarged_from: Option<[usize; 2]>,
    /// Multiply and add counted as two.
    pub flop: u64,
}

impl Operation {
    /// Whether it makes keys or values of the prompt, which are the same at every step.
    pub fn makes_prompt_keys(&self) -> bool {
        self.layer.ends_with("attn2.to_k") || self.layer.ends_with("attn2.to_v")
    }
}

/// Every operation of one call on `[batch, in_channels, rows, columns]` with a prompt of `prompt`
/// tokens, in the walk's order.
///
/// # Errors
/// None today: shapes alone cannot fail. The signature is the walk's.
pub fn survey(
    unet: &UNet,
    [batch, rows, columns]: [usize; 3],
    prompt: usize,
) -> Result<Vec<Operation>, Error> {
    let mut surveyor = Surveyor::new(batch, prompt);
    let sample = [batch, unet.in_channels, rows, columns];
    unet.forward(&mut surveyor, &sample, 0.0)?;
    Ok(surveyor.operations)
}

/// Executes a U-Net over bare shapes, and notes what there would be to compute.
#[derive(Clone, Debug)]
pub struct Surveyor {
    batch: usize,
    prompt: usize,
    operations: Vec<Operation>,
}

impl Surveyor {
    /// A surveyor of `batch` entries with a prompt of `prompt` tokens.
    pub fn new(batch: usize, prompt: usize) -> Self {
        Self {
            batch,
            prompt,
            operations: Vec::new(),
        }
    }

    /// The operations noted since the last call.
    pub fn take(&mut self) -> Vec<Operation> {
        std::mem::take(&mut self.operations)
    }

    fn note(&mut self, kind: Kind, layer: &str, input: [usize; 4], output: [usize; 4], flop: u64) {
        self.operations.push(Operation {
            kind,
            layer: layer.to_owned(),
            input,
            output,
            enlarged_from: None,
            flop,
        });
    }

    fn map(&mut self, layer: &Linear, [b, t, _]: [usize; 3]) -> [usize; 3] {
        let (input, output) = ([b, t, layer.d_in, 1], [b, t, layer.d_out, 1]);
        self.note(Kind::Linear, &layer.name, input, output, layer.flop(b * t));
        [b, t, layer.d_out]
    }

    fn attend(&mut self, layer: &Attention, x: [usize; 3], kind: Kind) -> [usize; 3] {
        let [b, t, _] = x;
        let keys = if kind == Kind::SelfAttention {
            t
        } else {
            self.prompt
        };
        let q = self.map(&layer.to_q, x);
        self.map(&layer.to_k, [b, keys, layer.to_k.d_in]);
        self.map(&layer.to_v, [b, keys, layer.to_v.d_in]);
        let shape = [b, t, q[2], 1];
        let flop = b as u64 * attention_flop(t, keys, q[2]);
        self.note(kind, &layer.name, shape, shape, flop);
        self.map(&layer.to_out, q)
    }
}

impl Executor for Surveyor {
    type Feature = [usize; 4];
    type Tokens = [usize; 3];
    /// Its rows: one, or one for each entry where the model is told of each picture's size.
    type Embedding = usize;
    type Error = Error;

    fn embed_time(&mut self, layer: &TimeEmbedding, _: f64) -> Result<usize, Error> {
        let linears = [&layer.linear_1, &layer.linear_2].into_iter();
        for linear in layer.guidance.iter().chain(linears) {
            self.map(linear, [1, 1, linear.d_in]);
        }
        let Some(added) = &layer.added else {
            return Ok(1);
        };
        for linear in [&added.linear_1, &added.linear_2] {
            self.map(linear, [self.batch, 1, linear.d_in]);
        }
        Ok(self.batch)
    }

    fn conv(&mut self, layer: &Conv2d, x: &[usize; 4]) -> Result<[usize; 4], Error> {
        let [b, _, h, w] = *x;
        let y = [b, layer.c_out, layer.out_size(h), layer.out_size(w)];
        let kind = Kind::Conv {
            kernel: layer.kernel,
        };
        self.note(kind, &layer.name, *x, y, layer.flop(b * y[2] * y[3]));
        Ok(y)
    }

    fn upsample_conv(
        &mut self,
        conv: &Conv2d,
        x: &[usize; 4],
        like: &[usize; 4],
    ) -> Result<[usize; 4], Error> {
        let enlarged = self.upsample(x, like)?;
        let y = self.conv(conv, &enlarged)?;
        if let Some(noted) = self.operations.last_mut() {
            noted.enlarged_from = Some([x[2], x[3]]);
        }
        Ok(y)
    }

    fn group_norm(&mut self, layer: &GroupNorm, x: &[usize; 4]) -> Result<[usize; 4], Error> {
        self.note(Kind::GroupNorm, &layer.name, *x, *x, 0);
        Ok(*x)
    }

    fn group_norm_silu(&mut self, layer: &GroupNorm, x: &[usize; 4]) -> Result<[usize; 4], Error> {
        self.group_norm(layer, x)
    }

    fn add_embedding(
        &mut self,
        project: &Linear,
        x: [usize; 4],
        rows: &usize,
    ) -> Result<[usize; 4], Error> {
        self.map(project, [*rows, 1, project.d_in]);
        Ok(x)
    }

    fn add(&mut self, a: [usize; 4], _: &[usize; 4]) -> Result<[usize; 4], Error> {
        Ok(a)
    }

    fn concat(&mut self, a: [usize; 4], b: [usize; 4]) -> Result<[usize; 4], Error> {
        Ok([a[0], a[1] + b[1], a[2], a[3]])
    }

    fn upsample(&mut self, x: &[usize; 4], like: &[usize; 4]) -> Result<[usize; 4], Error> {
        Ok([x[0], x[1], like[2], like[3]])
    }

    fn to_tokens(&mut self, x: &[usize; 4]) -> Result<[usize; 3], Error> {
        Ok([x[0], x[2] * x[3], x[1]])
    }

    fn to_feature(&mut self, x: [usize; 3], like: &[usize; 4]) -> Result<[usize; 4], Error> {
        Ok([x[0], x[2], like[2], like[3]])
    }

    fn linear(&mut self, layer: &Linear, x: &[usize; 3]) -> Result<[usize; 3], Error> {
        Ok(self.map(layer, *x))
    }

    fn layer_norm(&mut self, layer: &LayerNorm, x: &[usize; 3]) -> Result<[usize; 3], Error> {
        let [b, t, c] = *x;
        let shape = [b, t, c, 1];
        self.note(Kind::LayerNorm, &layer.name, shape, shape, 0);
        Ok(*x)
    }

    fn self_attention(&mut self, layer: &Attention, x: &[usize; 3]) -> Result<[usize; 3], Error> {
        Ok(self.attend(layer, *x, Kind::SelfAttention))
    }

    fn cross_attention(&mut self, layer: &Attention, x: &[usize; 3]) -> Result<[usize; 3], Error> {
        Ok(self.attend(layer, *x, Kind::CrossAttention))
    }

    fn feed_forward(&mut self, layer: &FeedForward, x: &[usize; 3]) -> Result<[usize; 3], Error> {
        let h = self.map(&layer.up, *x);
        Ok(self.map(&layer.down, [h[0], h[1], h[2] / 2]))
    }

    fn add_tokens(&mut self, a: [usize; 3], _: &[usize; 3]) -> Result<[usize; 3], Error> {
        Ok(a)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigReader;
    use crate::unet::UNetConfig;

    #[test]
    fn one_call_of_sd15_does_the_work_that_the_design_counts() {
        let config = serde_json::json!({"cross_attention_dim": 768});
        let config = UNetConfig::read(ConfigReader::new("sd15", config).unwrap()).unwrap();
        let operations = survey(&config.build(), [1, 64, 64], 77).unwrap();
        let gflop = |wanted: fn(&Kind) -> bool| {
            let flop: u64 = operations
                .iter()
                .filter(|o| wanted(&o.kind))
                .map(|o| o.flop)
                .sum();
            (flop as f64 / 1e9).round() as u64
        };
        // What is done once a picture is not a call's: 800.3 is the U-Net's work, wherever it is told.
        let of = |once: bool| {
            let of = operations.iter().filter(|o| o.makes_prompt_keys() == once);
            of.map(|o| o.flop).sum::<u64>() as f64 / 1e9
        };
        assert_eq!(format!("{:.1} {:.1}", of(false), of(true)), "800.3 3.0");
        assert_eq!(gflop(|k| *k == Kind::Conv { kernel: 3 }), 400);
        assert_eq!(gflop(|k| *k == Kind::Linear), 233);
        assert_eq!(gflop(|k| *k == Kind::SelfAttention), 122);
        assert_eq!(gflop(|k| *k == Kind::Conv { kernel: 1 }), 44);
        assert_eq!(gflop(|k| *k == Kind::CrossAttention), 4);
        let norms = operations
            .iter()
            .filter(|o| o.kind == Kind::GroupNorm)
            .count();
        assert_eq!(norms, 61);
    }
}
