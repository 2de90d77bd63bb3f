//! The demo features: of a small network that names flat shapes (`scripts/train_demo_features.py`). Their
//! Fréchet distance is not FID; it says how near two sets of the demo model's pictures are.

use std::path::Path;

use burn::tensor::Device;
use lacuna_model::host::OnDevice;
use lacuna_model::layers::{Conv2d, Parameter, Parameters};
use lacuna_model::weights::{Checkpoint, Weights};
use lacuna_wire::HostTensor;

use super::decode::Rgb8;
use super::network::Convolution;
use super::resize::{Filter, resize};
use super::sets::FeatureNetwork;
use crate::error::Result;

/// Rows (and columns) of the network's input.
const SIZE: usize = 128;
/// Of the picture and after each layer. Each halves the size, down to one place.
const CHANNELS: [usize; 8] = [3, 16, 32, 64, 64, 96, 128, 128];

/// The network with its weights on a device.
#[derive(Clone, Debug)]
pub struct DemoFeatures {
    layers: Layers,
    weights: Weights,
}

impl DemoFeatures {
    /// Loads what `scripts/train_demo_features.py` wrote.
    ///
    /// # Errors
    /// Any [`lacuna_model::Error`] of reading weights, naming the file or tensor.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        let layers = Layers::new();
        let weights = Weights::load(&layers, &Checkpoint::open_file(path)?, device)?;
        Ok(Self { layers, weights })
    }
}

impl FeatureNetwork for DemoFeatures {
    fn len(&self) -> usize {
        CHANNELS[CHANNELS.len() - 1]
    }

    /// `[3, 128, 128]` in -1..1.
    fn prepare(&self, picture: &Rgb8) -> Vec<f32> {
        let from = [picture.height, picture.width];
        let channels =
            (0..3).map(|c| resize(&picture.channel(c), from, [SIZE; 2], Filter::Bilinear, true));
        channels.flatten().map(|x| x / 127.5 - 1.0).collect()
    }

    fn features(&self, inputs: &[Vec<f32>]) -> Result<Vec<f32>> {
        let input = HostTensor::new([inputs.len(), 3, SIZE, SIZE], inputs.concat())?;
        let x = input.into_device::<4>(self.weights.device())?;
        let mut layers = self.layers.0.iter();
        let x = layers.try_fold(x, |x, layer| layer.forward(&self.weights, x))?;
        Ok(HostTensor::from_device(x)?.data)
    }
}

/// Convolutions of stride 2 with ReLU.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layers(Vec<Convolution>);

impl Layers {
    fn new() -> Self {
        let layer = |(i, c): (usize, &[usize])| {
            Convolution::square(Conv2d {
                stride: 2,
                ..Conv2d::same(format!("layers.{i}"), c[0], c[1], 3)
            })
        };
        Self(CHANNELS.windows(2).enumerate().map(layer).collect())
    }
}

impl Parameters for Layers {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        for layer in &self.0 {
            layer.parameters(out);
        }
    }
}
