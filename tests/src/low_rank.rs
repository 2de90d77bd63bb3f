//! A low-rank adapter of a tiny model, and the model that it makes.

use std::path::{Path, PathBuf};

use lacuna_model::weights::{Checkpoint, Library};
use lacuna_wire::{HostTensor, to_safetensors};

use crate::golden::{model_dir, repository};
use crate::model_copy::ModelCopy;

const RANK: usize = 2;

/// Numbers like any others.
fn wave(shape: &[usize], seed: f32) -> HostTensor {
    let len = shape.iter().product();
    let data = (0..len).map(|i| 0.3 * (seed + i as f32 * 0.731).sin());
    HostTensor::new(shape, data.collect()).unwrap()
}

/// Writes an adapter of every linear map of attention, and of convolutions, of the tiny `model` to `path`. Gives the model with it merged at
/// `strength`, in f64.
pub fn adapter(model: &str, path: &Path, strength: f32) -> ModelCopy {
    let folder = model_dir(model).join("unet");
    let files = Checkpoint::open(&folder, Library::Diffusers, None).unwrap();
    let (mut factors, mut merged) = (Vec::new(), Vec::new());
    for (i, name) in files.names().enumerate() {
        let mut weight = files.read(name).unwrap();
        let layer = name.strip_suffix(".weight").unwrap_or_default();
        if layer.contains(".to_") || layer.ends_with("resnets.0.conv1") {
            let [rows, rest @ ..] = weight.shape.as_slice() else {
                continue;
            };
            let (down, up) = match rest {
                [_] => ([&[RANK], rest].concat(), vec![*rows, RANK]),
                _ => ([&[RANK], rest].concat(), vec![*rows, RANK, 1, 1]),
            };
            let (down, up) = (wave(&down, i as f32), wave(&up, 0.5 * i as f32));
            let width = down.data.len() / RANK;
            for (at, value) in weight.data.iter_mut().enumerate() {
                let (row, column) = (at / width, at % width);
                let product = |k: usize| {
                    f64::from(up.data[row * RANK + k]) * f64::from(down.data[k * width + column])
                };
                let change: f64 = (0..RANK).map(product).sum();
                *value = (f64::from(*value) + f64::from(strength) * change) as f32;
            }
            factors.push((format!("unet.{layer}.lora_A.weight"), down));
            factors.push((format!("unet.{layer}.lora_B.weight"), up));
        }
        merged.push((name.to_owned(), weight));
    }
    assert!(factors.len() > 20, "{}", factors.len());
    let bytes = |tensors: &[(String, HostTensor)]| {
        let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        to_safetensors(named, None).unwrap()
    };
    std::fs::write(path, bytes(&factors)).unwrap();
    let copy = ModelCopy::of(model);
    let weights = copy.path().join("unet/diffusion_pytorch_model.safetensors");
    assert!(weights.is_file());
    std::fs::write(weights, bytes(&merged)).unwrap();
    copy
}

/// Writes a policy to `path` that keeps adapters from providers, and allows all else that `fast` does.
pub fn hiding(path: &Path) -> PathBuf {
    let fast = repository().join("configs/policies/fast.toml");
    let text = std::fs::read_to_string(fast).unwrap();
    assert!(!text.contains("adapters"), "{text}");
    std::fs::write(path, format!("adapters = \"hidden\"\n{text}")).unwrap();
    path.to_owned()
}
