//! What the paper's scheme sends and shows, from shapes alone.

use std::collections::HashMap;
use std::ops::Range;

use lacuna_model::layers::{Conv2d, GroupNorm};
use lacuna_model::partition::{rows_with_halo, strips};
use lacuna_model::survey::{self, Operation, survey};
use lacuna_model::unet::{Layer, UNet};

use super::options::Offload;
use super::strip::Strip;
use crate::error::Result;
use crate::fleet::tally::{Kind, Seen};
use crate::schemes::Sizes;
use crate::schemes::count::{Count, Counted};

/// What the first two U-Net calls of a picture send to `workers` workers. They differ in the prompt's keys and
/// values, which the user makes once.
///
/// # Errors
/// None today: shapes alone cannot fail.
pub(super) fn first_calls(
    unet: &UNet,
    sizes: &Sizes,
    offload: Offload,
    workers: usize,
) -> Result<[Count; 2]> {
    let mut count = Count::new(workers);
    let mut once = 0;
    let named = unet.layers().map(|layer| (layer.name().to_owned(), layer));
    let layers: HashMap<String, Layer<'_>> = named.collect();
    for operation in survey(unet, sizes.latents, sizes.tokens)? {
        if operation.makes_prompt_keys() {
            once += operation.flop;
            continue;
        }
        let layer = layers.get(&operation.layer).copied();
        let offloaded = match (operation.kind, layer) {
            (survey::Kind::Conv { kernel }, Some(Layer::Conv(conv))) => offload
                .has_conv(&conv.name, kernel)
                .then(|| (Kind::Conv, conv_bytes(conv, &operation, workers))),
            (survey::Kind::CrossAttention, _) if offload.attention => {
                let bytes = attention_bytes(&operation, sizes.tokens, workers);
                Some((Kind::Attention, bytes))
            }
            (survey::Kind::GroupNorm, Some(Layer::Norm(norm))) if offload.norm => {
                Some((Kind::GroupNorm, norm_bytes(norm, &operation, workers)))
            }
            _ => None,
        };
        match offloaded {
            Some((kind, strips)) => {
                for (flop, (share, ..)) in count.workers_flop.iter_mut().zip(&strips) {
                    *flop += (operation.flop as f64 * share).round() as u64;
                }
                count.exchanges.push(Counted {
                    label: operation.layer,
                    kind,
                    up: strips.iter().map(|(_, up, _)| *up).collect(),
                    down: strips.iter().map(|(.., down)| *down).collect(),
                    bands: 1,
                    ahead: 0,
                    workers_flop: operation.flop,
                    user_flop: 0,
                });
            }
            None => {
                count.user_flop += operation.flop;
                if let Some(exchange) = count.exchanges.last_mut() {
                    exchange.user_flop += operation.flop;
                }
            }
        }
    }
    let first = Count {
        user_flop: count.user_flop + once,
        ..count.clone()
    };
    Ok([first, count])
}

/// The rows that each of `workers` workers computes and is sent, over all layers.
///
/// # Errors
/// None today: shapes alone cannot fail.
pub(super) fn rows_seen(
    unet: &UNet,
    sizes: &Sizes,
    offload: Offload,
    workers: usize,
) -> Result<Vec<Seen>> {
    let mut seen: Vec<Seen> = (0..workers).map(|_| Seen::default()).collect();
    let convs = unet.layers().filter_map(|layer| match layer {
        Layer::Conv(conv) => Some((conv.name.clone(), conv)),
        _ => None,
    });
    let convs: HashMap<String, &Conv2d> = convs.collect();
    for operation in survey(unet, sizes.latents, sizes.tokens)? {
        let [_, second, third, _] = operation.input;
        let strips = match (operation.kind, convs.get(&operation.layer)) {
            (survey::Kind::Conv { kernel }, Some(conv)) if offload.has_conv(&conv.name, kernel) => {
                Strip::convolved(conv, third, workers)
            }
            (survey::Kind::GroupNorm, _) if offload.norm => Strip::plain(third, workers),
            (survey::Kind::CrossAttention, _) if offload.attention => Strip::plain(second, workers),
            _ => continue,
        };
        for (strip, seen) in strips.iter().zip(&mut seen) {
            strip.add_to(seen);
        }
    }
    Ok(seen)
}

/// Of each worker: its share of a layer, bytes to it and from it.
type Strips = Vec<(f64, usize, usize)>;

/// The strips of `rows` rows, each with what `bytes` says of it; a worker without rows gets nothing.
fn of_strips(rows: usize, n: usize, bytes: impl Fn(&Range<usize>) -> [usize; 2]) -> Strips {
    let strip = |own: Range<usize>| {
        let [up, down] = if own.is_empty() { [0, 0] } else { bytes(&own) };
        (own.len() as f64 / rows as f64, up, down)
    };
    strips(rows, n).into_iter().map(strip).collect()
}

fn conv_bytes(layer: &Conv2d, operation: &Operation, n: usize) -> Strips {
    let ([b, c, _, w], [_, c_out, h_out, w_out]) = (operation.input, operation.output);
    of_strips(h_out, n, |own| {
        let sent = rows_with_halo(layer, own).len();
        [b * c * sent * w, b * c_out * own.len() * w_out].map(|n| n * size_of::<f32>())
    })
}

fn attention_bytes(operation: &Operation, tokens: usize, n: usize) -> Strips {
    let [b, t, c, _] = operation.input;
    of_strips(t, n, |own| {
        let q = b * own.len() * c;
        [q + 2 * b * tokens * c, q].map(|n| n * size_of::<f32>())
    })
}

fn norm_bytes(layer: &GroupNorm, operation: &Operation, n: usize) -> Strips {
    let [b, c, h, w] = operation.input;
    of_strips(h, n, |own| {
        let moments = 2 * b * layer.groups * size_of::<f64>();
        [b * c * own.len() * w * size_of::<f32>(), moments]
    })
}
