//! A small convolutional network and its training, for an attacker that is not linear.
//!
//! The gradients are written out: burn's own differentiation would be compiled into every program, workers included.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use lacuna_kernels::conv::{Sizes, conv2d};
use lacuna_orchestrator::noise::TorchRng;
use rayon::prelude::*;

/// Rows and columns of every kernel.
const KERNEL: usize = 3;

/// A tensor `[C, H, W]` of one sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Map {
    /// Channels, rows and columns.
    pub shape: [usize; 3],
    /// The values.
    pub data: Vec<f32>,
}

impl Map {
    /// Of zeros.
    pub fn zeros(shape: [usize; 3]) -> Self {
        Self {
            shape,
            data: vec![0.0; shape.iter().product()],
        }
    }
}

/// A node of the network, by those before it.
#[derive(Clone, Debug)]
pub enum Node {
    /// The sample's map of that number.
    Input(usize),
    /// A convolution that keeps the size, over the channels of all of `from`, and a leaky rectifier if `bent`.
    Conv {
        /// The nodes that it reads.
        from: Vec<usize>,
        /// Channels that it gives.
        channels: usize,
        /// Whether a rectifier follows.
        bent: bool,
    },
    /// The means of two by two values.
    Down(usize),
    /// Every value twice both ways.
    Up(usize),
}

/// What a rectifier leaves of negative values.
const LEAK: f32 = 0.1;

/// The weights `[C_out, C_in, 3, 3]` of one convolution and its bias, with what Adam remembers of them.
#[derive(Clone, Debug)]
struct Layer {
    shape: [usize; 2],
    values: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
}

/// The network; its last node is the output.
#[derive(Clone, Debug)]
pub struct Network {
    nodes: Vec<Node>,
    /// One for each convolution, by its node.
    layers: Vec<Option<Layer>>,
    steps: i32,
}

impl Network {
    /// Of `nodes` over inputs of so many channels each, with weights drawn from `seed` (He et al. 2015); the last
    /// convolution begins at zero, so that the network begins by saying nothing.
    pub fn new(nodes: Vec<Node>, inputs: &[usize], seed: u64) -> Self {
        let mut rng = TorchRng::new(seed);
        let mut channels: Vec<usize> = Vec::with_capacity(nodes.len());
        let mut layers = Vec::with_capacity(nodes.len());
        for (at, node) in nodes.iter().enumerate() {
            let (gives, layer) = match node {
                Node::Input(i) => (inputs.get(*i).copied().unwrap_or_default(), None),
                Node::Down(from) | Node::Up(from) => (channels[*from], None),
                Node::Conv {
                    from,
                    channels: c_out,
                    ..
                } => {
                    let c_in: usize = from.iter().map(|from| channels[*from]).sum();
                    let last = at + 1 == nodes.len();
                    let patch = c_in * KERNEL * KERNEL;
                    let deviation = if last {
                        0.0
                    } else {
                        (2.0 / patch.max(1) as f32).sqrt()
                    };
                    let drawn = rng.randn(c_out * patch);
                    let mut values: Vec<f32> = drawn.into_iter().map(|x| x * deviation).collect();
                    values.resize(c_out * (patch + 1), 0.0);
                    let layer = Layer {
                        shape: [*c_out, c_in],
                        first: vec![0.0; values.len()],
                        second: vec![0.0; values.len()],
                        values,
                    };
                    (*c_out, Some(layer))
                }
            };
            channels.push(gives);
            layers.push(layer);
        }
        Self {
            nodes,
            layers,
            steps: 0,
        }
    }

    /// The output for one sample's maps.
    pub fn predict(&self, sample: &[Map]) -> Map {
        self.forward(sample).pop().unwrap_or_default()
    }

