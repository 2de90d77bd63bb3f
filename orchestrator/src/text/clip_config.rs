//! `config.json` of CLIP's text model, alone or within a whole CLIP, and of its vision model, to layers.

use std::path::Path;

use lacuna_model::config::{ConfigReader, WithoutEffect};
use serde_json::{Map, Value, json};

use super::encoder::{Activation, EncoderConfig};
use crate::error::Result;

/// Sizes where a config is silent: `hidden_size`, `intermediate_size`, `num_attention_heads`.
const TEXT_DEFAULTS: [usize; 3] = [512, 2048, 8];
const VISION_DEFAULTS: [usize; 3] = [768, 3072, 12];

/// Takes the keys of the transformer layers.
fn take_encoder(
    keys: &mut ConfigReader,
    [width, inner, heads]: [usize; 3],
) -> Result<EncoderConfig> {
    let name: String = keys.or("hidden_act", "quick_gelu".into())?;
    let activation = match name.as_str() {
        "quick_gelu" => Activation::QuickGelu,
        "gelu" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
        _ => {
            let hint = "quick_gelu, gelu and gelu_new are";
            return Err(keys.unsupported("hidden_act", &json!(name), hint).into());
        }
    };
    let config = EncoderConfig {
        hidden_size: keys.or("hidden_size", width)?,
        intermediate_size: keys.or("intermediate_size", inner)?,
        num_hidden_layers: keys.or("num_hidden_layers", 12)?,
        num_attention_heads: keys.or("num_attention_heads", heads)?,
        activation,
        layer_norm_eps: keys.or("layer_norm_eps", 1e-5)?,
    };
    let heads = config.num_attention_heads;
    if heads == 0 || !config.hidden_size.is_multiple_of(heads) {
        let hint = "it must divide hidden_size";
        let error = keys.unsupported("num_attention_heads", &json!(heads), hint);
        return Err(error.into());
    }
    keys.check_layers("num_hidden_layers", &[config.num_hidden_layers])?;
    take_generic(keys)?;
    Ok(config)
}

/// Takes the keys of the reference's base class, of which some must be as by default.
fn take_generic(keys: &mut ConfigReader) -> Result<()> {
    for key in ["is_decoder", "is_encoder_decoder", "add_cross_attention"] {
        keys.only(key, &[json!(false)])?;
    }
    keys.only("chunk_size_feed_forward", &[json!(0)])?;
    keys.only("pruned_heads", &[json!({})])?;
    keys.only("cross_attention_hidden_size", &[])?;
    // Read by the base class or the pipeline, not by this model's own.
    keys.only("quantization_config", &[])?;
    keys.only("use_attention_mask", &[json!(false)])?;
    keys.only("is_causal", &[json!(true)])?;
    keys.ignore(WITHOUT_EFFECT);
    Ok(())
}

/// What of the text model's config changes the arithmetic.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipTextConfig {
    pub(super) vocab_size: usize,
    pub(super) max_position_embeddings: usize,
    pub(super) encoder: EncoderConfig,
}

/// How a whole text becomes one vector: the last state of one token, through a linear map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PooledConfig {
    /// Width of the vector.
    pub projection_dim: usize,
    /// The token.
    pub at: PooledAt,
}

/// The token that a text is pooled at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PooledAt {
    /// The first of those with the largest id: what the reference does where `eos_token_id` is 2, as early files have it.
    LargestId,
    /// The first with this id.
    Id(u32),
}

impl PooledAt {
    /// Its place in `ids`. Like the reference, the first of all where there is no such token.
    pub fn place(self, ids: &[u32]) -> usize {
        let wanted = match self {
            Self::LargestId => ids.iter().max().copied(),
            Self::Id(id) => Some(id),
        };
        let found = ids.iter().position(|id| Some(*id) == wanted);
        found.unwrap_or(0)
    }
}

