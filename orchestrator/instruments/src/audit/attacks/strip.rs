//! The whole picture, and what the prompt says, from one provider's strips of the feature maps.

use lacuna_wire::HostTensor;

use super::Material;
use super::counting::{Accuracy, most_frequent};
use crate::audit::prompts::{Answers, QUESTIONS, Scores};
use crate::audit::ridge::Gram;
use crate::error::Result;
use lacuna_orchestrator::picture::Picture;

/// The features that an attack reads: their stage, or all of them, of a step, or of all.
pub struct Features {
    /// The stage; none for all of them.
    pub stage: Option<String>,
    /// The audited step; none for all of them.
    pub step: Option<usize>,
    gram: Gram,
}

/// Every stage at every step; all stages of each step; all of everything, which comes last.
///
/// # Errors
/// Those of the products.
pub fn features(material: &Material<'_>) -> Result<Vec<Features>> {
    let mut all = Vec::new();
    for step in 0..material.steps() {
        let views = material.at_step(step);
        let stages = views.first().map(|v| v.stages.keys().cloned());
        let from = all.len();
        for stage in stages.into_iter().flatten() {
            let each = views.iter().filter_map(|v| v.stages.get(&stage));
            let each: Vec<&[f32]> = each.map(Vec::as_slice).collect();
            all.push(Features {
                gram: Gram::of(&each, material.train)?,
                stage: Some(stage),
                step: Some(step),
            });
        }
        let of_step: Vec<&Gram> = all[from..].iter().map(|f| &f.gram).collect();
        if let Some(gram) = Gram::sum(&of_step) {
            all.push(Features {
                stage: None,
                step: Some(step),
                gram,
            });
        }
    }
    let of_steps = all.iter().filter(|f| f.stage.is_none());
    let of_steps: Vec<&Gram> = of_steps.map(|f| &f.gram).collect();
    if let Some(gram) = Gram::sum(&of_steps) {
        all.push(Features {
            stage: None,
            step: None,
            gram,
        });
    }
    Ok(all)
}

/// A guess at every held-out picture, and how good such guesses were on training runs that were set aside.
pub struct Guess {
    /// The pictures.
    pub pictures: Vec<Picture>,
    /// Their latents, `[n, C H W]`.
    pub latents: HostTensor,
    /// Mean square error of the latents.
    pub error: f64,
}

impl Features {
    /// Ridge regression to the latents, and with the same penalty to the pictures' pixels.
    ///
    /// # Errors
    /// Those of the products.
    pub fn pictures(&self, material: &Material<'_>) -> Result<Guess> {
        let latents = material.targets(|run| &run.latents.data)?;
        let mix = self.gram.fit(&latents)?;
        let pixels = mix.predict(&material.targets(|run| &run.picture.rgb)?)?;
        Ok(Guess {
            pictures: material.pictures(&pixels),
            latents: mix.predict(&latents)?,
            error: mix.error,
        })
    }

    /// How much speaks for each answer to [`QUESTIONS`] of each held-out run, by ridge regression to each answer's
    /// indicator.
    ///
    /// # Errors
    /// Those of the products.
    pub fn scores(&self, material: &Material<'_>) -> Result<Vec<Scores>> {
        let mut all = vec![Scores::default(); material.held_out().len()];
        for question in 0..QUESTIONS.len() {
            let own = material.runs[..material.train].iter();
            let known: Vec<&'static str> = own.map(|r| r.prompt.answers[question]).collect();
            let mut kinds = known.clone();
            kinds.sort_unstable();
            kinds.dedup();
            let indicator = |word| {
                kinds
                    .iter()
                    .map(move |kind| f32::from(u8::from(*kind == word)))
            };
            let targets = known.iter().flat_map(|word| indicator(*word)).collect();
            let targets = HostTensor::new([known.len(), kinds.len()], targets)?;
            let scores = self.gram.fit(&targets)?.predict(&targets)?;
            let rows = scores.data.chunks_exact(kinds.len());
            for (run, row) in all.iter_mut().zip(rows) {
                run[question] = kinds.iter().copied().zip(row.iter().copied()).collect();
                // Of equals the last, as it is in the alphabet.
                run[question].sort_by(|a, b| b.1.total_cmp(&a.1).then(b.0.cmp(a.0)));
            }
        }
        Ok(all)
    }
}

/// The likeliest answer to each question.
pub fn likeliest(scores: &Scores) -> Answers {
    let first =
        |possible: &Vec<(&'static str, f32)>| possible.first().map_or("", |(answer, _)| answer);
    scores.each_ref().map(first)
}

/// How many answers to each question are right, and how many the training runs' most frequent answer gets
/// right.
pub fn accuracy(material: &Material<'_>, answers: &[Answers]) -> Vec<Accuracy> {
    let held = material.held_out();
    let share = |right: usize| right as f64 / held.len().max(1) as f64;
    let of_question = |question: usize| {
        let own = material.runs[..material.train].iter();
        let known: Vec<&str> = own.map(|run| run.prompt.answers[question]).collect();
        let most = most_frequent(&known);
        let truths = held.iter().map(|run| run.prompt.answers[question]);
        let right = truths.clone().zip(answers);
        let right = right.filter(|(truth, answer)| *truth == answer[question]);
        Accuracy {
            right: share(right.count()),
            chance: share(truths.filter(|truth| Some(*truth) == most).count()),
        }
    };
    (0..QUESTIONS.len()).map(of_question).collect()
}
