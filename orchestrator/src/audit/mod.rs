//! What an honest-but-curious provider can make of what it sees.
//!
//! The attacker has one provider's worker. It knows the model, the protocol and how prompts look, keeps all
//! that the worker is sent, and trains on pictures of its own. What it recovers of held-out pictures bounds
//! what a provider learns from below: a better attack may do more.
//!
//! # Layout
//!
//! - [`prompts`]: what the pictures show.
//! - [`corpus`]: the pictures, made once.
//! - [`view`]: what the provider has of each.
//! - [`attacks`]: what it makes of that.
//! - [`ridge`]: the regressions that the attacks train.
//! - [`score`]: how near a guess comes.
//! - [`table`], [`sheet`], [`font`]: the results as text and as pictures.
//! - here: all attacks on one placement.

pub mod attacks;
pub mod corpus;
pub mod font;
pub mod prompts;
pub mod ridge;
pub mod score;
pub mod sheet;
pub mod table;
pub mod view;

use std::ops::Range;

use shared::placement::{Attentions, SelfAttention};
use shared::weights::Weights;
use shared::whole::Whole;
use tokio::runtime::Handle;
use worker::Model;

use crate::error::{Error, Result};
use crate::fleet::config::FleetConfig;
use crate::picture::Picture;
use crate::pipeline::Pipeline;
use crate::schemes::{Scheme, Setting, resident};
use attacks::words::Accuracy;
use attacks::{Material, rows, strip, tiles, tokens, words};
use corpus::Run;
use score::score;
use table::Finding;
use view::View;

/// The workers, and which of them is attacked from.
pub struct Target<'a> {
    /// The model, as the attacker has it too.
    pub pipeline: &'a Pipeline,
    /// The U-Net with its weights.
    pub model: &'a Model,
    /// The workers.
    pub fleet: &'a FleetConfig,
    /// The attacker's.
    pub worker: usize,
    /// Where the dialogue with the workers goes on.
    pub runtime: Handle,
}

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
    /// The guess at the prompt: answers to [`prompts::QUESTIONS`].
    pub answers: [&'static str; prompts::QUESTIONS.len()],
}

impl Target<'_> {
    /// The rows of the latents that the attacker computes, of `rows` in all.
    ///
    /// # Errors
    /// [`shared::Error::TooManyStrips`]; [`Error::Request`] when there is no such worker.
    pub fn rows(&self, setting: &Setting) -> Result<Range<usize>> {
        let [_, rows, _] = setting.latents;
        let workers = self.fleet.workers.len();
        let missing = || Error::Request(format!("--provider {}: there are {workers}", self.worker));
        if setting.scheme == Scheme::Ppidm {
            let strips = shared::partition::strips(rows, workers);
            return strips.get(self.worker).cloned().ok_or_else(missing);
        }
        let seatings = resident::seatings(self.pipeline.unet(), setting, workers)?;
        let seating = seatings.get(self.worker).ok_or_else(missing)?;
        let levels = shared::partition::Levels::new(rows, setting.levels);
        Ok(levels.scale(&seating.strip, 0))
    }

    /// Does the audited steps of each of `runs` by `setting`, and gives what the attacker has of them. The
    /// first `train` runs are the attacker's own, who broadcasts where `setting` would have tiles.
    ///
    /// # Errors
    /// Those of the workers and of the scheme.
    pub fn watch(
        &self,
        setting: &Setting,
        weights: &Weights,
        runs: &[Run],
        train: usize,
        mut progress: impl FnMut(),
    ) -> Result<Vec<Vec<View>>> {
        let own = without_tiles(setting);
        let each = runs.iter().enumerate().map(|(i, run)| {
            progress();
            let setting = if i < train { &own } else { setting };
            self.watch_run(setting, weights, run)
        });
        each.collect()
    }

    /// What the attacker has of one run, step by step.
    ///
    /// # Errors
    /// As [`Self::watch`].
    pub fn watch_run(&self, setting: &Setting, weights: &Weights, run: &Run) -> Result<Vec<View>> {
        let (unet, digest) = (self.pipeline.unet(), self.pipeline.digest());
        let opened = setting.open(self.fleet, digest, unet);
        let mut fleet = self.runtime.block_on(opened)?;
        let tap = fleet.tap(self.worker);
        let whole = Whole::new(weights.clone(), run.context.clone());
        let mut predictor = setting.predictor(unet, whole, Some(fleet))?;
        for (sample, timestep) in &run.calls {
            predictor.predict(sample.clone(), *timestep)?;
        }
        if let Some(fleet) = predictor.finish().fleet {
            self.runtime.block_on(fleet.close());
        }
        if setting.scheme == Scheme::Ppidm {
            return view::of_pieces(self.model, tap.take(), run.calls.len());
        }
        let seatings = resident::seatings(unet, setting, self.fleet.workers.len())?;
        let seating = seatings.into_iter().nth(self.worker);
        let missing = || Error::Request(format!("--provider {}: no such worker", self.worker));
        view::of_walk(unet, weights, seating.ok_or_else(missing)?, tap.take())
    }
}

