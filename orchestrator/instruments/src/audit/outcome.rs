//! All attacks on what a provider has of one placement, and the baselines.

use std::ops::Range;

use lacuna_wire::HostTensor;

use super::attacks::counting::Accuracy;
use super::attacks::prior::Prior;
use super::attacks::rows::Own;
use super::attacks::samples::Samples;
use super::attacks::{Material, decoder, rows, strip, tiles, tokens, words};
use super::painter::Painter;
use super::prompts::{Answers, QUESTIONS, Scores};
use super::ridge;
use super::score::score;
use super::shares;
use super::table::Finding;
use super::uniformity::{Uniformity, Words};
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
    pub answers: Answers,
    /// What the model makes of all that, and of which prompt; none where it was not asked.
    pub painted: Option<(Picture, Answers)>,
}

/// The baselines that need no attack: the training pictures' mean, and another picture for each.
///
/// # Errors
/// Those of the products.
pub fn baselines(material: &Material<'_>, workers: usize) -> Result<Vec<Finding>> {
    let seen = seen_pixels(material);
    let held = material.held_out();
    let truths: Vec<&Picture> = held.iter().map(|run| &run.picture).collect();
    let mean = mean_picture(material)?;
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
        uniformity: None,
        chosen: true,
    };
    let findings = vec![
        finding("the mean picture", &vec![mean.clone(); held.len()]),
        finding("another prompt's picture", &others),
    ];
    Ok(findings)
}

