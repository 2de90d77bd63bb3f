//! The autoencoder of a file in the original layout.

use std::path::Path;

use lacuna_model::config::ConfigReader;
use lacuna_model::weights::{Checkpoint, Stored};
use serde_json::{Value, json};

use crate::error::Result;
use crate::family::Family;
use crate::vae::{Vae, VaeConfig, VaeLayers};

/// What the autoencoder's tensors begin with.
pub(super) const PREFIX: &str = "first_stage_model.";
/// Another autoencoder: a folder of the reference's, or a file in its layout or the original one.
///
/// # Errors
/// Each names the file, key or tensor that is missing, damaged or not supported.
pub fn open_vae(path: &Path, family: Family) -> Result<Stored<VaeLayers>> {
    if path.is_dir() {
        let nested = path.join("vae");
        let dir = if nested.is_dir() { &nested } else { path };
        return Vae::open(dir, None);
    }
    let source = format!(
        "{} (from its tensors; a folder with config.json gives another)",
        path.display()
    );
    stored_vae(Checkpoint::open_file(path)?, source, None, family)
}

/// The autoencoder of `checkpoint`, by the config at `config`, or that which its tensors tell, which errors call
/// `source`.
///
/// # Errors
/// Each names the file, key or tensor that is missing, damaged or not supported.
pub(super) fn stored_vae(
    mut checkpoint: Checkpoint,
    source: String,
    config: Option<&Path>,
    family: Family,
) -> Result<Stored<VaeLayers>> {
    // In the original layout the tensors may be alone in their file, without what begins them elsewhere.
    let start = match checkpoint.names().any(|name| name.starts_with(PREFIX)) {
        true => PREFIX,
        false => "",
    };
    let levels = (0..)
        .take_while(|i| {
            checkpoint
                .shape(&format!("{start}decoder.up.{i}.block.0.conv1.weight"))
                .is_some()
        })
        .count();
    let original = levels > 0;
    checkpoint.adapt(|name, _| {
        let bare = name.strip_prefix(start)?;
        let ours = ["encoder.", "decoder.", "quant_conv.", "post_quant_conv."];
        if !ours.iter().any(|part| bare.starts_with(part)) {
            return None;
        }
        Some(if original {
            of_original_vae(bare, levels)
        } else {
            bare.to_owned()
        })
    });
    let config = match config {
        Some(config) => VaeConfig::from_file(config)?,
        None => VaeConfig::read(ConfigReader::new(source, vae_config(&checkpoint, family))?)?,
    };
    Vae::stored(&config, checkpoint)
}

/// A tensor of the original autoencoder, of so many levels, by the reference's name.
fn of_original_vae(name: &str, levels: usize) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let rest = |from: usize| parts.get(from..).unwrap_or_default().join(".");
    let resnet = |from: usize| rest(from).replace("nin_shortcut", "conv_shortcut");
    match parts.as_slice() {
        [side, "norm_out", ..] => format!("{side}.conv_norm_out.{}", rest(2)),
        [side, "mid", "block_1", ..] => format!("{side}.mid_block.resnets.0.{}", resnet(3)),
        [side, "mid", "block_2", ..] => format!("{side}.mid_block.resnets.1.{}", resnet(3)),
        [side, "mid", "attn_1", layer, tensor] => {
            let layer = match *layer {
                "norm" => "group_norm",
                "q" => "query",
                "k" => "key",
                "v" => "value",
                "proj_out" => "proj_attn",
                other => other,
            };
            format!("{side}.mid_block.attentions.0.{layer}.{tensor}")
        }
        [side, "down", level, "block", number, ..] => {
            format!("{side}.down_blocks.{level}.resnets.{number}.{}", resnet(5))
        }
        [side, "down", level, "downsample", ..] => {
            format!("{side}.down_blocks.{level}.downsamplers.0.{}", rest(4))
        }
        [side, "up", level, kind, ..] => {
            // Numbered from fine to coarse there, as they are walked here.
            let level = level
                .parse()
                .map_or(0, |level: usize| levels.saturating_sub(1 + level));
            match *kind {
                "block" => format!(
                    "{side}.up_blocks.{level}.resnets.{}.{}",
                    rest(4).split('.').next().unwrap_or(""),
                    resnet(5)
                ),
                _ => format!("{side}.up_blocks.{level}.upsamplers.0.{}", rest(4)),
            }
        }
        _ => name.to_owned(),
    }
}

/// As `vae/config.json` would have it, for tensors in the reference's names.
fn vae_config(checkpoint: &Checkpoint, family: Family) -> Value {
    let size = |name: &str, axis: usize| {
        let shape = checkpoint.shape(name);
        shape
            .and_then(|shape| shape.get(axis))
            .copied()
            .unwrap_or(0)
    };
    let channel = |i: usize| {
        size(
            &format!("encoder.down_blocks.{i}.resnets.0.conv1.weight"),
            0,
        )
    };
    let channels: Vec<usize> = (0..)
        .map(channel)
        .take_while(|channels| *channels > 0)
        .collect();
    let layer = |j: &usize| {
        size(
            &format!("encoder.down_blocks.0.resnets.{j}.conv1.weight"),
            0,
        ) > 0
    };
    let attention = ["to_q", "query"]
        .map(|layer| size(&format!("decoder.mid_block.attentions.0.{layer}.weight"), 0) > 0);
    json!({
        "block_out_channels": channels,
        "down_block_types": vec!["DownEncoderBlock2D"; channels.len()],
        "up_block_types": vec!["UpDecoderBlock2D"; channels.len()],
        "layers_per_block": (0..).take_while(layer).count(),
        "latent_channels": size("decoder.conv_in.weight", 1),
        "in_channels": size("encoder.conv_in.weight", 1),
        "out_channels": size("decoder.conv_out.weight", 0),
        "mid_block_add_attention": attention.contains(&true),
        "use_quant_conv": size("quant_conv.weight", 0) > 0,
        "use_post_quant_conv": size("post_quant_conv.weight", 0) > 0,
        "scaling_factor": match family {
            Family::StableDiffusionXl => 0.13025,
            Family::StableDiffusion | Family::LatentConsistency => 0.18215,
        },
    })
}
