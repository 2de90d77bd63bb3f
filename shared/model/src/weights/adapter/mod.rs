//! Low-rank adapters: a small change of some layers of a large network (LoRA, Hu et al. 2021).
//!
//! - `names`: what tools call the layers.
//! - here: the file, what of it belongs to which network, and the sums.

mod names;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rayon::prelude::*;
use serde_json::{Map, Value};

use super::Checkpoint;
use super::file::WeightFile;
use crate::error::{Error, Result};
use crate::layers::{Parameter, Parameters};
use lacuna_wire::{HostTensor, to_narrow_safetensors};
pub use names::Network;
use names::{Name, factor_of, layer_of, modern, shown, why_not};

/// Where diffusers keeps PEFT's settings in a file.
const SETTINGS: &str = "lora_adapter_metadata";

/// An adapter's file and strength, as a flag gives them: `FILE` or `FILE:STRENGTH`.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterFile {
    /// The file.
    pub path: PathBuf,
    /// What its change is multiplied with.
    pub strength: f32,
}

impl FromStr for AdapterFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let split = text.rsplit_once(':');
        let given = split.and_then(|(path, strength)| Some((path, strength.parse().ok()?)));
        let (path, strength): (&str, f32) = given.unwrap_or((text, 1.0));
        // What stands behind a file's ending is meant as a strength.
        let unread = path.contains(".safetensors:");
        if path.is_empty() || unread || !strength.is_finite() {
            return Err("FILE or FILE:STRENGTH, such as style.safetensors:0.8".into());
        }
        Ok(Self {
            path: path.into(),
            strength,
        })
    }
}

impl AdapterFile {
    /// Reads all of `files`, in their order.
    ///
    /// # Errors
    /// As [`Adapter::open`].
    pub fn open_all(files: &[Self]) -> Result<Vec<Adapter>> {
        let open = |file: &Self| Adapter::open(&file.path, file.strength);
        files.iter().map(open).collect()
    }

    /// Bytes of what `files` change of the `network` of these `layers`, as others get it
    /// ([`Stored::adapter_files`](super::Stored::adapter_files)); none where that is nothing.
    ///
    /// # Errors
    /// As [`Self::open_all`] and [`Stored::with_adapters`](super::Stored::with_adapters).
    pub fn bytes_of(
        files: &[Self],
        network: Network,
        layers: &impl Parameters,
    ) -> Result<Option<u64>> {
        let mut adapters = Self::open_all(files)?;
        let fitted = fit_all(layers, Adapter::take_all(&mut adapters, network))?;
        let mut bytes = None;
        for adapter in fitted {
            *bytes.get_or_insert(0) += adapter.to_file()?.len() as u64;
        }
        Ok(bytes)
    }
}

/// A low-rank adapter, as its file has it: of each layer that it changes, the weight becomes
/// `W + strength * alpha / r * B A`, where `A` is `[r, C_in (K, K)]` and `B` is `[C_out, r (1, 1)]`.
pub struct Adapter {
    path: PathBuf,
    /// Of the file and the strength.
    digest: String,
    strength: f32,
    networks: BTreeMap<Network, BTreeMap<Name, LowRank>>,
}

/// What an adapter changes of one network, by the names of its file.
pub struct AdapterPart {
    path: PathBuf,
    strength: f32,
    changes: BTreeMap<Name, LowRank>,
}

/// What an adapter changes of one network, by the names of the network's layers.
pub(super) struct Fitted {
    /// The file's name, fit to be shown.
    file: String,
    /// What all of its changes are multiplied with.
    pub strength: f32,
    /// By layer.
    pub changes: BTreeMap<String, LowRank>,
}

/// A small change of one layer's weight, `strength * alpha / r * B A`.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// `A`, `[r, C_in (K, K)]`.
    pub down: HostTensor,
    /// `B`, `[C_out, r (1, 1)]`.
    pub up: HostTensor,
    /// What the file says, else `r`.
    pub alpha: f32,
    /// What the adapter is asked for with.
    pub strength: f32,
}

impl LowRank {
    /// The rank, `r`.
    pub fn rank(&self) -> usize {
        self.down.shape.first().copied().unwrap_or_default()
    }

