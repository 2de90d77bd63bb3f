//! Weights on a device, by name; checked against the layers that need them.
//!
//! - [`WeightFiles`]: where the weight files of one network lie.
//! - [`Checkpoint`]: the same, open.
//! - [`Adapter`]: a small change of them.
//! - [`Apart`]: layers that others compute.
//! - [`DigestCache`]: digests of large files, from one run to the next.
//! - [`Extract`]: a part of a file, to be sent.
//! - [`Stored`]: a network with its files, of which nothing is loaded.
//! - [`Weights`]: what of them is loaded.

mod adapter;
mod apart;
mod checkpoint;
mod digests;
mod extract;
mod file;
mod files;
mod numbers;
mod stored;

pub use adapter::{Adapter, AdapterFile, AdapterPart, LowRank, Network};
pub use apart::Apart;
pub use checkpoint::{Checkpoint, View};
pub use digests::DigestCache;
pub use extract::Extract;
pub use files::{Library, WeightFiles};
pub use stored::Stored;

use std::collections::HashMap;
use std::sync::Arc;

use burn::tensor::{DType, Device, Shape, Tensor, TensorData};
use half::f16;
use rayon::prelude::*;

use apart::{Elsewhere, Reader};

use crate::device::{Precision, Target, is_cpu};
use crate::error::{Error, Result};
use crate::host::OnDevice;
use crate::layers::{Parameter, Parameters};
use lacuna_wire::Error as TensorError;
use lacuna_wire::HostTensor;

/// A parameter on the device, by its number of axes.
#[derive(Clone, Debug)]
enum Weight {
    /// Bias, or scale of a norm: `[C]`.
    Vector(Tensor<1>),
    /// Linear map or embedding: `[D_out, D_in]`, as stored.
    Matrix(Tensor<2>),
    /// Convolution: `[C_out, C_in, K, K]`.
    Kernel(Tensor<4>),
}

/// The weights of one network on one device. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Weights {
    tensors: HashMap<String, Weight>,
    /// Of layers that others compute.
    elsewhere: HashMap<String, Elsewhere>,
    device: Device,
    precision: Precision,
    /// Of layers whose weights are not changed by their adapters here, these.
    apart: Arc<HashMap<String, Vec<LowRank>>>,
}

impl Weights {
    /// Loads from `checkpoint` what `model` needs.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`] for a tensor that `model` has no place for; as [`Self::load_part`].
    pub fn load(
        model: &impl Parameters,
        checkpoint: &Checkpoint,
        target: impl Into<Target>,
    ) -> Result<Self> {
        let parameters = list(model);
        checkpoint.check(&parameters)?;
        Self::load_part(&parameters, checkpoint, target)
    }

    /// Loads `parameters` alone: nothing else of `checkpoint` is read.
    ///
    /// # Errors
    /// [`TensorError::MissingTensor`], [`TensorError::WrongShape`], [`TensorError::WrongDtype`], [`TensorError::NotFinite`] or
    /// [`Error::Read`], naming the tensor or file.
    pub fn load_part(
        parameters: &[Parameter],
        checkpoint: &Checkpoint,
        target: impl Into<Target>,
    ) -> Result<Self> {
        checkpoint.check_part(parameters)?;
        let read = |it: &Parameter, by_input| checkpoint.read_as(&it.name, by_input);
        Self::of_read(parameters, read, target)
    }

    /// `parameters` as `read` gives them, which is told whether a matrix is wanted by input.
    fn of_read(
        parameters: &[Parameter],
        read: impl Fn(&Parameter, bool) -> Result<HostTensor> + Sync,
        target: impl Into<Target>,
    ) -> Result<Self> {
        let target = target.into();
        // A product packs the matrix anew at each call, and slowly across its rows: with four workers in one process that
        // was 7 % of all processor time.
        let by_input = |it: &Parameter| is_cpu(&target.device) && it.shape.len() == 2 && !it.table;
        let mut tensors = HashMap::with_capacity(parameters.len());
        side_by_side(
            parameters,
            |it| read(it, by_input(it)),
            |it, tensor| {
                let weight = Weight::place(tensor, by_input(it), &target)?;
                tensors.insert(it.name.clone(), weight);
                Ok(())
            },
        )?;
        Ok(Self {
            tensors,
            elsewhere: HashMap::new(),
            device: target.device,
            precision: target.precision,
            apart: Arc::default(),
        })
    }

