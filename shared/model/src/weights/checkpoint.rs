//! Weight files of one network: safetensors in f32, f16 or bf16, whole or sharded.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rayon::prelude::*;
use safetensors::Dtype;

use super::digests::{DigestCache, Key};
use super::file::WeightFile;
use super::files::{Library, WeightFiles, has_variant};
use super::numbers::{Reading, decoder};
use crate::error::{Error, Result};
use crate::layers::Parameter;
use lacuna_wire::{Error as TensorError, HostTensor};

/// The open weight files of one network. Nothing is read until a tensor is asked for, and no more of it
/// at a time than is being looked at.
pub struct Checkpoint {
    origin: String,
    files: Vec<WeightFile>,
    entries: BTreeMap<String, Entry>,
    /// Made when first asked for.
    digest: OnceLock<String>,
    /// Where it may be kept from one run to the next.
    digests: Option<DigestCache>,
}

/// A tensor of a model as a part of a tensor of a file, which may lie there by another name or in another form.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// Of the model's tensor.
    pub name: String,
    /// Of the model's tensor.
    pub shape: Vec<usize>,
    /// The first of the file's values that it is made of, in the file's order; it takes as many as its shape has.
    pub from: usize,
    /// Whether the file has it with rows and columns changed about.
    pub transposed: bool,
}

impl View {
    /// A whole tensor by another `name`.
    pub fn whole(name: impl Into<String>, shape: &[usize]) -> Self {
        Self {
            name: name.into(),
            shape: shape.to_vec(),
            from: 0,
            transposed: false,
        }
    }
}

/// Where a tensor lies.
#[derive(Clone, Debug)]
struct Entry {
    file: usize,
    /// First byte in the file.
    offset: u64,
    bytes: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Whether rows and columns are to be changed about.
    transposed: bool,
}

impl Checkpoint {
    /// Opens the weights in `dir` by the names that `library` gives them: `stem.safetensors`, or shards by
    /// `stem.safetensors.index.json`. With a `variant` these are `stem.variant.safetensors` and
    /// `stem.safetensors.index.variant.json`; a directory without any file of it is read as without a
    /// variant, with a warning. Without a `variant`, a directory that holds only one (`fp16`, say) is read
    /// all the same.
    ///
    /// # Errors
    /// [`Error::NoWeights`], [`Error::Read`], [`Error::Json`] or [`Error::BadWeights`].
    pub fn open(dir: &Path, library: Library, variant: Option<&str>) -> Result<Self> {
        let files = WeightFiles::locate(dir, library, variant)?;
        Self::of_files(dir.display().to_string(), &files.weights)
    }

    /// Whether `dir` holds files of a variant, which are then the only ones to be read.
    pub fn has_variant(dir: &Path, variant: &str) -> bool {
        has_variant(dir, variant)
    }

    /// Opens one safetensors file.
    ///
    /// # Errors
    /// [`Error::Read`] or [`Error::BadWeights`].
    pub fn open_file(path: &Path) -> Result<Self> {
        Self::of_files(path.display().to_string(), &[path.to_owned()])
    }

    fn of_files(origin: String, paths: &[PathBuf]) -> Result<Self> {
        let mut files = Vec::with_capacity(paths.len());
        let mut entries = BTreeMap::new();
        for path in paths {
            let (file, header) = WeightFile::open(path)?;
            for (name, tensor) in header.tensors() {
                let (start, end) = tensor.data_offsets;
                let entry = Entry {
                    file: files.len(),
                    offset: file.data() + start as u64,
                    bytes: end - start,
                    dtype: tensor.dtype,
                    shape: tensor.shape.clone(),
                    transposed: false,
                };
                if entries.insert(name.clone(), entry).is_some() {
                    return Err(file.bad(format!("tensor {name} is in two shards")));
                }
            }
            files.push(file);
        }
        Ok(Self {
            origin,
            files,
            entries,
            digest: OnceLock::new(),
            digests: None,
        })
    }

    /// The same, whose digest may be found in `digests`, or is kept there.
    pub fn with_digests(self, digests: Option<DigestCache>) -> Self {
        Self { digests, ..self }
    }

    /// Gives tensors the names (and shapes) of the model's layers: published files differ in both.
    ///
    /// `rename` sees each name with its shape; `None` leaves the tensor out. A changed shape must
    /// have the same number of values.
    pub fn adapt(&mut self, rename: impl Fn(&str, &mut Vec<usize>) -> Option<String>) {
        self.view(|name, shape| {
            let mut shape = shape.to_vec();
            let name = rename(name, &mut shape);
            name.map(|name| View::whole(name, &shape))
                .into_iter()
                .collect()
        });
    }

