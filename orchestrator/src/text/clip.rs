//! CLIP's text encoder: token ids to the embeddings that the U-Net is conditioned on.

use std::path::Path;

use burn::tensor::module::embedding;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use lacuna_model::host::OnDevice;
use lacuna_model::layers::{LayerNorm, Linear, Parameter, Parameters};
use lacuna_model::ops;
use lacuna_model::weights::{Checkpoint, Library, Stored, Weights};
use lacuna_wire::HostTensor;

use super::clip_config::{ClipTextConfig, PooledAt, PooledConfig};
use super::encoder::EncoderLayer;
use crate::error::{Error, Result};

const TOKEN_EMBEDDING: &str = "embeddings.token_embedding";
const POSITION_EMBEDDING: &str = "embeddings.position_embedding";
const PROJECTION: &str = "text_projection";

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
    /// Where there is one: how a whole text becomes one vector.
    pooled: Option<(PooledAt, Linear)>,
}

/// What a text encoder makes of prompts.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Hidden states `[B, T, D]`.
    pub states: Tensor<3>,
    /// The whole text `[B, D_pooled]`, of a model that has the map to it.
    pub pooled: Option<Tensor<2>>,
}

/// Which hidden states of a text encoder are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Those after the last layer but so many, normalised: Stable Diffusion's.
    Normalised(usize),
    /// Those before the last layer and so many more, as they are: SDXL's.
    Penultimate(usize),
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

    /// Number of layers.
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// Width of the whole text's vector, of a model that has the map to it.
    pub fn pooled_width(&self) -> Option<usize> {
        self.pooled.as_ref().map(|(_, project)| project.d_out)
    }

    /// The same with the map from the whole text's state to a vector.
    pub fn pooling(self, config: PooledConfig) -> Self {
        let project = Linear::new(PROJECTION, self.width, config.projection_dim);
        Self {
            pooled: Some((config.at, project.without_bias())),
            ..self
        }
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
            pooled: None,
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
        if let Some((_, project)) = &self.pooled {
            project.parameters(out);
        }
    }
}

/// Tokens of one's own, and their vectors in place of the vocabulary's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OwnTokens {
    ids: Vec<u32>,
    /// `D` values of each.
    values: Vec<f32>,
}

impl OwnTokens {
    /// And those of `ids` with `vectors` `[N, D]`.
    pub fn add(&mut self, ids: &[u32], vectors: &HostTensor) {
        self.ids.extend(ids);
        self.values.extend(&vectors.data);
    }

    fn place(&self, id: u32) -> Option<usize> {
        self.ids.iter().position(|own| *own == id)
    }
}

/// The text encoder with its weights on a device.
#[derive(Clone, Debug)]
pub struct ClipTextEncoder {
    layers: ClipTextLayers,
    weights: Weights,
    own: OwnTokens,
}

impl ClipTextEncoder {
    /// Opens `dir/config.json` and the weights beside it, and checks that they fit; `variant` as in
    /// [`Checkpoint::open`]. Nothing is loaded.
    ///
    /// # Errors
    /// Any [`lacuna_model::Error`] of reading configs and weights, naming the key or tensor.
    pub fn open(dir: &Path, variant: Option<&str>) -> Result<Stored<ClipTextLayers>> {
        let layers = ClipTextConfig::from_file(&dir.join("config.json"))?.build();
        Self::stored(
            layers,
            Checkpoint::open(dir, Library::Transformers, variant)?,
        )
    }

    /// The same of a model with the map from the whole text's state to a vector (`CLIPTextModelWithProjection`).
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_pooling(dir: &Path, variant: Option<&str>) -> Result<Stored<ClipTextLayers>> {
        let path = dir.join("config.json");
        let layers = ClipTextConfig::from_file(&path)?.build();
        let layers = layers.pooling(PooledConfig::from_file(&path)?);
        Self::stored(
            layers,
            Checkpoint::open(dir, Library::Transformers, variant)?,
        )
    }

