//! Where the weight files of one network lie, by the names that libraries give them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};

/// The library that wrote a part of a model. The two name their weight files differently, and differ in
/// which they read where a whole file lies beside shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// Wrote the U-Net and the autoencoder, `diffusion_pytorch_model.safetensors`; shards come first.
    Diffusers,
    /// Wrote the text encoder, `model.safetensors`; the whole file comes first.
    Transformers,
}

impl Library {
    /// What the weight files' names begin with.
    pub fn stem(self) -> &'static str {
        match self {
            Self::Diffusers => "diffusion_pytorch_model",
            Self::Transformers => "model",
        }
    }
}

/// The weight files of one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightFiles {
    /// Which shard holds which tensor; none where one file holds all.
    pub index: Option<PathBuf>,
    /// The files that hold tensors.
    pub weights: Vec<PathBuf>,
}

/// `*.safetensors.index.json`: which shard holds which tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Whether `dir` holds files of a variant, which are then the only ones to be read.
pub(super) fn has_variant(dir: &Path, variant: &str) -> bool {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return false;
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let ending = format!("index.{variant}.json");
    let of_variant = |name: String| {
        // `model.fp16.safetensors`, `model.fp16-00001-of-00002.safetensors` and their index.
        let infix = name.split('.').nth(1);
        infix.is_some_and(|infix| infix.starts_with(variant)) || name.ends_with(&ending)
    };
    names.into_iter().any(of_variant)
}

impl WeightFiles {
    /// Those in `dir`, as [`Checkpoint::open`](super::Checkpoint::open) looks for them.
    ///
    /// # Errors
    /// [`Error::NoWeights`], [`Error::Read`], [`Error::Json`] or [`Error::BadWeights`].
    pub fn locate(dir: &Path, library: Library, variant: Option<&str>) -> Result<Self> {
        let stem = library.stem();
        let found = |variant: Option<&str>| -> Result<Option<Self>> {
            let infix = variant.map(|v| format!(".{v}")).unwrap_or_default();
            let whole = dir.join(format!("{stem}{infix}.safetensors"));
            let shards_first = library == Library::Diffusers;
            // The second is what diffusers wrote until 2024.
            let indices = [
                format!("index{infix}"),
                format!("{}.index", &infix[infix.len().min(1)..]),
            ];
            for index in &indices[..1 + usize::from(shards_first && variant.is_some())] {
                let index = dir.join(format!("{stem}.safetensors.{index}.json"));
                if index.is_file() && (shards_first || !whole.is_file()) {
                    return Ok(Some(Self {
                        weights: shards(dir, &index)?,
                        index: Some(index),
                    }));
                }
            }
            Ok(whole.is_file().then(|| Self {
                index: None,
                weights: vec![whole],
            }))
        };
        if !dir.is_dir() {
            let source = std::io::Error::new(std::io::ErrorKind::NotFound, "no such directory");
            return Err(Error::read(dir, source));
        }
        let others: &[Option<&str>] = match variant {
            Some(variant) if has_variant(dir, variant) => &[],
            Some(variant) => {
                tracing::warn!(
                    "{}: no files of the variant {variant}: the plain ones are read",
                    dir.display()
                );
                &[None]
            }
            None => &[Some("fp16"), Some("bf16"), Some("fp32")],
        };
        for variant in std::iter::once(&variant).chain(others) {
            if let Some(files) = found(*variant)? {
                return Ok(files);
            }
        }
        Err(Error::NoWeights {
            dir: dir.to_owned(),
            stem: stem.to_owned(),
            variant: variant
                .map(|v| format!(", nor the variant {v}"))
                .unwrap_or_default(),
        })
    }
}

fn shards(dir: &Path, path: &Path) -> Result<Vec<PathBuf>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::read(path, e))?;
    let index: Index =
        serde_json::from_str(&text).map_err(|cause| Error::json(path, &text, cause))?;
    let mut names: Vec<String> = index.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    // An index comes from a download: it may only name files beside itself.
    if let Some(name) = names
        .iter()
        .find(|n| Path::new(n).file_name() != Some(n.as_ref()))
    {
        return Err(Error::BadWeights {
            path: path.to_owned(),
            reason: format!("shard {name:?} is not a file name"),
        });
    }
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}
