//! The U-Net that a worker holds, and one piece of work on one strip.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use lacuna_kernels::conv::Sizes;
use lacuna_model::device::{Precision, Target, is_cpu, keeps_halves};
use lacuna_model::host::OnDevice;
use lacuna_model::integer;
use lacuna_model::layers::{Attention, Conv2d, GroupNorm, Linear, Parameter};
use lacuna_model::ops;
use lacuna_model::survey::{Kind, PROMPT_TOKENS, survey};
use lacuna_model::unet::{Layer, UNet, UNetConfig};
use lacuna_model::weights::{AdapterFile, Checkpoint, Library, Stored, Weights, list};
use lacuna_protocol::session::Work;
use lacuna_protocol::statistics;
use lacuna_protocol::{Error, Result};
use lacuna_shares::Ring;
use lacuna_shares::bands::{Needed, Planes};
use lacuna_wire::HostTensor;
use lacuna_wire::Payload;

use burn::tensor::Tensor;

/// A U-Net on a device.
pub struct Model {
    unet: UNet,
    layers: HashMap<String, Owned>,
    weights: Weights,
    integers: Integers,
    keeps_halves: OnceLock<bool>,
}

/// A layer by value, to be looked up by name.
enum Owned {
    Conv(Conv2d),
    Norm(GroupNorm),
    Attention(Attention),
    Linear(Linear),
}

impl Model {
    /// A model of `unet`'s layers with `weights` (shared, not copied).
    pub fn new(unet: UNet, weights: Weights) -> Self {
        let layers = unet
            .layers()
            .map(|layer| {
                let owned = match layer {
                    Layer::Conv(conv) => Owned::Conv(conv.clone()),
                    Layer::Norm(norm) => Owned::Norm(norm.clone()),
                    Layer::Attention(attention) => Owned::Attention(attention.clone()),
                    Layer::Linear(linear) => Owned::Linear(linear.clone()),
                };
                (layer.name().to_owned(), owned)
            })
            .collect();
        Self {
            unet,
            layers,
            weights,
            integers: Integers::default(),
            keeps_halves: OnceLock::new(),
        }
    }

    /// Loads a U-Net from its directory of a diffusers model (`config.json` and safetensors), with `adapters`.
    ///
    /// # Errors
    /// Those of [`UNetConfig::from_file`], [`Checkpoint::open`], [`AdapterFile::open_all`], [`Stored::new`] and [`Stored::load`].
    pub fn load(
        dir: &Path,
        variant: Option<&str>,
        adapters: &[AdapterFile],
        target: impl Into<Target>,
    ) -> lacuna_model::Result<Self> {
        let unet = UNetConfig::from_file(&dir.join("config.json"))?.build();
        let stored = Stored::new(unet, Checkpoint::open(dir, Library::Diffusers, variant)?)?;
        let stored = stored.with_adapters(AdapterFile::open_all(adapters)?)?;
        let weights = stored.load(target)?;
        Ok(Self::new(stored.layers().clone(), weights))
    }

    /// The walk over its layers.
    pub fn unet(&self) -> &UNet {
        &self.unet
    }

    /// Its weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// [`Weights::digest`].
    pub fn digest(&self) -> &str {
        self.weights.digest()
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        list(&self.unet).iter().map(Parameter::values).sum()
    }

    /// Bytes of the largest request for latents of `rows` x `columns` and a batch of `batch`, were
    /// one worker to get a whole layer.
    ///
    /// # Errors
    /// Those of [`survey`].
    pub fn largest_request(
        &self,
        [batch, rows, columns]: [usize; 3],
    ) -> lacuna_model::Result<usize> {
        let values = |[b, c, h, w]: [usize; 4]| b * c * h * w;
        let largest = survey(&self.unet, [batch, rows, columns], PROMPT_TOKENS)?
            .into_iter()
            .filter_map(|o| match o.kind {
                Kind::Conv { .. } | Kind::GroupNorm => {
                    let [b, c, h, w] = o.input;
                    Some(values([b, c, h + 2, w]))
                }
                Kind::CrossAttention => {
                    let [b, t, c, _] = o.input;
                    Some(values([b, t + 2 * PROMPT_TOKENS, c, 1]))
                }
                // Everybody's queries, keys and values, where a worker attends alone.
                Kind::SelfAttention => {
                    let [b, t, c, _] = o.input;
                    Some(values([b, 3 * t, c, 1]))
                }
                Kind::Linear => Some(values(o.input)),
                Kind::LayerNorm => None,
            })
            .max()
            .unwrap_or(0);
        // The header of a message is under a kilobyte a piece of work.
        Ok(largest * size_of::<f32>() + (64 << 10))
    }