    /// What every node gives.
    fn forward(&self, sample: &[Map]) -> Vec<Map> {
        let mut all: Vec<Map> = Vec::with_capacity(self.nodes.len());
        for (node, layer) in self.nodes.iter().zip(&self.layers) {
            let map = match (node, layer) {
                (Node::Input(i), _) => sample.get(*i).cloned().unwrap_or_default(),
                (Node::Down(from), _) => down(&all[*from]),
                (Node::Up(from), _) => up(&all[*from]),
                (Node::Conv { from, bent, .. }, Some(layer)) => {
                    let mut y = layer.forward(&joined(&all, from));
                    if *bent {
                        y.data.iter_mut().for_each(|y| *y = y.max(LEAK * *y));
                    }
                    y
                }
                (Node::Conv { .. }, None) => Map::default(),
            };
            all.push(map);
        }
        all
    }

    /// Of one sample the mean square error against `wanted`, and the gradient of every layer's values.
    fn gradients(&self, sample: &[Map], wanted: &Map) -> (f64, Vec<Option<Vec<f32>>>) {
        let all = self.forward(sample);
        let mut slopes: Vec<Map> = all.iter().map(|map| Map::zeros(map.shape)).collect();
        let mut error = 0.0;
        if let (Some(y), Some(slope)) = (all.last(), slopes.last_mut()) {
            let n = y.data.len().max(1) as f32;
            for ((slope, y), wanted) in slope.data.iter_mut().zip(&y.data).zip(&wanted.data) {
                *slope = 2.0 * (y - wanted) / n;
                error += f64::from(y - wanted).powi(2) / f64::from(n);
            }
        }
        let mut gradients: Vec<Option<Vec<f32>>> = vec![None; self.nodes.len()];
        for at in (0..self.nodes.len()).rev() {
            let mut slope = std::mem::take(&mut slopes[at]);
            match (&self.nodes[at], &self.layers[at]) {
                (Node::Down(from), _) => add(&mut slopes[*from], &up(&slope), 0.25),
                (Node::Up(from), _) => add(&mut slopes[*from], &down(&slope), 4.0),
                (Node::Conv { from, bent, .. }, Some(layer)) => {
                    if *bent {
                        let pairs = slope.data.iter_mut().zip(&all[at].data);
                        pairs
                            .filter(|(_, y)| **y < 0.0)
                            .for_each(|(slope, _)| *slope *= LEAK);
                    }
                    gradients[at] = Some(layer.gradient(&joined(&all, from), &slope));
                    let back = layer.backward(&slope);
                    let mut start = 0;
                    for from in from {
                        let to = &mut slopes[*from];
                        let part = &back.data[start..][..to.data.len()];
                        to.data
                            .iter_mut()
                            .zip(part)
                            .for_each(|(to, part)| *to += part);
                        start += part.len();
                    }
                }
                _ => {}
            }
        }
        (error, gradients)
    }

    /// One step of Adam with decoupled decay (Loshchilov and Hutter 2019) on the mean square error of a batch.
    pub fn learn(&mut self, batch: &[(&[Map], &Map)], rate: f32, decay: f32) {
        let this = &*self;
        let each: Vec<_> = batch
            .par_iter()
            .map(|(sample, wanted)| this.gradients(sample, wanted).1)
            .collect();
        self.steps += 1;
        let [first, second] = [0.9_f32, 0.999];
        let unbiased = [first, second].map(|beta| 1.0 - beta.powi(self.steps));
        let share = 1.0 / batch.len().max(1) as f32;
        for (at, layer) in self.layers.iter_mut().enumerate() {
            let Some(layer) = layer else { continue };
            let mut sum = vec![0.0; layer.values.len()];
            // In the order of the batch, so that the sum is the same on every run.
            for gradient in each.iter().filter_map(|sample| sample[at].as_ref()) {
                sum.iter_mut()
                    .zip(gradient)
                    .for_each(|(sum, g)| *sum += g * share);
            }
            let kept = layer.first.iter_mut().zip(&mut layer.second);
            for ((value, g), (m, v)) in layer.values.iter_mut().zip(sum).zip(kept) {
                *m = first * *m + (1.0 - first) * g;
                *v = second * *v + (1.0 - second) * g * g;
                let step = (*m / unbiased[0]) / ((*v / unbiased[1]).sqrt() + 1e-8);
                *value -= rate * (step + decay * *value);
            }
        }
    }
}

