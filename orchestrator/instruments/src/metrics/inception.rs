//! The features of FID: Inception v3 as published in 2015 with TensorFlow, up to its last pooling.

use std::fmt;
use std::path::Path;

use burn::tensor::{Device, Tensor};
use clap::ValueEnum;
use lacuna_model::host::OnDevice;
use lacuna_model::layers::{Conv2d, Parameter, Parameters};
use lacuna_model::weights::{Checkpoint, Weights};
use lacuna_wire::HostTensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::decode::Rgb8;
use super::network::{Convolution, flatten_kernels, max_pool, mean_pool};
use super::resize::{Filter, resize};
use super::sets::FeatureNetwork;
use crate::error::Result;

/// Values of a feature vector.
pub const FEATURES: usize = 2048;
/// Rows (and columns) of the network's input.
pub const SIZE: usize = 299;

/// Whose way of making a picture the network's input; FIDs compare only within one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputResize {
    /// clean-fid's: antialiased bicubic in f32, clipped.
    #[default]
    Clean,
    /// pytorch-fid's: bilinear, not antialiased.
    Pytorch,
    /// torchmetrics': antialiased bilinear.
    Torchmetrics,
}

impl fmt::Display for InputResize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clean => "clean",
            Self::Pytorch => "pytorch",
            Self::Torchmetrics => "torchmetrics",
        })
    }
}

impl InputResize {
    /// The network's input, `[3, 299, 299]` in about -1..1.
    pub fn prepare(self, picture: &Rgb8) -> Vec<f32> {
        let (filter, antialias) = match self {
            Self::Clean => (Filter::Bicubic, true),
            Self::Pytorch => (Filter::Bilinear, false),
            Self::Torchmetrics => (Filter::Bilinear, true),
        };
        let scale = |x: f32| match self {
            Self::Pytorch => x / 127.5 - 1.0,
            Self::Clean | Self::Torchmetrics => (x.clamp(0.0, 255.0) - 128.0) / 128.0,
        };
        let from = [picture.height, picture.width];
        let channels = (0..3).map(|c| {
            let channel = picture.channel(c);
            resize(&channel, from, [SIZE; 2], filter, antialias)
        });
        channels.flatten().map(scale).collect()
    }
}

/// The network with its weights on a device.
#[derive(Clone, Debug)]
pub struct Inception {
    layers: Layers,
    weights: Weights,
}

impl Inception {
    /// Loads what `scripts/convert_metric_weights.py` makes of pytorch-fid's published file: names as
    /// there, each batch normalisation folded into its convolution.
    ///
    /// # Errors
    /// Any [`lacuna_model::Error`] of reading weights, naming the file or tensor.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        let layers = Layers::new();
        let mut checkpoint = Checkpoint::open_file(path)?;
        flatten_kernels(&mut checkpoint);
        let weights = Weights::load(&layers, &checkpoint, device)?;
        Ok(Self { layers, weights })
    }

    /// Feature vectors `[B, 2048]` of pictures of any size.
    ///
    /// # Errors
    /// As [`FeatureNetwork::features`].
    pub fn features_of(&self, pictures: &[Rgb8], resize: InputResize) -> Result<Vec<f32>> {
        let network = Prepared {
            inception: self,
            resize,
        };
        let inputs: Vec<_> = pictures.par_iter().map(|p| network.prepare(p)).collect();
        network.features(&inputs)
    }
}

/// The network with a way of making pictures its input.
#[derive(Clone, Copy)]
pub struct Prepared<'a> {
    /// The network.
    pub inception: &'a Inception,
    /// Whose way.
    pub resize: InputResize,
}

impl FeatureNetwork for Prepared<'_> {
    fn len(&self) -> usize {
        FEATURES
    }

    fn prepare(&self, picture: &Rgb8) -> Vec<f32> {
        self.resize.prepare(picture)
    }

    fn features(&self, inputs: &[Vec<f32>]) -> Result<Vec<f32>> {
        let Inception { layers, weights } = self.inception;
        let input = HostTensor::new([inputs.len(), 3, SIZE, SIZE], inputs.concat())?;
        let x = input.into_device::<4>(weights.device())?;
        let features = layers.forward(weights, x)?.mean_dim(3).mean_dim(2);
        Ok(HostTensor::from_device(features)?.data)
    }
}

/// What a branch does before its convolutions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pool {
    None,
    /// The 3x3 mean around each value.
    Mean,
    /// The 3x3 maximum around each value.
    Max,
    /// The 3x3 maximum of every second place.
    Halve,
}

/// One of a block's branches: a chain of convolutions whose end may fork into several.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Branch {
    pool: Pool,
    chain: Vec<Convolution>,
    fork: Vec<Convolution>,
}