    /// Does one piece of work; `inputs` are the tensors that [`Work::inputs`] names, in order.
    ///
    /// # Errors
    /// [`Error::NoLayer`], [`Error::Tensor`] when an input does not fit the layer or the result
    /// overflowed, [`Error::Model`] when the device fails.
    pub fn run(&self, work: &Work, inputs: Vec<HostTensor>) -> Result<Payload> {
        let name = work.layer();
        let output = match (work, self.layers.get(name), inputs.try_into()) {
            (Work::Conv { odd, .. }, Some(Owned::Conv(conv)), Ok(Inputs::One(x))) => {
                self.conv(conv, x, *odd)?.into()
            }
            (Work::Moments { .. }, Some(Owned::Norm(norm)), Ok(Inputs::One(x))) => {
                self.moments(norm, x)?
            }
            (Work::Attention { .. }, Some(Owned::Attention(layer)), Ok(Inputs::Three(qkv))) => {
                self.attention(layer, *qkv)?.into()
            }
            _ => {
                let work = format!("{work:?}");
                return Err(Error::NoLayer { work });
            }
        };
        output.check_finite(name)?;
        Ok(output)
    }

    /// That shares can be multiplied with weights as they are in `precision`, to the last bit of each.
    ///
    /// # Errors
    /// [`lacuna_model::Error::Device`] where they cannot, saying what to do.
    pub fn check_shares(&self, precision: Precision) -> lacuna_model::Result<()> {
        let failed = |reason: &str| Err(lacuna_model::Error::Device(reason.into()));
        let device = self.weights.device();
        match (self.weights.precision(), precision) {
            (Precision::F16, Precision::F32) => failed(
                "this worker holds weights in half precision; --share-weights f16 has shares multiplied with those",
            ),
            (Precision::F32, Precision::F16) if !is_cpu(device) => failed(
                "this worker's GPU holds weights in f32, and shares are to be multiplied with half precision; start it with \
                 --precision f16",
            ),
            (Precision::F16, Precision::F16) => {
                let keeps = match self.keeps_halves.get() {
                    Some(keeps) => *keeps,
                    None => {
                        let keeps = keeps_halves(device)?;
                        *self.keeps_halves.get_or_init(|| keeps)
                    }
                };
                match keeps {
                    true => Ok(()),
                    false => failed(
                        "this worker's GPU takes the smallest numbers of half precision for zeros; start it with \
                         --precision f32",
                    ),
                }
            }
            _ => Ok(()),
        }
    }

