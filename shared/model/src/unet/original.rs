//! The U-Net of a file in the layout in which Stable Diffusion was published (the library `ldm`; SDXL's `sgm`): its
//! layers under the names of the reference, and its config from the shapes of its tensors.
//!
//! There a U-Net is three lists of blocks. A block holds a residual block, the transformer behind it if there is one, and
//! at the end of a level what changes to the next. The way down and the way up are numbered through.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};

use super::{UNet, UNetConfig};
use crate::config::ConfigReader;
use crate::error::{Error, Result};
use crate::weights::{Checkpoint, View, list};

/// What the U-Net's tensors begin with.
pub const PREFIX: &str = "model.diffusion_model.";

/// Layers outside of the blocks, and what the reference calls them.
const OUTSIDE: [(&str, &str); 7] = [
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
];

/// Layers of a residual block, and what the reference calls them.
const RESNET: [(&str, &str); 6] = [
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
];

/// Width of each of the six sizes' embeddings in SDXL.
const SIZE_EMBEDDING: usize = 256;
/// Channels of a head where a transformer's maps are linear; where they are convolutions there are eight heads.
const HEAD: usize = 64;
const HEADS: usize = 8;

/// What errors call the config that the tensors of the model at `path` tell.
pub fn told_by_tensors(path: &Path) -> String {
    format!(
        "{} (from its tensors; --model-config gives another)",
        path.display()
    )
}

/// The U-Net of the file at `path`, with the config at `config`, or that which its tensors tell.
///
/// # Errors
/// [`Error::OtherWeights`] where the file holds no such U-Net; those of reading a config or weights.
pub fn open(path: &Path, config: Option<&Path>) -> Result<(UNetConfig, Checkpoint)> {
    let mut checkpoint = Checkpoint::open_file(path)?;
    let found = Found::of(&checkpoint).map_err(|reason| Error::OtherWeights {
        path: path.to_owned(),
        reason,
    })?;
    let config = match config {
        Some(config) => UNetConfig::from_file(config)?,
        None => UNetConfig::read(ConfigReader::new(told_by_tensors(path), found.config())?)?,
    };
    checkpoint.view(|name, shape| {
        let name = name
            .strip_prefix(PREFIX)
            .and_then(|name| found.rename(name));
        name.map(|name| View::whole(name, shape))
            .into_iter()
            .collect()
    });
    Ok((config, checkpoint))
}

/// Whether a file's tensors have such a U-Net among them.
pub fn is_there(checkpoint: &Checkpoint) -> bool {
    checkpoint
        .shape(&format!("{PREFIX}input_blocks.0.0.weight"))
        .is_some()
}

/// The layers of `unet` by their original names, each with its own.
pub(super) fn aliases(unet: &UNet) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut place = 1;
    for stage in &unet.down {
        for (resnet, transformer) in stage.pairs() {
            blocks.push((format!("input_blocks.{place}.0"), resnet.name.clone()));
            let transformer =
                transformer.map(|it| (format!("input_blocks.{place}.1"), it.name.clone()));
            blocks.extend(transformer);
            place += 1;
        }
        if let Some(conv) = &stage.resample {
            blocks.push((format!("input_blocks.{place}.0.op"), conv.name.clone()));
            place += 1;
        }
    }
    for (i, (resnet, transformer)) in unet.mid.pairs().enumerate() {
        blocks.push((format!("middle_block.{}", 2 * i), resnet.name.clone()));
        blocks.extend(transformer.map(|it| ("middle_block.1".to_owned(), it.name.clone())));
    }
    place = 0;
    for stage in &unet.up {
        let last = stage.resnets.len().saturating_sub(1);
        for (i, (resnet, transformer)) in stage.pairs().enumerate() {
            blocks.push((format!("output_blocks.{place}.0"), resnet.name.clone()));
            let behind = 1 + usize::from(transformer.is_some());
            let transformer =
                transformer.map(|it| (format!("output_blocks.{place}.1"), it.name.clone()));
            blocks.extend(transformer);
            let conv = stage.resample.as_ref().filter(|_| i == last);
            blocks.extend(conv.map(|conv| {
                (
                    format!("output_blocks.{place}.{behind}.conv"),
                    conv.name.clone(),
                )
            }));
            place += 1;
        }
    }
    let mut aliases: Vec<(String, String)> = OUTSIDE
        .map(|(old, new)| (old.to_owned(), new.to_owned()))
        .into();
    for parameter in list(unet) {
        let Some(layer) = parameter.name.strip_suffix(".weight") else {
            continue;
        };
        let found = blocks.iter().find_map(|(old, new)| {
            let rest = layer.strip_prefix(new.as_str())?;
            (rest.is_empty() || rest.starts_with('.')).then_some((old, rest))
        });
        let Some((old, rest)) = found else {
            continue;
        };
        let inner = rest.trim_start_matches('.');
        let renamed = match layer.contains(".resnets.") {
            true => RESNET
                .iter()
                .find(|(_, new)| *new == inner)
                .map(|(old, _)| *old),
            false => Some(inner),
        };
        let alias = match renamed {
            None => continue,
            Some("") => old.clone(),
            Some(inner) => format!("{old}.{inner}"),
        };
        aliases.push((alias, layer.to_owned()));
    }
    aliases
}

