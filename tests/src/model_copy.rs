//! A copy of a tiny model in a temporary directory, with something changed: how published models
//! vary, and how downloads break.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use crate::golden;

/// The copy; it is deleted when dropped.
pub struct ModelCopy {
    dir: tempfile::TempDir,
}

/// A tensor in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct RawTensor {
    /// Number type.
    pub dtype: Dtype,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Little-endian values.
    pub data: Vec<u8>,
}

/// The tensors of a file, by name.
pub type Tensors = BTreeMap<String, RawTensor>;

impl ModelCopy {
    /// A copy of the tiny model `name`.
    pub fn of(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy_folder(&golden::model_dir(name), dir.path());
        Self { dir }
    }

    /// The model's directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The directory of a part, `vae` for example.
    pub fn part(&self, part: &str) -> PathBuf {
        self.dir.path().join(part)
    }

    /// Sets a key of a JSON file, or removes it where `value` is null.
    pub fn set(&self, file: &str, key: &str, value: Value) -> &Self {
        self.change_json(file, |map| {
            if value.is_null() {
                map.remove(key);
            } else {
                map.insert(key.into(), value);
            }
        })
    }

    /// Sets a key of a JSON file to null.
    pub fn set_null(&self, file: &str, key: &str) -> &Self {
        self.change_json(file, |map| {
            map.insert(key.into(), Value::Null);
        })
    }

    /// Changes a JSON file.
    pub fn change_json(&self, file: &str, change: impl FnOnce(&mut Map<String, Value>)) -> &Self {
        let path = self.dir.path().join(file);
        let mut map = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut map);
        std::fs::write(&path, Value::Object(map).to_string()).unwrap();
        self
    }

    /// Writes a file.
    pub fn write(&self, file: &str, bytes: impl AsRef<[u8]>) -> &Self {
        std::fs::write(self.dir.path().join(file), bytes).unwrap();
        self
    }

    /// Removes a file.
    pub fn remove(&self, file: &str) -> &Self {
        std::fs::remove_file(self.dir.path().join(file)).unwrap();
        self
    }

    /// Renames a file.
    pub fn rename(&self, from: &str, to: &str) -> &Self {
        let root = self.dir.path();
        std::fs::rename(root.join(from), root.join(to)).unwrap();
        self
    }

    /// Cuts a file to a part of its length.
    pub fn truncate(&self, file: &str, share: f64) -> &Self {
        let path = self.dir.path().join(file);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..(bytes.len() as f64 * share) as usize]).unwrap();
        self
    }

    /// Changes the tensors of a weight file.
    pub fn change_tensors(&self, file: &str, change: impl FnOnce(&mut Tensors)) -> &Self {
        let path = self.dir.path().join(file);
        Self::change_file(&path, &path, change);
        self
    }

    /// Writes the tensors of one weight file, changed, as another.
    pub fn change_file(from: &Path, to: &Path, change: impl FnOnce(&mut Tensors)) {
        let mut tensors = read_tensors(from);
        change(&mut tensors);
        write_tensors(to, &tensors);
    }

    /// Writes the tensors of a weight file in f32, times `factor`, as the file `to`.
    pub fn scale_tensors(&self, from: &str, to: &str, factor: f32) -> &Self {
        let root = self.dir.path();
        let mut tensors = read_tensors(&root.join(from));
        for (name, tensor) in &mut tensors {
            assert_eq!(tensor.dtype, Dtype::F32, "{name}");
            for word in tensor.data.as_chunks_mut::<4>().0 {
                *word = (f32::from_le_bytes(*word) * factor).to_le_bytes();
            }
        }
        write_tensors(&root.join(to), &tensors);
        self
    }

    /// Keeps `rows` of a tensor, some perhaps twice.
    pub fn keep_rows(&self, file: &str, name: &str, rows: &[usize]) -> &Self {
        self.change_tensors(file, |tensors| {
            let tensor = tensors.get_mut(name).unwrap();
            let row = tensor.data.len() / tensor.shape[0];
            let kept = rows.iter().map(|i| &tensor.data[i * row..][..row]);
            tensor.data = kept.collect::<Vec<_>>().concat();
            tensor.shape[0] = rows.len();
        })
    }

    /// Splits `part/stem.safetensors` into `count` shards with an index, and removes it.
    pub fn shard(&self, part: &str, stem: &str, count: usize) -> &Self {
        self.add_shards(part, stem, count);
        self.remove(&format!("{part}/{stem}.safetensors"))
    }

    /// The same, with the file left beside them.
    pub fn add_shards(&self, part: &str, stem: &str, count: usize) -> &Self {
        let dir = self.part(part);
        let whole = dir.join(format!("{stem}.safetensors"));
        let mut shards = vec![Tensors::new(); count];
        let mut map = Map::new();
        for (i, (name, tensor)) in read_tensors(&whole).into_iter().enumerate() {
            map.insert(name.clone(), json!(shard_name(stem, i % count, count)));
            shards[i % count].insert(name, tensor);
        }
        for (i, shard) in shards.iter().enumerate() {
            write_tensors(&dir.join(shard_name(stem, i, count)), shard);
        }
        let index = json!({"metadata": {}, "weight_map": map}).to_string();
        std::fs::write(dir.join(format!("{stem}.safetensors.index.json")), index).unwrap();
        self
    }
}

fn shard_name(stem: &str, i: usize, count: usize) -> String {
    format!("{stem}-{:05}-of-{count:05}.safetensors", i + 1)
}

/// Renames every tensor for which `rename` gives another name.
pub fn rename_tensors(tensors: &mut Tensors, rename: impl Fn(&str) -> String) {
    *tensors = std::mem::take(tensors)
        .into_iter()
        .map(|(name, tensor)| (rename(&name), tensor))
        .collect();
}

fn read_tensors(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let raw = file.iter().map(|(name, view)| {
        let tensor = RawTensor {
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            data: view.data().to_vec(),
        };
        (name.to_owned(), tensor)
    });
    raw.collect()
}

fn write_tensors(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, t)| {
        let view = TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap();
        (name.as_str(), view)
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