impl Layer {
    fn sizes([c_out, c_in]: [usize; 2], [_, rows, columns]: [usize; 3]) -> Sizes {
        Sizes {
            batch: 1,
            c_in,
            c_out,
            size: [rows, columns],
            kernel: KERNEL,
            stride: 1,
            padding: [KERNEL / 2; 2],
            odd: false,
        }
    }

    fn forward(&self, x: &Map) -> Map {
        let [c_out, c_in] = self.shape;
        let (weights, bias) = self.values.split_at(c_out * c_in * KERNEL * KERNEL);
        let data = conv2d(&x.data, weights, bias, Self::sizes(self.shape, x.shape));
        let [_, rows, columns] = x.shape;
        Map {
            shape: [c_out, rows, columns],
            data,
        }
    }

    /// The slope of the input: the convolution with the kernels turned about.
    fn backward(&self, slope: &Map) -> Map {
        let [c_out, c_in] = self.shape;
        let patch = KERNEL * KERNEL;
        let turned = (0..c_in * c_out * patch).map(|at| {
            let (i, o, k) = (at / (c_out * patch), at / patch % c_out, at % patch);
            self.values[(o * c_in + i) * patch + patch - 1 - k]
        });
        let turned: Vec<f32> = turned.collect();
        let sizes = Self::sizes([c_in, c_out], slope.shape);
        let data = conv2d(&slope.data, &turned, &vec![0.0; c_in], sizes);
        let [_, rows, columns] = slope.shape;
        Map {
            shape: [c_in, rows, columns],
            data,
        }
    }

    /// The gradient of weights and bias: the slope times the input's patches.
    fn gradient(&self, x: &Map, slope: &Map) -> Vec<f32> {
        let [c_out, c_in] = self.shape;
        let [_, rows, columns] = x.shape;
        let (pixels, patch) = (rows * columns, c_in * KERNEL * KERNEL);
        let patches = patches(x);
        let mut gradient = vec![0.0; c_out * patch];
        matmul(
            MatMut::from_row_major_slice_mut(&mut gradient, c_out, patch),
            Accum::Replace,
            MatRef::from_row_major_slice(&slope.data, c_out, pixels),
            MatRef::from_row_major_slice(&patches, patch, pixels).transpose(),
            1.0,
            Par::Seq,
        );
        let planes = slope.data.chunks_exact(pixels.max(1));
        gradient.extend(planes.map(|plane| plane.iter().sum::<f32>()));
        gradient
    }
}

/// What each weight of a kernel meets: `[C 3 3, H W]`.
fn patches(x: &Map) -> Vec<f32> {
    let [channels, rows, columns] = x.shape;
    let pixels = rows * columns;
    let mut all = vec![0.0; channels * KERNEL * KERNEL * pixels];
    let each = all.chunks_exact_mut(pixels.max(1)).enumerate();
    for (at, patch) in each {
        let (channel, ky, kx) = (at / 9, at / KERNEL % KERNEL, at % KERNEL);
        let plane = &x.data[channel * pixels..][..pixels];
        // Where the kernel's middle may lie for this weight to meet a value.
        let inside = |k: usize, size: usize| 1_usize.saturating_sub(k)..(size + 1 - k).min(size);
        for row in inside(ky, rows) {
            for column in inside(kx, columns) {
                patch[row * columns + column] = plane[(row + ky - 1) * columns + column + kx - 1];
            }
        }
    }
    all
}

/// The channels of several maps of one size as one map.
fn joined(all: &[Map], from: &[usize]) -> Map {
    let maps = from.iter().filter_map(|from| all.get(*from));
    let mut joined = Map::default();
    for map in maps {
        let [channels, rows, columns] = map.shape;
        joined.shape = [joined.shape[0] + channels, rows, columns];
        joined.data.extend_from_slice(&map.data);
    }
    joined
}

