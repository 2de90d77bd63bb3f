//! Prompts of the demo model's grammar (`scripts/demo_shapes.py`), and what can be asked about one.

use std::collections::HashSet;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};

const SIZES: [&str; 2] = ["small", "large"];
const COLOURS: [&str; 8] = [
    "red", "orange", "yellow", "green", "cyan", "blue", "purple", "white",
];
const KINDS: [&str; 5] = ["circle", "square", "triangle", "star", "ring"];
const PLACES: [&str; 5] = [
    "in the center",
    "at the top",
    "at the bottom",
    "on the left",
    "on the right",
];
const RELATIONS: [&str; 4] = ["above", "below", "left of", "right of"];

/// Words that say nothing of the picture.
const FILLERS: [&str; 7] = ["a", "an", "on", "background", "in", "at", "the"];

/// What can be asked about a prompt, in the order of [`Prompt::answers`].
pub const QUESTIONS: [&str; 7] = [
    "size",
    "colour",
    "kind",
    "place",
    "second colour",
    "second kind",
    "background",
];

/// The answer about a second shape where there is one only.
const NONE: &str = "none";

/// A prompt and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The words.
    pub text: String,
    /// One for each of [`QUESTIONS`].
    pub answers: [&'static str; QUESTIONS.len()],
}

impl Prompt {
    /// Its words with their positions, but for those that say nothing of the picture.
    pub fn content(&self) -> impl Iterator<Item = (usize, &str)> {
        let words = self.text.split_whitespace().enumerate();
        words.filter(|(_, word)| !FILLERS.contains(word))
    }
}

/// `count` distinct prompts, the same for the same `seed`; seven of ten have two shapes, as the model was
/// trained.
pub fn draw(count: usize, seed: u64) -> Vec<Prompt> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut known = HashSet::new();
    let drawn = std::iter::repeat_with(|| draw_one(&mut rng));
    drawn
        .filter(|prompt| known.insert(prompt.text.clone()))
        .take(count)
        .collect()
}

/// One of `of`, which is never empty.
fn pick(of: &[&'static str], rng: &mut impl Rng) -> &'static str {
    of.choose(rng).copied().unwrap_or(NONE)
}

fn draw_one(rng: &mut impl Rng) -> Prompt {
    let background = pick(&COLOURS, rng);
    let inks: Vec<&str> = COLOURS.into_iter().filter(|c| *c != background).collect();
    let mut shape = || [pick(&SIZES, rng), pick(&inks, rng), pick(&KINDS, rng)];
    let (first, second) = (shape(), shape());
    let two = rng.random_bool(0.7);
    let place = pick(if two { &RELATIONS } else { &PLACES }, rng);
    let article = |word: &str| if word.starts_with('o') { "an" } else { "a" };
    let words = |[size, colour, kind]: [&str; 3]| format!("a {size} {colour} {kind}");
    let mut text = format!("{} {place}", words(first));
    if two {
        text = format!("{text} {}", words(second));
    }
    let text = format!("{text} on {} {background} background", article(background));
    let [_, second_colour, second_kind] = if two { second } else { [NONE; 3] };
    let [size, colour, kind] = first;
    Prompt {
        text,
        answers: [
            size,
            colour,
            kind,
            place,
            second_colour,
            second_kind,
            background,
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_distinct_and_the_same_each_time() {
        let prompts = draw(200, 1);
        assert_eq!(prompts, draw(200, 1));
        assert_ne!(prompts, draw(200, 2));
        let texts: HashSet<&str> = prompts.iter().map(|p| p.text.as_str()).collect();
        assert_eq!(texts.len(), 200);
    }

    #[test]
    fn the_words_that_matter_are_those_of_the_answers() {
        for prompt in draw(50, 0) {
            for answer in prompt.answers.iter().filter(|a| **a != NONE) {
                let last = answer.split(' ').next_back().unwrap();
                let found = prompt.content().any(|(at, word)| {
                    assert_eq!(prompt.text.split(' ').nth(at), Some(word));
                    answer.contains(word)
                });
                assert!(found, "{last} in {}", prompt.text);
            }
            assert!(prompt.content().all(|(_, word)| word != "background"));
        }
    }
}