    /// Random weights of the true shapes, for timing without a download: uniform with the variance
    /// `1 / fan_in`, norms near one. The same `seed` gives the same weights anywhere.
    ///
    /// # Errors
    /// [`TensorError::WrongShape`] when a parameter has neither 1, 2 nor 4 axes.
    pub fn random(model: &impl Parameters, seed: u64, target: impl Into<Target>) -> Result<Self> {
        Self::random_part(&list(model), seed, target)
    }

    /// Of those, `parameters` alone.
    ///
    /// # Errors
    /// As [`Self::random`].
    pub fn random_part(
        parameters: &[Parameter],
        seed: u64,
        target: impl Into<Target>,
    ) -> Result<Self> {
        let read = |it: &Parameter, by_input| {
            let parameter = random_parameter(it, seed)?;
            Ok(if by_input {
                parameter.by_input()
            } else {
                parameter
            })
        };
        Self::of_read(parameters, read, target)
    }

    /// The same for one who has others compute the layers `apart`.
    ///
    /// # Errors
    /// As [`Self::random`].
    pub fn random_apart(
        parameters: &[Parameter],
        apart: &Apart,
        seed: u64,
        target: impl Into<Target>,
    ) -> Result<Self> {
        let (theirs, own) = apart.part(parameters);
        let mut weights = Self::random_part(&own, seed, target)?;
        let all: HashMap<String, Parameter> = theirs
            .iter()
            .map(|parameter| (parameter.name.clone(), parameter.clone()))
            .collect();
        let read = move |name: &str| match all.get(name) {
            Some(parameter) => random_parameter(parameter, seed),
            None => Err(missing(name)),
        };
        weights.set_apart(&theirs, apart, Reader::new(read))?;
        Ok(weights)
    }

    /// The number type of all of them.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Of `layer` alone, in f32 and with the values that they have in `precision`. Nothing is copied where that is how they
    /// are.
    ///
    /// # Errors
    /// [`Error::Device`] where they have lost what `precision` keeps, or where a GPU would round them, which each does in its
    /// own way.
    pub fn widened(&self, layer: &str, precision: Precision) -> Result<Self> {
        let device = &self.device;
        let rounds = match (self.precision, precision) {
            (Precision::F16, Precision::F32) => {
                let reason = "weights in half precision are not those in single precision";
                return Err(Error::Device(reason.into()));
            }
            (Precision::F32, Precision::F16) if !is_cpu(device) => {
                let reason =
                    "this GPU holds weights in f32; give --precision f16 where it is started";
                return Err(Error::Device(reason.into()));
            }
            (Precision::F32, Precision::F16) => true,
            _ => false,
        };
        let names = ["weight", "bias"].map(|kind| format!("{layer}.{kind}"));
        let tensors = names.into_iter().filter_map(|name| {
            let weight = self.tensors.get(&name)?.widened(rounds);
            Some((name, weight))
        });
        Ok(Self {
            tensors: tensors.collect(),
            elsewhere: HashMap::new(),
            device: self.device.clone(),
            precision: Precision::F32,
            apart: Arc::default(),
        })
    }

    /// The adapters of `layer` that its weights are without ([`Stored::load_apart`]).
    pub fn adapters_apart(&self, layer: &str) -> &[LowRank] {
        self.apart.get(layer).map_or(&[], Vec::as_slice)
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// A vector `[C]`, by the tensor's full name.
    ///
    /// # Errors
    /// [`TensorError::MissingTensor`] when there is no vector of that name.
    pub fn vector(&self, name: &str) -> Result<Tensor<1>> {
        match self.tensors.get(name) {
            Some(Weight::Vector(t)) => Ok(t.clone()),
            _ => Err(missing(name)),
        }
    }

    /// A matrix as stored, `[D_out, D_in]` (or `[entries, D]` of an embedding), by full name.
    ///
    /// # Errors
    /// [`TensorError::MissingTensor`] when there is no matrix of that name.
    pub fn matrix(&self, name: &str) -> Result<Tensor<2>> {
        match self.tensors.get(name) {
            Some(Weight::Matrix(t)) => Ok(t.clone()),
            _ => Err(missing(name)),
        }
    }

    /// A convolution's kernel, `[C_out, C_in, K, K]`, by full name.
    ///
    /// # Errors
    /// [`TensorError::MissingTensor`] when there is no kernel of that name.
    pub fn kernel(&self, name: &str) -> Result<Tensor<4>> {
        match self.tensors.get(name) {
            Some(Weight::Kernel(t)) => Ok(t.clone()),
            _ => Err(missing(name)),
        }
    }
}

impl Weight {
    /// `tensor` on the device; of a matrix that is by input, as stored.
    fn place(tensor: HostTensor, by_input: bool, target: &Target) -> Result<Self> {
        match tensor.shape.len() {
            1 => Ok(Self::Vector(place(tensor, target)?)),
            2 if by_input => Ok(Self::Matrix(place::<2>(tensor, target)?.transpose())),
            2 => Ok(Self::Matrix(place(tensor, target)?)),
            _ => Ok(Self::Kernel(place(tensor, target)?)),
        }
    }