    /// What `B A` is multiplied with.
    pub fn scale(&self) -> f32 {
        self.strength * (self.alpha / self.rank() as f32)
    }
}

impl Adapter {
    /// Reads the safetensors file at `path`, in the names of PEFT, diffusers or kohya's tools.
    ///
    /// # Errors
    /// [`Error::Adapter`] for names that are none of these, a factor without its other half, and kinds of adapters
    /// that are not low-rank sums; as [`Checkpoint::read`].
    pub fn open(path: &Path, strength: f32) -> Result<Self> {
        let bad = |reason: String| bad(path, reason);
        let (_, header) = WeightFile::open(path)?;
        let settings = header.metadata().as_ref().and_then(|all| all.get(SETTINGS));
        let alpha_by_settings = |network| match settings {
            Some(settings) => alpha_of(settings, network).map_err(bad),
            None => Ok(None),
        };
        let file = Checkpoint::open_file(path)?;
        let (mut factors, mut alphas) = (BTreeMap::new(), BTreeMap::new());
        for name in file.names() {
            let name_of = modern(name);
            if let Some(layer) = name_of.strip_suffix(".alpha") {
                let [alpha] = file.read(name)?.data[..] else {
                    return Err(bad(format!("{} is not one number", shown(name))));
                };
                if alphas.insert(layer_of(layer), alpha).is_some() {
                    return Err(bad(format!("{} is there twice", shown(name))));
                }
                continue;
            }
            let Some((layer, factor)) = factor_of(&name_of) else {
                let (name, why) = (shown(name), why_not(name));
                return Err(bad(format!("the tensor {name}: {why}")));
            };
            let both: &mut [Option<HostTensor>; 2] = factors.entry(layer_of(layer)).or_default();
            if both[factor].replace(file.read(name)?).is_some() {
                return Err(bad(format!(
                    "{} is there twice, by another name too",
                    shown(name)
                )));
            }
        }
        if factors.is_empty() {
            return Err(bad("it holds no adapter".into()));
        }
        let mut networks: BTreeMap<Network, BTreeMap<Name, LowRank>> = BTreeMap::new();
        for ((network, layer), both) in factors {
            let of = shown(&layer.name);
            let [Some(down), Some(up)] = both else {
                return Err(bad(format!("{of} has one factor of two")));
            };
            let rank = down.shape.first().copied().unwrap_or_default();
            if rank == 0 || up.shape.get(1) != Some(&rank) {
                let (down, up) = (down.shape, up.shape);
                let reason = format!("{of}: factors of {down:?} and {up:?} do not fit");
                return Err(bad(reason));
            }
            let key = (network, layer);
            let alpha = match alphas.remove(&key) {
                Some(alpha) => Some(alpha),
                None => alpha_by_settings(network)?,
            };
            let change = LowRank {
                down,
                up,
                alpha: alpha.unwrap_or(rank as f32),
                strength,
            };
            networks.entry(network).or_default().insert(key.1, change);
        }
        if let Some(((_, layer), _)) = alphas.pop_first() {
            let of = shown(&layer.name);
            return Err(bad(format!("{of} has an alpha and no factors")));
        }
        let settings = settings.map_or("", String::as_str);
        let mut digest =
            blake3::Hasher::new_derive_key("lacuna 2026-11 adapter: file, settings, strength");
        digest.update(file.digest()?.as_bytes());
        digest.update(blake3::hash(settings.as_bytes()).as_bytes());
        digest.update(&strength.to_le_bytes());
        Ok(Self {
            path: path.to_owned(),
            digest: digest.finalize().to_hex().to_string(),
            strength,
            networks,
        })
    }

    /// Identifies the file, with its strength.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Takes out what it changes of a network; none where that is nothing.
    pub fn take(&mut self, network: Network) -> Option<AdapterPart> {
        self.networks.remove(&network).map(|changes| AdapterPart {
            path: self.path.clone(),
            strength: self.strength,
            changes,
        })
    }

    /// What all of `adapters` change of a network, in their order; those that change nothing of it are left out.
    pub fn take_all(adapters: &mut [Self], network: Network) -> Vec<AdapterPart> {
        let parts = adapters.iter_mut();
        parts.filter_map(|adapter| adapter.take(network)).collect()
    }

