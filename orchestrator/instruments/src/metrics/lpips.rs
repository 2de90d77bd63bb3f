//! Learned perceptual distance (Zhang et al. 2018, LPIPS v0.1).

use std::fmt;
use std::path::Path;

use burn::tensor::{Device, Tensor};
use clap::ValueEnum;
use lacuna_model::host::OnDevice;
use lacuna_model::layers::{Conv2d, Parameter, Parameters};
use lacuna_model::weights::{Checkpoint, Weights};
use lacuna_wire::HostTensor;
use serde::{Deserialize, Serialize};

use super::decode::Rgb8;
use super::network::{Convolution, max_pool};
use super::same_size;
use crate::error::{Error, Result};

/// What the networks were trained on, in -1..1: subtracted, then divided by.
const SHIFT: [f32; 3] = [-0.030, -0.088, -0.188];
const SCALE: [f32; 3] = [0.458, 0.448, 0.450];
/// Added to the length of a feature vector before dividing by it.
const EPS: f64 = 1e-10;

/// Which network judges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Net {
    /// AlexNet, the default of the package `lpips`.
    #[default]
    Alex,
    /// VGG-16.
    Vgg,
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alex => "alex",
            Self::Vgg => "vgg",
        })
    }
}

/// A network with the weights of its channels, on a device.
#[derive(Clone, Debug)]
pub struct Lpips {
    layers: Layers,
    weights: Weights,
}

impl Lpips {
    /// Loads what `scripts/convert_metric_weights.py` makes of torchvision's and lpips's published files:
    /// `features.N` as in torchvision, and `linN.weight`, `[C]`.
    ///
    /// # Errors
    /// Any [`lacuna_model::Error`] of reading weights, naming the file or tensor.
    pub fn load(path: &Path, net: Net, device: &Device) -> Result<Self> {
        let layers = Layers::new(net);
        let weights = Weights::load(&layers, &Checkpoint::open_file(path)?, device)?;
        Ok(Self { layers, weights })
    }

    /// The distance of two pictures; 0 for equal ones.
    ///
    /// # Errors
    /// [`Error::Sizes`], [`Error::Request`] for pictures too small for the network, or
    /// [`lacuna_model::Error::Device`] when the device fails.
    pub fn distance(&self, a: &Rgb8, b: &Rgb8) -> Result<f64> {
        same_size(a, b)?;
        let (side, least) = (a.width.min(a.height), self.layers.least);
        if side < least {
            return Err(Error::Request(format!(
                "LPIPS needs at least {least}x{least} pixels, these have {}x{}",
                a.width, a.height
            )));
        }
        let values = [a, b].into_iter().flat_map(normalised).collect();
        let input = HostTensor::new([2, 3, a.height, a.width], values)?;
        let mut x = input.into_device::<4>(self.weights.device())?;
        let mut distance = 0.0;
        for (i, stage) in self.layers.stages.iter().enumerate() {
            x = stage.forward(&self.weights, x)?;
            let channels = self.weights.vector(&channel_weights(i))?;
            distance += difference(x.clone(), channels)?;
        }
        Ok(distance)
    }
}

/// The network's input, `[3, H, W]`.
fn normalised(picture: &Rgb8) -> Vec<f32> {
    let channels = (0..3).map(|c| {
        let scale = move |x: f32| (x / 127.5 - 1.0 - SHIFT[c]) / SCALE[c];
        picture
            .channel(c)
            .into_iter()
            .map(scale)
            .collect::<Vec<_>>()
    });
    channels.collect::<Vec<_>>().concat()
}

/// The mean over all places of `sum_c w_c (a_c - b_c)^2`, with `[a, b]` the features, `[2, C, H, W]`, as
/// vectors of length one.
fn difference(features: Tensor<4>, channels: Tensor<1>) -> Result<f64> {
    let [_, c, _, _] = features.dims();
    let length = features.clone().powi_scalar(2).sum_dim(1).sqrt() + EPS;
    let unit = features / length;
    let squares = (unit.clone().narrow(0, 0, 1) - unit.narrow(0, 1, 1)).powi_scalar(2);
    let weighted = (squares * channels.reshape([1, c, 1, 1])).sum_dim(1);
    let places = HostTensor::from_device(weighted)?.data;
    let sum: f64 = places.iter().map(|x| f64::from(*x)).sum();
    Ok(sum / places.len() as f64)
}

fn channel_weights(stage: usize) -> String {
    format!("lin{stage}.weight")
}

/// The part of a network up to the next features that are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stage {
    /// Rows (and columns) of the maximum taken at every second place before, if any.
    pool: Option<usize>,
    convolutions: Vec<Convolution>,
    /// Of the features.
    channels: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Layers {
    stages: Vec<Stage>,
    /// Fewest rows and columns of a picture.
    least: usize,
}

impl Layers {
    fn new(net: Net) -> Self {
        match net {
            Net::Alex => Self {
                stages: vec![
                    Stage::new(None, &[(0, 3, 64, 11)]),
                    Stage::new(Some(3), &[(3, 64, 192, 5)]),
                    Stage::new(Some(3), &[(6, 192, 384, 3)]),
                    Stage::new(None, &[(8, 384, 256, 3)]),
                    Stage::new(None, &[(10, 256, 256, 3)]),
                ],
                least: 31,
            },
            Net::Vgg => Self {
                stages: vec![
                    Stage::new(None, &[(0, 3, 64, 3), (2, 64, 64, 3)]),
                    Stage::new(Some(2), &[(5, 64, 128, 3), (7, 128, 128, 3)]),
                    Stage::new(
                        Some(2),
                        &[(10, 128, 256, 3), (12, 256, 256, 3), (14, 256, 256, 3)],
                    ),
                    Stage::new(
                        Some(2),
                        &[(17, 256, 512, 3), (19, 512, 512, 3), (21, 512, 512, 3)],
                    ),
                    Stage::new(
                        Some(2),
                        &[(24, 512, 512, 3), (26, 512, 512, 3), (28, 512, 512, 3)],
                    ),
                ],
                least: 16,
            },
        }
    }
}

impl Parameters for Layers {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        for (i, stage) in self.stages.iter().enumerate() {
            for conv in &stage.convolutions {
                conv.parameters(out);
            }
            out.push(Parameter {
                name: channel_weights(i),
                shape: vec![stage.channels],
                table: false,
            });
        }
    }
}

impl Stage {
    /// Convolutions by torchvision's number, input channels, output channels and kernel. All keep the
    /// size but AlexNet's first, of 11x11 at every fourth place.
    fn new(pool: Option<usize>, convolutions: &[(usize, usize, usize, usize)]) -> Self {
        let conv = |&(number, c_in, c_out, kernel): &(usize, usize, usize, usize)| {
            let same = Conv2d::same(format!("features.{number}"), c_in, c_out, kernel);
            Convolution::square(match kernel {
                11 => Conv2d {
                    stride: 4,
                    padding: 2,
                    ..same
                },
                _ => same,
            })
        };
        Self {
            pool,
            convolutions: convolutions.iter().map(conv).collect(),
            channels: convolutions.last().map_or(0, |last| last.2),
        }
    }

    fn forward(&self, weights: &Weights, x: Tensor<4>) -> lacuna_model::Result<Tensor<4>> {
        let x = match self.pool {
            Some(size) => max_pool(x, size, 2, 0),
            None => x,
        };
        let mut convolutions = self.convolutions.iter();
        convolutions.try_fold(x, |x, conv| conv.forward(weights, x))
    }
}
