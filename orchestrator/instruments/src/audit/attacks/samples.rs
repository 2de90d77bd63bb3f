//! What a network learns from: every run's maps of one step, level by level, and the training itself.

use std::collections::BTreeMap;

use lacuna_orchestrator::noise::TorchRng;
use lacuna_wire::HostTensor;

use super::Material;
use crate::audit::network::{Map, Network, Node};
use crate::error::Result;

/// One in so many training runs is set aside to say when to stop.
const ASIDE: usize = 5;
/// Channels that a convolution gives.
pub const CHANNELS: usize = 32;
/// The network goes down while a side is longer.
const COARSEST: usize = 4;
/// Training ends when so many rounds brought nothing.
const PATIENCE: usize = 6;
/// Most rounds over the training pictures.
const ROUNDS: usize = 40;
const BATCH: usize = 8;
const RATE: f32 = 2e-3;
const DECAY: f32 = 1e-2;
const SEED: u64 = 7;

/// What a network reads of every run.
pub struct Samples {
    /// Of each run one map for each level, the finest first: the provider's maps at the rows that they are of, with zeros
    /// elsewhere.
    pub inputs: Vec<Vec<Map>>,
}

impl Samples {
    /// Of every run's maps of one step; none where the provider has no maps.
    ///
    /// # Errors
    /// [`lacuna_wire::Error::WrongShape`] of maps with other axes.
    pub fn new(material: &Material<'_>, step: usize) -> Result<Option<Self>> {
        let Some(run) = material.runs.first() else {
            return Ok(None);
        };
        let [_, _, rows, columns] = run.latents.dims()?;
        let mut sides = vec![[rows, columns]];
        while let Some([rows, columns]) = sides.last().copied()
            && rows % 2 == 0
            && columns % 2 == 0
            && rows > COARSEST
        {
            sides.push([rows / 2, columns / 2]);
        }
        let views = material.at_step(step);
        if views.len() != material.runs.len() || views.iter().any(|view| view.maps.is_empty()) {
            return Ok(None);
        }
        let place = |maps: &BTreeMap<String, HostTensor>| -> Result<Vec<Map>> {
            let mut inputs: Vec<Map> = sides.iter().map(|[h, w]| Map::zeros([0, *h, *w])).collect();
            for map in maps.values() {
                let [.., own, width] = map.dims::<4>()?;
                let level = sides.iter().position(|[_, w]| *w == width);
                let Some(to) = level.and_then(|level| inputs.get_mut(level)) else {
                    continue;
                };
                let [_, height, _] = to.shape;
                let start = (material.rows.start * height / rows).min(height - own.min(height));
                for plane in map.data.chunks_exact((own * width).max(1)) {
                    let mut whole = vec![0.0; height * width];
                    let part = &mut whole[start * width..];
                    part.iter_mut().zip(plane).for_each(|(to, x)| *to = *x);
                    to.data.extend(whole);
                    to.shape[0] += 1;
                }
            }
            Ok(inputs)
        };
        let inputs = views.iter().map(|view| place(&view.maps));
        let mut inputs = inputs.collect::<Result<Vec<_>>>()?;
        standardise(&mut inputs, material.train);
        Ok(Some(Self { inputs }))
    }

    /// The nodes of a network that reads all levels, down to where everything meets everything.
    pub fn encoder(&self) -> Encoder {
        let mut encoder = Encoder {
            channels: self
                .inputs
                .first()
                .into_iter()
                .flatten()
                .map(|map| map.shape[0])
                .collect(),
            nodes: Vec::new(),
            levels: Vec::new(),
            top: 0,
        };
        for (level, channels) in encoder.channels.clone().into_iter().enumerate() {
            let mut from = Vec::new();
            if level > 0 {
                from.push(encoder.add(Node::Down(encoder.top)));
            }
            if channels > 0 {
                from.push(encoder.add(Node::Input(level)));
            }
            encoder.conv(from, CHANNELS, true);
            encoder.levels.push(encoder.top);
        }
        for _ in 0..2 {
            encoder.conv(vec![encoder.top], CHANNELS, true);
        }
        encoder
    }

    /// `network` taught what is `wanted` of the training runs: as it was when it did best on those that are set aside.
    pub fn learnt(&self, mut network: Network, wanted: &[Map]) -> Network {
        let (aside, kept): (Vec<usize>, Vec<usize>) =
            (0..wanted.len()).partition(|i| i % ASIDE == ASIDE - 1);
        let mut rng = TorchRng::new(SEED);
        let error = |network: &Network| -> f64 {
            let each = aside.iter().map(|i| {
                let guess = network.predict(&self.inputs[*i]);
                let pairs = guess.data.iter().zip(&wanted[*i].data);
                pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
            });
            each.sum()
        };
        let (mut best, mut least, mut since) = (network.clone(), error(&network), 0);
        for _ in 0..ROUNDS {
            let keys = rng.randn(kept.len());
            let mut order: Vec<(f32, usize)> = keys.into_iter().zip(kept.iter().copied()).collect();
            order.sort_by(|a, b| a.0.total_cmp(&b.0));
            for batch in order.chunks(BATCH) {
                let batch = batch.iter().map(|(_, i)| (&*self.inputs[*i], &wanted[*i]));
                network.learn(&batch.collect::<Vec<_>>(), RATE, DECAY);
            }
            let now = error(&network);
            since += 1;
            if now < least {
                (best, least, since) = (network.clone(), now, 0);
            }
            if since >= PATIENCE {
                break;
            }
        }
        best
    }
}

/// The beginning of a network, as it is put together.
pub struct Encoder {
    /// Channels of the inputs, level by level.
    channels: Vec<usize>,
    nodes: Vec<Node>,
    /// The last node of each level, the finest first.
    pub levels: Vec<usize>,
    /// The node that was added last.
    pub top: usize,
}

impl Encoder {
    /// Adds a node, and gives its number.
    pub fn add(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.top = self.nodes.len() - 1;
        self.top
    }

    /// Adds a convolution of so many channels over `from`, with a rectifier if `bent`.
    pub fn conv(&mut self, from: Vec<usize>, channels: usize, bent: bool) -> usize {
        self.add(Node::Conv {
            from,
            channels,
            bent,
        })
    }

    /// The network; the node that was added last is its output.
    pub fn network(self) -> Network {
        Network::new(self.nodes, &self.channels, SEED)
    }
}

/// Every channel to mean 0 and deviation 1 over the training runs, where anything is held.
fn standardise(inputs: &mut [Vec<Map>], train: usize) {
    let levels = inputs.first().map_or(0, Vec::len);
    for level in 0..levels {
        let [channels, rows, columns] = inputs[0][level].shape;
        let plane = rows * columns;
        for channel in 0..channels {
            let part = channel * plane..(channel + 1) * plane;
            let (mut sum, mut square, mut count) = (0.0, 0.0, 0.0);
            for maps in &inputs[..train] {
                for x in maps[level].data[part.clone()].iter().filter(|x| **x != 0.0) {
                    sum += f64::from(*x);
                    square += f64::from(*x).powi(2);
                    count += 1.0;
                }
            }
            let mean = sum / f64::max(count, 1.0);
            let deviation = (square / f64::max(count, 1.0) - mean * mean)
                .max(1e-12)
                .sqrt();
            for maps in &mut *inputs {
                for x in maps[level].data[part.clone()]
                    .iter_mut()
                    .filter(|x| **x != 0.0)
                {
                    *x = ((f64::from(*x) - mean) / deviation) as f32;
                }
            }
        }
    }
}
