//! The decoder of a tiny autoencoder (TAESD, Bohan 2023, <https://github.com/madebyollin/taesd>; `diffusers`' `AutoencoderTiny`).
//!
//! 3x3 convolutions, rectified, in blocks of three that are added to their input; what they are is told by the file's tensors, in the names of
//! `diffusers` or of the original `taesd_decoder.safetensors`.

use std::path::Path;

use lacuna_kernels::conv::{Sizes, conv2d};
use lacuna_model::weights::{Checkpoint, Library};
use lacuna_wire::HostTensor;

use crate::error::{Error, Result};
use crate::pipeline::Pipeline;

/// Latents are kept within these bounds, softly.
const MAGNITUDE: f32 = 3.0;

/// How often rows and columns are doubled at most: of published ones three times.
const MOST_DOUBLED: usize = 5;

/// The names of the decoder's layers, before their number.
const PREFIX: &str = "decoder.layers.";

/// A decoder with its weights.
pub struct Tiny {
    layers: Vec<Layer>,
}

enum Layer {
    Conv(Conv),
    Rectify,
    /// Three convolutions, rectified between, whose sum with the input is rectified.
    Block([Conv; 3]),
    /// Rows and columns twice.
    Double,
}

/// A 3x3 convolution.
struct Conv {
    channels: [usize; 2],
    weight: Vec<f32>,
    bias: Vec<f32>,
}

/// `[C, H, W]`.
struct Map {
    channels: usize,
    size: [usize; 2],
    values: Vec<f32>,
}

impl Tiny {
    /// Opens a file, or a directory of `diffusers`, for the latents of `pipeline`.
    ///
    /// # Errors
    /// [`Error::Input`] where it is no such decoder, or one of other latents; a [`lacuna_model::Error`] for a file that is damaged.
    pub fn open(path: &Path, pipeline: &Pipeline) -> Result<Self> {
        let mut file = match path.is_dir() {
            true => Checkpoint::open(path, Library::Diffusers, None)?,
            false => Checkpoint::open_file(path)?,
        };
        file.adapt(|name, _| Some(in_diffusers_names(name)));
        let wrong = |reason: String| Error::Input {
            path: path.to_owned(),
            reason: format!("{reason}; --preview-decoder takes the decoder of a TAESD"),
        };
        let conv = |name: String| -> Result<Conv> {
            let weight = file.read(&format!("{name}.weight"))?;
            let [c_out, c_in, 3, 3] = weight.dims()? else {
                return Err(wrong(format!("{name}.weight is of {:?}", weight.shape)));
            };
            let bias = format!("{name}.bias");
            let bias = match file.shape(&bias) {
                Some(_) => file.read(&bias)?.data,
                None => vec![0.0; c_out],
            };
            match bias.len() == c_out {
                true => Ok(Conv {
                    channels: [c_in, c_out],
                    weight: weight.data,
                    bias,
                }),
                false => Err(wrong(format!("{name}.bias is of {} values", bias.len()))),
            }
        };
        let number = |name: &str| name.strip_prefix(PREFIX)?.split('.').next()?.parse().ok();
        let count = file
            .names()
            .filter_map(number)
            .max()
            .map_or(0, |n: usize| n + 1);
        if count > 1 << 8 {
            return Err(wrong(format!("it has {count} layers")));
        }
        let mut layers = Vec::with_capacity(count);
        for i in 0..count {
            let name = format!("{PREFIX}{i}");
            let has = |tensor: &str| file.shape(&format!("{name}.{tensor}")).is_some();
            layers.push(if has("conv.0.weight") {
                let part = |k: usize| conv(format!("{name}.conv.{k}"));
                Layer::Block([part(0)?, part(2)?, part(4)?])
            } else if has("weight") {
                Layer::Conv(conv(name)?)
            } else if i == 1 {
                Layer::Rectify
            } else {
                Layer::Double
            });
        }
        let doubled = layers.iter().filter(|layer| matches!(layer, Layer::Double));
        let doubled = doubled.count();
        if doubled > MOST_DOUBLED {
            return Err(wrong(format!(
                "it doubles rows and columns {doubled} times"
            )));
        }
        let tiny = Self { layers };
        let channels = tiny.channels();
        let latents = pipeline.unet().latent_channels();
        if channels.is_empty() {
            return Err(wrong("it has no layers of a TAESD's decoder".into()));
        }
        if channels.first() != Some(&latents) || channels.last() != Some(&3) {
            return Err(wrong(format!(
                "it decodes {:?} channels to {:?}, this model's latents have {latents}",
                channels.first().unwrap_or(&0),
                channels.last().unwrap_or(&0)
            )));
        }
        let convs = tiny.convs();
        if convs
            .windows(2)
            .any(|pair| pair[0].channels[1] != pair[1].channels[0])
        {
            return Err(wrong("its layers do not fit each other".into()));
        }
        Ok(tiny)
    }