/// Branches side by side, whose outputs are stacked along the channels.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Block {
    branches: Vec<Branch>,
}

/// The network up to its last pooling.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layers {
    /// The plain convolutions before the blocks; `None` is a pooling that halves.
    stem: Vec<Option<Convolution>>,
    blocks: Vec<Block>,
}

impl Layers {
    fn new() -> Self {
        let conv = |name: &str, c_in, c_out, kernel, stride, padding| {
            Some(Convolution::square(Conv2d {
                name: name.into(),
                c_in,
                c_out,
                kernel,
                stride,
                padding,
            }))
        };
        let stem = vec![
            conv("Conv2d_1a_3x3", 3, 32, 3, 2, 0),
            conv("Conv2d_2a_3x3", 32, 32, 3, 1, 0),
            conv("Conv2d_2b_3x3", 32, 64, 3, 1, 1),
            None,
            conv("Conv2d_3b_1x1", 64, 80, 1, 1, 0),
            conv("Conv2d_4a_3x3", 80, 192, 3, 1, 0),
            None,
        ];
        let blocks = vec![
            Block::fine("Mixed_5b", 192, 32),
            Block::fine("Mixed_5c", 256, 64),
            Block::fine("Mixed_5d", 288, 64),
            Block::to_middle("Mixed_6a", 288),
            Block::middle("Mixed_6b", 128),
            Block::middle("Mixed_6c", 160),
            Block::middle("Mixed_6d", 160),
            Block::middle("Mixed_6e", 192),
            Block::to_coarse("Mixed_7a", 768),
            Block::coarse("Mixed_7b", 1280, Pool::Mean),
            // TensorFlow's published graph takes the maximum here.
            Block::coarse("Mixed_7c", 2048, Pool::Max),
        ];
        Self { stem, blocks }
    }

    /// `[B, 3, 299, 299]` to `[B, 2048, 8, 8]`.
    fn forward(&self, weights: &Weights, x: Tensor<4>) -> lacuna_model::Result<Tensor<4>> {
        let x = self.stem.iter().try_fold(x, |x, conv| match conv {
            Some(conv) => conv.forward(weights, x),
            None => Ok(Pool::Halve.apply(x)),
        })?;
        let mut blocks = self.blocks.iter();
        blocks.try_fold(x, |x, block| block.forward(weights, x))
    }
}

impl Parameters for Layers {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        let branches = self.blocks.iter().flat_map(|block| &block.branches);
        let convs = branches.flat_map(|branch| branch.chain.iter().chain(&branch.fork));
        for conv in self.stem.iter().flatten().chain(convs) {
            conv.parameters(out);
        }
    }
}

impl Pool {
    fn apply(self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Self::None => x,
            Self::Mean => mean_pool(x),
            Self::Max => max_pool(x, 3, 1, 1),
            Self::Halve => max_pool(x, 3, 2, 0),
        }
    }
}

/// A kernel of a block's convolution.
#[derive(Clone, Copy)]
enum Kernel {
    /// `n` x `n`, keeping the size.
    Square(usize),
    /// 3x3 at every second place inside.
    Halving,
    /// 1 x `n`, keeping the size.
    Row(usize),
    /// `n` x 1, keeping the size.
    Column(usize),
}
use Kernel::{Column, Halving, Row, Square};

impl Kernel {
    fn convolution(self, name: String, c_in: usize, c_out: usize) -> Convolution {
        match self {
            Square(n) => Convolution::square(Conv2d::same(name, c_in, c_out, n)),
            Halving => Convolution::square(Conv2d {
                stride: 2,
                padding: 0,
                ..Conv2d::same(name, c_in, c_out, 3)
            }),
            Row(n) => Convolution::along(3, name, c_in, c_out, n),
            Column(n) => Convolution::along(2, name, c_in, c_out, n),
        }
    }
}

/// Branches of a block while it is put together.
struct Builder<'a> {
    block: &'a str,
    c_in: usize,
    branches: Vec<Branch>,
}

impl<'a> Builder<'a> {
    fn new(block: &'a str, c_in: usize) -> Self {
        Self {
            block,
            c_in,
            branches: Vec::new(),
        }
    }

    /// A branch of convolutions, each with its name, kernel and output channels, after `pool`.
    fn branch(mut self, pool: Pool, chain: &[(&str, Kernel, usize)]) -> Self {
        let mut c_in = self.c_in;
        let chain = chain.iter().map(|(name, kernel, c_out)| {
            let name = format!("{}.{name}", self.block);
            kernel.convolution(name, std::mem::replace(&mut c_in, *c_out), *c_out)
        });
        let chain = chain.collect();
        self.branches.push(Branch {
            pool,
            chain,
            fork: Vec::new(),
        });
        self
    }

