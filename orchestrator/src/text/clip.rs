//! CLIP's text encoder: its layers, and how they are called in files.

use std::borrow::Cow;
use std::path::Path;

use burn::tensor::Device;
use lacuna_model::layers::{LayerNorm, Linear, Parameter, Parameters};
use lacuna_model::weights::{Checkpoint, Library, Stored, Weights, list};

use super::clip_config::{ClipTextConfig, PooledAt, PooledConfig};
use super::encoder::EncoderLayer;
use super::states::{Asked, Encoded, OwnTokens, Wanted};
use crate::error::{Error, Result};

pub(super) const TOKEN_EMBEDDING: &str = "embeddings.token_embedding";
pub(super) const POSITION_EMBEDDING: &str = "embeddings.position_embedding";
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
    pub(super) pooled: Option<(PooledAt, Linear)>,
}

impl ClipTextLayers {
    /// Number of positions, the largest `T`.
    pub fn places(&self) -> usize {
        self.places
    }

    /// Number of tokens that it knows.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
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

    /// What comes before its layers.
    pub(super) fn first(&self) -> Vec<Parameter> {
        let tables = [
            (TOKEN_EMBEDDING, self.vocabulary),
            (POSITION_EMBEDDING, self.places),
        ];
        let table = |(name, entries)| Parameter::table(name, entries, self.width);
        tables.into_iter().map(table).collect()
    }

    /// What comes after them.
    pub(super) fn last(&self) -> Vec<Parameter> {
        let mut last = list(&self.final_norm);
        if let Some((_, project)) = &self.pooled {
            project.parameters(&mut last);
        }
        last
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
        out.extend(self.first());
        for layer in &self.layers {
            layer.parameters(out);
        }
        out.extend(self.last());
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
        let stored = Self::open(dir, variant)?;
        Ok(Self {
            layers: stored.layers().clone(),
            weights: stored.load(device)?,
        })
    }

    /// Its layers.
    pub fn layers(&self) -> &ClipTextLayers {
        &self.layers
    }

    /// What `B` prompts of `T` tokens each become.
    ///
    /// # Errors
    /// As [`encode_stored`](super::encode_stored).
    pub fn encode(&self, prompts: &[Vec<u32>], wanted: Wanted) -> Result<Encoded> {
        let asked = Asked {
            prompts: prompts.to_vec(),
            wanted,
        };
        let weights = |_: &[Parameter]| Ok(Cow::Borrowed(&self.weights));
        let layers = &self.layers;
        let encoded = layers.encode(&[asked], &OwnTokens::default(), weights)?;
        let one = encoded.into_iter().next();
        one.ok_or_else(|| Error::Tokens("no prompts".into()))
    }
}