    /// That everything of it was taken out.
    ///
    /// # Errors
    /// [`Error::Adapter`], naming a layer of a network that the model does not have.
    pub fn check_taken(&self) -> Result<()> {
        let left = self.networks.values().flat_map(BTreeMap::keys).next();
        match left {
            None => Ok(()),
            Some(layer) => {
                let of = format!("{} of a second text encoder", layer.name);
                Err(bad(&self.path, unknown(&of)))
            }
        }
    }
}

impl AdapterPart {
    /// The same for the layers of `parameters`, by their own names; `aliases` are others that layers have, with those.
    ///
    /// # Errors
    /// [`Error::Adapter`] for a layer that there is none of, or of other sizes.
    fn fit(self, parameters: &[Parameter], aliases: &[(String, String)]) -> Result<Fitted> {
        let own = parameters.iter().filter_map(|parameter| {
            let layer = parameter.name.strip_suffix(".weight")?;
            Some((layer, parameter))
        });
        let own: BTreeMap<&str, &Parameter> = own.collect();
        let mut names: BTreeMap<&str, &str> = own.keys().map(|name| (*name, *name)).collect();
        names.extend(
            aliases
                .iter()
                .map(|(alias, name)| (alias.as_str(), name.as_str())),
        );
        let flat = names
            .iter()
            .map(|(alias, name)| (alias.replace('.', "_"), *name));
        let flat: BTreeMap<String, &str> = flat.collect();
        let mut changes = BTreeMap::new();
        for (layer, change) in self.changes {
            let found = match layer.flat {
                true => flat.get(&layer.name),
                false => names.get(layer.name.as_str()),
            };
            let parameter = found.and_then(|name| Some((*name, *own.get(name)?)));
            let bad = |reason| bad(&self.path, reason);
            let (name, parameter) = parameter.ok_or_else(|| bad(unknown(&layer.name)))?;
            change.check(&layer.name, &parameter.shape).map_err(bad)?;
            if changes.insert(name.to_owned(), change).is_some() {
                return Err(bad(format!("{} is there by two names", shown(&layer.name))));
            }
        }
        Ok(Fitted {
            file: file_name(&self.path),
            strength: self.strength,
            changes,
        })
    }
}

fn bad(path: &Path, reason: String) -> Error {
    Error::Adapter {
        file: file_name(path),
        reason,
    }
}

fn file_name(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default();
    file.to_string_lossy().escape_debug().to_string()
}

fn unknown(layer: &str) -> String {
    let layer = shown(layer);
    format!("the model has no layer {layer}; is it for a model of another kind?")
}

impl LowRank {
    /// That it changes a weight of `shape`, of what the file calls `layer`.
    fn check(&self, layer: &str, shape: &[usize]) -> Result<(), String> {
        let [rows, rest @ ..] = shape else {
            return Err(unknown(layer));
        };
        // A 1x1 convolution is a linear map, and some tools write it as one.
        let bare = |shape: &[usize]| {
            let ones = shape.iter().rev().take_while(|side| **side == 1).count();
            shape[..shape.len() - ones].to_vec()
        };
        let down = self.down.shape.get(1..).unwrap_or_default();
        let fits = self.up.shape.first() == Some(rows)
            && bare(down) == bare(rest)
            && self.up.shape.iter().skip(2).all(|side| *side == 1);
        if fits {
            return Ok(());
        }
        let (layer, down, up) = (shown(layer), &self.down.shape, &self.up.shape);
        Err(format!(
            "{layer}: factors of {down:?} and {up:?} do not fit the weight's {shape:?}; is it for a model of another kind?"
        ))
    }
}

impl Fitted {
    /// Identifies what it does: whichever tool's names its file is written in, and whatever else that holds.
    pub(super) fn digest(&self) -> blake3::Hash {
        let context = "lacuna 2026-11 adapter of a network: strength, layers";
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(&self.strength.to_le_bytes());
        for (layer, change) in &self.changes {
            hasher.update(blake3::hash(layer.as_bytes()).as_bytes());
            hasher.update(&change.alpha.to_le_bytes());
            for factor in [&change.down, &change.up] {
                hasher.update(&(factor.shape.len() as u64).to_le_bytes());
                for side in &factor.shape {
                    hasher.update(&(*side as u64).to_le_bytes());
                }
                for value in &factor.data {
                    hasher.update(&value.to_le_bytes());
                }
            }
        }
        hasher.finalize()
    }