    /// The last branch's end as a row and a column of three side by side, 384 channels each way.
    fn forked(mut self, row: &str, column: &str) -> Self {
        let fork = [(row, Row(3)), (column, Column(3))]
            .map(|(name, kernel)| kernel.convolution(format!("{}.{name}", self.block), 384, 384));
        if let Some(branch) = self.branches.last_mut() {
            branch.fork = fork.into();
        }
        self
    }

    fn build(self) -> Block {
        Block {
            branches: self.branches,
        }
    }
}

impl Block {
    /// At 35x35; `pooled` channels come from the pooling branch.
    fn fine(name: &str, c_in: usize, pooled: usize) -> Self {
        Builder::new(name, c_in)
            .branch(Pool::None, &[("branch1x1", Square(1), 64)])
            .branch(
                Pool::None,
                &[
                    ("branch5x5_1", Square(1), 48),
                    ("branch5x5_2", Square(5), 64),
                ],
            )
            .branch(
                Pool::None,
                &[
                    ("branch3x3dbl_1", Square(1), 64),
                    ("branch3x3dbl_2", Square(3), 96),
                    ("branch3x3dbl_3", Square(3), 96),
                ],
            )
            .branch(Pool::Mean, &[("branch_pool", Square(1), pooled)])
            .build()
    }

    /// From 35x35 to 17x17.
    fn to_middle(name: &str, c_in: usize) -> Self {
        Builder::new(name, c_in)
            .branch(Pool::None, &[("branch3x3", Halving, 384)])
            .branch(
                Pool::None,
                &[
                    ("branch3x3dbl_1", Square(1), 64),
                    ("branch3x3dbl_2", Square(3), 96),
                    ("branch3x3dbl_3", Halving, 96),
                ],
            )
            .branch(Pool::Halve, &[])
            .build()
    }

    /// At 17x17, `width` channels inside.
    fn middle(name: &str, width: usize) -> Self {
        Builder::new(name, 768)
            .branch(Pool::None, &[("branch1x1", Square(1), 192)])
            .branch(
                Pool::None,
                &[
                    ("branch7x7_1", Square(1), width),
                    ("branch7x7_2", Row(7), width),
                    ("branch7x7_3", Column(7), 192),
                ],
            )
            .branch(
                Pool::None,
                &[
                    ("branch7x7dbl_1", Square(1), width),
                    ("branch7x7dbl_2", Column(7), width),
                    ("branch7x7dbl_3", Row(7), width),
                    ("branch7x7dbl_4", Column(7), width),
                    ("branch7x7dbl_5", Row(7), 192),
                ],
            )
            .branch(Pool::Mean, &[("branch_pool", Square(1), 192)])
            .build()
    }

    /// From 17x17 to 8x8.
    fn to_coarse(name: &str, c_in: usize) -> Self {
        Builder::new(name, c_in)
            .branch(
                Pool::None,
                &[
                    ("branch3x3_1", Square(1), 192),
                    ("branch3x3_2", Halving, 320),
                ],
            )
            .branch(
                Pool::None,
                &[
                    ("branch7x7x3_1", Square(1), 192),
                    ("branch7x7x3_2", Row(7), 192),
                    ("branch7x7x3_3", Column(7), 192),
                    ("branch7x7x3_4", Halving, 192),
                ],
            )
            .branch(Pool::Halve, &[])
            .build()
    }

    /// At 8x8, with `pool` in the pooling branch.
    fn coarse(name: &str, c_in: usize, pool: Pool) -> Self {
        Builder::new(name, c_in)
            .branch(Pool::None, &[("branch1x1", Square(1), 320)])
            .branch(Pool::None, &[("branch3x3_1", Square(1), 384)])
            .forked("branch3x3_2a", "branch3x3_2b")
            .branch(
                Pool::None,
                &[
                    ("branch3x3dbl_1", Square(1), 448),
                    ("branch3x3dbl_2", Square(3), 384),
                ],
            )
            .forked("branch3x3dbl_3a", "branch3x3dbl_3b")
            .branch(pool, &[("branch_pool", Square(1), 192)])
            .build()
    }

    fn forward(&self, weights: &Weights, x: Tensor<4>) -> lacuna_model::Result<Tensor<4>> {
        let mut outputs = Vec::new();
        for branch in &self.branches {
            let pooled = branch.pool.apply(x.clone());
            let mut chain = branch.chain.iter();
            let end = chain.try_fold(pooled, |x, conv| conv.forward(weights, x))?;
            for conv in &branch.fork {
                outputs.push(conv.forward(weights, end.clone())?);
            }
            if branch.fork.is_empty() {
                outputs.push(end);
            }
        }
        Ok(Tensor::cat(outputs, 1))
    }
}