/// A level of either way.
#[derive(Debug, Default)]
struct Level {
    resnets: usize,
    channels: usize,
    /// Blocks of each transformer; none where there are no transformers.
    depths: Vec<usize>,
}

/// What a file's tensors tell of its U-Net.
#[derive(Debug, Default)]
struct Found {
    shapes: BTreeMap<String, Vec<usize>>,
    /// Of single blocks, and what the reference calls them.
    blocks: BTreeMap<String, String>,
    down: Vec<Level>,
    up: Vec<Level>,
    middle: Level,
}

impl Found {
    /// # Errors
    /// What is missing.
    fn of(checkpoint: &Checkpoint) -> Result<Self, String> {
        let shapes = checkpoint.names().filter_map(|name| {
            let bare = name.strip_prefix(PREFIX)?;
            Some((bare.to_owned(), checkpoint.shape(name)?.to_vec()))
        });
        let mut found = Self {
            shapes: shapes.collect(),
            ..Self::default()
        };
        for needed in [
            "input_blocks.0.0.weight",
            "out.2.weight",
            "time_embed.0.weight",
        ] {
            if !found.shapes.contains_key(needed) {
                let any = |is: fn(&str) -> bool| checkpoint.names().any(is);
                let hint = match () {
                    () if any(|name| name.contains("lora_")) => {
                        "; it is an adapter: give it by --lora, and the model that it is for"
                    }
                    () if any(|name| name.starts_with("down_blocks.")) => {
                        "; its names are those of a diffusers folder's unet: give the model's folder"
                    }
                    () => "",
                };
                return Err(format!(
                    "it holds no U-Net in the layout of Stable Diffusion 1, 2 or XL ({PREFIX}{needed} is missing){hint}"
                ));
            }
        }
        found.down = found.way("input_blocks", "down_blocks", 1);
        found.up = found.way("output_blocks", "up_blocks", 0);
        for (i, part) in ["resnets.0", "attentions.0", "resnets.1"]
            .iter()
            .enumerate()
        {
            let old = format!("middle_block.{i}");
            found.block(&old, &format!("mid_block.{part}"));
            found.middle.resnets += usize::from(found.has(&format!("{old}.in_layers.2.weight")));
            found.middle.depths.extend(found.depth(&old));
        }
        match found.down.is_empty() || found.up.len() != found.down.len() {
            true => Err(format!(
                "its U-Net has {} levels down and {} up",
                found.down.len(),
                found.up.len()
            )),
            false => Ok(found),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.shapes.contains_key(name)
    }

    fn size(&self, name: &str, axis: usize) -> usize {
        let shape = self.shapes.get(name);
        shape
            .and_then(|shape| shape.get(axis))
            .copied()
            .unwrap_or(0)
    }

    fn block(&mut self, old: &str, new: &str) {
        self.blocks.insert(old.to_owned(), new.to_owned());
    }

    /// Blocks of the transformer `old`, if it is one.
    fn depth(&self, old: &str) -> Option<usize> {
        let start = format!("{old}.transformer_blocks.");
        let numbers = self.shapes.range(start.clone()..).map(|(name, _)| name);
        let numbers = numbers.map_while(|name| name.strip_prefix(&start)?.split('.').next());
        let numbers: BTreeSet<&str> = numbers.collect();
        (!numbers.is_empty()).then_some(numbers.len())
    }

    /// The levels of a way, whose blocks are `{old}.{first}`, and so on.
    fn way(&mut self, old: &str, new: &str, first: usize) -> Vec<Level> {
        let mut levels = vec![Level::default()];
        for i in first.. {
            let (u, block) = (levels.len() - 1, format!("{old}.{i}"));
            if self.has(&format!("{block}.0.op.weight")) {
                let down = format!("{new}.{u}.downsamplers.0.conv");
                self.block(&format!("{block}.0.op"), &down);
                levels.push(Level::default());
                continue;
            }
            let channels = self.size(&format!("{block}.0.in_layers.2.weight"), 0);
            if channels == 0 {
                break;
            }
            let j = levels[u].resnets;
            levels[u].resnets += 1;
            levels[u].channels = channels;
            self.block(&format!("{block}.0"), &format!("{new}.{u}.resnets.{j}"));
            if let Some(depth) = self.depth(&format!("{block}.1")) {
                levels[u].depths.push(depth);
                self.block(&format!("{block}.1"), &format!("{new}.{u}.attentions.{j}"));
            }
            let up = (1..=2).map(|k| format!("{block}.{k}.conv"));
            let up: Vec<String> = up.filter(|up| self.has(&format!("{up}.weight"))).collect();
            if let Some(up) = up.first() {
                self.block(up, &format!("{new}.{u}.upsamplers.0.conv"));
                levels.push(Level::default());
            }
        }
        levels
    }

    /// What the reference calls the tensor `name`; none for what is no part of it.
    fn rename(&self, name: &str) -> Option<String> {
        let (layer, tensor) = name.rsplit_once('.')?;
        let outside = OUTSIDE.iter().find(|(old, _)| *old == layer);
        if let Some((_, new)) = outside {
            return Some(format!("{new}.{tensor}"));
        }
        // The longest prefix that is a block: `output_blocks.2.1.conv` is one, and so is `output_blocks.2.1`.
        let ends = layer.match_indices('.').map(|(at, _)| at);
        let ends: Vec<usize> = ends.chain([layer.len()]).collect();
        let (end, new) = ends
            .into_iter()
            .rev()
            .find_map(|end| Some((end, self.blocks.get(&layer[..end])?)))?;
        let inner = layer[end..].trim_start_matches('.');
        if inner.is_empty() {
            return Some(format!("{new}.{tensor}"));
        }
        let inner = match new.contains(".resnets.") {
            true => RESNET.iter().find(|(old, _)| *old == inner)?.1,
            false => inner,
        };
        Some(format!("{new}.{inner}.{tensor}"))
    }

    /// As `unet/config.json` would have it.
    fn config(&self) -> Value {
        let types = |levels: &[Level], [with, without]: [&str; 2]| -> Vec<String> {
            let kind = |level: &Level| {
                if level.depths.is_empty() {
                    without
                } else {
                    with
                }
            };
            levels.iter().map(|level| kind(level).to_owned()).collect()
        };
        let channels: Vec<usize> = self.down.iter().map(|level| level.channels).collect();
        let first = |end: &str| self.shapes.iter().find(|(name, _)| name.ends_with(end));
        let linear = first(".1.proj_in.weight").is_some_and(|(_, shape)| shape.len() == 2);
        let context = first(".attn2.to_k.weight")
            .and_then(|(_, shape)| shape.get(1))
            .copied();
        let heads = |channels: &usize| match linear {
            true => (channels / HEAD).max(1),
            false => HEADS,
        };
        // A level without transformers has the depth of the middle's, of which only the coarsest level's counts.
        let coarsest = self.middle.depths.first().copied().unwrap_or(1);
        let depths = |levels: &[Level]| -> Vec<Value> {
            let of = |level: &Level| match level.depths.as_slice() {
                [] => json!(coarsest),
                [one, rest @ ..] if rest.iter().all(|other| other == one) => json!(one),
                different => json!(different),
            };
            levels.iter().map(of).collect()
        };
        let middle = match (self.middle.resnets, self.middle.depths.is_empty()) {
            (0, _) => Value::Null,
            (_, true) => json!("UNetMidBlock2D"),
            (_, false) => json!("UNetMidBlock2DCrossAttn"),
        };
        let mut config = json!({
            "in_channels": self.size("input_blocks.0.0.weight", 1),
            "out_channels": self.size("out.2.weight", 0),
            "block_out_channels": channels,
            "down_block_types": types(&self.down, ["CrossAttnDownBlock2D", "DownBlock2D"]),
            "up_block_types": types(&self.up, ["CrossAttnUpBlock2D", "UpBlock2D"]),
            "mid_block_type": middle,
            "layers_per_block": self.down.iter().map(|level| level.resnets).collect::<Vec<_>>(),
            "transformer_layers_per_block": depths(&self.down),
            "reverse_transformer_layers_per_block": depths(&self.up),
            "attention_head_dim": channels.iter().map(heads).collect::<Vec<_>>(),
            "use_linear_projection": linear,
            "sample_size": 64,
        });
        if let Some(context) = context {
            config["cross_attention_dim"] = json!(context);
        }
        let added = self.size("label_emb.0.0.weight", 1);
        if added > 0 {
            config["addition_embed_type"] = json!("text_time");
            config["addition_time_embed_dim"] = json!(SIZE_EMBEDDING);
            config["projection_class_embeddings_input_dim"] = json!(added);
            config["sample_size"] = json!(128);
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::Parameter;

    /// The names and shapes of the published U-Net of a family, from our own config of it, named back by hand-written
    /// rules of that family.
    fn published(config: &str) -> UNetConfig {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/models");
        UNetConfig::from_file(&path.join(config).join("unet/config.json")).unwrap()
    }

    /// `input_blocks`' number of each block of the way down with `layers` to a level, and so on.
    fn original(name: &str, layers: usize, levels: usize) -> String {
        let parts: Vec<&str> = name.split('.').collect();
        let number = |i: usize| parts[i].parse::<usize>().unwrap();
        let inner = |from: usize| {
            let inner = parts[from..parts.len() - 1].join(".");
            let old = RESNET.iter().find(|(_, new)| *new == inner);
            let inner = old.map_or(inner, |(old, _)| (*old).to_owned());
            let tensor = parts[parts.len() - 1];
            if inner.is_empty() {
                tensor.to_owned()
            } else {
                format!("{inner}.{tensor}")
            }
        };
        match parts[0] {
            "down_blocks" => {
                let block = 1 + number(1) * (layers + 1);
                match parts[2] {
                    "resnets" => format!("input_blocks.{}.0.{}", block + number(3), inner(4)),
                    "attentions" => format!("input_blocks.{}.1.{}", block + number(3), inner(4)),
                    _ => format!("input_blocks.{}.0.op.{}", block + layers, parts[5]),
                }
            }
            "up_blocks" => {
                let block = number(1) * (layers + 1);
                match parts[2] {
                    "resnets" => format!("output_blocks.{}.0.{}", block + number(3), inner(4)),
                    "attentions" => format!("output_blocks.{}.1.{}", block + number(3), inner(4)),
                    _ => {
                        // Behind the transformer, where the level has any.
                        let plain =
                            (levels == 4 && number(1) == 0) || (levels == 3 && number(1) == 2);
                        let place = if plain { 1 } else { 2 };
                        format!("output_blocks.{}.{place}.conv.{}", block + layers, parts[5])
                    }
                }
            }
            "mid_block" => {
                let place = if parts[1] == "attentions" {
                    1
                } else {
                    2 * number(2)
                };
                format!("middle_block.{place}.{}", inner(3))
            }
            _ => {
                let layer = parts[..parts.len() - 1].join(".");
                let old = OUTSIDE.iter().find(|(_, new)| *new == layer).unwrap().0;
                format!("{old}.{}", parts[parts.len() - 1])
            }
        }
    }

    #[test]
    fn published_files_tell_their_config() {
        for (family, levels) in [("sd15", 4), ("sdxl", 3)] {
            let config = published(family);
            let parameters: Vec<Parameter> = list(&config.build());
            let mut found = Found::default();
            for Parameter { name, shape, .. } in &parameters {
                found
                    .shapes
                    .insert(original(name, 2, levels), shape.clone());
            }
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("model.safetensors");
            write(&path, &found.shapes);
            let (told, checkpoint) = open(&path, None).unwrap();
            assert_eq!(told.build(), config.build(), "{family}");
            assert_eq!(told.sample_size, config.sample_size, "{family}");
            // The other way round, for adapters.
            let aliases = aliases(&config.build());
            let layers = parameters.iter().filter(|p| p.name.ends_with(".weight"));
            assert_eq!(
                aliases.len(),
                layers.count() + usize::from(family == "sd15") * 2
            );
            for (alias, layer) in aliases
                .iter()
                .filter(|(alias, _)| !alias.starts_with("label_emb"))
            {
                assert_eq!(*alias, {
                    let name = original(&format!("{layer}.weight"), 2, levels);
                    name.strip_suffix(".weight").unwrap().to_owned()
                });
            }
            checkpoint.check(&parameters).unwrap();
        }
    }

    /// A file of zeros that takes no room: a header and a hole.
    fn write(path: &Path, shapes: &BTreeMap<String, Vec<usize>>) {
        let mut at = 0;
        let mut entries = serde_json::Map::new();
        for (name, shape) in shapes {
            let end = at + shape.iter().product::<usize>();
            let entry = json!({"dtype": "F8_E4M3", "shape": shape, "data_offsets": [at, end]});
            entries.insert(format!("{PREFIX}{name}"), entry);
            at = end;
        }
        let header = Value::Object(entries).to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        std::fs::write(path, &bytes).unwrap();
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_len((bytes.len() + at) as u64).unwrap();
    }

    #[test]
    fn other_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let shapes = [("time_embed.0.weight".to_owned(), vec![2, 2])].into();
        write(&path, &shapes);
        let error = open(&path, None).map(|_| ()).unwrap_err().to_string();
        assert!(
            error.contains("input_blocks.0.0.weight is missing"),
            "{error}"
        );
    }
}
