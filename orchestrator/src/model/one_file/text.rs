//! The text encoders of a file in the original layout: CLIP's in the names of the reference, OpenCLIP's in its own.

use std::path::Path;

use lacuna_model::config::ConfigReader;
use lacuna_model::unet::original::told_by_tensors;
use lacuna_model::weights::{Checkpoint, Stored, View};
use serde_json::{Value, json};

use crate::error::Result;
use crate::text::{ClipTextConfig, ClipTextEncoder, ClipTextLayers, PooledConfig};

/// What begins the tensors of a text encoder in the names of the reference, and of OpenCLIP, by family.
pub(super) const CLIP: &str = "cond_stage_model.transformer.";
pub(super) const OPEN_CLIP: &str = "cond_stage_model.model.";
pub(super) const XL_FIRST: &str = "conditioner.embedders.0.transformer.";
pub(super) const XL_SECOND: &str = "conditioner.embedders.1.model.";

/// A text encoder as a file has it.
pub(super) struct Encoder {
    /// What its tensors begin with.
    pub prefix: &'static str,
    /// Whether its names are OpenCLIP's.
    pub open_clip: bool,
    /// Whether it also gives the whole text as one vector.
    pub pooling: bool,
    /// What fills a short prompt up.
    pub padding: &'static str,
}

/// Stable Diffusion 1's.
pub(super) const FIRST: [Encoder; 1] = [Encoder {
    prefix: CLIP,
    open_clip: false,
    pooling: false,
    padding: "<|endoftext|>",
}];

/// Stable Diffusion 2's.
pub(super) const SECOND: [Encoder; 1] = [Encoder {
    prefix: OPEN_CLIP,
    open_clip: true,
    pooling: false,
    padding: "!",
}];

/// SDXL's.
pub(super) const XL: [Encoder; 2] = [
    Encoder {
        prefix: XL_FIRST,
        open_clip: false,
        pooling: false,
        padding: "<|endoftext|>",
    },
    Encoder {
        prefix: XL_SECOND,
        open_clip: true,
        pooling: true,
        padding: "!",
    },
];

impl Encoder {
    /// It, of the `checkpoint` of the file at `path`, by the config at `config`, or that which its tensors tell.
    ///
    /// # Errors
    /// Each names the file, key or tensor that is missing, damaged or not supported.
    pub(super) fn stored(
        &self,
        mut checkpoint: Checkpoint,
        path: &Path,
        config: Option<&Path>,
    ) -> Result<Stored<ClipTextLayers>> {
        match self.open_clip {
            true => checkpoint.view(|name, shape| match name.strip_prefix(self.prefix) {
                Some(name) => of_open_clip(name, shape),
                None => Vec::new(),
            }),
            false => {
                checkpoint.adapt(|name, _| name.strip_prefix(self.prefix).map(str::to_owned));
            }
        }
        let source = told_by_tensors(path);
        let reader = || match config {
            Some(path) => ConfigReader::from_file(path),
            None => ConfigReader::new(source.clone(), self.config(&checkpoint)),
        };
        let mut layers = ClipTextConfig::read(reader()?, &source)?.build();
        if self.pooling {
            layers = layers.pooling(PooledConfig::read(reader()?)?);
        }
        let depth = layers.depth();
        checkpoint.adapt(|name, _| (!is_beyond(name, depth)).then(|| name.to_owned()));
        ClipTextEncoder::stored(layers, checkpoint)
    }

    /// As the `config.json` of a text encoder would have it, whose tensors are in the reference's names by now.
    fn config(&self, checkpoint: &Checkpoint) -> Value {
        // Stable Diffusion 2 is told the states before the last layer, which its file has all the same.
        let left_out = usize::from(self.open_clip && !self.pooling);
        let size = |name: &str, axis: usize| {
            let named = [name.to_owned(), format!("text_model.{name}")];
            let shape = named.iter().find_map(|name| checkpoint.shape(name));
            shape
                .and_then(|shape| shape.get(axis))
                .copied()
                .unwrap_or(0)
        };
        let layers =
            (0..).take_while(|i| size(&format!("encoder.layers.{i}.layer_norm1.weight"), 0) > 0);
        let width = size("embeddings.token_embedding.weight", 1);
        let mut config = json!({
            "vocab_size": size("embeddings.token_embedding.weight", 0),
            "max_position_embeddings": size("embeddings.position_embedding.weight", 0),
            "hidden_size": width,
            "intermediate_size": size("encoder.layers.0.mlp.fc1.weight", 0),
            "num_hidden_layers": layers.count().saturating_sub(left_out),
            "num_attention_heads": (width / 64).max(1),
            "hidden_act": if self.open_clip { "gelu" } else { "quick_gelu" },
            "eos_token_id": 2,
        });
        let projection = size("text_projection.weight", 0);
        if projection > 0 {
            config["projection_dim"] = json!(projection);
        }
        config
    }
}

/// Whether a tensor is of a layer that the model does not have.
fn is_beyond(name: &str, depth: usize) -> bool {
    let bare = name.strip_prefix("text_model.").unwrap_or(name);
    let number = bare
        .strip_prefix("encoder.layers.")
        .and_then(|rest| rest.split('.').next());
    number.is_some_and(|number| number.parse().is_ok_and(|number: usize| number >= depth))
}

/// A tensor of OpenCLIP's text model as those of the reference.
fn of_open_clip(name: &str, shape: &[usize]) -> Vec<View> {
    let whole = |name: String| vec![View::whole(name, shape)];
    match name {
        "token_embedding.weight" => return whole("embeddings.token_embedding.weight".into()),
        "positional_embedding" => return whole("embeddings.position_embedding.weight".into()),
        "text_projection" => {
            let turned: Vec<usize> = shape.iter().rev().copied().collect();
            return vec![View {
                transposed: true,
                ..View::whole("text_projection.weight", &turned)
            }];
        }
        _ => {}
    }
    if let Some(tensor) = name.strip_prefix("ln_final.") {
        return whole(format!("final_layer_norm.{tensor}"));
    }
    let Some((number, inner)) = name
        .strip_prefix("transformer.resblocks.")
        .and_then(|rest| rest.split_once('.'))
    else {
        return Vec::new();
    };
    let layer = format!("encoder.layers.{number}");
    if let Some(kind) = inner.strip_prefix("attn.in_proj_") {
        let [three, rest @ ..] = shape else {
            return Vec::new();
        };
        let each: Vec<usize> = std::iter::once(three / 3)
            .chain(rest.iter().copied())
            .collect();
        let values: usize = each.iter().product();
        let projections = ["q", "k", "v"].iter().enumerate();
        let view = |(i, letter)| View {
            from: i * values,
            ..View::whole(format!("{layer}.self_attn.{letter}_proj.{kind}"), &each)
        };
        return projections.map(view).collect();
    }
    let layers = [
        ("ln_1.", "layer_norm1."),
        ("ln_2.", "layer_norm2."),
        ("attn.out_proj.", "self_attn.out_proj."),
        ("mlp.c_fc.", "mlp.fc1."),
        ("mlp.c_proj.", "mlp.fc2."),
    ];
    let renamed = layers.iter().find_map(|(old, new)| {
        let tensor = inner.strip_prefix(old)?;
        Some(format!("{layer}.{new}{tensor}"))
    });
    renamed.map(whole).unwrap_or_default()
}
