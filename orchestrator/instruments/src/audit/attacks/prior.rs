//! The whole picture from the provider's own rows and a guess at the prompt, with the model itself as a prior.

use std::collections::HashMap;

use lacuna_orchestrator::progress::Progress;
use lacuna_wire::HostTensor;
use rayon::prelude::*;

use super::Material;
use crate::audit::painter::{Known, Painter};
use crate::audit::prompts::{self, Answers, QUESTIONS, Scores};
use crate::error::{Error, Result};

/// Answers of each question that go together, of so many likely ones.
const AMONG: usize = 3;

/// Times that every answer is tried at most.
const ROUNDS: usize = 3;

/// What the attacker knows of the held-out runs.
pub struct Prior<'a> {
    material: &'a Material<'a>,
    painter: &'a Painter<'a>,
    /// The latents `[n, C H W]` of which the own rows count, where it has any.
    own: Option<&'a HostTensor>,
}

impl<'a> Prior<'a> {
    /// With the rows `own` of the latents `[n, C H W]`.
    pub fn new(
        material: &'a Material<'a>,
        painter: &'a Painter<'a>,
        own: Option<&'a HostTensor>,
    ) -> Self {
        Self {
            material,
            painter,
            own,
        }
    }

    /// The known rows of the `run`-th held-out run.
    fn known(&self, run: usize) -> Option<Known<'a>> {
        let own = self.own?;
        let width = own.shape.get(1).copied()?;
        Some(Known {
            latents: own.data.get(run * width..)?.get(..width)?,
            rows: self.material.rows.clone(),
        })
    }

    /// The latents `[n, C H W]` that the model makes around the own rows, of one prompt for each held-out run.
    ///
    /// # Errors
    /// Those of the model.
    pub fn paint(&self, prompts: &[String]) -> Result<HostTensor> {
        let each = prompts.iter().enumerate().map(|(run, prompt)| {
            let known = self.known(run);
            Ok(self
                .painter
                .paint(prompt, known.as_ref(), run as u64)?
                .latents
                .data)
        });
        let each = each.collect::<Result<Vec<Vec<f32>>>>()?;
        let width = each.first().map_or(0, Vec::len);
        Ok(HostTensor::new([each.len(), width], each.concat())?)
    }

    /// What the scores of strips say, put into words that go together.
    pub fn by_strips(&self, scores: &[Scores]) -> Vec<String> {
        let words = |scores: &Scores| {
            let answers = prompts::likeliest(scores, AMONG).into_iter().next();
            answers.map_or_else(String::new, |answers| {
                prompts::in_words(&answers, prompts::SIZES[0])
            })
        };
        scores.iter().map(words).collect()
    }

    /// The answers that fit the own rows best, from where `scores` begin; none where the provider has no rows to hold them
    /// against. With them the prompts in words.
    ///
    /// # Errors
    /// Those of the model.
    pub fn by_fit(&self, scores: &[Scores]) -> Result<Option<(Vec<Answers>, Vec<String>)>> {
        let known: Option<Vec<Known<'_>>> = (0..scores.len()).map(|run| self.known(run)).collect();
        let Some(known) = known else {
            return Ok(None);
        };
        let bar = Progress::new("picture", scores.len());
        bar.about("the prompt by fit".to_owned());
        let runs: Vec<(usize, Known<'_>)> = known.into_iter().enumerate().collect();
        let each = runs.par_iter().map(|(run, known)| {
            let found = self.fit(&scores[*run], known, *run as u64);
            bar.step();
            found
        });
        let found = each.collect::<Result<Vec<_>>>()?;
        Ok(Some(found.into_iter().unzip()))
    }

    /// The best answers for one run, and their words: from the likeliest with one shape and from the likeliest with two,
    /// one answer is changed after the other for as long as that fits better.
    fn fit(&self, scores: &Scores, known: &Known<'_>, run: u64) -> Result<(Answers, String)> {
        let mut tried: HashMap<String, f64> = HashMap::new();
        let mut best: Option<(f64, Answers, String)> = None;
        for start in prompts::likeliest(scores, AMONG) {
            let mut here = Descent {
                surprise: f64::INFINITY,
                answers: start,
                size: prompts::SIZES[0],
            };
            let mut try_next = |here: &mut Descent, answers: Answers, size: &'static str| {
                let text = prompts::in_words(&answers, size);
                let surprise = match tried.get(&text) {
                    Some(surprise) => *surprise,
                    None => self.painter.surprise(&text, known, run)?,
                };
                tried.insert(text, surprise);
                if surprise < here.surprise {
                    *here = Descent {
                        surprise,
                        answers,
                        size,
                    };
                }
                Ok::<_, Error>(())
            };
            for _ in 0..ROUNDS {
                let before = here.surprise;
                for size in prompts::SIZES {
                    let answers = here.answers;
                    try_next(&mut here, answers, size)?;
                }
                for question in (0..QUESTIONS.len()).rev() {
                    for other in prompts::neighbours(&here.answers, scores, question) {
                        let size = here.size;
                        try_next(&mut here, other, size)?;
                    }
                }
                if here.surprise >= before {
                    break;
                }
            }
            if best
                .as_ref()
                .is_none_or(|(least, ..)| here.surprise < *least)
            {
                let text = prompts::in_words(&here.answers, here.size);
                best = Some((here.surprise, here.answers, text));
            }
        }
        let nothing = || ([""; QUESTIONS.len()], String::new());
        Ok(best.map_or_else(nothing, |(_, answers, text)| (answers, text)))
    }
}

/// Where a search for a prompt has come to.
struct Descent {
    surprise: f64,
    answers: Answers,
    /// Of the second shape, which no question is about.
    size: &'static str,
}
