//! Strips cut, computed by a worker's model and joined, against plain loops in f64 over the whole.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use lacuna_kernels::stats::Moments;
use lacuna_model::layers::{Attention, Conv2d, GroupNorm};
use lacuna_model::partition::{Rows, cut, join, rows_with_halo, strips};
use lacuna_model::unet::{Layer, UNet};
use lacuna_model::weights::{Checkpoint, Library};
use lacuna_protocol::session::Work;
use lacuna_wire::HostTensor;
use lacuna_wire::Payload;
use lacuna_worker::Model;
use tests::golden::{MODELS, model_dir};
use tests::reference;
use tests::workers::model;

/// Workers: from one to the most there may be.
const WORKERS: Range<usize> = 1..17;
/// Columns of every feature map; odd, so that the stride of two meets an edge there too.
const COLUMNS: usize = 5;

/// A tiny model, by its layers, as a worker holds it, and as it lies on disk.
struct Tiny {
    unet: UNet,
    model: Arc<Model>,
    files: Checkpoint,
}

impl Tiny {
    fn load(name: &str) -> Self {
        let dir = model_dir(name).join("unet");
        let model = model(name);
        Self {
            unet: model.unet().clone(),
            model,
            files: Checkpoint::open(&dir, Library::Diffusers, None).unwrap(),
        }
    }

    /// 3x3 convolutions, one for each combination of sizes.
    fn convolutions(&self) -> Vec<&Conv2d> {
        let mut seen = BTreeSet::new();
        let all = self.unet.layers().filter_map(|layer| match layer {
            Layer::Conv(conv) if conv.kernel == 3 => Some(conv),
            _ => None,
        });
        all.filter(|c| seen.insert((c.c_in, c.c_out, c.stride)))
            .collect()
    }

    /// Group normalisations, one for each combination of sizes.
    fn norms(&self) -> Vec<&GroupNorm> {
        let mut seen = BTreeSet::new();
        let all = self.unet.layers().filter_map(|layer| match layer {
            Layer::Norm(norm) => Some(norm),
            _ => None,
        });
        all.filter(|n| seen.insert((n.channels, n.groups)))
            .collect()
    }

    /// Attentions, one for each combination of sizes.
    fn attentions(&self) -> Vec<&Attention> {
        let mut seen = BTreeSet::new();
        let all = self.unet.layers().filter_map(|layer| match layer {
            Layer::Attention(attention) => Some(attention),
            _ => None,
        });
        all.filter(|a| seen.insert((a.to_q.d_out, a.heads)))
            .collect()
    }
}

/// Numbers of about standard deviation one that no symmetry hides an error in.
fn numbers(shape: &[usize], seed: u64) -> HostTensor {
    let mut rng = lacuna_orchestrator::noise::TorchRng::new(seed);
    HostTensor::new(shape, rng.randn(shape.iter().product())).unwrap()
}

fn feature(output: Payload) -> HostTensor {
    output.into_tensor("the output").unwrap()
}

/// The strips of `rows` that have any rows.
fn filled(rows: usize, n: usize) -> Vec<Range<usize>> {
    let strips = strips(rows, n);
    assert_eq!(strips.len(), n);
    strips.into_iter().filter(|s| !s.is_empty()).collect()
}

fn signed(range: &Range<usize>) -> Range<isize> {
    range.start as isize..range.end as isize
}

/// The largest difference; the shapes must be equal.
#[track_caller]
fn largest_difference(got: &HostTensor, want: &reference::Exact) -> f64 {
    assert_eq!(got.shape, want.shape);
    let pairs = got.data.iter().zip(&want.data);
    let differences = pairs.map(|(got, want)| (f64::from(*got) - want).abs());
    differences.fold(0.0, |worst, d| if d <= worst { worst } else { d })
}

#[test]
fn convolutions_in_strips_are_the_whole_convolution() {
    let mut worst: f64 = 0.0;
    let mut strides = BTreeSet::new();
    for name in MODELS {
        let tiny = Tiny::load(name);
        for layer in tiny.convolutions() {
            strides.insert(layer.stride);
            let weight = tiny.files.read(&format!("{}.weight", layer.name)).unwrap();
            let bias = tiny.files.read(&format!("{}.bias", layer.name)).unwrap();
            // Fewer rows than workers, odd and even, and one that has strips of two and three rows.
            for rows in [1, 2, 7, 16, 33] {
                let x = numbers(&[2, layer.c_in, rows, COLUMNS], rows as u64);
                let want = reference::conv2d(layer, &weight, &bias, &x);
                for n in WORKERS {
                    let outputs: Vec<HostTensor> = filled(layer.out_size(rows), n)
                        .iter()
                        .map(|own| {
                            let strip =
                                cut(&x, Rows::OfFeature, &rows_with_halo(layer, own)).unwrap();
                            let work = Work::Conv {
                                layer: layer.name.clone(),
                                odd: own.start % 2 == 1,
                            };
                            feature(tiny.model.run(&work, vec![strip]).unwrap())
                        })
                        .collect();
                    let got = join(&outputs, Rows::OfFeature).unwrap();
                    let difference = largest_difference(&got, &want);
                    assert!(
                        difference < 2e-5,
                        "{name}: {} of {rows} rows by {n} workers: off by {difference:.1e}",
                        layer.name
                    );
                    worst = worst.max(difference);
                }
            }
        }
    }
    assert_eq!(strides, BTreeSet::from([1, 2]));
    println!("convolutions in strips: off by {worst:.1e} at most");
}