/// The training pictures' mean.
///
/// # Errors
/// [`Error::Request`] where there is none.
pub fn mean_picture(material: &Material<'_>) -> Result<Picture> {
    let pixels = material.targets(|run| &run.picture.rgb)?;
    let mean = HostTensor::new([1, pixels.shape[1]], ridge::column_means(&pixels))?;
    let nothing = || Error::Request("there is no picture to train on".into());
    material.pictures(&mean).pop().ok_or_else(nothing)
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
pub fn attack(
    name: &str,
    workers: usize,
    material: &Material<'_>,
    painter: &Painter<'_>,
) -> Result<Outcome> {
    let mut scribe = Scribe::new(name, workers, material);
    scribe.uniformity();
    let own = scribe.own_rows()?;
    let known = own.as_ref().and_then(Own::known);
    let own = own.as_ref().map(|own| &own.latents);
    let (strips, scores) = scribe.strips()?;
    // A decoder looks beyond its row: own rows come out better with a guess around them.
    let mut guesses = strips.pictures;
    let decoded = match &own {
        Some(_) => material.decoded(&material.with_own_rows(strips.latents, own))?,
        None => Vec::new(),
    };
    for (guess, own) in guesses.iter_mut().zip(&decoded) {
        paste_rows(guess, own, &scribe.seen);
    }
    scribe.pictures("own rows and strips", "both of the above", &guesses, true);
    scribe.words()?;
    let mut painted = Vec::new();
    match scribe.attention(own)? {
        Some(pictures) => guesses = pictures,
        // Where attention gives the picture away there is nothing to gain.
        None => {
            scribe.decoder()?;
            painted = scribe.prior(&Prior::new(material, painter, known), &scores)?;
        }
    }

    let recovered = guesses.into_iter().zip(&scores).enumerate();
    let recovered = recovered.map(|(i, (guess, scores))| Recovered {
        painted: painted.get(i).cloned(),
        answers: strip::likeliest(scores),
        held: decoded.get(i).map(|own| {
            let mut grey = own.clone();
            grey.rgb.fill(0.8);
            paste_rows(&mut grey, own, &scribe.seen);
            grey
        }),
        guess,
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
            uniformity: None,
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
    fn own_rows(&mut self) -> Result<Option<Own>> {
        let mut own = None;
        for (step, time, last) in self.steps() {
            own = rows::attack(self.material, step)?;
            if let Some(own) = &own {
                self.pictures(
                    "own rows",
                    &time,
                    &self.material.decoded(&own.latents)?,
                    last,
                );
            }
        }
        Ok(own)
    }

    /// Whether the words are uniform, where there are any.
    fn uniformity(&mut self) {
        let views = self.material.views.iter().flatten();
        let own: Vec<Words> = views.clone().flat_map(|view| view.words.clone()).collect();
        let sums = views.flat_map(|view| shares::sums(&view.words));
        let all: Vec<Words> = sums.chain(own).collect();
        if all.is_empty() {
            return;
        }
        let uniformity = Uniformity::of(&all);
        let attack = match uniformity.holds() {
            true => "words and differences, uniform",
            false => "words and differences, NOT UNIFORM",
        };
        let Uniformity {
            tests,
            largest,
            threshold,
        } = uniformity;
        let from =
            format!("{tests} chi-squares, the largest {largest:.1}, threshold {threshold:.1}");
        self.find(attack, &from, None, None, true);
        if let Some(finding) = self.findings.last_mut() {
            finding.uniformity = Some(uniformity);
        }
    }

    /// The whole by a network, from strips of the last step.
    fn decoder(&mut self) -> Result<()> {
        let Some((step, time, _)) = self.steps().last() else {
            return Ok(());
        };
        if let Some(samples) = Samples::new(self.material, step)? {
            let pixels = decoder::attack(self.material, &samples)?;
            let pictures = self.material.pictures(&pixels);
            let from = format!("all stages, {time}");
            self.pictures("convolutional decoder", &from, &pictures, true);
        }
        Ok(())
    }

    /// The whole by the model itself: what it makes of the prompt that fits best, and which that is.
    fn prior(&mut self, prior: &Prior<'_>, scores: &[Scores]) -> Result<Vec<(Picture, Answers)>> {
        let material = self.material;
        let held = material.held_out();
        let paint = |scribe: &mut Self, from: &str, prompts: &[String], chosen: bool| {
            let pictures = material.decoded(&prior.paint(prompts)?)?;
            scribe.pictures("diffusion prior", from, &pictures, chosen);
            Ok::<_, Error>(pictures)
        };
        let truths: Vec<String> = held.iter().map(|run| run.prompt.text.clone()).collect();
        // Whoever is sent what the prompt became need not guess: it has the model, and can try words.
        if material.at_step(0).iter().any(|view| view.prompt.is_some()) {
            let pictures = paint(self, "the prompt, which it is sent", &truths, true)?;
            let answers = held.iter().map(|run| run.prompt.answers);
            return Ok(pictures.into_iter().zip(answers).collect());
        }
        let guessed = prior.by_strips(scores);
        let mut pictures = paint(self, "the prompt guessed from strips", &guessed, true)?;
        let mut answers: Vec<Answers> = scores.iter().map(strip::likeliest).collect();
        if let Some((fitting, prompts)) = prior.by_fit(scores)? {
            self.answers(
                "the prompt by fit",
                &fitting,
                "own rows and the model",
                true,
            );
            pictures = paint(self, "the prompt that fits own rows", &prompts, true)?;
            answers = fitting;
            paint(self, "upper line: the true prompt", &truths, true)?;
            let nothing = vec![String::new(); held.len()];
            paint(self, "lower line: no prompt", &nothing, true)?;
        }
        Ok(pictures.into_iter().zip(answers).collect())
    }

    /// The best guess at the whole from strips, and what speaks for each answer about the prompt from all of them.
    fn strips(&mut self) -> Result<(strip::Guess, Vec<Scores>)> {
        let features = strip::features(self.material)?;
        let guesses = features.iter().map(|f| f.pictures(self.material));
        let guesses = guesses.collect::<Result<Vec<_>>>()?;
        let least = guesses.iter().map(|g| g.error).min_by(f64::total_cmp);
        let (mut best, mut scores) = (None, Vec::new());
        for (features, guess) in features.iter().zip(guesses) {
            let stage = features.stage.as_deref().unwrap_or("all stages");
            let time = features.step.and_then(|step| self.times.get(step));
            let from = format!("{stage}, {}", time.map_or("all steps", String::as_str));
            let chosen = Some(guess.error) == least;
            self.pictures("strips", &from, &guess.pictures, chosen);
            if features.stage.is_none() {
                scores = features.scores(self.material)?;
                let answers: Vec<Answers> = scores.iter().map(strip::likeliest).collect();
                let chosen = features.step.is_none();
                self.answers("the prompt by strips", &answers, &from, chosen);
            }
            if chosen {
                best = Some(guess);
            }
        }
        let nothing = || Error::Request("the provider has nothing to attack with".into());
        Ok((best.ok_or_else(nothing)?, scores))
    }

    /// How many of the `answers` are right; `how` says how they were found.
    fn answers(&mut self, how: &str, answers: &[Answers], from: &str, chosen: bool) {
        let each = strip::accuracy(self.material, answers);
        let mean = |of: fn(&Accuracy) -> f64| each.iter().map(of).sum::<f64>() / each.len() as f64;
        let mean = Accuracy {
            right: mean(|a| a.right),
            chance: mean(|a| a.chance),
        };
        self.find(how, from, None, Some(mean), chosen);
        for (question, accuracy) in QUESTIONS.iter().zip(each) {
            let attack = how.replacen("prompt", &format!("prompt's {question}"), 1);
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
