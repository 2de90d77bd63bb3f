//! `config.json` of CLIP's text model, alone or within a whole CLIP, and of its vision model, to layers.

use std::path::Path;

use serde_json::{Map, Value, json};
use shared::config::ConfigReader;

use super::clip::ClipTextLayers;
use super::encoder::{Activation, EncoderConfig, EncoderLayer};
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
        _ => {
            let hint = "only quick_gelu and gelu are";
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
    keys.ignore(&WITHOUT_EFFECT);
    Ok(())
}

/// What of the text model's config changes the arithmetic.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipTextConfig {
    vocab_size: usize,
    max_position_embeddings: usize,
    encoder: EncoderConfig,
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

/// Keys of the reference's base class, and of training and generation, that this model never reads.
const WITHOUT_EFFECT: [&str; 66] = [
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dropout",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "label2id",
    "length_penalty",
    "logit_scale_init_value",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "projection_dim",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tie_word_embeddings",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "use_bfloat16",
    "use_cache",
    "use_return_dict",
    "vision_config",
    "vision_config_dict",
    "is_composition",
    "keys_to_ignore_at_inference",
    "name_or_path",
    "trust_remote_code",
];

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
        if nested.is_none() && over.is_none() {
            keys.only("model_type", &[json!("clip_text_model")])?;
            return Self::read_text(keys);
        }
        keys.only("model_type", &[json!("clip")])?;
        take_generic(&mut keys)?;
        keys.finish()?;
        let mut inner = nested.unwrap_or_default();
        inner.extend(over.unwrap_or_default());
        let inner = ConfigReader::new(format!("{source}: text_config"), Value::Object(inner))?;
        let mut inner = inner;
        inner.only("model_type", &[json!("clip_text_model")])?;
        Self::read_text(inner)
    }

    fn read_text(mut keys: ConfigReader) -> Result<Self> {
        let config = Self {
            vocab_size: keys.or("vocab_size", 49408)?,
            max_position_embeddings: keys.or("max_position_embeddings", 77)?,
            encoder: take_encoder(&mut keys, TEXT_DEFAULTS)?,
        };
        keys.finish()?;
        Ok(config)
    }

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
        keys.finish()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::weights::list;

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
            ("hidden_act", json!("gelu_new")),
            ("num_attention_heads", json!(7)),
            ("model_type", json!("t5")),
            ("rope_theta", json!(10000)),
            ("quantization_config", json!({"bits": 4})),
        ] {
            let error = read(json!({key: value})).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn a_whole_clip_gives_its_text_model() {
        let whole = read(json!({
            "model_type": "clip", "logit_scale_init_value": 2.6592, "vision_config": {"hidden_size": 1024},
            "text_config": {"hidden_size": 64, "model_type": "clip_text_model", "top_p": 1.0},
            "text_config_dict": {"num_hidden_layers": 3}
        }))
        .unwrap();
        let alone = read(json!({"hidden_size": 64, "num_hidden_layers": 3})).unwrap();
        assert_eq!(whole, alone);
        let error = read(json!({"model_type": "clip", "text_config": {"moe_experts": 8}}))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("text_config: unknown key moe_experts"),
            "{error}"
        );
    }
}