    /// It as a file, without its strength, in PEFT's names for the layers and in no more bytes than it takes.
    ///
    /// # Errors
    /// As [`lacuna_wire::to_safetensors`].
    pub(super) fn to_file(&self) -> Result<Vec<u8>> {
        let tensors = self.changes.iter().flat_map(|(layer, change)| {
            let alpha = HostTensor {
                shape: Vec::new(),
                data: vec![change.alpha],
            };
            [
                (format!("{layer}.lora_A.weight"), change.down.clone()),
                (format!("{layer}.lora_B.weight"), change.up.clone()),
                (format!("{layer}.alpha"), alpha),
            ]
        });
        Ok(to_narrow_safetensors(tensors.collect())?)
    }

    /// `weight` of the parameter `name`, changed where this changes it. Both sides of a picture come to the same bits:
    /// the sums are plain, in the order of the rank.
    ///
    /// # Errors
    /// [`Error::Adapter`] where a value is not finite then.
    fn merge(&self, name: &str, weight: &mut HostTensor) -> Result<()> {
        let layer = name.strip_suffix(".weight");
        let change = layer.and_then(|layer| self.changes.get(layer));
        let Some(change) = change else {
            return Ok(());
        };
        let (LowRank { down, up, .. }, scale) = (change, change.scale());
        let rank = change.rank();
        let width = down.data.len() / rank;
        let rows = weight
            .data
            .par_chunks_mut(width.max(1))
            .zip(up.data.par_chunks(rank));
        rows.for_each(|(row, up)| {
            let mut change = vec![0.0; row.len()];
            for (b, a) in up.iter().zip(down.data.chunks(width)) {
                change.iter_mut().zip(a).for_each(|(sum, a)| *sum += b * a);
            }
            row.iter_mut()
                .zip(change)
                .for_each(|(w, change)| *w += scale * change);
        });
        weight.check_finite(name).map_err(|_| Error::Adapter {
            file: self.file.clone(),
            reason: format!("with it, {name} holds a value that is not finite"),
        })
    }
}

/// `alpha` by PEFT's settings of a network, which also give the rank that they are for; none where they say nothing.
fn alpha_of(settings: &str, network: Network) -> Result<Option<f32>, String> {
    let settings: Map<String, Value> =
        serde_json::from_str(settings).map_err(|e| format!("{SETTINGS}: {e}"))?;
    let prefix = match network {
        Network::UNet => "unet",
        Network::Text(0) => "text_encoder",
        Network::Text(_) => "text_encoder_2",
    };
    let said = |key: &str| {
        let own = settings.get(&format!("{prefix}.{key}"));
        own.or_else(|| settings.get(key))
    };
    for key in [
        "use_dora",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "lora_bias",
    ] {
        let off = match said(key) {
            None | Some(Value::Null | Value::Bool(false)) => true,
            Some(Value::Object(patterns)) => patterns.is_empty(),
            Some(_) => false,
        };
        if !off {
            return Err(format!("{SETTINGS}: {key} is not supported"));
        }
    }
    match said("lora_alpha") {
        None => Ok(None),
        Some(alpha) => match alpha.as_f64() {
            Some(alpha) => Ok(Some(alpha as f32)),
            None => Err(format!("{SETTINGS}: lora_alpha is no number")),
        },
    }
}

/// `parts` by the names of the layers of `layers`, checked to be of their sizes.
pub(super) fn fit_all(layers: &impl Parameters, parts: Vec<AdapterPart>) -> Result<Vec<Fitted>> {
    let (parameters, aliases) = (super::list(layers), layers.aliases());
    let fit = |part: AdapterPart| part.fit(&parameters, &aliases);
    parts.into_iter().map(fit).collect()
}

/// `weight` of the parameter `name` with all of `adapters`, one after the other.
///
/// # Errors
/// [`Error::Adapter`] for the first with which a value is not finite.
pub(super) fn merge_all(adapters: &[Fitted], name: &str, weight: &mut HostTensor) -> Result<()> {
    let mut adapters = adapters.iter();
    adapters.try_for_each(|adapter| adapter.merge(name, weight))
}

#[cfg(test)]
mod tests;
