//! A network on disk: its files are checked, nothing of them is loaded.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;

use super::adapter::{AdapterPart, Fitted, LowRank, fit_all, merge_all};
use super::apart::{Apart, Reader};
use super::{Checkpoint, Weights, list};
use crate::device::Target;
use crate::error::Result;
use crate::layers::{Parameter, Parameters};
use lacuna_wire::HostTensor;

/// A network's layers, with files that were checked to hold their parameters.
pub struct Stored<L> {
    layers: L,
    checkpoint: Arc<Checkpoint>,
    adapters: Vec<Fitted>,
    digest: OnceLock<String>,
}

impl<L: Parameters> Stored<L> {
    /// `layers` with the `checkpoint` that holds their parameters; it may hold others, which are warned
    /// of and left out.
    ///
    /// # Errors
    /// As [`Checkpoint::keep`].
    pub fn new(layers: L, mut checkpoint: Checkpoint) -> Result<Self> {
        checkpoint.keep(&list(&layers))?;
        Ok(Self {
            layers,
            checkpoint: Arc::new(checkpoint),
            adapters: Vec::new(),
            digest: OnceLock::new(),
        })
    }

    /// The same with `adapters`, which are merged into the weights when they are loaded, one after the other.
    ///
    /// # Errors
    /// [`Error::Adapter`](crate::Error::Adapter) for a layer that there is none of, or of other sizes.
    pub fn with_adapters(self, adapters: Vec<AdapterPart>) -> Result<Self> {
        Ok(Self {
            adapters: fit_all(&self.layers, adapters)?,
            digest: OnceLock::new(),
            ..self
        })
    }

    /// Whether adapters change it.
    pub fn is_adapted(&self) -> bool {
        !self.adapters.is_empty()
    }