impl PooledConfig {
    /// Reads `config.json` of a text model with its projection.
    ///
    /// # Errors
    /// Any error of [`ConfigReader`]; each names the key.
    pub fn from_file(path: &Path) -> Result<Self> {
        let mut keys = ConfigReader::from_file(path)?;
        if let Some(nested) = keys.optional::<Map<String, Value>>("text_config")? {
            let source = format!("{}: text_config", path.display());
            keys = ConfigReader::new(source, Value::Object(nested))?;
        }
        Self::read(keys)
    }

    /// Reads a config.
    ///
    /// # Errors
    /// As [`Self::from_file`].
    pub fn read(mut keys: ConfigReader) -> Result<Self> {
        const EARLY: u32 = 2;
        Ok(Self {
            projection_dim: keys.or("projection_dim", 512)?,
            at: match keys.or("eos_token_id", 49407)? {
                EARLY => PooledAt::LargestId,
                id => PooledAt::Id(id),
            },
        })
    }
}

/// What of the vision model's config changes the arithmetic.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipVisionConfig {
    /// Rows (and columns) of the picture.
    pub image_size: usize,
    /// Rows (and columns) of a patch; divides `image_size`.
    pub patch_size: usize,
    /// Width of the space that text and pictures share.
    pub projection_dim: usize,
    /// Of the layers.
    pub encoder: EncoderConfig,
}

/// Keys of the reference's class and its base that never change the picture.
pub const WITHOUT_EFFECT: WithoutEffect = &[
    ("architectures", DESCRIPTION),
    ("attention_dropout", TRAINING),
    ("attn_implementation", "another way to the same numbers"),
    ("bad_words_ids", GENERATION),
    ("begin_suppress_tokens", GENERATION),
    ("bos_token_id", "the tokenizer has its own"),
    ("decoder_start_token_id", GENERATION),
    ("diversity_penalty", GENERATION),
    ("do_sample", GENERATION),
    ("dropout", TRAINING),
    ("dtype", "weights are computed with in f32"),
    ("early_stopping", GENERATION),
    ("encoder_no_repeat_ngram_size", GENERATION),
    (
        "eos_token_id",
        "only says where the pooled output is, which is not used",
    ),
    ("exponential_decay_length_penalty", GENERATION),
    ("finetuning_task", DESCRIPTION),
    ("forced_bos_token_id", GENERATION),
    ("forced_eos_token_id", GENERATION),
    ("gradient_checkpointing", TRAINING),
    ("id2label", DESCRIPTION),
    ("initializer_factor", TRAINING),
    ("initializer_range", TRAINING),
    ("label2id", DESCRIPTION),
    ("length_penalty", GENERATION),
    (
        "logit_scale_init_value",
        "belongs to the part that compares text with pictures",
    ),
    ("max_length", GENERATION),
    ("min_length", GENERATION),
    ("no_repeat_ngram_size", GENERATION),
    ("num_beam_groups", GENERATION),
    ("num_beams", GENERATION),
    ("num_labels", DESCRIPTION),
    ("num_return_sequences", GENERATION),
    ("output_attentions", OUTPUTS),
    ("output_hidden_states", OUTPUTS),
    ("output_scores", GENERATION),
    ("pad_token_id", "the tokenizer has its own"),
    ("prefix", DESCRIPTION),
    ("problem_type", DESCRIPTION),
    (
        "projection_dim",
        "belongs to the part that compares text with pictures",
    ),
    ("remove_invalid_values", GENERATION),
    ("repetition_penalty", GENERATION),
    ("return_dict", OUTPUTS),
    ("return_dict_in_generate", GENERATION),
    ("sep_token_id", "the tokenizer has its own"),
    ("suppress_tokens", GENERATION),
    ("task_specific_params", DESCRIPTION),
    ("temperature", GENERATION),
    ("tf_legacy_loss", "nothing of this model reads it"),
    ("tie_encoder_decoder", "nothing of this model reads it"),
    ("tie_word_embeddings", "nothing of this model reads it"),
    ("tokenizer_class", DESCRIPTION),
    ("top_k", GENERATION),
    ("top_p", GENERATION),
    ("torch_dtype", "weights are computed with in f32"),
    ("torchscript", "nothing of this model reads it"),
    ("transformers_version", DESCRIPTION),
    ("typical_p", GENERATION),
    ("use_bfloat16", "weights are computed with in f32"),
    ("use_cache", "nothing of this model reads it"),
    ("use_return_dict", OUTPUTS),
    (
        "vision_config",
        "belongs to the part that compares text with pictures",
    ),
    (
        "vision_config_dict",
        "belongs to the part that compares text with pictures",
    ),
    ("is_composition", DESCRIPTION),
    ("keys_to_ignore_at_inference", OUTPUTS),
    ("name_or_path", DESCRIPTION),
    ("trust_remote_code", DESCRIPTION),
];

