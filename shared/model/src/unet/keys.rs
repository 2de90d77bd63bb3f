//! Single keys of `unet/config.json`: those that are read in their own way, refused, or without effect.

use serde_json::{Value, json};

use crate::config::{ConfigReader, WithoutEffect};
use crate::error::{Error, Result};

/// Keys of the class that never change the picture.
pub const WITHOUT_EFFECT: WithoutEffect = &[
    ("dropout", "only in training"),
    ("upcast_attention", "attention is in f32 already"),
    ("cross_attention_norm", OTHER_BLOCKS),
    ("mid_block_only_cross_attention", OTHER_BLOCKS),
    ("resnet_out_scale_factor", OTHER_BLOCKS),
    ("resnet_skip_time_act", OTHER_BLOCKS),
    (
        "addition_embed_type_num_heads",
        "only read where addition_embed_type is text, which is refused",
    ),
];

const OTHER_BLOCKS: &str = "only read by kinds of blocks that are refused";

/// `sample_size`: the size of the latents that the model was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleSize {
    /// One number: so many rows and columns.
    Square(usize),
    /// Rows and columns.
    Sides([usize; 2]),
}

impl SampleSize {
    /// Rows and columns.
    pub fn sides(self) -> [usize; 2] {
        match self {
            Self::Square(side) => [side; 2],
            Self::Sides(sides) => sides,
        }
    }
}

/// `sample_size`: one number for a square, or rows and columns.
pub(super) fn read_size(keys: &mut ConfigReader) -> Result<Option<SampleSize>> {
    let Some(value) = keys.take("sample_size") else {
        return Ok(None);
    };
    let sides = |value: &Value| serde_json::from_value(value.clone());
    match value.as_u64() {
        Some(side) => Ok(Some(SampleSize::Square(side as usize))),
        None => sides(&value)
            .map(|sides| Some(SampleSize::Sides(sides)))
            .map_err(|e| keys.unsupported("sample_size", &value, &e.to_string())),
    }
}

/// Transformer blocks of each transformer of a level.
#[derive(Clone, Debug, PartialEq, serde::Deserialize)]
#[serde(untagged)]
pub(super) enum Depth {
    /// In all of them.
    Same(usize),
    /// In each.
    Each(Vec<usize>),
}

impl Depth {
    /// Of the `i`-th transformer.
    pub(super) fn of(&self, i: usize) -> usize {
        match self {
            Self::Same(depth) => *depth,
            // The reader saw that there are as many as transformers.
            Self::Each(each) => each.get(i).copied().unwrap_or(1),
        }
    }

    fn listed(&self) -> &[usize] {
        match self {
            Self::Same(depth) => std::slice::from_ref(depth),
            Self::Each(each) => each,
        }
    }
}

/// The middle block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Middle {
    /// There is none.
    None,
    /// One residual block: the reference's `UNetMidBlock2D`.
    Plain,
    /// Two, with a transformer between them.
    Attention,
}

/// `mid_block_type`.
pub(super) fn read_middle(keys: &mut ConfigReader) -> Result<Middle> {
    const KEY: &str = "mid_block_type";
    if keys.is_null(KEY) {
        return Ok(Middle::None);
    }
    let kind: Option<String> = keys.optional(KEY)?;
    match kind.as_deref() {
        None | Some("UNetMidBlock2DCrossAttn") => Ok(Middle::Attention),
        Some("UNetMidBlock2D") => Ok(Middle::Plain),
        Some(other) => {
            let hint = "only UNetMidBlock2DCrossAttn, UNetMidBlock2D and null are";
            Err(keys.unsupported(KEY, &json!(other), hint))
        }
    }
}

