//! Keys and values from tiles permuted and rotated.
//!
//! A turn keeps lengths. A worker knows the queries, keys and values of its own rows as they were, and its
//! tile holds some of these among the others'. So their lengths, head by head, say which they are. Known pairs
//! of a vector before and after give the turn, and with it everybody's keys and values of the tile, as long as
//! there are as many pairs as a head has channels. What then is missing is their order, and deep features know
//! where in the picture they are.

use lacuna_model::unet::{Layer, UNet};
use lacuna_wire::HostTensor;

use super::Material;
use super::tokens::{Patches, Reader};
use crate::audit::arrange::by_token;
use crate::audit::ridge::{Gram, Linear, column_means, solve};
use crate::audit::view::Tile;
use crate::error::Result;
use lacuna_orchestrator::picture::Picture;

/// What was recovered of the held-out runs.
pub struct Realigned {
    /// Their latents, `[n, C H W]`.
    pub latents: HostTensor,
    /// Mean share of the provider's own tokens that were found in its tile.
    pub found: f64,
}

/// The held-out runs from tiles of one step. The attacker's own runs have keys and values as broadcast
/// gives them, for it may run a model as it likes. None where there are no tiles.
///
/// # Errors
/// Those of the regressions.
pub fn attack(material: &Material<'_>, step: usize) -> Result<Option<Realigned>> {
    let views = material.at_step(step);
    let (own, others) = views.split_at(material.train.min(views.len()));
    let keys = own.iter().map(|view| view.keys.clone());
    let tiles = others.iter().map(|view| view.tile.as_ref());
    let (Some(keys), Some(tiles)) = (
        keys.collect::<Option<Vec<_>>>(),
        tiles.collect::<Option<Vec<_>>>(),
    ) else {
        return Ok(None);
    };
    let Some(reader) = Reader::learn(&material.runs[..material.train], &keys)? else {
        return Ok(None);
    };
    let Some(heads) = tiles
        .first()
        .and_then(|t| heads(material.pipeline.unet(), t))
    else {
        return Ok(None);
    };
    let places = places(&keys)?;
    let patches = reader.patches();
    let first = material.rows.start / patches.side * patches.columns;

    let mean = column_means(&material.targets(|run| &run.latents.data)?);
    let (mut guesses, mut found) = (Vec::new(), 0.0);
    for tile in &tiles {
        let mut latents = mean.clone();
        if let Some(aligned) = align(tile, heads)? {
            found += aligned.found as f64 / tile.own[0].shape[1] as f64;
            let cells = cells(&places.predict(&aligned.others)?, patches, first, tile);
            let known = [by_token(&tile.own[1..])?, aligned.others];
            let read = [reader.read(&known[0])?, reader.read(&known[1])?];
            let own = (0..known[0].shape[0]).map(|i| (first + i, row(&read[0], i)));
            let rest = cells.iter().enumerate();
            let rest = rest.filter_map(|(i, cell)| Some(((*cell)?, row(&read[1], i))));
            fill(&mut latents, patches, &own.chain(rest).collect::<Vec<_>>());
        }
        guesses.extend(latents);
    }
    let guesses = HostTensor::new([tiles.len(), mean.len()], guesses)?;
    Ok(Some(Realigned {
        latents: guesses,
        found: found / tiles.len().max(1) as f64,
    }))
}