const TRAINING: &str = "only in training";
const GENERATION: &str = "only for generating text";
const OUTPUTS: &str = "only says what is given besides";
const DESCRIPTION: &str = "only describes the model";

impl ClipTextConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// Any error of [`ConfigReader`]; each names the key.
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::read(ConfigReader::from_file(path)?, &path.display().to_string())
    }

    /// Reads a config of the text model, or of a whole CLIP with the text model's inside;
    /// `source` is what errors call it.
    ///
    /// # Errors
    /// As [`Self::from_file`].
    pub fn read(mut keys: ConfigReader, source: &str) -> Result<Self> {
        let nested: Option<Map<String, Value>> = keys.optional("text_config")?;
        let over: Option<Map<String, Value>> = keys.optional("text_config_dict")?;
        let Some(nested) = nested else {
            if let Some(over) = over {
                let hint = "text_config is missing beside it";
                let error = keys.unsupported("text_config_dict", &json!(over), hint);
                return Err(error.into());
            }
            keys.only("model_type", &[json!("clip_text_model")])?;
            return Self::read_text(keys);
        };
        keys.only("model_type", &[json!("clip")])?;
        take_generic(&mut keys)?;
        let read_inner = |inner: Map<String, Value>| {
            let source = format!("{source}: text_config");
            let mut inner = ConfigReader::new(source, Value::Object(inner))?;
            inner.only("model_type", &[json!("clip_text_model")])?;
            Self::read_text(inner)
        };
        let config = read_inner(nested.clone())?;
        // Of two that differ, the reference takes the one for a text model alone, the other for a
        // whole CLIP.
        if let Some(over) = over {
            let both = nested.into_iter().chain(over.clone()).collect();
            if read_inner(both)? != config {
                let hint = "it differs from text_config; leave one out";
                let error = keys.unsupported("text_config_dict", &json!(over), hint);
                return Err(error.into());
            }
        }
        keys.finish();
        Ok(config)
    }

    fn read_text(mut keys: ConfigReader) -> Result<Self> {
        let config = Self {
            vocab_size: keys.or("vocab_size", 49408)?,
            max_position_embeddings: keys.or("max_position_embeddings", 77)?,
            encoder: take_encoder(&mut keys, TEXT_DEFAULTS)?,
        };
        keys.finish();
        Ok(config)
    }
}

