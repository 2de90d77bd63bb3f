//! What a worker has under `blind`: words of its share of every input that it multiplies, sent or drawn from its seed.

use std::collections::HashMap;

use lacuna_model::unet::UNet;
use lacuna_orchestrator::fleet::tap::{Heard, Share};
use lacuna_orchestrator::schemes::Sizes;
use lacuna_orchestrator::schemes::blind::Blind;
use lacuna_orchestrator::schemes::blind::groups::Groups;
use lacuna_orchestrator::schemes::blind::placement::sent;
use lacuna_orchestrator::schemes::blind::sent::{Form, Sent};
use lacuna_shares::stream::Key;
use lacuna_wire::HostTensor;

use super::arrange::by_pixel;
use super::uniformity::Words;
use super::view::{View, finest, stage_of};
use super::watch::Place;
use crate::error::{Error, Result};

/// All but one of each group's workers, in every way: whoever may collude and learns nothing.
///
/// # Errors
/// As [`Groups::new`].
pub fn coalitions(options: &Blind, sizes: &Sizes, workers: usize) -> Result<Vec<Vec<usize>>> {
    let size = Groups::new(options, sizes, workers)?.size;
    let without = |honest: usize| {
        let others = (0..workers).filter(|worker| worker % size != honest);
        others.collect()
    };
    // The last first: without the share holder there are seeds alone.
    Ok((0..size).rev().map(without).collect())
}

/// The views of a session of shares in which the worker was asked for `calls` U-Net calls. Of each stage it has the
/// words of the last input that it multiplies, all rows of them; as features they are centred, in units of the user's
/// secret step size.
///
/// # Errors
/// [`Error::Request`] when what was heard is not of so many calls; those of the words.
pub fn views(
    unet: &UNet,
    options: &Blind,
    sizes: &Sizes,
    place: Place,
    heard: Heard,
    calls: usize,
) -> Result<Vec<View>> {
    let groups = Groups::new(options, sizes, place.of)?;
    let inputs = sent(unet, sizes, options.layers())?.into_iter();
    let inputs = inputs.map(|sent| (sent.name().to_owned(), sent.of_entries(groups.entries)));
    let reader = Reader {
        inputs: inputs.collect(),
        bits: groups.bits(place.worker % groups.size),
        narrowest: groups.bits(0),
        key: heard.seed.map(|seed| Key::received(seed.0)),
        worker: place.worker,
    };
    let per_call = heard.shares.len() / calls.max(1);
    if per_call == 0 || per_call * calls != heard.shares.len() {
        let asked = heard.shares.len();
        let reason = format!("{asked} products were asked for in {calls} calls");
        return Err(Error::Request(reason));
    }
    let numbered: Vec<(u64, Share)> = (0..).zip(heard.shares).collect();
    let of_call = numbered.chunks_exact(per_call);
    of_call.map(|shares| reader.view(shares)).collect()
}

/// Reads the words of one worker.
struct Reader {
    /// By layer.
    inputs: HashMap<String, Sent>,
    bits: u32,
    narrowest: u32,
    /// What it draws its words from.
    key: Option<Key>,
    worker: usize,
}

impl Reader {
    fn view(&self, shares: &[(u64, Share)]) -> Result<View> {
        let mut view = View::default();
        for (number, share) in shares {
            let layer = share.product.layers.first().map_or("", String::as_str);
            let unknown = || Error::Request(format!("{layer}: no layer that is sent"));
            let input = self.inputs.get(layer).ok_or_else(unknown)?;
            let words = self.words(*number, share, input)?;
            let [batch, rows, columns] = input.input;
            let entries = words.chunks((words.len() / batch.max(1)).max(1));
            view.words.extend(entries.map(|entry| Words {
                of: format!("worker {}, {layer}", self.worker),
                bits: self.bits,
                narrowest: self.narrowest,
                words: entry.to_vec(),
            }));
            let is_map = matches!(input.form, Form::Map { .. }) && !layer.contains("samplers");
            if let Some(stage) = stage_of(layer).filter(|_| is_map) {
                let features: Vec<f32> = words.into_iter().map(|word| word as f32).collect();
                let shape = [batch, input.c_in, rows, columns];
                view.stages.insert(stage.clone(), features.clone());
                view.maps.insert(stage, HostTensor::new(shape, features)?);
            }
        }
        view.pixels = by_pixel(&finest(&view.maps).into_iter().collect::<Vec<_>>())?;
        Ok(view)
    }

