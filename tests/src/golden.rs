//! Golden files: what the reference library computes with the tiny models.
//!
//! The keys are listed at the top of `scripts/goldens/models.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use lacuna_model::host::OnDevice;
use lacuna_wire::HostTensor;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// The tiny models, each of one family.
pub const MODELS: [&str; 3] = ["sd1", "sd2", "odd"];

/// One golden file.
pub struct Golden {
    name: String,
    floats: BTreeMap<String, HostTensor>,
    integers: BTreeMap<String, Integers>,
    case: Value,
}

/// A dense row-major tensor of integers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Integers {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// `shape.iter().product()` values.
    pub data: Vec<i32>,
}

/// How far a result is from the reference.
#[derive(Clone, Copy, Debug)]
pub struct Distance {
    /// Largest absolute difference.
    pub max_error: f64,
    /// Largest difference in units of the tolerance: above 1 fails.
    pub worst: f64,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens")
}

/// The root of the repository.
pub fn repository() -> &'static Path {
    let member = Path::new(env!("CARGO_MANIFEST_DIR"));
    member.parent().unwrap_or(member)
}

/// Whether there is a golden file `name`: that of the demo model may not be made yet.
pub fn has_golden(name: &str) -> bool {
    folder().join(format!("{name}.safetensors")).exists()
}

/// The picture of the golden file `name`.
pub fn golden_png(name: &str) -> PathBuf {
    folder().join(format!("{name}.png"))
}

/// The directory of a tiny model.
pub fn model_dir(name: &str) -> PathBuf {
    folder().join("models").join(name)
}

impl Golden {
    /// Reads `goldens/<name>.safetensors`.
    pub fn load(name: &str) -> Self {
        let path = folder().join(format!("{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let entries = metadata.metadata().as_ref().unwrap();
        let case = serde_json::from_str(&entries["case"]).unwrap();
        let mut golden = Self {
            name: name.to_owned(),
            floats: BTreeMap::new(),
            integers: BTreeMap::new(),
            case,
        };
        for (key, view) in SafeTensors::deserialize(&bytes).unwrap().iter() {
            let (key, shape) = (key.to_owned(), view.shape().to_vec());
            let words = view.data().as_chunks::<4>().0.iter();
            match view.dtype() {
                Dtype::F32 => {
                    let data = words.map(|w| f32::from_le_bytes(*w)).collect();
                    let tensor = HostTensor::new(shape, data).unwrap();
                    golden.floats.insert(key, tensor);
                }
                Dtype::I32 => {
                    let data = words.map(|w| i32::from_le_bytes(*w)).collect();
                    golden.integers.insert(key, Integers { shape, data });
                }
                other => panic!("{name}: {key} has dtype {other:?}"),
            }
        }
        golden
    }

    /// Everything of the case that is no tensor: prompts, sizes, seed.
    pub fn case(&self) -> &Value {
        &self.case
    }

    /// The prompts that were tokenized.
    pub fn prompts(&self) -> Vec<&str> {
        let list = self.case["text"]["prompts"].as_array().unwrap();
        list.iter().map(|p| p.as_str().unwrap()).collect()
    }

    /// A tensor by key.
    pub fn host(&self, key: &str) -> &HostTensor {
        let found = self.floats.get(key);
        found.unwrap_or_else(|| panic!("{}: no tensor {key}", self.name))
    }

    /// A tensor by key, on `device`.
    pub fn tensor<const D: usize>(&self, key: &str, device: &Device) -> Tensor<D> {
        self.host(key).clone().into_device(device).unwrap()
    }

    /// A tensor of integers by key.
    pub fn integers(&self, key: &str) -> &Integers {
        let found = self.integers.get(key);
        found.unwrap_or_else(|| panic!("{}: no integers {key}", self.name))
    }

    /// Keys that begin with `prefix`.
    pub fn keys(&self, prefix: &str) -> impl Iterator<Item = &str> {
        let matching = self.floats.keys().filter(move |k| k.starts_with(prefix));
        matching.map(String::as_str)
    }

    /// Whether there is a tensor `key`.
    pub fn has(&self, key: &str) -> bool {
        self.floats.contains_key(key)
    }

    /// Compares a result with the tensor `key` by `1e-4 + 1e-3 * |want|` for each value, and says
    /// how close it came. Activations may be stored thinned out (`act_stride`).
    ///
    /// # Panics
    /// When the shapes differ or a value is too far off, naming the tensor.
    pub fn check<const D: usize>(&self, key: &str, got: Tensor<D>) -> Distance {
        let got = HostTensor::from_device(got).unwrap();
        let want = self.host(key);
        let stride = match self.case["act_stride"].as_u64() {
            Some(stride) if key.contains(".act") => stride as usize,
            _ => 1,
        };
        let label = format!("{}: {key}", self.name);
        let values: Vec<f32> = got.data.iter().step_by(stride).copied().collect();
        if stride == 1 {
            assert_eq!(got.shape, want.shape, "{label}: shape");
        }
        let distance = compare(&label, &values, &want.data);
        println!(
            "{label}: largest error {:.2e}, {:.3} of the tolerance",
            distance.max_error, distance.worst
        );
        distance
    }
}

/// Compares two lists by `1e-4 + 1e-3 * |want|` for each value.
///
/// # Panics
/// When the lengths differ or a value is too far off.
pub fn compare(label: &str, got: &[f32], want: &[f32]) -> Distance {
    assert_eq!(got.len(), want.len(), "{label}: number of values");
    let mut distance = Distance {
        max_error: 0.0,
        worst: 0.0,
    };
    let mut worst_at = 0;
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - f64::from(want)).abs();
        let units = error / (1e-4 + 1e-3 * f64::from(want).abs());
        // Not a number compares as neither larger nor smaller, but it is as far off as can be.
        let units = if units.is_nan() { f64::INFINITY } else { units };
        if units > distance.worst {
            distance.worst = units;
            worst_at = i;
        }
        distance.max_error = distance.max_error.max(error);
    }
    assert!(
        distance.worst <= 1.0,
        "{label}: value {worst_at} of {} is {}, want {}: {:.3} times the tolerance",
        want.len(),
        got[worst_at],
        want[worst_at],
        distance.worst
    );
    distance
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tolerance_grows_with_the_value() {
        let distance = compare("x", &[20.015, 0.00005], &[20.0, 0.0]);
        assert!((0.7..0.8).contains(&distance.worst), "{distance:?}");
    }

    #[test]
    #[should_panic(expected = "value 1 of 2")]
    fn a_value_that_is_off_is_named() {
        compare("x", &[1.0, 1.01], &[1.0, 1.0]);
    }

    #[test]
    #[should_panic(expected = "value 0 of 2")]
    fn not_a_number_is_off() {
        compare("x", &[f32::NAN, 1.0], &[1.0, 1.0]);
    }
}