impl ClipVisionConfig {
    /// Reads the vision model's part of a whole CLIP's `config.json`.
    ///
    /// # Errors
    /// Any error of [`ConfigReader`]; each names the key.
    pub fn from_file(path: &Path) -> Result<Self> {
        let mut whole = ConfigReader::from_file(path)?;
        whole.only("model_type", &[json!("clip")])?;
        let projection_dim = whole.or("projection_dim", 512)?;
        let nested: Map<String, Value> = whole.required("vision_config")?;
        let over: Option<Map<String, Value>> = whole.optional("vision_config_dict")?;
        let inner = nested.into_iter().chain(over.unwrap_or_default()).collect();
        let source = format!("{}: vision_config", path.display());
        let mut keys = ConfigReader::new(source, Value::Object(inner))?;
        keys.only("model_type", &[json!("clip_vision_model")])?;
        keys.only("num_channels", &[json!(3)])?;
        let config = Self {
            image_size: keys.or("image_size", 224)?,
            patch_size: keys.or("patch_size", 32)?,
            projection_dim,
            encoder: take_encoder(&mut keys, VISION_DEFAULTS)?,
        };
        if config.patch_size == 0 || !config.image_size.is_multiple_of(config.patch_size) {
            let hint = "it must divide image_size";
            let error = keys.unsupported("patch_size", &json!(config.patch_size), hint);
            return Err(error.into());
        }
        keys.finish();
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacuna_model::weights::list;

    fn read(value: Value) -> Result<ClipTextConfig> {
        ClipTextConfig::read(ConfigReader::new("config.json", value)?, "config.json")
    }

    /// SD 1.5's text encoder as first published, with the keys of its day.
    #[test]
    fn the_first_published_config_is_read() {
        let config = read(json!({
            "_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"],
            "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2,
            "hidden_act": "quick_gelu", "hidden_size": 768, "initializer_factor": 1.0,
            "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
            "max_position_embeddings": 77, "model_type": "clip_text_model",
            "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1,
            "projection_dim": 768, "torch_dtype": "float32", "transformers_version": "4.22.0.dev0",
            "vocab_size": 49408
        }));
        let parameters = list(&config.unwrap().build());
        let count: usize = parameters
            .iter()
            .map(|p| p.shape.iter().product::<usize>())
            .sum();
        assert_eq!(count, 123_060_480, "of the published text encoder");
    }

    #[test]
    fn generic_keys_are_ignored_only_at_values_without_effect() {
        read(
            json!({"pruned_heads": {}, "top_k": 50, "num_beams": 1, "is_decoder": false,
            "chunk_size_feed_forward": 0, "id2label": {"0": "LABEL_0"}}),
        )
        .unwrap();
        for (key, value) in [
            ("pruned_heads", json!({"0": [1]})),
            ("is_decoder", json!(true)),
            ("hidden_act", json!("relu")),
            ("num_attention_heads", json!(7)),
            ("model_type", json!("t5")),
            ("use_attention_mask", json!(true)),
            ("is_causal", json!(false)),
            ("layer_norm_eps", json!(null)),
            ("quantization_config", json!({"bits": 4})),
        ] {
            let error = read(json!({key: value})).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn a_whole_clip_gives_its_text_model() {
        let whole = |over: Value| {
            read(json!({
                "model_type": "clip", "logit_scale_init_value": 2.6592,
                "vision_config": {"hidden_size": 1024}, "projection_dim": 768,
                "text_config": {"hidden_size": 64, "model_type": "clip_text_model", "top_p": 1.0},
                "text_config_dict": over
            }))
        };
        let alone = read(json!({"hidden_size": 64})).unwrap();
        for over in [
            json!(null),
            json!({"hidden_size": 64, "num_hidden_layers": 12}),
        ] {
            assert_eq!(whole(over).unwrap(), alone);
        }
        let error = whole(json!({"num_hidden_layers": 3}))
            .unwrap_err()
            .to_string();
        assert!(error.contains("text_config_dict"), "{error}");
        let error = read(json!({"text_config_dict": {}}))
            .unwrap_err()
            .to_string();
        assert!(error.contains("text_config is missing"), "{error}");
    }

    #[test]
    fn a_text_is_pooled_at_its_end() {
        let ids = [49406, 320, 49408, 49407, 49407, 49408];
        assert_eq!(PooledAt::LargestId.place(&ids), 2);
        assert_eq!(PooledAt::Id(49407).place(&ids), 3);
        assert_eq!(PooledAt::Id(7).place(&ids), 0);
    }

    #[test]
    fn keys_that_nobody_reads_change_nothing() {
        let mut config = json!({"moe_experts": 8, "rope_theta": 10000});
        for (key, _) in WITHOUT_EFFECT {
            config[*key] = json!([1, 2]);
        }
        assert_eq!(read(config).unwrap(), read(json!({})).unwrap());
    }
}