    /// The words of `input` in the session's `number`-th request, from 0.
    fn words(&self, number: u64, share: &Share, input: &Sent) -> Result<Vec<i32>> {
        let read = match (&share.words, &self.key) {
            (Some(packed), _) => {
                let mut words = vec![0; input.features()];
                let bands = input.bands(share.product.bands)?;
                let all = bands.iter().try_fold(&packed[..], |rest, band| {
                    let planes = input.planes();
                    planes.unpack(&mut words, &band.input, rest, self.bits)
                });
                all.map(|_| words)
            }
            (None, Some(key)) => key.mask(number, input.features(), self.bits),
            (None, None) => {
                let reason = format!("worker {} has neither words nor a seed", self.worker);
                return Err(Error::Request(reason));
            }
        };
        Ok(read.map_err(lacuna_orchestrator::Error::from)?)
    }
}

/// What a coalition's members have of the same input, added: of every batch entry the sum of their words. It is uniform
/// modulo what the narrowest words of the group have, and no further where those are of the one who is missing: the others
/// share what that one's mask left, which has no more bits. Words of one member alone are left as they are.
pub fn sums(words: &[Words]) -> Vec<Words> {
    let mut by_input: HashMap<(String, usize), Vec<&Words>> = HashMap::new();
    let mut seen: HashMap<&str, usize> = HashMap::new();
    let mut order = Vec::new();
    for words in words {
        let entry = seen.entry(&words.of).or_default();
        let layer = words.of.split_once(", ").map_or("", |(_, layer)| layer);
        let input = (layer.to_owned(), *entry);
        *entry += 1;
        let members = by_input.entry(input.clone()).or_insert_with(|| {
            order.push(input);
            Vec::new()
        });
        members.push(words);
    }
    let of_input = |input: (String, usize)| {
        let members = by_input.get(&input).filter(|members| members.len() > 1)?;
        let bits = members.iter().map(|words| words.narrowest).min()?;
        let first = members.first()?;
        let sum = |at: usize| {
            let each = members.iter().filter_map(|words| words.words.get(at));
            each.fold(0_i32, |sum, word| sum.wrapping_add(*word))
        };
        Some(Words {
            of: format!("sum, {}", input.0),
            bits,
            narrowest: bits,
            words: (0..first.words.len()).map(sum).collect(),
        })
    };
    order.into_iter().filter_map(of_input).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coalition_lacks_one_worker_of_each_group() {
        let sizes = Sizes {
            latents: [2, 8, 8],
            levels: 3,
            tokens: 77,
        };
        let of = |groups: usize, workers: usize| {
            let options = Blind {
                share_groups: Some(groups),
                ..Blind::default()
            };
            coalitions(&options, &sizes, workers).unwrap()
        };
        assert_eq!(of(1, 2), [[0], [1]]);
        assert_eq!(of(1, 3), [[0, 1], [0, 2], [1, 2]]);
        assert_eq!(of(2, 4), [[0, 2], [1, 3]]);
    }

    #[test]
    fn members_words_of_one_input_are_added() {
        let words = |of: &str, bits: u32, word: i32| Words {
            of: of.into(),
            bits,
            narrowest: 12,
            words: vec![word; 3],
        };
        let all = [
            words("worker 0, conv", 12, 1),
            words("worker 0, conv", 12, 2),
            words("worker 1, conv", 17, 10),
            words("worker 1, conv", 17, 20),
        ];
        let sums = sums(&all);
        assert_eq!(sums.len(), 2);
        assert_eq!((&*sums[0].of, sums[0].bits), ("sum, conv", 12));
        assert_eq!([sums[0].words[0], sums[1].words[2]], [11, 22]);
        assert!(super::sums(&all[..2]).is_empty());
    }
}
