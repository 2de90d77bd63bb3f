//! All attacks on what a provider has of one placement, and the baselines.

use std::ops::Range;

use lacuna_wire::HostTensor;

use super::attacks::counting::Accuracy;
use super::attacks::{Material, rows, strip, tiles, tokens, words};
use super::prompts::QUESTIONS;
use super::ridge;
use super::score::score;
use super::table::Finding;
use crate::error::{Error, Result};
use lacuna_orchestrator::picture::Picture;

/// What the attacks on one placement gave.
pub struct Outcome {
    /// Scores.
    pub findings: Vec<Finding>,
    /// What the attacker makes of each held-out run.
    pub recovered: Vec<Recovered>,
}

/// One held-out run as the attacker knows it.
#[derive(Clone)]
pub struct Recovered {
    /// Its own rows, decoded, on grey; none where it has none.
    pub held: Option<Picture>,
    /// The best guess at the whole.
    pub guess: Picture,
    /// The guess at the prompt: answers to [`QUESTIONS`].
    pub answers: [&'static str; QUESTIONS.len()],
}

/// The baselines that need no attack: the training pictures' mean, and another picture for each.
///
/// # Errors
/// Those of the products.
pub fn baselines(material: &Material<'_>, workers: usize) -> Result<(Vec<Finding>, Picture)> {
    let seen = seen_pixels(material);
    let held = material.held_out();
    let truths: Vec<&Picture> = held.iter().map(|run| &run.picture).collect();
    let pixels = material.targets(|run| &run.picture.rgb)?;
    let mean = HostTensor::new([1, pixels.shape[1]], ridge::column_means(&pixels))?;
    let mean = material.pictures(&mean).remove(0);
    let others: Vec<Picture> = (0..held.len())
        .map(|i| material.runs[i % material.train].picture.clone())
        .collect();
    let finding = |from: &str, guesses: &[Picture]| Finding {
        policy: "none".into(),
        workers,
        attack: "no attack".into(),
        from: from.into(),
        score: Some(score(guesses, &truths, &seen)),
        words: None,
        chosen: true,
    };
    let findings = vec![
        finding("the mean picture", &vec![mean.clone(); held.len()]),
        finding("another prompt's picture", &others),
    ];
    Ok((findings, mean))
}

/// The provider's rows of the picture.
fn seen_pixels(material: &Material<'_>) -> Range<usize> {
    let side = material.pipeline.pixels_per_latent();
    material.rows.start * side..material.rows.end * side
}

/// All attacks on what a provider has under the policy `name`.
///
/// # Errors
/// Those of the attacks.
pub fn attack(name: &str, workers: usize, material: &Material<'_>) -> Result<Outcome> {
    let mut scribe = Scribe::new(name, workers, material);
    let own = scribe.own_rows()?;
    let (strips, answers) = scribe.strips()?;
    // A decoder looks beyond its row: own rows come out better with a guess around them.
    let mut guesses = strips.pictures;
    let decoded = match &own {
        Some(_) => material.decoded(&material.with_own_rows(strips.latents, own.as_ref()))?,
        None => Vec::new(),
    };
    for (guess, own) in guesses.iter_mut().zip(&decoded) {
        paste_rows(guess, own, &scribe.seen);
    }
    scribe.pictures("own rows and strips", "both of the above", &guesses, true);
    if let Some(pictures) = scribe.attention(own.as_ref())? {
        guesses = pictures;
    }
    scribe.words()?;

    let recovered = guesses.into_iter().zip(answers).enumerate();
    let recovered = recovered.map(|(i, (guess, answers))| Recovered {
        held: decoded.get(i).map(|own| {
            let mut grey = own.clone();
            grey.rgb.fill(0.8);
            paste_rows(&mut grey, own, &scribe.seen);
            grey
        }),
        guess,
        answers,
    });
    Ok(Outcome {
        recovered: recovered.collect(),
        findings: scribe.findings,
    })
}

/// Tries attacks, and writes down what each gives.
struct Scribe<'a> {
    policy: &'a str,
    workers: usize,
    material: &'a Material<'a>,
    truths: Vec<&'a Picture>,
    /// The provider's rows of the picture.
    seen: Range<usize>,
    /// The audited steps by their timesteps.
    times: Vec<String>,
    findings: Vec<Finding>,
}

impl<'a> Scribe<'a> {
    fn new(policy: &'a str, workers: usize, material: &'a Material<'a>) -> Self {
        let calls = material.runs.first().map(|run| &run.calls);
        let times = calls.into_iter().flatten();
        let held = material.held_out().iter();
        Self {
            policy,
            workers,
            material,
            truths: held.map(|run| &run.picture).collect(),
            seen: seen_pixels(material),
            times: times.map(|(_, t)| format!("t = {t:.0}")).collect(),
            findings: Vec::new(),
        }
    }