    fn convs(&self) -> Vec<&Conv> {
        fn of(layer: &Layer) -> Vec<&Conv> {
            match layer {
                Layer::Conv(conv) => vec![conv],
                Layer::Block(convs) => convs.iter().collect(),
                Layer::Rectify | Layer::Double => Vec::new(),
            }
        }
        self.layers.iter().flat_map(of).collect()
    }

    /// Of the first convolution's input, and of every output.
    fn channels(&self) -> Vec<usize> {
        let convs = self.convs();
        let first = convs.first().map(|conv| conv.channels[0]);
        first
            .into_iter()
            .chain(convs.iter().map(|conv| conv.channels[1]))
            .collect()
    }

    /// `[1, C, H, W]` to `[1, 3, rows, columns]` in about -1..1.
    pub(super) fn decode(&self, latents: HostTensor) -> Result<HostTensor> {
        let [_, channels, h, w] = latents.dims()?;
        let soft = |x: f32| (x / MAGNITUDE).tanh() * MAGNITUDE;
        let mut map = Map {
            channels,
            size: [h, w],
            values: latents.data.into_iter().map(soft).collect(),
        };
        for layer in &self.layers {
            map = match layer {
                Layer::Conv(conv) => conv.apply(&map),
                Layer::Rectify => map.rectified(),
                Layer::Block([a, b, c]) => {
                    let inner = b.apply(&a.apply(&map).rectified()).rectified();
                    let mut sum = c.apply(&inner);
                    sum.values
                        .iter_mut()
                        .zip(&map.values)
                        .for_each(|(y, x)| *y += x);
                    sum.rectified()
                }
                Layer::Double => map.doubled(),
            };
        }
        let values = map.values.into_iter().map(|x| 2.0 * x - 1.0).collect();
        let [h, w] = map.size;
        Ok(HostTensor::new([1, map.channels, h, w], values)?)
    }
}

impl Conv {
    fn apply(&self, x: &Map) -> Map {
        let [c_in, c_out] = self.channels;
        let sizes = Sizes {
            batch: 1,
            c_in,
            c_out,
            size: x.size,
            kernel: 3,
            stride: 1,
            padding: [1, 1],
            odd: false,
        };
        Map {
            channels: c_out,
            size: x.size,
            values: conv2d(&x.values, &self.weight, &self.bias, sizes),
        }
    }
}

impl Map {
    fn rectified(mut self) -> Self {
        self.values.iter_mut().for_each(|x| *x = x.max(0.0));
        self
    }

    fn doubled(self) -> Self {
        let [h, w] = self.size;
        let row = |row: &[f32]| -> Vec<f32> {
            let wide: Vec<f32> = row.iter().flat_map(|x| [*x; 2]).collect();
            wide.repeat(2)
        };
        Self {
            channels: self.channels,
            size: [2 * h, 2 * w],
            values: self.values.chunks_exact(w.max(1)).flat_map(row).collect(),
        }
    }
}

/// The original counts one layer more, which keeps the latents within bounds.
fn in_diffusers_names(name: &str) -> String {
    let split = name.split_once('.');
    let number = split.and_then(|(number, rest)| Some((number.parse::<usize>().ok()?, rest)));
    match number {
        Some((number @ 1.., rest)) => format!("{PREFIX}{}.{rest}", number - 1),
        _ => name.to_owned(),
    }
}