    /// Looks at the files' tensors as those of the model's layers: `look` sees each name with its shape, and says what
    /// the model makes of it. Of a view that goes beyond its tensor nothing is made.
    pub fn view(&mut self, look: impl Fn(&str, &[usize]) -> Vec<View>) {
        let mut seen = BTreeMap::new();
        for (name, entry) in std::mem::take(&mut self.entries) {
            let values: usize = entry.shape.iter().product();
            for view in look(&name, &entry.shape) {
                let taken: usize = view.shape.iter().product();
                if view.from + taken > values {
                    continue;
                }
                let size = entry.bytes.checked_div(values).unwrap_or(0);
                let entry = Entry {
                    offset: entry.offset + (view.from * size) as u64,
                    bytes: taken * size,
                    shape: view.shape,
                    transposed: entry.transposed != view.transposed,
                    ..entry.clone()
                };
                seen.insert(view.name, entry);
            }
        }
        self.entries = seen;
    }

    /// The shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Keeps `parameters` alone, after a check that they are there; warns of the tensors left out.
    ///
    /// # Errors
    /// As [`Self::check_part`].
    pub fn keep(&mut self, parameters: &[Parameter]) -> Result<()> {
        self.check_part(parameters)?;
        if let Some(first) = self.stray(parameters) {
            let unused = self.entries.len() - parameters.len();
            let origin = &self.origin;
            tracing::warn!(
                "{origin}: {unused} unused tensors, {first} the first: the config describes a model without"
            );
        }
        let known: HashSet<&str> = parameters.iter().map(|p| p.name.as_str()).collect();
        self.entries.retain(|name, _| known.contains(name.as_str()));
        Ok(())
    }

    /// Checks that the files hold exactly the model's `parameters`, in a type that can be read.
    ///
    /// # Errors
    /// As [`Self::check_part`], and [`Error::UnknownTensor`] for the first tensor that is none of them.
    pub fn check(&self, parameters: &[Parameter]) -> Result<()> {
        self.check_part(parameters)?;
        match self.stray(parameters) {
            Some(name) => Err(Error::UnknownTensor {
                origin: self.origin.clone(),
                name: name.escape_debug().to_string().chars().take(100).collect(),
            }),
            None => Ok(()),
        }
    }

    /// The first tensor that is none of `parameters`.
    fn stray(&self, parameters: &[Parameter]) -> Option<&str> {
        let known: HashSet<&str> = parameters.iter().map(|p| p.name.as_str()).collect();
        self.names().find(|name| !known.contains(name))
    }

    /// Checks that the files hold `parameters`, in a type that can be read; they may hold others.
    ///
    /// # Errors
    /// [`TensorError::MissingTensor`], [`TensorError::WrongShape`] or [`TensorError::WrongDtype`] for the first tensor that
    /// is off.
    pub fn check_part(&self, parameters: &[Parameter]) -> Result<()> {
        for parameter in parameters {
            let entry = self.entry(&parameter.name)?;
            if entry.shape != parameter.shape {
                return Err(TensorError::WrongShape {
                    name: format!("{}: {}", self.origin, parameter.name),
                    want: parameter.shape.clone(),
                    got: entry.shape.clone(),
                }
                .into());
            }
            if decoder(entry.dtype).is_none() {
                return Err(TensorError::WrongDtype {
                    name: format!("{}: {}", self.origin, parameter.name),
                    dtype: format!("{:?}", entry.dtype),
                }
                .into());
            }
        }
        Ok(())
    }

    /// Reads one tensor as f32.
    ///
    /// # Errors
    /// [`TensorError::MissingTensor`], [`TensorError::WrongDtype`], [`TensorError::NotFinite`], or [`Error::Read`] when the
    /// file has become shorter.
    pub fn read(&self, name: &str) -> Result<HostTensor> {
        self.read_as(name, false)
    }

    /// The same; if `by_input`, of a matrix `[D_out, D_in]` that is `[D_in, D_out]`.
    pub(super) fn read_as(&self, name: &str, by_input: bool) -> Result<HostTensor> {
        let entry = self.entry(name)?;
        let full_name = || format!("{}: {name}", self.origin);
        let decode = decoder(entry.dtype).ok_or_else(|| TensorError::WrongDtype {
            name: full_name(),
            dtype: format!("{:?}", entry.dtype),
        })?;
        let (shape, turned) = match (entry.shape.as_slice(), by_input) {
            (&[outputs, inputs], true) => (vec![inputs, outputs], !entry.transposed),
            (shape, _) => (shape.to_vec(), entry.transposed),
        };
        let mut reading = match (shape.as_slice(), turned) {
            // The file has its columns as rows.
            (&[columns, rows], true) => Reading::turned(rows, columns),
            _ => Reading::plain(shape.iter().product()),
        };
        self.each_part(entry, |bytes| decode(bytes, &mut |run| reading.push(run)))?;
        let values = reading
            .finish()
            .ok_or_else(|| TensorError::NotFinite { name: full_name() })?;
        Ok(HostTensor::new(shape, values)?)
    }