    fn find(
        &mut self,
        attack: &str,
        from: &str,
        pictures: Option<&[Picture]>,
        words: Option<Accuracy>,
        chosen: bool,
    ) {
        self.findings.push(Finding {
            policy: self.policy.to_owned(),
            workers: self.workers,
            attack: attack.to_owned(),
            from: from.to_owned(),
            score: pictures.map(|pictures| score(pictures, &self.truths, &self.seen)),
            words,
            chosen,
        });
    }

    fn pictures(&mut self, attack: &str, from: &str, pictures: &[Picture], chosen: bool) {
        self.find(attack, from, Some(pictures), None, chosen);
    }

    /// The audited steps: each one's number and name, and whether it is the last.
    fn steps(&self) -> impl Iterator<Item = (usize, String, bool)> + use<> {
        let count = self.times.len();
        let steps = self.times.clone().into_iter().enumerate();
        steps.map(move |(step, time)| (step, time, step + 1 == count))
    }

    /// The latents of the provider's own rows as of the last step, where it has any.
    fn own_rows(&mut self) -> Result<Option<HostTensor>> {
        let mut own = None;
        for (step, time, last) in self.steps() {
            own = rows::attack(self.material, step)?;
            if let Some(own) = &own {
                self.pictures("own rows", &time, &self.material.decoded(own)?, last);
            }
        }
        Ok(own)
    }

    /// The best guess at the whole from strips, and the answers about the prompt from all of them.
    fn strips(&mut self) -> Result<(strip::Guess, Vec<strip::Answers>)> {
        let features = strip::features(self.material)?;
        let guesses = features.iter().map(|f| f.pictures(self.material));
        let guesses = guesses.collect::<Result<Vec<_>>>()?;
        let least = guesses.iter().map(|g| g.error).min_by(f64::total_cmp);
        let (mut best, mut answers) = (None, Vec::new());
        for (features, guess) in features.iter().zip(guesses) {
            let stage = features.stage.as_deref().unwrap_or("all stages");
            let time = features.step.and_then(|step| self.times.get(step));
            let from = format!("{stage}, {}", time.map_or("all steps", String::as_str));
            let chosen = Some(guess.error) == least;
            self.pictures("strips", &from, &guess.pictures, chosen);
            if features.stage.is_none() {
                answers = features.answers(self.material)?;
                self.answers(&answers, &from, features.step.is_none());
            }
            if chosen {
                best = Some(guess);
            }
        }
        let nothing = || Error::Request("the provider has nothing to attack with".into());
        Ok((best.ok_or_else(nothing)?, answers))
    }

    fn answers(&mut self, answers: &[strip::Answers], from: &str, chosen: bool) {
        let each = strip::accuracy(self.material, answers);
        let mean = |of: fn(&Accuracy) -> f64| each.iter().map(of).sum::<f64>() / each.len() as f64;
        let mean = Accuracy {
            right: mean(|a| a.right),
            chance: mean(|a| a.chance),
        };
        self.find("the prompt by strips", from, None, Some(mean), chosen);
        for (question, accuracy) in QUESTIONS.iter().zip(each) {
            let attack = format!("the prompt's {question} by strips");
            self.find(&attack, from, None, Some(accuracy), false);
        }
    }

    /// The whole by what self-attention gives away, as of the last step; none where that is nothing.
    fn attention(&mut self, own: Option<&HostTensor>) -> Result<Option<Vec<Picture>>> {
        let material = self.material;
        let whole = |latents| material.decoded(&material.with_own_rows(latents, own));
        let mut best = None;
        for (step, time, last) in self.steps() {
            if let Some(latents) = tokens::attack(material, step)? {
                let pictures = whole(latents)?;
                self.pictures("keys and values", &time, &pictures, last);
                best = Some(pictures);
            }
            if let Some(pictures) = tiles::attack_by_lengths(material, step)? {
                self.pictures("lengths in tiles", &time, &pictures, last);
            }
            if let Some(realigned) = tiles::attack(material, step)? {
                let found = 100.0 * realigned.found;
                let attack = format!("tiles rotated back, {found:.0} % of own tokens found");
                let pictures = whole(realigned.latents)?;
                self.pictures(&attack, &time, &pictures, last);
                best = Some(pictures);
            }
        }
        Ok(best)
    }

    /// The prompt by what it became.
    fn words(&mut self) -> Result<()> {
        let nearest = words::nearest(self.material);
        let probe = words::probe(self.material)?;
        for (from, words) in [("nearest neighbour", nearest), ("linear probe", probe)] {
            if words.is_some() {
                self.find("the prompt's words", from, None, words, true);
            }
        }
        Ok(())
    }
}

/// Puts the rows `rows` of `from` into `to`.
fn paste_rows(to: &mut Picture, from: &Picture, rows: &Range<usize>) {
    let plane = to.width * to.height;
    let part = rows.start * to.width..rows.end * to.width;
    for (to, from) in to
        .rgb
        .chunks_exact_mut(plane)
        .zip(from.rgb.chunks_exact(plane))
    {
        to[part.clone()].copy_from_slice(&from[part.clone()]);
    }
}
