//! Weight files of one network: safetensors in f32, f16 or bf16, whole or sharded.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::host::HostTensor;
use crate::layers::Parameter;

/// The open weight files of one network. Nothing is read until a tensor is asked for.
pub struct Checkpoint {
    origin: String,
    files: Vec<Mmap>,
    entries: BTreeMap<String, Entry>,
}

/// Where a tensor lies.
#[derive(Clone, Debug)]
struct Entry {
    file: usize,
    offset: usize,
    bytes: usize,
    dtype: Dtype,
    shape: Vec<usize>,
}

/// `*.safetensors.index.json`: which shard holds which tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens `dir/stem.safetensors`, or its shards by `dir/stem.safetensors.index.json`; with a
    /// `variant` the names are `stem.variant.safetensors` and so on. Without a `variant`, a
    /// directory that holds only a variant (`fp16`, say) is read all the same.
    ///
    /// # Errors
    /// [`Error::NoWeights`], [`Error::Read`], [`Error::Json`] or [`Error::BadWeights`].
    pub fn open(dir: &Path, stem: &str, variant: Option<&str>) -> Result<Self> {
        Self::map(dir.display().to_string(), &locate(dir, stem, variant)?)
    }

    /// Opens one safetensors file.
    ///
    /// # Errors
    /// [`Error::Read`] or [`Error::BadWeights`].
    pub fn open_file(path: &Path) -> Result<Self> {
        Self::map(path.display().to_string(), &[path.to_owned()])
    }

    fn map(origin: String, paths: &[PathBuf]) -> Result<Self> {
        let mut files = Vec::with_capacity(paths.len());
        let mut entries = BTreeMap::new();
        for path in paths {
            let map = map_file(path)?;
            let bad = |reason: String| Error::BadWeights {
                path: path.clone(),
                reason,
            };
            let parsed = SafeTensors::deserialize(&map).map_err(|e| bad(e.to_string()))?;
            for (name, view) in parsed.iter() {
                let entry = Entry {
                    file: files.len(),
                    offset: view.data().as_ptr() as usize - map.as_ptr() as usize,
                    bytes: view.data().len(),
                    dtype: view.dtype(),
                    shape: view.shape().to_vec(),
                };
                if entries.insert(name.to_owned(), entry).is_some() {
                    return Err(bad(format!("tensor {name} is in two shards")));
                }
            }
            files.push(map);
        }
        Ok(Self {
            origin,
            files,
            entries,
        })
    }

    /// Gives tensors the names (and shapes) of the model's layers: published files differ in both.
    ///
    /// `rename` sees each name with its shape; `None` leaves the tensor out. A changed shape must
    /// have the same number of values.
    pub fn adapt(&mut self, rename: impl Fn(&str, &mut Vec<usize>) -> Option<String>) {
        self.entries = std::mem::take(&mut self.entries)
            .into_iter()
            .filter_map(|(name, mut entry)| {
                let name = rename(&name, &mut entry.shape)?;
                Some((name, entry))
            })
            .collect();
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Checks that the files hold exactly the model's `parameters`, in a type that can be read.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::WrongShape`], [`Error::WrongDtype`] or
    /// [`Error::UnknownTensor`] for the first tensor that is off.
    pub fn check(&self, parameters: &[Parameter]) -> Result<()> {
        for parameter in parameters {
            let entry = self.entry(&parameter.name)?;
            if entry.shape != parameter.shape {
                return Err(Error::WrongShape {
                    name: format!("{}: {}", self.origin, parameter.name),
                    want: parameter.shape.clone(),
                    got: entry.shape.clone(),
                });
            }
            if !matches!(entry.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                return Err(Error::WrongDtype {
                    name: format!("{}: {}", self.origin, parameter.name),
                    dtype: format!("{:?}", entry.dtype),
                });
            }
        }
        let known: std::collections::HashSet<&str> =
            parameters.iter().map(|p| p.name.as_str()).collect();
        match self.names().find(|name| !known.contains(name)) {
            Some(name) => Err(Error::UnknownTensor {
                origin: self.origin.clone(),
                name: name.into(),
            }),
            None => Ok(()),
        }
    }

    /// Reads one tensor as f32.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::WrongDtype`] or [`Error::NotFinite`].
    pub fn read(&self, name: &str) -> Result<HostTensor> {
        let entry = self.entry(name)?;
        let full_name = || format!("{}: {name}", self.origin);
        let bytes = &self.files[entry.file][entry.offset..entry.offset + entry.bytes];
        let data = decode(bytes, entry.dtype).ok_or_else(|| Error::WrongDtype {
            name: full_name(),
            dtype: format!("{:?}", entry.dtype),
        })?;
        let tensor = HostTensor::new(entry.shape.clone(), data)?;
        tensor.check_finite(&full_name())?;
        Ok(tensor)
    }

    /// A digest of the weights: BLAKE3 over each tensor's name, type, shape and bytes in the order
    /// of names. It does not depend on how the file is sharded, but does on the number type.
    pub fn digest(&self) -> String {
        let parts: Vec<blake3::Hash> = self
            .entries
            .par_iter()
            .map(|(name, entry)| {
                let mut hasher = blake3::Hasher::new();
                hasher.update(format!("{name} {:?} {:?} ", entry.dtype, entry.shape).as_bytes());
                hasher.update(&self.files[entry.file][entry.offset..entry.offset + entry.bytes]);
                hasher.finalize()
            })
            .collect();
        let mut all = blake3::Hasher::new();
        for part in parts {
            all.update(part.as_bytes());
        }
        all.finalize().to_hex().to_string()
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.entries.get(name).ok_or_else(|| Error::MissingTensor {
            origin: self.origin.clone(),
            name: name.into(),
        })
    }
}