    /// The whole number that a tensor is, such as a count of steps; none where it is anything else.
    pub fn whole_number(&self, name: &str) -> Option<i64> {
        let entry = self.entries.get(name)?;
        if entry.shape.iter().product::<usize>() != 1 {
            return None;
        }
        let mut bytes = Vec::new();
        self.each_part(entry, |part| bytes.extend_from_slice(part))
            .ok()?;
        match entry.dtype {
            Dtype::I64 => bytes.try_into().map(i64::from_le_bytes).ok(),
            Dtype::I32 => bytes.try_into().map(i32::from_le_bytes).map(i64::from).ok(),
            _ => {
                let [value] = self.read(name).ok()?.data[..] else {
                    return None;
                };
                (value.fract() == 0.0).then_some(value as i64)
            }
        }
    }

    /// A digest of the weights: BLAKE3 over each tensor's name, type, shape and bytes in the order
    /// of names. It does not depend on how the file is sharded, but does on the number type.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub fn digest(&self) -> Result<&str> {
        if let Some(digest) = self.digest.get() {
            return Ok(digest);
        }
        let cache = self.digests.as_ref();
        let cached = cache.and_then(|cache| Some((cache, self.key(cache)?)));
        let found = cached.as_ref().and_then(|(cache, key)| cache.find(key));
        let digest = match found {
            Some(digest) => digest,
            None => {
                let digest = self.make_digest()?;
                if let Some((cache, key)) = &cached {
                    self.keep_digest(cache, key, &digest);
                }
                digest
            }
        };
        Ok(self.digest.get_or_init(|| digest))
    }

    /// What the files and the tensors that are taken of them are known by.
    fn key(&self, cache: &DigestCache) -> Option<Key> {
        let bytes = self.entries.values().map(|entry| entry.bytes as u64).sum();
        let files = self.files.iter().map(|file| file.metadata().ok());
        let files = files.collect::<Option<Vec<_>>>()?;
        cache.key(bytes, &files, &format!("{:?}", self.entries))
    }

    /// Keeps the digest, unless the files changed while it was made.
    fn keep_digest(&self, cache: &DigestCache, key: &Key, digest: &str) {
        if self.key(cache).as_ref() == Some(key) {
            cache.keep(key, digest);
        }
    }

    fn make_digest(&self) -> Result<String> {
        let parts: Vec<blake3::Hash> = self
            .entries
            .par_iter()
            .map(|(name, entry)| {
                let mut hasher = blake3::Hasher::new();
                hasher.update(format!("{name} {:?} {:?} ", entry.dtype, entry.shape).as_bytes());
                self.each_part(entry, |bytes| {
                    hasher.update(bytes);
                })?;
                Ok(hasher.finalize())
            })
            .collect::<Result<_>>()?;
        let mut all = blake3::Hasher::new();
        for part in parts {
            all.update(part.as_bytes());
        }
        Ok(all.finalize().to_hex().to_string())
    }

    /// Shows a tensor's bytes to `look`, part after part.
    fn each_part(&self, entry: &Entry, look: impl FnMut(&[u8])) -> Result<()> {
        self.files[entry.file].each_part(entry.offset, entry.bytes, look)
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.entries.get(name).ok_or_else(|| {
            TensorError::MissingTensor {
                origin: self.origin.clone(),
                name: name.into(),
            }
            .into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_is_read_by_input_however_the_file_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let matrix = HostTensor::new([2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let vector = HostTensor::new([3], vec![7.0, 8.0, 9.0]).unwrap();
        let tensors = [("matrix", &matrix), ("vector", &vector)];
        std::fs::write(&path, lacuna_wire::to_safetensors(tensors, None).unwrap()).unwrap();
        let plain = Checkpoint::open_file(&path).unwrap();
        assert_eq!(plain.read("matrix").unwrap(), matrix);
        let turned = HostTensor::new([3, 2], vec![1.0, 4.0, 2.0, 5.0, 3.0, 6.0]).unwrap();
        assert_eq!(plain.read_as("matrix", true).unwrap(), turned);
        assert_eq!(plain.read_as("vector", true).unwrap(), vector);

        let mut other = Checkpoint::open_file(&path).unwrap();
        other.view(|name, shape| {
            let mut view = View::whole(name, shape);
            view.shape.reverse();
            view.transposed = shape.len() == 2;
            vec![view]
        });
        assert_eq!(other.read("matrix").unwrap(), turned);
        assert_eq!(other.read_as("matrix", true).unwrap(), matrix);
    }
}
