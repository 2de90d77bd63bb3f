//! Prompts of the demo model's grammar (`scripts/demo_shapes.py`), and what can be asked about one.

use std::collections::HashSet;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};

/// Sizes of a shape.
pub const SIZES: [&str; 2] = ["small", "large"];
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

/// One answer to each of [`QUESTIONS`].
pub type Answers = [&'static str; QUESTIONS.len()];

/// Possible answers to each of [`QUESTIONS`], each with how much speaks for it, the likeliest first.
pub type Scores = [Vec<(&'static str, f32)>; QUESTIONS.len()];

/// A prompt and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The words.
    pub text: String,
    /// One for each of [`QUESTIONS`].
    pub answers: Answers,
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
    let [second_size, second_colour, second_kind] = if two { second } else { [NONE; 3] };
    let [size, colour, kind] = first;
    let answers = [
        size,
        colour,
        kind,
        place,
        second_colour,
        second_kind,
        background,
    ];
    Prompt {
        text: in_words(&answers, second_size),
        answers,
    }
}

/// The prompt that has these answers. Nobody asks for the second shape's size; where there is none it says nothing.
pub fn in_words(answers: &Answers, second_size: &str) -> String {
    let [
        size,
        colour,
        kind,
        place,
        second_colour,
        second_kind,
        background,
    ] = *answers;
    let article = |word: &str| if word.starts_with('o') { "an" } else { "a" };
    let second = match second_kind {
        NONE => String::new(),
        _ => format!(" a {second_size} {second_colour} {second_kind}"),
    };
    let on = article(background);
    format!("a {size} {colour} {kind} {place}{second} on {on} {background} background")
}

/// Whether the grammar has a prompt with these answers.
fn is_possible(answers: &Answers) -> bool {
    let [_, colour, _, place, second_colour, second_kind, background] = *answers;
    let two = RELATIONS.contains(&place);
    let nothing = [second_colour, second_kind].map(|answer| answer == NONE);
    nothing == [!two; 2] && ![colour, second_colour].contains(&background)
}

/// The likeliest answers that go together, with one shape and with two, the likelier first: `among` so many answers of
/// each question.
pub fn likeliest(scores: &Scores, among: usize) -> Vec<Answers> {
    let mut best: [Option<(f32, Answers)>; 2] = [None; 2];
    let mut visit = |answers: &Answers, total: f32| {
        let two = usize::from(!answers.contains(&NONE));
        if is_possible(answers) && best[two].is_none_or(|(most, _)| total > most) {
            best[two] = Some((total, *answers));
        }
    };
    let mut answers = [NONE; QUESTIONS.len()];
    walk(scores, among, &mut answers, 0, 0.0, &mut visit);
    let mut found: Vec<(f32, Answers)> = best.into_iter().flatten().collect();
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    found.into_iter().map(|(_, answers)| answers).collect()
}

/// Visits all answers from the question `at` on.
fn walk(
    scores: &Scores,
    among: usize,
    answers: &mut Answers,
    at: usize,
    total: f32,
    visit: &mut impl FnMut(&Answers, f32),
) {
    let Some(possible) = scores.get(at) else {
        visit(answers, total);
        return;
    };
    // There is one that says that there is a second shape, and one that says that there is none.
    let nothing = |answer: &&'static str| [*answer == NONE, PLACES.contains(answer)];
    let mut kept: Vec<(&'static str, f32)> = possible.iter().copied().take(among).collect();
    for want in [[true, false], [false, true], [false, false]] {
        let other = possible.iter().find(|(answer, _)| nothing(answer) == want);
        if let Some(other) = other.filter(|other| !kept.contains(other)) {
            kept.push(*other);
        }
    }
    for (answer, score) in kept {
        answers[at] = answer;
        walk(scores, among, answers, at + 1, total + score, visit);
    }
}

/// What is one answer away from `answers` and possible, of the question `question`.
pub fn neighbours(answers: &Answers, scores: &Scores, question: usize) -> Vec<Answers> {
    let each = scores.get(question).into_iter().flatten();
    let changed = each.map(|(answer, _)| {
        let mut changed = *answers;
        changed[question] = answer;
        changed
    });
    changed
        .filter(|other| other != answers && is_possible(other))
        .collect()
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

    /// Whoever has the answers has the words, but for the second shape's size.
    #[test]
    fn answers_are_put_into_the_words_that_they_are_of() {
        for prompt in draw(100, 3) {
            let texts = SIZES.map(|size| in_words(&prompt.answers, size));
            assert!(texts.contains(&prompt.text), "{texts:?}: {}", prompt.text);
            let sure = prompt.answers.map(|answer| vec![(answer, 1.0)]);
            assert_eq!(likeliest(&sure, 1)[0], prompt.answers);
            assert!(neighbours(&prompt.answers, &sure, 0).is_empty());
        }
    }

    #[test]
    fn likely_answers_that_do_not_go_together_are_not_put_into_words() {
        let two = ["large", "red", "star", "above", "blue", "ring", "white"];
        let mut scores = two.map(|answer| vec![(answer, 1.0)]);
        scores[4] = vec![(NONE, 1.0), ("cyan", 0.5)];
        scores[5].push((NONE, 0.1));
        scores[3].push(("at the top", 0.3));
        // Likelier than any prompt of one shape.
        scores[6].push(("green", 0.9));
        let found = likeliest(&scores, 3);
        let one = ["large", "red", "star", "at the top", NONE, NONE, "white"];
        let mut cyan = two;
        cyan[4] = "cyan";
        assert_eq!(found, [cyan, one]);
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