/// The held-out pictures from what no order and no turn changes: how long keys and values are, head by
/// head. None where there are no tiles.
///
/// # Errors
/// Those of the regression.
pub fn attack_by_lengths(material: &Material<'_>, step: usize) -> Result<Option<Vec<Picture>>> {
    let views = material.at_step(step);
    let Some(tile) = views.last().and_then(|view| view.tile.as_ref()) else {
        return Ok(None);
    };
    let Some(heads) = heads(material.pipeline.unet(), tile) else {
        return Ok(None);
    };
    // Keys and values of all tokens lie side by side: as many heads of each batch entry and kind.
    let entries = 2 * tile.sent[0].shape[0];
    let features = views.iter().map(|view| {
        let tokens = match (&view.keys, &view.tile) {
            (Some(keys), _) => keys.clone(),
            (None, Some(tile)) => by_token(&tile.sent[1..]).ok()?,
            (None, None) => return None,
        };
        Some(quantiles(&lengths(&tokens, entries * heads)))
    });
    let Some(features) = features.collect::<Option<Vec<_>>>() else {
        return Ok(None);
    };
    let features: Vec<&[f32]> = features.iter().map(Vec::as_slice).collect();
    let mix = Gram::of(&features, material.train)?;
    let mix = mix.fit(&material.targets(|run| &run.latents.data)?)?;
    let pixels = mix.predict(&material.targets(|run| &run.picture.rgb)?)?;
    Ok(Some(material.pictures(&pixels)))
}

/// Heads of the self-attentions that have the tile's width.
fn heads(unet: &UNet, tile: &Tile) -> Option<usize> {
    let width = *tile.own[0].shape.last()?;
    unet.layers().find_map(|layer| match layer {
        Layer::Attention(a) if a.name.ends_with("attn1") && a.to_q.d_out == width => Some(a.heads),
        _ => None,
    })
}

/// Learns where in the picture a token is from its keys and values.
fn places(keys: &[HostTensor]) -> Result<Linear> {
    let samples = keys.iter().map(|keys| {
        let tokens = keys.shape[0];
        let mut places = HostTensor::zeros([tokens, tokens]);
        places
            .data
            .iter_mut()
            .step_by(tokens + 1)
            .for_each(|x| *x = 1.0);
        (keys.clone(), places)
    });
    Linear::fit(&samples.collect::<Vec<_>>())
}

/// A tile rotated back.
pub struct Aligned {
    /// Keys and values of the tokens that are not the provider's own, `[n, D]`, as [`by_token`] gives them.
    pub others: HostTensor,
    /// Number of its own keys that were found in the tile.
    pub found: usize,
}

/// Turns a tile back by the provider's own tokens in it; none where too few are found.
///
/// # Errors
/// [`lacuna_wire::Error::WrongShape`] when the tile is not of one attention.
pub fn align(tile: &Tile, heads: usize) -> Result<Option<Aligned>> {
    let [batch, _, width] = tile.own[0].dims()?;
    let by_heads = |x: &HostTensor| by_token(std::slice::from_ref(x));
    let own = [
        by_heads(&tile.own[0])?,
        by_heads(&tile.own[1])?,
        by_heads(&tile.own[2])?,
    ];
    let sent = [
        by_heads(&tile.sent[0])?,
        by_heads(&tile.sent[1])?,
        by_heads(&tile.sent[2])?,
    ];
    let slices = batch * heads;
    let signature = |of: &[&HostTensor]| -> Vec<Vec<f32>> {
        let each: Vec<_> = of.iter().map(|x| lengths(x, slices)).collect();
        (0..each[0].len())
            .map(|i| each.iter().flat_map(|x| x[i].clone()).collect())
            .collect()
    };
    let queries = matches(&signature(&[&own[0]]), &signature(&[&sent[0]]));
    let keys = matches(
        &signature(&[&own[1], &own[2]]),
        &signature(&[&sent[1], &sent[2]]),
    );

    let depth = width / heads;
    let known: Vec<usize> = keys.iter().map(|(_, sent)| *sent).collect();
    let others: Vec<usize> = (0..sent[1].shape[0])
        .filter(|i| !known.contains(i))
        .collect();
    let total = 2 * batch * width;
    let mut rotated_back = vec![0f32; others.len() * total];
    for head in 0..heads {
        let of_queries = [(&own[0], &sent[0], &queries), (&own[1], &sent[1], &keys)];
        let of_values = [(&own[2], &sent[2], &keys)];
        for (kind, pairs) in [&of_queries[..], &of_values[..]].into_iter().enumerate() {
            let slices: Vec<usize> = (0..batch).map(|b| b * width + head * depth).collect();
            let Some(back) = turn_back(pairs, &slices, depth) else {
                return Ok(None);
            };
            for (row, token) in others.iter().enumerate() {
                for (b, slice) in slices.iter().enumerate() {
                    let x = &sent[1 + kind].data[token * batch * width + slice..][..depth];
                    let to = row * total + kind * batch * width + b * width + head * depth;
                    for (j, value) in rotated_back[to..][..depth].iter_mut().enumerate() {
                        let dot = |i: usize| f64::from(x[i]) * back[i * depth + j];
                        *value = (0..depth).map(dot).sum::<f64>() as f32;
                    }
                }
            }
        }
    }
    Ok(Some(Aligned {
        others: HostTensor::new([others.len(), total], rotated_back)?,
        found: keys.len(),
    }))
}