/// The same, with everybody's keys and values in place of tiles.
fn without_tiles(setting: &Setting) -> Setting {
    let mut own = *setting;
    let each: Vec<SelfAttention> = own.placement.self_attention.into();
    for (level, how) in each.into_iter().enumerate() {
        if how == SelfAttention::Tiled {
            let all = Attentions::all(SelfAttention::Broadcast);
            own.placement.self_attention = match level {
                0 => all,
                _ => own
                    .placement
                    .self_attention
                    .with(level, SelfAttention::Broadcast),
            };
        }
    }
    own
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
    let mean = shared::host::HostTensor::new([1, pixels.shape[1]], ridge::column_means(&pixels))?;
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
    let held = material.held_out();
    let truths: Vec<&Picture> = held.iter().map(|run| &run.picture).collect();
    let seen = seen_pixels(material);
    let times: Vec<String> = material.runs.first().map_or_else(Vec::new, |run| {
        let calls = run.calls.iter();
        calls.map(|(_, t)| format!("t = {t:.0}")).collect()
    });
    let last = material.steps().saturating_sub(1);
    let mut findings = Vec::new();
    let mut find = |attack: &str, from: &str, guesses: Option<&[Picture]>, words, chosen| {
        findings.push(Finding {
            policy: name.to_owned(),
            workers,
            attack: attack.to_owned(),
            from: from.to_owned(),
            score: guesses.map(|guesses| score(guesses, &truths, &seen)),
            words,
            chosen,
        });
    };

    let mut own = None;
    for step in 0..material.steps() {
        own = rows::attack(material, step)?;
        if let Some(own) = &own {
            let pictures = material.decoded(own)?;
            find(
                "own rows",
                &times[step],
                Some(&pictures),
                None,
                step == last,
            );
        }
    }

    let features = strip::features(material)?;
    let guesses = features.iter().map(|f| f.pictures(material));
    let guesses = guesses.collect::<Result<Vec<_>>>()?;
    let least = guesses.iter().map(|g| g.error).min_by(f64::total_cmp);
    let mut best = None;
    let mut answers = Vec::new();
    for (features, guess) in features.iter().zip(guesses) {
        let stage = features.stage.as_deref().unwrap_or("all stages");
        let time = features.step.map_or("all steps", |step| &times[step]);
        let from = format!("{stage}, {time}");
        let chosen = Some(guess.error) == least;
        find("strips", &from, Some(&guess.pictures), None, chosen);
        if features.stage.is_none() {
            answers = features.answers(material)?;
            let [right, chance] = strip::accuracy(material, &answers);
            let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len().max(1) as f64;
            let words = Accuracy {
                right: mean(&right),
                chance: mean(&chance),
            };
            find(
                "the prompt by strips",
                &from,
                None,
                Some(words),
                features.step.is_none(),
            );
            for (question, (right, chance)) in
                prompts::QUESTIONS.iter().zip(right.iter().zip(chance))
            {
                let words = Accuracy {
                    right: *right,
                    chance,
                };
                let attack = format!("the prompt's {question} by strips");
                find(&attack, &from, None, Some(words), false);
            }
        }
        if chosen {
            best = Some(guess);
        }
    }
    let Some(best) = best else {
        return Err(Error::Request("there is nothing to attack".into()));
    };
    // A decoder looks beyond its row: own rows come out better with a guess around them.
    let mut pictures = best.pictures;
    let decoded = match &own {
        Some(_) => material.decoded(&material.with_own_rows(best.latents, own.as_ref()))?,
        None => Vec::new(),
    };
    for (picture, own) in pictures.iter_mut().zip(&decoded) {
        paste_rows(picture, own, &seen);
    }
    find(
        "own rows and strips",
        "both of the above",
        Some(&pictures),
        None,
        true,
    );

    for step in 0..material.steps() {
        let chosen = step == last;
        let whole = |latents| material.decoded(&material.with_own_rows(latents, own.as_ref()));
        if let Some(latents) = tokens::attack(material, step)? {
            pictures = whole(latents)?;
            find(
                "keys and values",
                &times[step],
                Some(&pictures),
                None,
                chosen,
            );
        }
        if let Some(guesses) = tiles::attack_by_lengths(material, step)? {
            find(
                "lengths in tiles",
                &times[step],
                Some(&guesses),
                None,
                chosen,
            );
        }
        if let Some(realigned) = tiles::attack(material, step)? {
            let found = 100.0 * realigned.found;
            let attack = format!("tiles turned back, {found:.0} % of own tokens found");
            pictures = whole(realigned.latents)?;
            find(&attack, &times[step], Some(&pictures), None, chosen);
        }
    }

    if let Some(words) = words::nearest(material) {
        find(
            "the prompt's words",
            "nearest neighbour",
            None,
            Some(words),
            true,
        );
    }
    if let Some(words) = words::probe(material)? {
        find(
            "the prompt's words",
            "linear probe",
            None,
            Some(words),
            true,
        );
    }

    let recovered = pictures.into_iter().zip(answers).enumerate();
    let recovered = recovered.map(|(i, (guess, answers))| Recovered {
        held: decoded.get(i).map(|own| {
            let mut grey = own.clone();
            grey.rgb.fill(0.8);
            paste_rows(&mut grey, own, &seen);
            grey
        }),
        guess,
        answers,
    });
    let recovered = recovered.collect();
    Ok(Outcome {
        findings,
        recovered,
    })
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
