//! Low-rank adapters: a small change of some layers of a large network (LoRA, Hu et al. 2021).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rayon::prelude::*;
use serde_json::{Map, Value};

use super::file::WeightFile;
use super::{Checkpoint, Stored};
use crate::error::{Error, Result};
use crate::layers::{Parameter, Parameters};
use lacuna_wire::HostTensor;

/// A network of a model that an adapter may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Network {
    /// The U-Net, which workers hold, too.
    UNet,
    /// The text encoder of this number.
    Text(usize),
}

/// What is put before the names of a network's layers, and whether their dots are written as underscores behind it: by
/// diffusers and PEFT, and by kohya's tools. Names without any of these are the U-Net's.
const PREFIXES: [(&str, Network, bool); 8] = [
    ("unet.", Network::UNet, false),
    ("base_model.model.", Network::UNet, false),
    ("text_encoder.", Network::Text(0), false),
    ("text_encoder_2.", Network::Text(1), false),
    ("lora_unet_", Network::UNet, true),
    ("lora_te_", Network::Text(0), true),
    ("lora_te1_", Network::Text(0), true),
    ("lora_te2_", Network::Text(1), true),
];

/// Ends of the names of the factors `A` and `B`: PEFT's, diffusers', kohya's.
const FACTORS: [[&str; 2]; 4] = [
    [".lora_A.weight", ".lora_B.weight"],
    [".lora.down.weight", ".lora.up.weight"],
    [".lora_down.weight", ".lora_up.weight"],
    [
        ".lora_linear_layer.down.weight",
        ".lora_linear_layer.up.weight",
    ],
];

/// Parts of names of adapters that are no low-rank sums, and what these are called.
const NO_SUMS: [(&str, &str); 6] = [
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    ("hada_", "LoHa"),
    ("lokr_", "LoKr"),
    ("lora_mid", "a Tucker decomposition"),
    ("oft_", "OFT"),
];

/// A layer as an adapter's file names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Layer {
    network: Network,
    /// Whether dots are written as underscores.
    flat: bool,
    name: String,
}

impl Layer {
    fn of(name: &str) -> Self {
        let found = PREFIXES.iter().find_map(|(prefix, network, flat)| {
            Some((name.strip_prefix(prefix)?, *network, *flat))
        });
        let (name, network, flat) = found.unwrap_or((name, Network::UNet, false));
        // The text encoders' names here are without it.
        let text = if flat { "text_model_" } else { "text_model." };
        let name = match network {
            Network::Text(_) => name.strip_prefix(text).unwrap_or(name),
            Network::UNet => name,
        };
        Self {
            network,
            flat,
            name: name.to_owned(),
        }
    }

    /// By the name of the model's own layer.
    fn plain(network: Network, name: impl Into<String>) -> Self {
        Self {
            network,
            flat: false,
            name: name.into(),
        }
    }
}

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
        if path.is_empty() || !strength.is_finite() {
            return Err("FILE or FILE:STRENGTH, such as style.safetensors:0.8".into());
        }
        Ok(Self {
            path: path.into(),
            strength,
        })
    }
}

impl AdapterFile {
    /// Reads what all of `files` change of a `network`, in their order. Those that change nothing of it are left out.
    ///
    /// # Errors
    /// As [`Adapter::open`].
    pub fn open_all(files: &[Self], network: Network) -> Result<Vec<Adapter>> {
        let open = |file: &Self| {
            let adapter = Adapter::open(&file.path, file.strength);
            adapter
                .map(|adapter| adapter.of_network(network))
                .transpose()
        };
        files.iter().filter_map(open).collect()
    }

    /// That no file changes a text encoder that a model of so many does not have.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`], naming the first such layer; as [`Adapter::open`].
    pub fn check_networks(files: &[Self], text_encoders: usize) -> Result<()> {
        for file in files {
            let adapter = Adapter::open(&file.path, file.strength)?;
            let lacking = adapter.changes.keys().find(|layer| match layer.network {
                Network::UNet => false,
                Network::Text(i) => i >= text_encoders,
            });
            if let Some(layer) = lacking {
                return Err(Error::UnknownTensor {
                    origin: file.path.display().to_string(),
                    name: format!("{} of a second text encoder", shown(&layer.name)),
                });
            }
        }
        Ok(())
    }
}

/// A low-rank adapter: of each layer that it changes, the weight becomes
/// `W + strength * alpha / r * B A`, where `A` is `[r, C_in (K, K)]` and `B` is `[C_out, r (1, 1)]`.
pub struct Adapter {
    /// Of the file and the strength.
    digest: String,
    /// By layer.
    changes: BTreeMap<Layer, LowRank>,
}

