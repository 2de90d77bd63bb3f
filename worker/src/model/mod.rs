//! The U-Net that a worker holds, and one piece of work on one strip.
//!
//! - `products`: the products of layers' weights with shares.
//! - here: the layers, and work on strips of their inputs.

mod products;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use lacuna_model::device::Target;
use lacuna_model::host::OnDevice;
use lacuna_model::layers::{Attention, Conv2d, GroupNorm, Linear, Parameter};
use lacuna_model::ops;
use lacuna_model::survey::{Kind, MOST_PROMPT_TOKENS, survey};
use lacuna_model::unet::{Layer, Source, UNet};
use lacuna_model::weights::{AdapterFile, Weights, list};
use lacuna_protocol::session::Work;
use lacuna_protocol::statistics;
use lacuna_protocol::{Error, Result};
use lacuna_wire::HostTensor;
use lacuna_wire::Payload;
use products::Integers;
pub use products::Operand;

use burn::tensor::Tensor;

/// The folder of the U-Net in `model`: that folder itself, or its `unet/`.
///
/// # Errors
/// In words, where there is none.
pub fn folder(model: &Path) -> Result<PathBuf, String> {
    let nested = model.join("unet");
    let found = [nested.as_path(), model]
        .into_iter()
        .find(|dir| dir.join("config.json").is_file());
    found.map(Path::to_owned).ok_or_else(|| {
        format!(
            "there is no U-Net in {0}: neither {0}/unet/config.json nor {0}/config.json; give --model",
            model.display()
        )
    })
}

/// A U-Net on a device.
pub struct Model {
    unet: UNet,
    layers: HashMap<String, Owned>,
    weights: Weights,
    digest: String,
    integers: Integers,
    keeps_halves: OnceLock<bool>,
    /// Its files, unless it is not of files alone.
    source: Option<Source>,
}

/// A layer by value, to be looked up by name.
enum Owned {
    Conv(Conv2d),
    Norm(GroupNorm),
    Attention(Attention),
    Linear(Linear),
}

impl Model {
    /// A model of `unet`'s layers with `weights` (shared, not copied), which `digest` identifies to those who open sessions.
    pub fn new(unet: UNet, weights: Weights, digest: impl Into<String>) -> Self {
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
            digest: digest.into(),
            integers: Integers::default(),
            keeps_halves: OnceLock::new(),
            source: None,
        }
    }

    /// Loads a U-Net from its directory of a diffusers model (`config.json` and safetensors), with `adapters`.
    ///
    /// # Errors
    /// As [`Self::of_source`].
    pub fn load(
        dir: &Path,
        variant: Option<&str>,
        adapters: &[AdapterFile],
        target: impl Into<Target>,
    ) -> lacuna_model::Result<Self> {
        let source = Source::Folder {
            dir: dir.to_owned(),
            variant: variant.map(str::to_owned),
        };
        Self::of_source(&source, adapters, target)
    }

    /// Loads the U-Net of a model in one file, with the config at `config` or that which its tensors tell, and with
    /// `adapters`.
    ///
    /// # Errors
    /// As [`Self::of_source`].
    pub fn load_one_file(
        path: &Path,
        config: Option<&Path>,
        adapters: &[AdapterFile],
        target: impl Into<Target>,
    ) -> lacuna_model::Result<Self> {
        let source = Source::File {
            path: path.to_owned(),
            config: config.map(Path::to_owned),
        };
        Self::of_source(&source, adapters, target)
    }

    /// Loads the U-Net of `source`, with `adapters`.
    ///
    /// # Errors
    /// Those of [`Source::open`], [`lacuna_model::weights::Stored::load`] and [`lacuna_model::weights::Stored::digest`].
    pub fn of_source(
        source: &Source,
        adapters: &[AdapterFile],
        target: impl Into<Target>,
    ) -> lacuna_model::Result<Self> {
        let stored = source.open(adapters)?;
        let weights = stored.load(target)?;
        let source = (!stored.is_adapted()).then(|| source.clone());
        Ok(Self {
            source,
            ..Self::new(stored.layers().clone(), weights, stored.digest()?)
        })
    }

    /// Its files, where it is what they hold: without adapters.
    pub fn source(&self) -> Option<&Source> {
        self.source.as_ref()
    }

    /// The walk over its layers.
    pub fn unet(&self) -> &UNet {
        &self.unet
    }

    /// Its weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Identifies the weights, adapters included ([`lacuna_model::weights::Stored::digest`]).
    pub fn digest(&self) -> &str {
        &self.digest
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
        let largest = survey(&self.unet, [batch, rows, columns], MOST_PROMPT_TOKENS)?
            .into_iter()
            .filter_map(|o| match o.kind {
                Kind::Conv { .. } | Kind::GroupNorm => {
                    let [b, c, h, w] = o.input;
                    Some(values([b, c, h + 2, w]))
                }
                Kind::CrossAttention => {
                    let [b, t, c, _] = o.input;
                    Some(values([b, t + 2 * MOST_PROMPT_TOKENS, c, 1]))
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