    /// Some rows of the product of a layer's weights with an input, without the bias: `x` are the rows of the input that
    /// are `needed`, of a convolution's `[B, C, H, W]`, whose columns are `enlarged` before to so many, as its rows are, or
    /// of a linear map's `[B, T, D]`. `odd` says whether the first output row is an odd one.
    ///
    /// # Errors
    /// As [`Self::run`]; [`Error::NoLayer`] for a layer of another kind, or what cannot be enlarged.
    pub fn multiply(
        &self,
        name: &str,
        x: HostTensor,
        needed: &Needed,
        enlarged: Option<usize>,
        (odd, precision): (bool, Precision),
    ) -> Result<HostTensor> {
        let device = self.weights.device();
        let weights = &self.weights.widened(name, precision)?;
        match (self.layers.get(name), enlarged) {
            (Some(Owned::Conv(conv)), _) => {
                let [b, _, h, w] = x.dims()?;
                expect(b * h * w > 0, name, &[b, conv.c_in, h, w], &x.shape)?;
                let mut x: Tensor<4> = x.into_device(device)?;
                if let Some(columns) = enlarged {
                    x = ops::enlarge(x, [2 * h, columns]);
                }
                let [skipped, rows] = needed.enlarged;
                let [b, c, h, w] = x.dims();
                if skipped + rows > h {
                    expect(false, name, &[b, c, skipped + rows, w], &[b, c, h, w])?;
                }
                let x = x.narrow(2, skipped, rows);
                let y = match needed.zeros == [conv.padding; 2] {
                    true => ops::conv2d_unbiased(weights, conv, x)?,
                    false => {
                        let zeros = |rows| Tensor::zeros([b, c, rows, w], (device, x.dtype()));
                        let [above, below] = needed.zeros.map(zeros);
                        let x = Tensor::cat(vec![above, x, below], 2);
                        ops::conv2d_of_strip_unbiased(weights, conv, x, odd)?
                    }
                };
                Ok(HostTensor::from_device(y)?)
            }
            (Some(Owned::Linear(linear)), None) => {
                let [b, t, _] = x.dims()?;
                expect(b * t > 0, name, &[b, t, linear.d_in], &x.shape)?;
                let x: Tensor<3> = x.into_device(device)?;
                let y = ops::linear_unbiased(weights, linear, x)?;
                Ok(HostTensor::from_device(y)?)
            }
            _ => Err(self.no_product(name)),
        }
    }

    /// The same of a share of a `ring`, whose rows that are needed are `x`, of such a `shape`: products with integer weights,
    /// of which the ring's lowest bits count, of weights as they are in `precision`.
    ///
    /// # Errors
    /// As [`Self::multiply`].
    pub fn multiply_in(
        &self,
        (ring, precision): (Ring, Precision),
        name: &str,
        x: Vec<i32>,
        shape: &[usize],
        needed: &Needed,
        enlarged: Option<usize>,
    ) -> Result<Vec<i32>> {
        match (self.layers.get(name), shape, enlarged) {
            (Some(Owned::Conv(conv)), &[b, c, rows, columns], _) => {
                let fits = c == conv.c_in && x.len() == b * c * rows * columns && !x.is_empty();
                expect(fits, name, &[b, conv.c_in, rows, columns], shape)?;
                let planes = Planes {
                    number: b * c,
                    rows,
                    width: columns,
                };
                let (planes, x) = planes.padded(&x, needed, enlarged);
                let sizes = Sizes {
                    batch: b,
                    c_in: c,
                    c_out: conv.c_out,
                    size: [planes.rows, planes.width],
                    kernel: conv.kernel,
                    stride: conv.stride,
                    padding: [0, conv.padding],
                    odd: false,
                };
                let weights = self.integers.of((ring, precision), name, || {
                    let (rows, outputs) = self.rows_of(name, precision)?;
                    let integers = ring.quantise(&rows, outputs).weights;
                    let device = self.weights.device();
                    Ok(integer::Weights::of_conv(
                        &integers,
                        sizes,
                        ring.up(),
                        device,
                    ))
                })?;
                Ok(weights.conv2d(&x, sizes)?)
            }
            (Some(Owned::Linear(linear)), &[b, t, d], None) => {
                let fits = d == linear.d_in && x.len() == b * t * d && !x.is_empty();
                expect(fits, name, &[b, t, linear.d_in], shape)?;
                let weights = self.integers.of((ring, precision), name, || {
                    let (rows, outputs) = self.rows_of(name, precision)?;
                    let integers = ring.quantise(&rows, outputs).weights;
                    let device = self.weights.device();
                    Ok(integer::Weights::of_linear(&integers, outputs, device))
                })?;
                Ok(weights.linear(&x, b * t)?)
            }
            _ => Err(self.no_product(name)),
        }
    }

    /// A layer's weights `[outputs, K]` by rows, as they are in `precision`, and the number of outputs.
    ///
    /// # Errors
    /// As [`Self::multiply`].
    pub fn rows_of(&self, name: &str, precision: Precision) -> Result<(Vec<f32>, usize)> {
        match self.layers.get(name) {
            Some(Owned::Conv(_) | Owned::Linear(_)) => {
                let weights = self.weights.widened(name, precision)?;
                Ok(weights.by_output(&format!("{name}.weight"))?)
            }
            _ => Err(self.no_product(name)),
        }
    }

