//! CLIP's text encoder: token ids to the embeddings that the U-Net is conditioned on.

use std::path::Path;

use burn::tensor::module::embedding;
use burn::tensor::{Device, Int, Tensor, TensorData};
use lacuna_model::layers::{LayerNorm, Parameter, Parameters};
use lacuna_model::ops;
use lacuna_model::weights::{Checkpoint, Library, Stored, Weights};

use super::clip_config::ClipTextConfig;
use super::encoder::EncoderLayer;
use crate::error::{Error, Result};

const TOKEN_EMBEDDING: &str = "embeddings.token_embedding";
const POSITION_EMBEDDING: &str = "embeddings.position_embedding";

/// The text encoder's layers, named as in the files but for the prefix `text_model.` of older ones.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipTextLayers {
    pub(super) vocabulary: usize,
    /// Number of positions, the largest `T`.
    pub(super) places: usize,
    /// `D`.
    pub(super) width: usize,
    pub(super) layers: Vec<EncoderLayer>,
    pub(super) final_norm: LayerNorm,
}

impl ClipTextLayers {
    /// Number of positions, the largest `T`.
    pub fn places(&self) -> usize {
        self.places
    }

    /// Width `D` of a token's embedding.
    pub fn width(&self) -> usize {
        self.width
    }
}

impl ClipTextConfig {
    /// The layers that the config describes.
    pub fn build(&self) -> ClipTextLayers {
        ClipTextLayers {
            vocabulary: self.vocab_size,
            places: self.max_position_embeddings,
            width: self.encoder.hidden_size,
            layers: EncoderLayer::stack(&self.encoder),
            final_norm: self.encoder.norm("final_layer_norm"),
        }
    }
}

impl Parameters for ClipTextLayers {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        for (name, entries) in [
            (TOKEN_EMBEDDING, self.vocabulary),
            (POSITION_EMBEDDING, self.places),
        ] {
            out.push(Parameter::table(name, entries, self.width));
        }
        for layer in &self.layers {
            layer.parameters(out);
        }
        self.final_norm.parameters(out);
    }
}

/// The text encoder with its weights on a device.
#[derive(Clone, Debug)]
pub struct ClipTextEncoder {
    layers: ClipTextLayers,
    weights: Weights,
}

impl ClipTextEncoder {
    /// Opens `dir/config.json` and the weights beside it, and checks that they fit; `variant` as in
    /// [`Checkpoint::open`]. Nothing is loaded.
    ///
    /// # Errors
    /// Any [`lacuna_model::Error`] of reading configs and weights, naming the key or tensor.
    pub fn open(dir: &Path, variant: Option<&str>) -> Result<Stored<ClipTextLayers>> {
        let layers = ClipTextConfig::from_file(&dir.join("config.json"))?.build();
        let mut checkpoint = Checkpoint::open(dir, Library::Transformers, variant)?;
        checkpoint.adapt(|name, _| {
            let name = name.strip_prefix("text_model.").unwrap_or(name);
            // A buffer that only counts, and what a whole CLIP has besides the text model.
            let unused = [
                "embeddings.position_ids",
                "text_projection.weight",
                "visual_projection.weight",
                "logit_scale",
            ];
            let unused = unused.contains(&name) || name.starts_with("vision_model.");
            (!unused).then(|| name.to_owned())
        });
        Ok(Stored::new(layers, checkpoint)?)
    }

    /// Loads what [`Self::open`] opens.
    ///
    /// # Errors
    /// As there, and as [`Weights::load_part`].
    pub fn load(dir: &Path, variant: Option<&str>, device: &Device) -> Result<Self> {
        Self::load_stored(&Self::open(dir, variant)?, device)
    }

    /// Loads what [`Self::open`] opened.
    ///
    /// # Errors
    /// As [`Weights::load_part`].
    pub fn load_stored(stored: &Stored<ClipTextLayers>, device: &Device) -> Result<Self> {
        Ok(Self {
            layers: stored.layers().clone(),
            weights: stored.load(device)?,
        })
    }

    /// Its layers.
    pub fn layers(&self) -> &ClipTextLayers {
        &self.layers
    }

    /// Embeddings `[B, T, D]` of `B` prompts of `T` tokens each: the hidden state after the last
    /// layer but `clip_skip`, through the final normalisation.
    ///
    /// # Errors
    /// [`Error::Tokens`] for an id outside the vocabulary, prompts of unequal length or too many
    /// tokens, or a `clip_skip` beyond the number of layers.
    pub fn encode(&self, prompts: &[Vec<u32>], clip_skip: usize) -> Result<Tensor<3>> {
        let depth = self.layers.layers.len();
        let Some(wanted) = depth.checked_sub(clip_skip) else {
            return Err(Error::Tokens(format!(
                "clip_skip = {clip_skip}, but there are {depth} layers"
            )));
        };
        let mut x = self.embed(prompts)?;
        for layer in &self.layers.layers[..wanted] {
            x = layer.forward(&self.weights, x, true)?;
        }
        Ok(ops::layer_norm(&self.weights, &self.layers.final_norm, x)?)
    }

    /// Tokens and their positions, `[B, T, D]`.
    fn embed(&self, prompts: &[Vec<u32>]) -> Result<Tensor<3>> {
        let b = prompts.len();
        let t = prompts.first().map_or(0, Vec::len);
        if t == 0 || t > self.layers.places || prompts.iter().any(|p| p.len() != t) {
            let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
            return Err(Error::Tokens(format!(
                "prompts of {lengths:?} tokens, but equal lengths from 1 to {} are wanted",
                self.layers.places
            )));
        }
        let mut ids = Vec::with_capacity(b * t);
        for &id in prompts.iter().flatten() {
            match i32::try_from(id) {
                Ok(index) if (id as usize) < self.layers.vocabulary => ids.push(index),
                _ => {
                    return Err(Error::Tokens(format!(
                        "token id {id}, but the vocabulary has {} entries",
                        self.layers.vocabulary
                    )));
                }
            }
        }
        let device = self.weights.device();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [b, t]), device);
        let tokens = embedding(self.weights.matrix(&weight(TOKEN_EMBEDDING))?, ids);
        let positions = self.weights.matrix(&weight(POSITION_EMBEDDING))?;
        Ok(tokens + positions.narrow(0, 0, t).unsqueeze::<3>())
    }
}

fn weight(layer: &str) -> String {
    format!("{layer}.weight")
}
