//! The prompt's words from what it became: its embedding, or keys and values made of it.

use std::collections::BTreeMap;

use lacuna_wire::HostTensor;

use super::Material;
use super::counting::{Accuracy, largest, most_frequent};
use crate::audit::corpus::Run;
use crate::audit::ridge::Linear;
use crate::error::Result;

/// The start token comes before the first word.
const FIRST: usize = 1;

/// One word of a prompt, as the provider has it.
struct Sample<'a> {
    position: usize,
    word: &'a str,
    features: &'a [f32],
}

/// What each run's prompt became; none where the provider does not get it.
fn prompts<'a>(material: &'a Material<'_>) -> Option<Vec<&'a HostTensor>> {
    let views = material.at_step(0).into_iter();
    let prompts = views.map(|view| view.prompt.as_ref());
    prompts.collect()
}

fn samples<'a>(runs: &'a [Run], prompts: &[&'a HostTensor]) -> Vec<Sample<'a>> {
    let of_run = |(run, prompt): (&'a Run, &&'a HostTensor)| {
        let prompt: &'a HostTensor = prompt;
        let width = prompt.shape[1];
        let sample = move |(position, word)| {
            let features = prompt.data.get((FIRST + position) * width..)?;
            Some(Sample {
                position,
                word,
                features: features.get(..width)?,
            })
        };
        run.prompt.content().filter_map(sample).collect::<Vec<_>>()
    };
    runs.iter().zip(prompts).flat_map(of_run).collect()
}

/// The held-out prompts' words by the nearest neighbour among the training runs' words; none where the
/// provider gets nothing of the prompt.
pub fn nearest(material: &Material<'_>) -> Option<Accuracy> {
    let prompts = prompts(material)?;
    let (own, others) = prompts.split_at(material.train);
    let known = samples(&material.runs[..material.train], own);
    let wanted = samples(material.held_out(), others);
    let guess = |sample: &Sample<'_>| {
        let distance = |other: &Sample<'_>| -> f32 {
            let pairs = sample.features.iter().zip(other.features);
            pairs.map(|(a, b)| (a - b) * (a - b)).sum()
        };
        let distances = known.iter().map(|other| (distance(other), other.word));
        let nearest = distances.min_by(|a, b| a.0.total_cmp(&b.0));
        nearest.map_or("", |(_, word)| word)
    };
    Some(score(&known, &wanted, guess))
}

/// The same by a linear probe.
///
/// # Errors
/// Those of the regression.
pub fn probe(material: &Material<'_>) -> Result<Option<Accuracy>> {
    let Some(prompts) = prompts(material) else {
        return Ok(None);
    };
    let (own, others) = prompts.split_at(material.train);
    let known = samples(&material.runs[..material.train], own);
    let wanted = samples(material.held_out(), others);
    let mut vocabulary: Vec<&str> = known.iter().map(|sample| sample.word).collect();
    vocabulary.sort_unstable();
    vocabulary.dedup();
    let row = |sample: &Sample<'_>| {
        let (width, words) = (sample.features.len(), vocabulary.len());
        let indicator = vocabulary
            .iter()
            .map(|word| f32::from(u8::from(*word == sample.word)));
        let x = HostTensor::new([1, width], sample.features.to_vec())?;
        Ok((x, HostTensor::new([1, words], indicator.collect())?))
    };
    let linear = Linear::fit(&known.iter().map(row).collect::<Result<Vec<_>>>()?)?;
    let guess = |sample: &Sample<'_>| {
        let x = HostTensor::new([1, sample.features.len()], sample.features.to_vec());
        let scores = x.map_err(Into::into).and_then(|x| linear.predict(&x));
        scores.map_or("", |scores| vocabulary[largest(&scores.data)])
    };
    Ok(Some(score(&known, &wanted, guess)))
}

fn score<'a>(
    known: &[Sample<'a>],
    wanted: &[Sample<'a>],
    guess: impl Fn(&Sample<'a>) -> &'a str,
) -> Accuracy {
    let mut at: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for sample in known {
        at.entry(sample.position).or_default().push(sample.word);
    }
    let frequent: BTreeMap<usize, &str> = at
        .into_iter()
        .filter_map(|(position, words)| Some((position, most_frequent(&words)?)))
        .collect();
    let share = |right: &dyn Fn(&Sample<'a>) -> bool| {
        wanted.iter().filter(|s| right(s)).count() as f64 / wanted.len().max(1) as f64
    };
    Accuracy {
        right: share(&|sample| guess(sample) == sample.word),
        chance: share(&|sample| frequent.get(&sample.position) == Some(&sample.word)),
    }
}