    fn no_product(&self, name: &str) -> Error {
        let work = match self.layers.contains_key(name) {
            true => format!("a product with {name:?}"),
            false => format!("{name:?}"),
        };
        Error::NoLayer { work }
    }

    fn conv(&self, layer: &Conv2d, x: HostTensor, odd: bool) -> Result<HostTensor> {
        let [b, c, h, w] = x.dims()?;
        let fits = c == layer.c_in && h >= layer.kernel && w + 2 * layer.padding >= layer.kernel;
        expect(
            fits && b > 0,
            &layer.name,
            &[b, layer.c_in, h.max(layer.kernel), w],
            &x.shape,
        )?;
        let x = x.into_device(self.weights.device())?;
        let y = ops::conv2d_of_strip(&self.weights, layer, x, odd)?;
        Ok(HostTensor::from_device(y)?)
    }

    fn moments(&self, layer: &GroupNorm, x: HostTensor) -> Result<Payload> {
        let [b, c, h, w] = x.dims()?;
        let fits = c == layer.channels && b * h * w > 0;
        expect(fits, &layer.name, &[b, layer.channels, h, w], &x.shape)?;
        let x = x.into_device(self.weights.device())?;
        let moments = ops::group_moments(x, layer.groups)?;
        Ok(statistics::to_payload(&moments))
    }

    fn attention(&self, layer: &Attention, [q, k, v]: [HostTensor; 3]) -> Result<HostTensor> {
        let width = layer.to_q.d_out;
        let [b, t, _] = q.dims()?;
        let [_, s, _] = k.dims()?;
        expect(
            b * t > 0 && q.shape == [b, t, width],
            &layer.name,
            &[b, t, width],
            &q.shape,
        )?;
        for keys in [&k, &v] {
            expect(
                s > 0 && keys.shape == [b, s, width],
                &layer.name,
                &[b, s, width],
                &keys.shape,
            )?;
        }
        let device = self.weights.device();
        let [q, k, v]: [Tensor<3>; 3] = [
            q.into_device(device)?,
            k.into_device(device)?,
            v.into_device(device)?,
        ];
        let y = ops::attention(q, k, v, layer.heads, false);
        Ok(HostTensor::from_device(y)?)
    }
}

/// Integer weights of the layers that were multiplied in one ring: they depend on its bits, and on those of the weights.
#[derive(Default)]
struct Integers(Mutex<(Of, HashMap<String, Arc<integer::Weights>>)>);

/// Bits of a ring, and what weights were before they were integers.
type Of = (u32, Precision);

impl Integers {
    /// Those of the layer `name`, which `make` makes once for as long as no other ring is asked for.
    fn of(
        &self,
        (ring, precision): (Ring, Precision),
        name: &str,
        make: impl FnOnce() -> Result<integer::Weights>,
    ) -> Result<Arc<integer::Weights>> {
        // Weights are there whole or not at all.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (of, layers) = &mut *known;
        if *of != (ring.up(), precision) {
            layers.clear();
            *of = (ring.up(), precision);
        }
        if let Some(weights) = layers.get(name) {
            return Ok(weights.clone());
        }
        let weights = Arc::new(make()?);
        layers.insert(name.to_owned(), weights.clone());
        Ok(weights)
    }
}

/// The tensors of a piece of work.
enum Inputs {
    One(HostTensor),
    Three(Box<[HostTensor; 3]>),
}

impl TryFrom<Vec<HostTensor>> for Inputs {
    type Error = ();

    fn try_from(inputs: Vec<HostTensor>) -> std::result::Result<Self, ()> {
        match <[HostTensor; 1]>::try_from(inputs) {
            Ok([x]) => Ok(Self::One(x)),
            Err(inputs) => match <[HostTensor; 3]>::try_from(inputs) {
                Ok(three) => Ok(Self::Three(Box::new(three))),
                Err(_) => Err(()),
            },
        }
    }
}

fn expect(fits: bool, name: &str, want: &[usize], got: &[usize]) -> Result<()> {
    if fits {
        return Ok(());
    }
    Err(lacuna_wire::Error::WrongShape {
        name: format!("the input of {name}"),
        want: want.to_vec(),
        got: got.to_vec(),
    })?
}