#[test]
fn strips_without_their_neighbours_are_not_the_whole_convolution() {
    let tiny = Tiny::load("sd1");
    let layer = tiny.convolutions()[0];
    let weight = tiny.files.read(&format!("{}.weight", layer.name)).unwrap();
    let bias = tiny.files.read(&format!("{}.bias", layer.name)).unwrap();
    let x = numbers(&[1, layer.c_in, 8, COLUMNS], 1);
    let want = reference::conv2d(layer, &weight, &bias, &x);
    let blind = |own: &Range<usize>| {
        let strip = cut(&x, Rows::OfFeature, &signed(own)).unwrap();
        let padded = cut(&strip, Rows::OfFeature, &(-1..own.len() as isize + 1)).unwrap();
        let work = Work::Conv {
            layer: layer.name.clone(),
            odd: false,
        };
        feature(tiny.model.run(&work, vec![padded]).unwrap())
    };
    let outputs: Vec<HostTensor> = filled(8, 2).iter().map(blind).collect();
    let got = join(&outputs, Rows::OfFeature).unwrap();
    assert!(largest_difference(&got, &want) > 1e-2);
}

/// A feature map whose rows drift, so that no strip has the statistics of the whole.
fn drifting(layer: &GroupNorm, rows: usize) -> HostTensor {
    let mut x = numbers(&[2, layer.channels, rows, COLUMNS], rows as u64);
    for (i, value) in x.data.iter_mut().enumerate() {
        let row = i / COLUMNS % rows;
        *value += 20.0 + row as f32;
    }
    x
}

#[test]
fn merged_statistics_of_strips_are_those_of_the_whole() {
    let (mut worst, mut averaged_loss) = (0.0f64, f64::INFINITY);
    for name in MODELS {
        let tiny = Tiny::load(name);
        for layer in tiny.norms() {
            for rows in [1, 3, 10, 16] {
                let x = drifting(layer, rows);
                let want = reference::group_moments(&x, layer.groups);
                for n in WORKERS {
                    let strips: Vec<Vec<Moments>> = filled(rows, n)
                        .iter()
                        .map(|own| moments_of_strip(&tiny.model, layer, &x, own))
                        .collect();
                    for (group, want) in want.iter().enumerate() {
                        let of_group: Vec<Moments> = strips.iter().map(|s| s[group]).collect();
                        let merged = of_group
                            .iter()
                            .fold(Moments::default(), |all, m| all.merge(*m));
                        assert_eq!(merged.count, want.count);
                        let variance = want.m2 / want.count;
                        let mean_off = (merged.mean - want.mean).abs() / variance.sqrt();
                        let variance_off = (merged.variance() - variance).abs() / variance;
                        assert!(
                            mean_off < 1e-5 && variance_off < 1e-5,
                            "{name}: {} of {rows} rows by {n} workers: mean off by {mean_off:.1e} \
                             deviations, variance by {variance_off:.1e} of itself",
                            layer.name
                        );
                        worst = worst.max(mean_off).max(variance_off);
                        if rows == 16 && n == 4 {
                            let averaged = Moments::average(&of_group).variance();
                            averaged_loss =
                                averaged_loss.min((averaged - variance).abs() / variance);
                        }
                    }
                }
            }
        }
    }
    println!("merged statistics: off by {worst:.1e} at most");
    // The inputs are such that the paper's averages would have shown.
    assert!(averaged_loss > 0.5, "averages lose only {averaged_loss}");
}

fn moments_of_strip(
    model: &Model,
    layer: &GroupNorm,
    x: &HostTensor,
    own: &Range<usize>,
) -> Vec<Moments> {
    let strip = cut(x, Rows::OfFeature, &signed(own)).unwrap();
    let work = Work::Moments {
        layer: layer.name.clone(),
    };
    let reply = model.run(&work, vec![strip]).unwrap();
    assert_eq!(reply.shape(), [x.shape[0] * layer.groups, 2]);
    let count = layer.channels / layer.groups * own.len() * COLUMNS;
    lacuna_protocol::statistics::from_payload(&reply, count).unwrap()
}

#[test]
fn attention_of_strips_of_queries_is_the_whole_attention() {
    let mut worst: f64 = 0.0;
    for name in MODELS {
        let tiny = Tiny::load(name);
        for layer in tiny.attentions() {
            let width = layer.to_q.d_out;
            for (tokens, keys) in [(1, 77), (9, 77), (35, 1), (40, 77)] {
                let q = numbers(&[2, tokens, width], 1);
                let k = numbers(&[2, keys, width], 2);
                let v = numbers(&[2, keys, width], 3);
                let want = reference::attention(&q, &k, &v, layer.heads);
                for n in WORKERS {
                    let outputs: Vec<HostTensor> = filled(tokens, n)
                        .iter()
                        .map(|own| {
                            let q = cut(&q, Rows::OfTokens, &signed(own)).unwrap();
                            let work = Work::Attention {
                                layer: layer.name.clone(),
                            };
                            let output = tiny.model.run(&work, vec![q, k.clone(), v.clone()]);
                            feature(output.unwrap())
                        })
                        .collect();
                    let got = join(&outputs, Rows::OfTokens).unwrap();
                    let difference = largest_difference(&got, &want);
                    assert!(
                        difference < 1e-5,
                        "{name}: {} of {tokens} tokens by {n} workers: off by {difference:.1e}",
                        layer.name
                    );
                    worst = worst.max(difference);
                }
            }
        }
    }
    println!("attention in strips: off by {worst:.1e} at most");
}