fn add(to: &mut Map, from: &Map, factor: f32) {
    let pairs = to.data.iter_mut().zip(&from.data);
    pairs.for_each(|(to, from)| *to += factor * from);
}

fn down(x: &Map) -> Map {
    let [channels, rows, columns] = x.shape;
    let shape = [channels, rows / 2, columns / 2];
    let mut y = Map::zeros(shape);
    for (at, value) in y.data.iter_mut().enumerate() {
        let (c, row, column) = (
            at / (shape[1] * shape[2]),
            at / shape[2] % shape[1],
            at % shape[2],
        );
        let from = (c * rows + 2 * row) * columns + 2 * column;
        let four = [0, 1, columns, columns + 1].map(|next| x.data[from + next]);
        *value = four.iter().sum::<f32>() / 4.0;
    }
    y
}

fn up(x: &Map) -> Map {
    let [channels, rows, columns] = x.shape;
    let mut y = Map::zeros([channels, 2 * rows, 2 * columns]);
    for (at, value) in y.data.iter_mut().enumerate() {
        let (c, row, column) = (
            at / (4 * rows * columns),
            at / (2 * columns) % (2 * rows),
            at % (2 * columns),
        );
        *value = x.data[(c * rows + row / 2) * columns + column / 2];
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u64, shape: [usize; 3]) -> Map {
        let data = TorchRng::new(seed).randn(shape.iter().product());
        Map { shape, data }
    }

    fn network() -> Network {
        let conv = |from: Vec<usize>, channels, bent| Node::Conv {
            from,
            channels,
            bent,
        };
        let nodes = vec![
            Node::Input(0),
            conv(vec![0], 3, true),
            Node::Down(1),
            Node::Input(1),
            conv(vec![2, 3], 4, true),
            Node::Up(4),
            conv(vec![5, 1], 2, false),
        ];
        let mut network = Network::new(nodes, &[2, 1], 3);
        // The last begins at zero, through which no gradient goes.
        if let Some(Some(last)) = network.layers.last_mut() {
            last.values = TorchRng::new(8).randn(last.values.len());
        }
        network
    }

    fn error(network: &Network, sample: &[Map], wanted: &Map) -> f64 {
        network.gradients(sample, wanted).0
    }

    #[test]
    fn gradients_are_what_differences_say() {
        let network = network();
        let sample = [noise(1, [2, 4, 6]), noise(2, [1, 2, 3])];
        let wanted = noise(5, [2, 4, 6]);
        let (_, gradients) = network.gradients(&sample, &wanted);
        for (at, gradient) in gradients.iter().enumerate() {
            let Some(gradient) = gradient else { continue };
            for value in (0..gradient.len()).step_by(7) {
                let moved = |by: f32| {
                    let mut network = network.clone();
                    network.layers[at].as_mut().unwrap().values[value] += by;
                    error(&network, &sample, &wanted)
                };
                let slope = (moved(1e-3) - moved(-1e-3)) / 2e-3;
                let got = f64::from(gradient[value]);
                assert!(
                    (slope - got).abs() < 2e-2 * slope.abs().max(0.1),
                    "node {at}, {value}: {got}, not {slope}"
                );
            }
        }
    }

    #[test]
    fn a_network_learns_and_learns_the_same_again() {
        let learnt = || {
            let mut network = network();
            let sample = [noise(1, [2, 4, 6]), noise(2, [1, 2, 3])];
            let wanted = noise(5, [2, 4, 6]);
            let before = error(&network, &sample, &wanted);
            for _ in 0..200 {
                network.learn(&[(&sample, &wanted)], 1e-2, 0.0);
            }
            (before, error(&network, &sample, &wanted))
        };
        let (before, after) = learnt();
        assert!(after < 0.2 * before, "{after} of {before}");
        assert_eq!(learnt().1, after);
    }
}
