//! CLIP score (Hessel et al. 2021, as torchmetrics has it): how well a picture fits its prompt, as 100 times
//! the cosine of their embeddings, and 0 where that is negative.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use lacuna_model::host::OnDevice;
use lacuna_model::layers::{LayerNorm, Linear, Parameter, Parameters};
use lacuna_model::ops;
use lacuna_model::weights::{Checkpoint, Library, Weights};
use lacuna_wire::HostTensor;

use super::decode::Rgb8;
use super::resize::{Filter, resize};
use crate::error::{Error, Result};
use lacuna_orchestrator::text::{
    ClipTextEncoder, ClipTokenizer, ClipVisionConfig, EncoderLayer, Wanted,
};

/// What the vision model was trained on, for values in 0..1: subtracted, then divided by.
const MEAN: [f32; 3] = [0.48145466, 0.4578275, 0.40821073];
const DEVIATION: [f32; 3] = [0.26862954, 0.261_302_6, 0.275_777_1];

const CLASS: &str = "embeddings.class_embedding";
const POSITIONS: &str = "embeddings.position_embedding";

/// A whole CLIP with its weights on a device.
pub struct ClipScore {
    tokenizer: ClipTokenizer,
    text: ClipTextEncoder,
    vision: Vision,
    weights: Weights,
}

impl ClipScore {
    /// Loads a directory in the layout of `transformers`: `config.json`, `model.safetensors` and the
    /// tokenizer's files.
    ///
    /// # Errors
    /// Any [`lacuna_model::Error`] of reading configs and weights, naming the key, file or tensor.
    pub fn load(dir: &Path, device: &Device) -> Result<Self> {
        let config = ClipVisionConfig::from_file(&dir.join("config.json"))?;
        let text = ClipTextEncoder::load(dir, None, device)?;
        let vision = Vision::new(&config, text.layers().width());
        let mut checkpoint = Checkpoint::open(dir, Library::Transformers, None)?;
        checkpoint.adapt(|name, shape| {
            let own = match name.strip_prefix("vision_model.") {
                Some("embeddings.position_ids") => return None,
                Some(own) => own,
                None if name.ends_with("_projection.weight") => name,
                None => return None,
            };
            // Patches do not overlap, so their convolution is a linear map.
            if let [width, rest @ ..] = &shape[..]
                && rest.len() == 3
            {
                *shape = vec![*width, rest.iter().product()];
            }
            Some(own.to_owned())
        });
        Ok(Self {
            tokenizer: ClipTokenizer::load(dir)?,
            weights: Weights::load(&vision, &checkpoint, device)?,
            text,
            vision,
        })
    }

    /// The score of a picture under a prompt, 0 to 100. Tokens beyond the text model's are left out.
    ///
    /// # Errors
    /// [`lacuna_orchestrator::Error::Prompt`] when the tokenizer refuses, [`lacuna_model::Error::Device`] when the device fails.
    pub fn score(&self, picture: &Rgb8, prompt: &str) -> Result<f64> {
        let [a, b] = [self.embed_picture(picture)?, self.embed_prompt(prompt)?];
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
            products.sum()
        };
        let cosine = dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt();
        if cosine.is_nan() {
            return Err(Error::Request("the CLIP score is no number".into()));
        }
        Ok((100.0 * cosine).max(0.0))
    }

    fn embed_prompt(&self, prompt: &str) -> Result<Vec<f32>> {
        let ids = self.tokenizer.encode(prompt)?;
        // The end's id is the largest of the vocabulary; padding may repeat it.
        let largest = ids.iter().max();
        let end = ids.iter().position(|id| Some(id) == largest).unwrap_or(0);
        let x = self.text.encode(&[ids], Wanted::Normalised(0))?;
        let x = x.states.narrow(1, end, 1);
        let x = ops::linear(&self.weights, &self.vision.text_projection, x)?;
        Ok(HostTensor::from_device(x)?.data)
    }

    fn embed_picture(&self, picture: &Rgb8) -> Result<Vec<f32>> {
        let (vision, weights) = (&self.vision, &self.weights);
        let [count, values] = [vision.patches.pow(2), vision.patch.d_in];
        let input = HostTensor::new([1, count, values], vision.prepare(picture))?;
        let input: Tensor<3> = input.into_device(weights.device())?;
        let x = ops::linear(weights, &vision.patch, input)?;
        let class = weights.vector(CLASS)?.reshape([1, 1, vision.patch.d_out]);
        let positions = weights.matrix(&format!("{POSITIONS}.weight"))?;
        let x = Tensor::cat(vec![class, x], 1) + positions.unsqueeze::<3>();
        let mut x = ops::layer_norm(weights, &vision.first_norm, x)?;
        for layer in &vision.layers {
            x = layer.forward(weights, x, false)?;
        }
        let x = ops::layer_norm(weights, &vision.last_norm, x.narrow(1, 0, 1))?;
        let x = ops::linear(weights, &vision.picture_projection, x)?;
        Ok(HostTensor::from_device(x)?.data)
    }
}