/// Little-endian numbers as f32, or `None` for another type. The bytes may be misaligned.
fn decode(bytes: &[u8], dtype: Dtype) -> Option<Vec<f32>> {
    fn numbers<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        bytes.as_chunks::<N>().0.iter().map(|b| read(*b)).collect()
    }
    match dtype {
        Dtype::F32 => Some(numbers(bytes, f32::from_le_bytes)),
        Dtype::F16 => Some(numbers(bytes, |b| f16::from_le_bytes(b).to_f32())),
        Dtype::BF16 => Some(numbers(bytes, |b| bf16::from_le_bytes(b).to_f32())),
        _ => None,
    }
}

fn map_file(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|e| Error::read(path, e))?;
    // SAFETY: the map is read-only. Should another process change the file meanwhile, numbers
    // change, never the layout: that was checked against the map's own length.
    unsafe { Mmap::map(&file) }.map_err(|e| Error::read(path, e))
}

/// The files that make up `stem` in `dir`.
fn locate(dir: &Path, stem: &str, variant: Option<&str>) -> Result<Vec<PathBuf>> {
    let found = |variant: Option<&str>| -> Result<Option<Vec<PathBuf>>> {
        let infix = variant.map(|v| format!(".{v}")).unwrap_or_default();
        let whole = dir.join(format!("{stem}{infix}.safetensors"));
        if whole.is_file() {
            return Ok(Some(vec![whole]));
        }
        let index = dir.join(format!("{stem}.safetensors.index{infix}.json"));
        index.is_file().then(|| shards(dir, &index)).transpose()
    };
    let none = || Error::NoWeights {
        dir: dir.to_owned(),
        stem: stem.to_owned(),
        variant: variant
            .map(|v| format!(", nor the variant {v}"))
            .unwrap_or_default(),
    };
    if !dir.is_dir() {
        let source = std::io::Error::new(std::io::ErrorKind::NotFound, "no such directory");
        return Err(Error::read(dir, source));
    }
    if let Some(paths) = found(variant)? {
        return Ok(paths);
    }
    if variant.is_none() {
        for variant in ["fp16", "bf16", "fp32"] {
            if let Some(paths) = found(Some(variant))? {
                return Ok(paths);
            }
        }
    }
    Err(none())
}

fn shards(dir: &Path, path: &Path) -> Result<Vec<PathBuf>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::read(path, e))?;
    let index: Index = serde_json::from_str(&text).map_err(|cause| Error::Json {
        path: path.to_owned(),
        cause,
    })?;
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