    /// `layers` with the weights of `checkpoint`, in the names of the reference.
    ///
    /// # Errors
    /// As [`Stored::new`].
    pub fn stored(
        layers: ClipTextLayers,
        mut checkpoint: Checkpoint,
    ) -> Result<Stored<ClipTextLayers>> {
        let pools = layers.pooled.is_some();
        checkpoint.adapt(|name, _| {
            let name = name.strip_prefix("text_model.").unwrap_or(name);
            // A buffer that only counts, and what a whole CLIP has besides the text model.
            let unused = [
                "embeddings.position_ids",
                "visual_projection.weight",
                "logit_scale",
            ];
            let unused = unused.contains(&name)
                || name.starts_with("vision_model.")
                || (!pools && name == "text_projection.weight");
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
            own: OwnTokens::default(),
        })
    }

    /// The same with tokens of one's own.
    pub fn knowing(self, own: OwnTokens) -> Self {
        Self { own, ..self }
    }

    /// Its layers.
    pub fn layers(&self) -> &ClipTextLayers {
        &self.layers
    }

    /// What `B` prompts of `T` tokens each become.
    ///
    /// # Errors
    /// [`Error::Tokens`] for an id outside the vocabulary, prompts of unequal length or too many
    /// tokens, or where more layers are left out than there are.
    pub fn encode(&self, prompts: &[Vec<u32>], wanted: Wanted) -> Result<Encoded> {
        let layers = &self.layers.layers;
        let (left_out, skip) = match wanted {
            Wanted::Normalised(skip) => (skip, skip),
            Wanted::Penultimate(skip) => (skip.saturating_add(1), skip),
        };
        let Some(depth) = layers.len().checked_sub(left_out) else {
            return Err(Error::Tokens(format!(
                "clip skip {skip}: the text encoder has {} layers",
                layers.len()
            )));
        };
        let norm = |x| ops::layer_norm(&self.weights, &self.layers.final_norm, x);
        let mut x = self.embed(prompts)?;
        for layer in &layers[..depth] {
            x = layer.forward(&self.weights, x, true)?;
        }
        let states = match wanted {
            Wanted::Normalised(_) => norm(x.clone())?,
            Wanted::Penultimate(_) => x.clone(),
        };
        let Some((at, project)) = &self.layers.pooled else {
            return Ok(Encoded {
                states,
                pooled: None,
            });
        };
        for layer in &layers[depth..] {
            x = layer.forward(&self.weights, x, true)?;
        }
        let last = norm(x)?;
        let rows = prompts.iter().enumerate().map(|(row, ids)| {
            let one = last.clone().narrow(0, row, 1);
            one.narrow(1, at.place(ids), 1)
        });
        let whole = Tensor::cat(rows.collect(), 0).squeeze_dim::<2>(1);
        Ok(Encoded {
            states,
            pooled: Some(ops::linear(&self.weights, project, whole)?),
        })
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
        let mut own = Vec::with_capacity(b * t);
        for &id in prompts.iter().flatten() {
            own.push(self.own.place(id));
            match i32::try_from(id) {
                // Any other stands in its place.
                _ if own.last().is_some_and(Option::is_some) => ids.push(0),
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
        let mut tokens = embedding(self.weights.matrix(&weight(TOKEN_EMBEDDING))?, ids);
        if own.iter().any(Option::is_some) {
            let d = self.layers.width;
            let is_own: Vec<bool> = own.iter().map(Option::is_some).collect();
            let is_own = Tensor::<3, Bool>::from_data(TensorData::new(is_own, [b, t, 1]), device);
            let zeros = vec![0.0; d];
            let rows = own.iter().flat_map(|place| match place {
                Some(i) => &self.own.values[i * d..][..d],
                None => &zeros,
            });
            let rows = HostTensor::new([b, t, d], rows.copied().collect::<Vec<_>>())?;
            tokens = tokens.mask_where(is_own.expand([b, t, d]), rows.into_device(device)?);
        }
        let positions = self.weights.matrix(&weight(POSITION_EMBEDDING))?;
        Ok(tokens + positions.narrow(0, 0, t).unsqueeze::<3>())
    }
}

fn weight(layer: &str) -> String {
    format!("{layer}.weight")
}