/// The vision model's layers, and both projections to the space that text and pictures share.
#[derive(Clone, Debug, PartialEq)]
struct Vision {
    /// Rows (and columns) of the picture.
    size: usize,
    /// Patches of a row (and column).
    patches: usize,
    patch: Linear,
    first_norm: LayerNorm,
    layers: Vec<EncoderLayer>,
    last_norm: LayerNorm,
    picture_projection: Linear,
    text_projection: Linear,
}

impl Vision {
    fn new(config: &ClipVisionConfig, text_width: usize) -> Self {
        let (width, dim) = (config.encoder.hidden_size, config.projection_dim);
        let linear = |name: &str, d_in, d_out| Linear::new(name, d_in, d_out).without_bias();
        let values = 3 * config.patch_size * config.patch_size;
        Self {
            size: config.image_size,
            patches: config.image_size / config.patch_size,
            patch: linear("embeddings.patch_embedding", values, width),
            // Spelt so in the published files.
            first_norm: config.encoder.norm("pre_layrnorm"),
            layers: EncoderLayer::stack(&config.encoder),
            last_norm: config.encoder.norm("post_layernorm"),
            picture_projection: linear("visual_projection", width, dim),
            text_projection: linear("text_projection", text_width, dim),
        }
    }

    /// The picture's patches, each `[3, P, P]`, in rows from the top: its shorter side resized to the
    /// network's, and the middle taken.
    fn prepare(&self, picture: &Rgb8) -> Vec<f32> {
        let from = [picture.height, picture.width];
        let shorter = from[0].min(from[1]).max(1);
        let to = from.map(|side| side * self.size / shorter);
        let [top, left] = to.map(|side| (side - self.size) / 2);
        let channels = [0, 1, 2].map(|c| {
            let bytes = resize_bytes(&picture.channel(c), from, to);
            bytes
                .into_iter()
                .map(move |x| (x / 255.0 - MEAN[c]) / DEVIATION[c])
        });
        let channels = channels.map(std::iter::Iterator::collect::<Vec<f32>>);
        let side = self.size / self.patches;
        let mut out = Vec::with_capacity(3 * self.size * self.size);
        for (row, column) in (0..self.patches).flat_map(|r| (0..self.patches).map(move |c| (r, c)))
        {
            for channel in &channels {
                for y in 0..side {
                    let first = (top + row * side + y) * to[1] + left + column * side;
                    out.extend(&channel[first..first + side]);
                }
            }
        }
        out
    }
}

/// Bicubic as Pillow and torchvision resize bytes: rounded to bytes after the columns and after the rows.
fn resize_bytes(channel: &[f32], from: [usize; 2], to: [usize; 2]) -> Vec<f32> {
    let bytes = |values: Vec<f32>| values.into_iter().map(|x| x.clamp(0.0, 255.0).round());
    let half = [from[0], to[1]];
    let wide: Vec<f32> = bytes(resize(channel, from, half, Filter::Bicubic, true)).collect();
    bytes(resize(&wide, half, to, Filter::Bicubic, true)).collect()
}

impl Parameters for Vision {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        out.push(Parameter {
            name: CLASS.into(),
            shape: vec![self.patch.d_out],
            table: false,
        });
        let places = 1 + self.patches.pow(2);
        out.push(Parameter::table(POSITIONS, places, self.patch.d_out));
        self.patch.parameters(out);
        self.first_norm.parameters(out);
        for layer in &self.layers {
            layer.parameters(out);
        }
        self.last_norm.parameters(out);
        self.picture_projection.parameters(out);
        self.text_projection.parameters(out);
    }
}