/// `transformer_layers_per_block`, from fine to coarse, and what the way up has, from coarse to fine: its reverse, or
/// `reverse_transformer_layers_per_block`. `layers` are the transformers of each level's way down.
pub(super) fn read_depths(keys: &mut ConfigReader, layers: &[usize]) -> Result<[Vec<Depth>; 2]> {
    const DOWN: &str = "transformer_layers_per_block";
    const UP: &str = "reverse_transformer_layers_per_block";
    let levels = layers.len();
    let down = keys.per_block(DOWN, levels, Depth::Same(1))?;
    let up = match keys.is_absent(UP) {
        false => Some(keys.per_block(UP, levels, Depth::Same(1))?),
        true => None,
    };
    let lists = down.iter().any(|depth| matches!(depth, Depth::Each(_)));
    if lists && up.is_none() {
        return Err(Error::MissingConfig {
            config: format!("{DOWN} with lists in it"),
            key: UP.into(),
        });
    }
    let up = up.unwrap_or_else(|| down.iter().rev().cloned().collect());
    let ways = [
        (DOWN, &down, layers.to_vec()),
        (UP, &up, layers.iter().rev().map(|n| n + 1).collect()),
    ];
    for (key, depths, transformers) in ways {
        for (depth, wanted) in depths.iter().zip(transformers) {
            let listed = depth.listed();
            if matches!(depth, Depth::Each(_)) && listed.len() < wanted {
                let hint = format!("as many as the level has transformers: {wanted}");
                return Err(keys.unsupported(key, &json!(listed), &hint));
            }
            keys.check_layers(key, listed)?;
        }
    }
    Ok([down, up])
}

/// A list of block types, as whether each has attention.
pub(super) fn read_kinds(
    keys: &mut ConfigReader,
    key: &str,
    [with, without]: [&str; 2],
    default: [bool; 4],
) -> Result<Vec<bool>> {
    let names = [with, without];
    let default = default.map(|attention| names[usize::from(!attention)].to_owned());
    let names: Vec<String> = keys.or(key, default.to_vec())?;
    let attention = |name: &String| match name.as_str() {
        name if name == with => Ok(true),
        name if name == without => Ok(false),
        name => Err(keys.unsupported(key, &json!(name), &format!("only {with} and {without} are"))),
    };
    names.iter().map(attention).collect()
}

/// SDXL's `text_time` embedding, or none.
pub(super) fn read_added(keys: &mut ConfigReader) -> Result<Option<(usize, usize)>> {
    let kind: Option<String> = keys.optional("addition_embed_type")?;
    let width: Option<usize> = keys.optional("addition_time_embed_dim")?;
    let input: Option<usize> = keys.optional("projection_class_embeddings_input_dim")?;
    let missing = |key: &str| Error::MissingConfig {
        config: "addition_embed_type = text_time".into(),
        key: key.into(),
    };
    match kind.as_deref() {
        None => Ok(None),
        Some("text_time") => Ok(Some((
            width.ok_or_else(|| missing("addition_time_embed_dim"))?,
            input.ok_or_else(|| missing("projection_class_embeddings_input_dim"))?,
        ))),
        Some(other) => {
            Err(keys.unsupported("addition_embed_type", &json!(other), "only text_time is"))
        }
    }
}

/// Keys that have one supported value, and keys that change nothing.
pub(super) fn refuse_the_rest(keys: &mut ConfigReader) -> Result<()> {
    keys.only("center_input_sample", &[json!(false)])?;
    keys.only_each("only_cross_attention", &[json!(false)])?;
    keys.only("downsample_padding", &[json!(1)])?;
    keys.only("mid_block_scale_factor", &[json!(1)])?;
    keys.only("act_fn", &[json!("silu"), json!("swish")])?;
    keys.only("dual_cross_attention", &[json!(false)])?;
    keys.only("resnet_time_scale_shift", &[json!("default")])?;
    keys.only("time_embedding_type", &[json!("positional")])?;
    keys.only("class_embeddings_concat", &[json!(false)])?;
    keys.only("attention_type", &[json!("default"), json!(null)])?;
    for key in [
        "class_embed_type",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "num_attention_heads",
        "num_class_embeds",
        // Weights in the number types of a quantizing library.
        "quantization_config",
        "time_embedding_act_fn",
        "timestep_post_act",
    ] {
        keys.only(key, &[])?;
    }
    keys.ignore(WITHOUT_EFFECT);
    Ok(())
}