/// A small change of one layer's weight, `scale * B A`.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// `A`, `[r, C_in (K, K)]`.
    pub down: HostTensor,
    /// `B`, `[C_out, r (1, 1)]`.
    pub up: HostTensor,
    /// `strength * alpha / r`.
    pub scale: f32,
}

impl LowRank {
    /// The rank, `r`.
    pub fn rank(&self) -> usize {
        self.down.shape.first().copied().unwrap_or_default()
    }
}

impl Adapter {
    /// Reads the safetensors file at `path`, in the names of PEFT, diffusers or kohya's tools.
    ///
    /// # Errors
    /// [`Error::BadWeights`] for names that are none of these, a factor without its other half, and kinds of adapters
    /// that are not low-rank sums; as [`Checkpoint::read`].
    pub fn open(path: &Path, strength: f32) -> Result<Self> {
        let bad = |reason: String| Error::BadWeights {
            path: path.to_owned(),
            reason,
        };
        let (_, header) = WeightFile::open(path)?;
        let settings = header.metadata().as_ref().and_then(|all| all.get(SETTINGS));
        let alpha_by_settings = match settings {
            Some(settings) => alpha_of(settings).map_err(bad)?,
            None => None,
        };
        let file = Checkpoint::open_file(path)?;
        let (mut factors, mut alphas) = (BTreeMap::new(), BTreeMap::new());
        for name in file.names() {
            let others = || {
                let kind = NO_SUMS.iter().find(|(part, _)| name.contains(part));
                let why = match kind {
                    Some((_, kind)) => format!("it is of {kind}, which is not supported"),
                    None => "it is no factor of a layer in the names of PEFT, diffusers or kohya's tools".to_owned(),
                };
                bad(format!("the tensor {}: {why}", shown(name)))
            };
            let name_of = modern(name);
            if let Some(layer) = name_of.strip_suffix(".alpha") {
                let [alpha] = file.read(name)?.data[..] else {
                    return Err(bad(format!("{} is not one number", shown(name))));
                };
                if alphas.insert(Layer::of(layer), alpha).is_some() {
                    return Err(bad(format!("{} is there twice", shown(name))));
                }
                continue;
            }
            let found = FACTORS.iter().flatten().enumerate().find_map(|(i, end)| {
                let layer = name_of.strip_suffix(end)?;
                Some((Layer::of(layer), i % 2))
            });
            let Some((layer, factor)) = found else {
                return Err(others());
            };
            let both: &mut [Option<HostTensor>; 2] = factors.entry(layer).or_default();
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
        let mut changes = BTreeMap::new();
        for (layer, both) in factors {
            let [Some(down), Some(up)] = both else {
                let layer = shown(&layer.name);
                return Err(bad(format!("{layer} has one factor of two")));
            };
            let rank = down.shape.first().copied().unwrap_or_default();
            if rank == 0 || up.shape.get(1) != Some(&rank) {
                return Err(bad(format!(
                    "{}: factors of {:?} and {:?} do not fit",
                    shown(&layer.name),
                    down.shape,
                    up.shape
                )));
            }
            let alpha = alphas.remove(&layer).or(alpha_by_settings);
            let scale = strength * alpha.map_or(1.0, |alpha| alpha / rank as f32);
            changes.insert(layer, LowRank { down, up, scale });
        }
        if let Some((layer, _)) = alphas.pop_first() {
            return Err(bad(format!(
                "{} has an alpha and no factors",
                shown(&layer.name)
            )));
        }
        let settings = settings.map_or("", String::as_str);
        let mut digest =
            blake3::Hasher::new_derive_key("lacuna 2026-11 adapter: file, settings, strength");
        digest.update(file.digest()?.as_bytes());
        digest.update(blake3::hash(settings.as_bytes()).as_bytes());
        digest.update(&strength.to_le_bytes());
        Ok(Self {
            digest: digest.finalize().to_hex().to_string(),
            changes,
        })
    }

    /// Identifies what it does, with its strength.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// What it changes of a network, under the same digest; none where that is nothing.
    pub fn of_network(mut self, network: Network) -> Option<Self> {
        self.changes.retain(|layer, _| layer.network == network);
        (!self.changes.is_empty()).then_some(self)
    }

    /// The change of a layer, if it is changed.
    pub(super) fn of_layer(&self, layer: &str) -> Option<&LowRank> {
        let network = self.changes.keys().next()?.network;
        self.changes.get(&Layer::plain(network, layer))
    }

    /// The same for the layers of `parameters`, by their own names; `aliases` are others that layers have, with those.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`] for a layer that there is none of.
    fn named(mut self, parameters: &[Parameter], aliases: &[(String, String)]) -> Result<Self> {
        let own: Vec<&str> = parameters
            .iter()
            .filter_map(|parameter| parameter.name.strip_suffix(".weight"))
            .collect();
        let own_names = own.iter().map(|name| (*name, *name));
        let others = aliases
            .iter()
            .map(|(alias, name)| (alias.as_str(), name.as_str()));
        let names: BTreeMap<&str, &str> = others.chain(own_names).collect();
        let flat: BTreeMap<String, &str> = names
            .iter()
            .map(|(alias, name)| (alias.replace('.', "_"), *name))
            .collect();
        let mut changes = BTreeMap::new();
        for (layer, change) in std::mem::take(&mut self.changes) {
            let found = match layer.flat {
                true => flat.get(&layer.name).copied(),
                false => names.get(layer.name.as_str()).copied(),
            };
            let name = found.ok_or_else(|| Error::UnknownTensor {
                origin: "the adapter".into(),
                name: shown(&layer.name),
            })?;
            changes.insert(Layer::plain(layer.network, name), change);
        }
        self.changes = changes;
        Ok(self)
    }

    /// That every change is of one of `parameters`, in its sizes.
    fn check(&self, parameters: &[Parameter]) -> Result<()> {
        for (layer, change) in &self.changes {
            let name = format!("{}.weight", layer.name);
            let parameter = parameters.iter().find(|parameter| parameter.name == name);
            let Some(parameter) = parameter else {
                return Err(Error::UnknownTensor {
                    origin: "the adapter".into(),
                    name: shown(&layer.name),
                });
            };
            let [rows, rest @ ..] = parameter.shape.as_slice() else {
                continue;
            };
            // A 1x1 convolution is a linear map, and some tools write it as one.
            let bare = |shape: &[usize]| {
                let ones = shape.iter().rev().take_while(|side| **side == 1).count();
                shape[..shape.len() - ones].to_vec()
            };
            let down = change.down.shape.get(1..).unwrap_or_default();
            let fits = change.up.shape.first() == Some(rows)
                && bare(down) == bare(rest)
                && change.up.shape.iter().skip(2).all(|side| *side == 1);
            if !fits {
                return Err(lacuna_wire::Error::WrongShape {
                    name: format!(
                        "the adapter: {}, from {:?}",
                        shown(&layer.name),
                        change.down.shape
                    ),
                    want: parameter.shape.clone(),
                    got: change.up.shape.clone(),
                }
                .into());
            }
        }
        Ok(())
    }

    /// `weight` of the parameter `name`, changed where this changes it. Both sides of a picture come to the same bits:
    /// the sums are plain, in the order of the rank.
    fn merge(&self, name: &str, weight: &mut HostTensor) {
        let layer = name
            .strip_suffix(".weight")
            .and_then(|layer| self.of_layer(layer));
        let Some(LowRank { down, up, scale }) = layer else {
            return;
        };
        let rank = down.shape[0];
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
    }
}

/// A tensor's name with the layer that it is of: the first adapters were kept in processors of attentions.
fn modern(name: &str) -> String {
    let Some((attention, rest)) = name.split_once(".processor.") else {
        return name.to_owned();
    };
    let Some((layer, factor)) = rest.split_once("_lora.") else {
        return name.to_owned();
    };
    let layer = if layer == "to_out" { "to_out.0" } else { layer };
    format!("{attention}.{layer}.lora.{factor}")
}

/// A name from a file, fit to be shown: files come from anywhere.
fn shown(name: &str) -> String {
    name.escape_debug().to_string().chars().take(100).collect()
}

/// `alpha` by PEFT's settings, which also give the rank that they are for; none where they say nothing.
fn alpha_of(settings: &str) -> Result<Option<f32>, String> {
    let settings: Map<String, Value> =
        serde_json::from_str(settings).map_err(|e| format!("{SETTINGS}: {e}"))?;
    let of_unet = |key: &str| {
        settings
            .get(&format!("unet.{key}"))
            .or_else(|| settings.get(key))
    };
    for key in [
        "use_dora",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "lora_bias",
    ] {
        let off = match of_unet(key) {
            None | Some(Value::Null | Value::Bool(false)) => true,
            Some(Value::Object(patterns)) => patterns.is_empty(),
            Some(_) => false,
        };
        if !off {
            return Err(format!("{SETTINGS}: {key} is not supported"));
        }
    }
    match of_unet("lora_alpha") {
        None => Ok(None),
        Some(alpha) => match alpha.as_f64() {
            Some(alpha) => Ok(Some(alpha as f32)),
            None => Err(format!("{SETTINGS}: lora_alpha is no number")),
        },
    }
}

/// `adapters` by the names of the network's own layers, checked to be of its sizes.
pub(super) fn fit_all<L: Parameters>(
    stored: &Stored<L>,
    adapters: Vec<Adapter>,
) -> Result<Vec<Adapter>> {
    let parameters = super::list(stored.layers());
    let aliases = stored.layers().aliases();
    let fit = |adapter: Adapter| {
        let adapter = adapter.named(&parameters, &aliases)?;
        adapter.check(&parameters)?;
        Ok(adapter)
    };
    adapters.into_iter().map(fit).collect()
}

/// `weight` of the parameter `name` with all of `adapters`, one after the other.
pub(super) fn merge_all(adapters: &[Adapter], name: &str, weight: &mut HostTensor) {
    adapters
        .iter()
        .for_each(|adapter| adapter.merge(name, weight));
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::layers::{Conv2d, Linear};

    /// A linear map and a convolution, of weights that are all one.
    struct Pair(Linear, Conv2d);

    impl Parameters for Pair {
        fn parameters(&self, out: &mut Vec<Parameter>) {
            self.0.parameters(out);
            self.1.parameters(out);
        }
    }

    fn write(path: &Path, tensors: &[(&str, &[usize], &[f32])]) {
        let tensors: Vec<(&str, HostTensor)> = tensors
            .iter()
            .map(|(name, shape, data)| (*name, HostTensor::new(*shape, data.to_vec()).unwrap()))
            .collect();
        let tensors = tensors.iter().map(|(name, tensor)| (*name, tensor));
        std::fs::write(path, lacuna_wire::to_safetensors(tensors, None).unwrap()).unwrap();
    }

    fn stored(dir: &tempfile::TempDir) -> Stored<Pair> {
        let path = dir.path().join("base.safetensors");
        let pair = Pair(Linear::new("a", 2, 3), Conv2d::same("b", 1, 2, 3));
        write(
            &path,
            &[
                ("a.weight", &[3, 2], &[1.0; 6]),
                ("a.bias", &[3], &[0.0; 3]),
                ("b.weight", &[2, 1, 3, 3], &[1.0; 18]),
                ("b.bias", &[2], &[0.0; 2]),
            ],
        );
        Stored::new(pair, Checkpoint::open_file(&path).unwrap()).unwrap()
    }

    fn nine(value: f32) -> [f32; 9] {
        [value; 9]
    }

    #[test]
    fn a_change_is_a_product_of_its_factors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter.safetensors");
        write(
            &path,
            &[
                ("unet.a.lora.down.weight", &[1, 2], &[1.0, 10.0]),
                ("unet.a.lora.up.weight", &[3, 1], &[1.0, 2.0, 3.0]),
                ("unet.b.lora_A.weight", &[1, 1, 3, 3], &nine(2.0)),
                ("unet.b.lora_B.weight", &[2, 1, 1, 1], &[1.0, -1.0]),
                ("unet.b.alpha", &[], &[0.5]),
            ],
        );
        let base = stored(&dir);
        let plain = base.digest().unwrap().to_owned();
        let read = |strength: f32| {
            let adapter = Adapter::open(&path, strength).unwrap();
            let merged = stored(&dir).with_adapters(vec![adapter]).unwrap();
            let values: HashMap<&str, Vec<f32>> = ["a.weight", "b.weight", "b.bias"]
                .map(|name| (name, merged.read(name).unwrap().data))
                .into();
            (values, merged.digest().unwrap().to_owned())
        };
        let (whole, digest) = read(1.0);
        assert_eq!(whole["a.weight"], [2.0, 11.0, 3.0, 21.0, 4.0, 31.0]);
        // alpha / r is a half.
        assert_eq!(whole["b.weight"], [nine(2.0), nine(0.0)].concat());
        assert_eq!(whole["b.bias"], [0.0; 2]);
        let (half, other) = read(0.5);
        assert_eq!(half["a.weight"], [1.5, 6.0, 2.0, 11.0, 2.5, 16.0]);
        let (none, _) = read(0.0);
        assert_eq!(none["a.weight"], [1.0; 6]);
        // What is computed with tells itself from the base, and by its strength.
        assert!(digest != plain && other != plain && digest != other);
        assert_eq!(read(1.0).1, digest);
        assert_eq!(
            stored(&dir)
                .with_adapters(Vec::new())
                .unwrap()
                .digest()
                .unwrap(),
            plain
        );
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter.safetensors");
        let file = |factors: &[(&str, [usize; 2])]| {
            let data = [1.0, 2.0];
            let tensors: Vec<(&str, &[usize], &[f32])> = factors
                .iter()
                .map(|(name, shape)| (*name, shape.as_slice(), data.as_slice()))
                .collect();
            write(&path, &tensors);
        };
        let (a, b) = ("unet.a.lora_A.weight", "unet.a.lora_B.weight");
        for (factors, part) in [
            (&[("lora_te_x.lora_down.weight.x", [1, 2])][..], "lora_te_x"),
            (&[("unet.a.dora_scale", [1, 2])], "DoRA"),
            (&[("lora_unet_a.hada_w1_a", [1, 2])], "LoHa"),
            (&[(a, [1, 2])], "one factor of two"),
            (&[("unet.a.alpha", [1, 2])], "not one number"),
            (
                &[(a, [1, 2]), (b, [2, 1]), ("a.lora.down.weight", [1, 2])],
                "there twice",
            ),
            (&[("unet.lora_\u{1b}[2J", [1, 2])], "unet.lora_\\u{1b}[2J"),
            (&[], "no adapter"),
            (&[(a, [1, 2]), (b, [1, 2])], "do not fit"),
            (
                &[
                    ("unet.c.lora_A.weight", [1, 2]),
                    ("unet.c.lora_B.weight", [2, 1]),
                ],
                "unknown tensor c",
            ),
            (&[(a, [1, 2]), (b, [2, 1])], "the adapter: a"),
        ] {
            file(factors);
            let opened = Adapter::open(&path, 1.0);
            let error = opened.and_then(|adapter| stored(&dir).with_adapters(vec![adapter]));
            let error = error.err().expect(part).to_string();
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
    }

    #[test]
    fn kohyas_names_and_those_of_text_encoders_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter.safetensors");
        write(
            &path,
            &[
                ("lora_unet_a.lora_down.weight", &[1, 2], &[1.0, 10.0]),
                ("lora_unet_a.lora_up.weight", &[3, 1], &[1.0, 2.0, 3.0]),
                ("lora_unet_a.alpha", &[], &[0.5]),
                (
                    "lora_te2_text_model_a.lora_down.weight",
                    &[1, 2],
                    &[0.0, 1.0],
                ),
                (
                    "lora_te2_text_model_a.lora_up.weight",
                    &[3, 1],
                    &[1.0, 1.0, 1.0],
                ),
            ],
        );
        let files = [AdapterFile {
            path: path.clone(),
            strength: 1.0,
        }];
        let weight = |network| {
            let adapters = AdapterFile::open_all(&files, network).unwrap();
            let stored = stored(&dir).with_adapters(adapters).unwrap();
            stored.read("a.weight").unwrap().data
        };
        assert_eq!(weight(Network::UNet), [1.5, 6.0, 2.0, 11.0, 2.5, 16.0]);
        assert_eq!(weight(Network::Text(0)), [1.0; 6]);
        assert_eq!(weight(Network::Text(1)), [1.0, 2.0, 1.0, 2.0, 1.0, 2.0]);
        AdapterFile::check_networks(&files, 2).unwrap();
        let error = AdapterFile::check_networks(&files, 1)
            .unwrap_err()
            .to_string();
        assert!(error.contains("second text encoder"), "{error}");
        let old = "unet.x.attn1.processor.to_out_lora.down.weight";
        assert_eq!(modern(old), "unet.x.attn1.to_out.0.lora.down.weight");
    }

    #[test]
    fn a_strength_stands_behind_the_last_colon() {
        let read = |text: &str| {
            let file: AdapterFile = text.parse().unwrap();
            (file.path.display().to_string(), file.strength)
        };
        assert_eq!(read("a.safetensors"), ("a.safetensors".into(), 1.0));
        assert_eq!(
            read("a:b.safetensors:-0.5"),
            ("a:b.safetensors".into(), -0.5)
        );
        assert_eq!(read("C:style"), ("C:style".into(), 1.0));
        for wrong in ["", ":1", "a:nan", "a:inf"] {
            assert!(wrong.parse::<AdapterFile>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn settings_that_are_no_low_rank_sum_are_refused() {
        assert_eq!(
            alpha_of(r#"{"unet.lora_alpha": 8, "unet.r": 4}"#),
            Ok(Some(8.0))
        );
        assert_eq!(alpha_of("{}"), Ok(None));
        for settings in [
            r#"{"unet.use_dora": true}"#,
            r#"{"unet.rank_pattern": {"x": 3}}"#,
            "[]",
        ] {
            assert!(alpha_of(settings).is_err(), "{settings}");
        }
    }
}