    /// In f32; where that `rounds`, with the values that they have in half precision.
    fn widened(&self, rounds: bool) -> Self {
        fn widened<const D: usize>(weight: &Tensor<D>, rounds: bool) -> Tensor<D> {
            let weight = weight.clone();
            let weight = if rounds {
                weight.cast(DType::F16)
            } else {
                weight
            };
            match weight.dtype() {
                DType::F32 => weight,
                _ => weight.cast(DType::F32),
            }
        }
        match self {
            Self::Vector(t) => Self::Vector(widened(t, rounds)),
            Self::Matrix(t) => Self::Matrix(widened(t, rounds)),
            Self::Kernel(t) => Self::Kernel(widened(t, rounds)),
        }
    }
}

/// Numbers that are read before they are placed, 256 MB of them: a large machine has many threads.
const AT_ONCE: usize = 1 << 26;

/// Has `read` read `parameters`, several side by side, and `take` take them in their order.
///
/// # Errors
/// The first in that order.
fn side_by_side<T: Send>(
    parameters: &[Parameter],
    read: impl Fn(&Parameter) -> Result<T> + Sync,
    mut take: impl FnMut(&Parameter, T) -> Result<()>,
) -> Result<()> {
    let mut rest = parameters;
    while !rest.is_empty() {
        let mut numbers = 0;
        let fits = |it: &&Parameter| {
            numbers += it.shape.iter().product::<usize>();
            numbers <= AT_ONCE
        };
        let (now, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
        let read: Vec<Result<T>> = now.par_iter().map(&read).collect();
        for (parameter, tensor) in now.iter().zip(read) {
            take(parameter, tensor?)?;
        }
        rest = later;
    }
    Ok(())
}

/// `host` on the device. It is rounded here: GPUs do that each in their own way.
fn place<const D: usize>(host: HostTensor, target: &Target) -> Result<Tensor<D>> {
    let device = &target.device;
    if target.precision == Precision::F32 {
        return host.into_device(device);
    }
    host.dims::<D>()?;
    let halves: Vec<f16> = host
        .data
        .iter()
        .map(|value| f16::from_f32(*value))
        .collect();
    let halves = TensorData::new(halves, Shape::from(host.shape));
    Ok(Tensor::from_data(halves, (device, DType::F16)))
}

/// Identifies the random weights of `model` that a `seed` gives ([`Weights::random`]), as
/// [`Checkpoint::digest`] those of files.
pub fn random_digest(model: &impl Parameters, seed: u64) -> String {
    let mut digest = blake3::Hasher::new();
    digest.update(b"random weights");
    digest.update(&seed.to_le_bytes());
    for parameter in list(model) {
        digest.update(format!("{parameter:?}").as_bytes());
    }
    digest.finalize().to_hex().to_string()
}

/// Every parameter of a model.
pub fn list(model: &impl Parameters) -> Vec<Parameter> {
    let mut out = Vec::new();
    model.parameters(&mut out);
    out
}

fn missing(name: &str) -> Error {
    TensorError::MissingTensor {
        origin: "the loaded weights".into(),
        name: name.into(),
    }
    .into()
}

fn random_parameter(parameter: &Parameter, seed: u64) -> Result<HostTensor> {
    let shape = &parameter.shape;
    let len: usize = shape.iter().product();
    let fan_in: usize = shape.iter().skip(1).product();
    let (centre, spread) = match shape.len() {
        1 if parameter.name.ends_with(".weight") => (1.0, 0.1),
        1 => (0.0, 0.1),
        // Uniform on [-a, a] has the variance a^2 / 3.
        _ => (0.0, (3.0 / fan_in as f32).sqrt()),
    };
    let name = blake3::hash(parameter.name.as_bytes());
    let mut state = seed ^ u64::from_le_bytes(std::array::from_fn(|i| name.as_bytes()[i]));
    let data = (0..len)
        .map(|_| centre + spread * (2.0 * uniform(&mut state) - 1.0))
        .collect();
    Ok(HostTensor::new(shape.clone(), data)?)
}

/// SplitMix64 (Steele et al. 2014), its upper bits as a number in [0, 1).
fn uniform(state: &mut u64) -> f32 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
}