/// Own vectors, the tile's, and which are the same.
type Pairs<'a> = (&'a HostTensor, &'a HostTensor, &'a Vec<(usize, usize)>);

/// The `[depth, depth]` that turns the tile's vectors back to what the known ones were, by least squares;
/// none of fewer pairs than channels.
fn turn_back(pairs: &[Pairs<'_>], slices: &[usize], depth: usize) -> Option<Vec<f64>> {
    let (mut square, mut back) = (vec![0.0; depth * depth], vec![0.0; depth * depth]);
    let mut count = 0;
    for (own, sent, matched) in pairs {
        let width = sent.shape[1];
        for (i, j) in *matched {
            for slice in slices {
                let from = &sent.data[j * width + slice..][..depth];
                let to = &own.data[i * width + slice..][..depth];
                count += 1;
                for (r, x) in from.iter().enumerate() {
                    for c in 0..depth {
                        square[r * depth + c] += f64::from(x * from[c]);
                        back[r * depth + c] += f64::from(x * to[c]);
                    }
                }
            }
        }
    }
    if count < depth {
        return None;
    }
    let trace: f64 = (0..depth).map(|i| square[i * depth + i]).sum();
    (0..depth).for_each(|i| square[i * depth + i] += 1e-9 * trace);
    solve(&mut square, depth, &mut back, depth);
    Some(back)
}

/// Lengths of the `slices` equal parts of each token of `[T, D]`.
fn lengths(x: &HostTensor, slices: usize) -> Vec<Vec<f32>> {
    let width = x.shape[1];
    let length = |part: &[f32]| part.iter().map(|x| x * x).sum::<f32>().sqrt();
    let token = |row: &[f32]| {
        row.chunks_exact(width / slices.max(1))
            .map(length)
            .collect()
    };
    x.data.chunks_exact(width).map(token).collect()
}

/// How much nearer than the second best a match must be.
const CLEARLY: f32 = 0.1;

/// Which of `own` signatures are which of `sent`: the nearest, where no other comes near (Lowe 2004).
fn matches(own: &[Vec<f32>], sent: &[Vec<f32>]) -> Vec<(usize, usize)> {
    let distance = |a: &[f32], b: &[f32]| -> f32 {
        let squares = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b));
        squares.sum::<f32>().sqrt()
    };
    let nearest = |(i, a): (usize, &Vec<f32>)| {
        let mut best = (f32::INFINITY, 0);
        let mut second = f32::INFINITY;
        for (j, b) in sent.iter().enumerate() {
            let d = distance(a, b);
            if d < best.0 {
                second = best.0;
                best = (d, j);
            } else {
                second = second.min(d);
            }
        }
        (best.0 < CLEARLY * second).then_some((i, best.1))
    };
    own.iter().enumerate().filter_map(nearest).collect()
}

/// Points of a distribution that describe it.
const QUANTILES: usize = 16;

/// Quantiles of each slice's lengths over the tokens.
fn quantiles(lengths: &[Vec<f32>]) -> Vec<f32> {
    let slices = lengths.first().map_or(0, Vec::len);
    let of_slice = |slice: usize| {
        let mut sorted: Vec<f32> = lengths.iter().map(|token| token[slice]).collect();
        sorted.sort_by(f32::total_cmp);
        let at = move |i: usize| sorted[(2 * i + 1) * sorted.len() / (2 * QUANTILES)];
        (0..QUANTILES).map(at)
    };
    (0..slices).flat_map(of_slice).collect()
}

