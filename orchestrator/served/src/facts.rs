//! What is told of the model: what a `UNet2DConditionModel` of `diffusers` says of itself in its `config`.

use std::path::Path;

use lacuna_files::small::read_small;
use lacuna_model::unet::{SampleSize, UNet, UNetConfig};
use serde_json::{Map, Value, json};

/// The config of `unet`: the keys of its file in the model's `folder`, if there is one, and in any case those that pipelines
/// read. Keys that are in neither have the defaults of `diffusers`.
pub fn config(folder: Option<&Path>, config: &UNetConfig, unet: &UNet) -> Map<String, Value> {
    let text = folder.map(|folder| read_small(&folder.join("unet").join("config.json")));
    // That it can be read is known: the layers are of it.
    let text = text.and_then(Result::ok).unwrap_or_default();
    let mut all: Map<String, Value> = serde_json::from_str(&text).unwrap_or_default();
    let size = config.sample_size.map(SampleSize::sides);
    let added = unet.time.added.as_ref();
    let kind = added.map(|_| "text_time");
    let own = [
        ("in_channels", json!(unet.in_channels)),
        ("out_channels", json!(unet.out_channels)),
        ("cross_attention_dim", json!(unet.context_width)),
        ("addition_embed_type", json!(kind)),
        (
            "addition_time_embed_dim",
            json!(added.map(|it| it.channels)),
        ),
        (
            "projection_class_embeddings_input_dim",
            json!(added.map(|it| it.linear_1.d_in)),
        ),
        (
            "time_cond_proj_dim",
            json!(unet.time.guidance.as_ref().map(|map| map.d_in)),
        ),
        (
            "sample_size",
            match size {
                Some([rows, columns]) if rows == columns => json!(rows),
                other => json!(other),
            },
        ),
    ];
    for (key, value) in own {
        all.entry(key).or_insert(value);
    }
    all
}