    /// One parameter, adapters included.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub fn read(&self, name: &str) -> Result<HostTensor> {
        read(&self.checkpoint, &self.adapters, name)
    }

    /// Reads a parameter, adapters included; where that is wanted, a matrix by input.
    fn reader(&self) -> impl Fn(&Parameter, bool) -> Result<HostTensor> + Sync {
        // Without the layers, which need not be fit for several threads.
        let (checkpoint, adapters) = (&*self.checkpoint, self.adapters.as_slice());
        move |parameter, by_input| match (by_input, adapters.is_empty()) {
            (false, _) => read(checkpoint, adapters, &parameter.name),
            (true, true) => checkpoint.read_as(&parameter.name, true),
            (true, false) => Ok(read(checkpoint, adapters, &parameter.name)?.by_input()),
        }
    }

    /// The layers.
    pub fn layers(&self) -> &L {
        &self.layers
    }

    /// Identifies what is computed: the weights, what of the arithmetic they do not tell
    /// ([`Parameters::arithmetic`]), and the adapters.
    ///
    /// # Errors
    /// As [`Checkpoint::digest`].
    pub fn digest(&self) -> Result<&str> {
        if let Some(digest) = self.digest.get() {
            return Ok(digest);
        }
        let digest = self.digest_on(&self.base_digest()?);
        Ok(self.digest.get_or_init(|| digest))
    }

    /// The digest of the same without its adapters.
    ///
    /// # Errors
    /// As [`Checkpoint::digest`].
    pub fn base_digest(&self) -> Result<String> {
        let weights = self.checkpoint.digest()?;
        Ok(match self.layers.arithmetic().as_str() {
            "" => weights.to_owned(),
            told => {
                // Adapters had a part in it once; under another name every model would have another digest.
                let context = "lacuna 2026-11 model: weights, arithmetic, adapters";
                let mut hasher = blake3::Hasher::new_derive_key(context);
                hasher.update(weights.as_bytes());
                hasher.update(blake3::hash(told.as_bytes()).as_bytes());
                hasher.finalize().to_hex().to_string()
            }
        })
    }

    /// The digest of a network whose digest is `base`, with the adapters of this one: nothing but their files is read.
    pub fn digest_on(&self, base: &str) -> String {
        if self.adapters.is_empty() {
            return base.to_owned();
        }
        let mut hasher = blake3::Hasher::new_derive_key("lacuna 2026-11 model with adapters");
        hasher.update(base.as_bytes());
        for adapter in &self.adapters {
            hasher.update(adapter.digest().as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// The adapters as files that others can read them from, each with its strength.
    ///
    /// # Errors
    /// As [`lacuna_wire::to_safetensors`].
    pub fn adapter_files(&self) -> Result<Vec<(Vec<u8>, f32)>> {
        let files = self.adapters.iter();
        let files = files.map(|adapter| Ok((adapter.to_file()?, adapter.strength)));
        files.collect()
    }

    /// Loads everything.
    ///
    /// # Errors
    /// As [`Weights::load_part`].
    pub fn load(&self, target: impl Into<Target>) -> Result<Weights> {
        self.load_part(&list(&self.layers), target)
    }

    /// Loads `parameters` alone.
    ///
    /// # Errors
    /// As [`Weights::load_part`].
    pub fn load_part(
        &self,
        parameters: &[Parameter],
        target: impl Into<Target>,
    ) -> Result<Weights> {
        self.checkpoint.check_part(parameters)?;
        Weights::of_read(parameters, self.reader(), target)
    }

    /// Loads `parameters` for one who has others compute the layers `apart`: their weights are without their adapters, which
    /// come along.
    ///
    /// # Errors
    /// As [`Weights::load_part`].
    pub fn load_apart(
        &self,
        parameters: &[Parameter],
        apart: &Apart,
        target: impl Into<Target>,
    ) -> Result<Weights> {
        self.checkpoint.check_part(parameters)?;
        let (theirs, own) = apart.part(parameters);
        let mut weights = Weights::of_read(&own, self.reader(), target)?;
        let checkpoint = self.checkpoint.clone();
        let reader = Reader::new(move |name| checkpoint.read(name));
        weights.set_apart(&theirs, apart, reader)?;
        let changes = |layer: &String| {
            let of_each = self.adapters.iter();
            let of_each = of_each.filter_map(|adapter| adapter.changes.get(layer).cloned());
            let changes: Vec<LowRank> = of_each.collect();
            (!changes.is_empty()).then(|| (layer.clone(), changes))
        };
        let changes: HashMap<_, _> = apart.layers.iter().filter_map(changes).collect();
        weights.apart = Arc::new(changes);
        Ok(weights)
    }

    /// Checks that every value of `parameters` is finite, as loading them will.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub fn check_values(&self, parameters: &[Parameter]) -> Result<()> {
        let checkpoint = &self.checkpoint;
        let values = parameters.par_iter().map(|p| checkpoint.read(&p.name));
        values.try_for_each(|tensor| tensor.map(drop))
    }
}

/// One parameter, `adapters` included.
fn read(checkpoint: &Checkpoint, adapters: &[Fitted], name: &str) -> Result<HostTensor> {
    let mut weight = checkpoint.read(name)?;
    merge_all(adapters, name, &mut weight)?;
    Ok(weight)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Precision;
    use crate::error::Error;
    use crate::host::OnDevice;
    use crate::layers::Linear;
    use crate::ops;
    use burn::tensor::{Device, Tensor};

    /// Two linear maps.
    struct Pair([Linear; 2]);

    impl Parameters for Pair {
        fn parameters(&self, out: &mut Vec<Parameter>) {
            self.0.iter().for_each(|linear| linear.parameters(out));
        }
    }

    fn stored(dir: &tempfile::TempDir, last: f32) -> Stored<Pair> {
        stored_of(dir, [2.0, 1.0, 1.0, 1.0, 1.0, 1.0], last)
    }

    /// With such a weight of the first, and such a bias of the last.
    fn stored_of(dir: &tempfile::TempDir, first: [f32; 6], last: f32) -> Stored<Pair> {
        let pair = Pair(["a", "b"].map(|name| Linear::new(name, 3, 2)));
        let tensors: Vec<(String, HostTensor)> = list(&pair)
            .into_iter()
            .map(|parameter| {
                let data = match parameter.name.as_str() {
                    "a.weight" => first.to_vec(),
                    "b.weight" => vec![2.0, 1.0, 1.0, 1.0, 1.0, 1.0],
                    "b.bias" => vec![last, 1.0],
                    _ => vec![2.0, 1.0],
                };
                let tensor = HostTensor::new(parameter.shape, data).unwrap();
                (parameter.name, tensor)
            })
            .collect();
        let tensors = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        let path = dir.path().join("pair.safetensors");
        std::fs::write(&path, lacuna_wire::to_safetensors(tensors, None).unwrap()).unwrap();
        Stored::new(pair, Checkpoint::open_file(&path).unwrap()).unwrap()
    }

    #[test]
    fn a_part_holds_its_own_and_names_what_it_lacks() {
        let (dir, device) = (tempfile::tempdir().unwrap(), Device::flex());
        let stored = stored(&dir, 5.0);
        let [a, b] = &stored.layers().0;
        let mut of_b = Vec::new();
        b.parameters(&mut of_b);
        let (all, part) = (stored.load(&device), stored.load_part(&of_b, &device));
        let (all, part) = (all.unwrap(), part.unwrap());
        let x = || Tensor::<2>::ones([1, 3], &device);
        let values = |weights, layer| {
            let y = ops::linear(weights, layer, x())?;
            Ok::<_, Error>(HostTensor::from_device(y)?.data)
        };
        assert_eq!(values(&part, b).unwrap(), [9.0, 4.0]);
        assert_eq!(values(&part, b).unwrap(), values(&all, b).unwrap());
        let lacks = values(&part, a).unwrap_err().to_string();
        assert!(lacks.contains("a.weight is missing"), "{lacks}");
    }

    #[test]
    fn a_part_reads_nothing_else_of_the_files() {
        let (dir, device) = (tempfile::tempdir().unwrap(), Device::flex());
        let stored = stored(&dir, 5.0);
        // The last of the file is the end of `b.weight`.
        let path = dir.path().join("pair.safetensors");
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
        let parts = stored.layers().0.each_ref().map(|layer| {
            let mut own = Vec::new();
            layer.parameters(&mut own);
            stored.load_part(&own, &device)
        });
        let [a, b] = parts;
        a.unwrap();
        assert!(b.is_err() && stored.digest().is_err());
    }

    #[test]
    fn what_others_compute_is_by_input_or_read_again() {
        let (dir, device) = (tempfile::tempdir().unwrap(), Device::flex());
        let stored = stored(&dir, 5.0);
        for held in [true, false] {
            let apart = Apart {
                layers: ["a".to_owned()].into(),
                held,
                ..Apart::default()
            };
            let weights = stored.load_apart(&list(stored.layers()), &apart, &device);
            let weights = weights.unwrap();
            // Biases are here, and so is the other layer.
            for here in ["a.bias", "b.bias"] {
                weights.vector(here).unwrap();
            }
            assert!(weights.matrix("a.weight").is_err() && weights.matrix("b.weight").is_ok());
            assert_eq!(weights.by_input("a.weight").unwrap()[..2], [2.0, 1.0]);
            let (rows, outputs) = weights.by_output("a.weight").unwrap();
            assert_eq!((rows, outputs), (vec![2.0, 1.0, 1.0, 1.0, 1.0, 1.0], 2));
            let twice = weights.by_input("a.weight").unwrap();
            let same = Arc::ptr_eq(&twice, &weights.by_input("a.weight").unwrap());
            assert_eq!(same, held);
            assert!(weights.by_input("c.weight").is_err());
        }
    }

    #[test]
    fn what_others_hold_in_half_precision_has_the_same_values_here() {
        let (dir, device) = (tempfile::tempdir().unwrap(), Device::flex());
        // Between two halves, nearer to the upper one, and below the least normal one.
        let stored = stored_of(&dir, [1.0007, 3e-7, 1.0, 1.0, 1.0, 1.0], 5.0);
        let halves = [1.000_976_6, 2.980_232_2e-7];
        let whole = stored.load(&device).unwrap();
        let here = whole.widened("a", Precision::F16).unwrap();
        assert_eq!(here.by_input("a.weight").unwrap()[..2], [halves[0], 1.0]);
        assert_eq!(here.by_output("a.weight").unwrap().0[..2], halves);
        assert!(here.matrix("b.weight").is_err() && here.vector("a.bias").is_ok());
        let same = whole.widened("a", Precision::F32).unwrap();
        assert_eq!(same.by_output("a.weight").unwrap().0[0], 1.0007);
        for held in [true, false] {
            let apart = Apart {
                layers: ["a".to_owned()].into(),
                held,
                precision: Precision::F16,
            };
            let weights = stored.load_apart(&list(stored.layers()), &apart, &device);
            let weights = weights.unwrap();
            assert_eq!(weights.by_output("a.weight").unwrap().0[..2], halves);
            // Nobody else has the others.
            assert_eq!(weights.by_output("b.weight").unwrap().0[0], 2.0);
        }
        let halved = stored.load((&device, Precision::F16)).unwrap();
        let wide = halved.widened("a", Precision::F16).unwrap();
        assert_eq!(wide.by_output("a.weight").unwrap().0[..2], halves);
        let lost = halved.widened("a", Precision::F32).unwrap_err().to_string();
        assert!(lost.contains("half precision"), "{lost}");
    }

    #[test]
    fn what_has_no_half_is_named() {
        let (dir, device) = (tempfile::tempdir().unwrap(), Device::flex());
        let stored = stored_of(&dir, [1e6; 6], 5.0);
        let apart = Apart {
            layers: ["a".to_owned()].into(),
            held: true,
            precision: Precision::F16,
        };
        let error = stored.load_apart(&list(stored.layers()), &apart, &device);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("a.weight in f16"), "{error}");
    }

    #[test]
    fn values_are_checked_without_being_kept() {
        let dir = tempfile::tempdir().unwrap();
        let stored = stored(&dir, f32::INFINITY);
        let error = stored.check_values(&list(stored.layers())).unwrap_err();
        assert!(error.to_string().contains("b.bias"), "{error}");
        let mut of_a = Vec::new();
        stored.layers().0[0].parameters(&mut of_a);
        stored.check_values(&of_a).unwrap();
    }
}