/// The cell of each token by its `scores` `[n, cells]`, best first, each cell once; the provider's own, from
/// the cell `first` on, are taken.
fn cells(scores: &HostTensor, patches: Patches, first: usize, tile: &Tile) -> Vec<Option<usize>> {
    let all = patches.rows * patches.columns;
    let mut taken = vec![false; all];
    let own = first..(first + tile.own[0].shape[1]).min(all);
    taken[own].fill(true);
    let mut order: Vec<usize> = (0..scores.data.len()).collect();
    order.sort_by(|a, b| scores.data[*b].total_cmp(&scores.data[*a]));
    let mut cells = vec![None; scores.shape[0]];
    for at in order {
        let (token, cell) = (at / all, at % all);
        if cells[token].is_none() && !taken[cell] {
            cells[token] = Some(cell);
            taken[cell] = true;
        }
    }
    cells
}

/// Writes each cell's patch; a cell without one gets that of the nearest.
fn fill(latents: &mut [f32], patches: Patches, known: &[(usize, &[f32])]) {
    let place = |cell: usize| [cell / patches.columns, cell % patches.columns];
    let distance = |a: usize, b: usize| -> usize {
        let pairs = place(a).into_iter().zip(place(b));
        pairs.map(|(a, b)| a.abs_diff(b).pow(2)).sum()
    };
    for cell in 0..patches.rows * patches.columns {
        let nearest = known.iter().min_by_key(|(other, _)| distance(cell, *other));
        if let Some((_, patch)) = nearest {
            let places = patches.of_token(cell);
            places
                .zip(*patch)
                .for_each(|(at, value)| latents[at] = *value);
        }
    }
}

fn row(x: &HostTensor, i: usize) -> &[f32] {
    let width = x.shape[1];
    &x.data[i * width..][..width]
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Tensor};
    use lacuna_model::host::OnDevice;
    use lacuna_orchestrator::noise::TorchRng;
    use lacuna_orchestrator::schemes::resident::tiles::Secret;

    #[test]
    fn own_tokens_undo_the_secret_of_a_tile() {
        let (batch, tokens, heads, depth) = (2, 64, 2, 8);
        let device = Device::flex();
        let shape = [batch, tokens, heads * depth];
        let draw = |seed| {
            let data = TorchRng::new(seed).randn(shape.iter().product());
            HostTensor::new(shape, data).unwrap()
        };
        let all = [draw(1), draw(2), draw(3)];
        let place = |x: &HostTensor| -> Tensor<3> { x.clone().into_device(&device).unwrap() };
        let secret = Secret::draw(tokens, heads, depth, &device).unwrap();
        let sent = secret
            .hide(place(&all[0]), place(&all[1]), place(&all[2]))
            .unwrap();
        let part = |x: &HostTensor, n: isize| {
            let axis = lacuna_model::partition::Rows::OfTokens;
            lacuna_model::partition::cut(x, axis, &(0..n)).unwrap()
        };
        let tile = Tile {
            own: all.each_ref().map(|x| part(x, 16)),
            sent: sent.each_ref().map(|x| part(x, 32)),
        };
        let aligned = align(&tile, heads).unwrap().unwrap();
        assert_eq!(aligned.others.shape[0] + aligned.found, 32);
        // Every token that was rotated back is one of the others, as it was.
        let truth = by_token(&all[1..]).unwrap();
        for got in 0..aligned.others.shape[0] {
            let distance = |i: usize| {
                let pairs = row(&truth, i).iter().zip(row(&aligned.others, got));
                pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
            };
            let nearest = (16..tokens).map(distance).fold(f32::INFINITY, f32::min);
            assert!(nearest < 1e-3, "off by {nearest}");
        }
    }
}
