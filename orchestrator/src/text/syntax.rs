//! How a prompt is written: plainly, or with weights as today's web interfaces have them.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How a prompt is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptSyntax {
    /// Plainly; what is beyond 77 tokens is left out, as the reference does.
    #[default]
    Plain,
    /// Plainly, in as many chunks of 77 tokens as it takes.
    Long,
    /// With weights and breaks, in as many chunks of 77 tokens as it takes.
    #[value(help = "(word), (word:1.3), [word], BREAK; in as many chunks as it takes")]
    Weighted,
}

/// A piece of a prompt, and how much it counts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Run {
    /// As it is tokenized.
    pub text: String,
    /// What the states of its tokens are multiplied with.
    pub weight: f32,
}

/// What a round bracket multiplies the weight with; a square one divides.
const STEP: f32 = 1.1;
/// The largest weight: what is above is a slip of the finger.
const LARGEST: f32 = 1000.0;
const BREAK: &str = "BREAK";

impl PromptSyntax {
    /// The parts of `prompt`, each of which begins a chunk.
    ///
    /// # Errors
    /// [`Error::Prompt`], naming a weight that is too large.
    pub(super) fn sections(self, prompt: &str) -> Result<Vec<Vec<Run>>> {
        match self {
            Self::Weighted => weighted(prompt),
            Self::Plain | Self::Long => Ok(vec![vec![Run {
                text: prompt.to_owned(),
                weight: 1.0,
            }]]),
        }
    }
}

/// What was read of a prompt so far.
#[derive(Default)]
struct Reader {
    /// None is where a chunk ends.
    runs: Vec<Option<Run>>,
    /// Behind the last bracket.
    text: String,
    /// Of each bracket that is open, how many runs are before it.
    round: Vec<usize>,
    square: Vec<usize>,
}

/// Reads the syntax of the web interfaces: `(a)` counts 1.1 times, `(a:1.3)` 1.3 times, `[a]` a 1.1th, each within the others;
/// `BREAK` ends a chunk; a backslash before a bracket or another makes it a letter. A bracket that nothing closes goes to the
/// end; one that nothing opened is a letter.
fn weighted(prompt: &str) -> Result<Vec<Vec<Run>>> {
    let mut reader = Reader::default();
    let mut rest = prompt;
    while let Some(c) = rest.chars().next() {
        let (_, behind) = rest.split_at(c.len_utf8());
        rest = behind;
        match c {
            '\\' if behind.starts_with(['(', ')', '[', ']', '\\']) => {
                let (letter, behind) = behind.split_at(1);
                reader.text.push_str(letter);
                rest = behind;
            }
            '(' => {
                reader.end_run();
                reader.round.push(reader.runs.len());
            }
            '[' => {
                reader.end_run();
                reader.square.push(reader.runs.len());
            }
            ')' if !reader.round.is_empty() => reader.close_round(STEP),
            ']' if !reader.square.is_empty() => {
                reader.end_run();
                let from = reader.square.pop();
                reader.multiply(from, 1.0 / STEP);
            }
            ':' if !reader.round.is_empty() => match closing_weight(behind) {
                Some((weight, behind)) => {
                    reader.close_round(weight);
                    rest = behind;
                }
                None => reader.text.push(c),
            },
            _ => reader.text.push(c),
        }
    }
    reader.sections()
}

/// The weight that `rest` begins with, where a round bracket closes behind it, and what follows.
fn closing_weight(rest: &str) -> Option<(f32, &str)> {
    let (number, behind) = rest.split_once(')')?;
    let number = number.trim();
    let digits = number.strip_prefix(['+', '-']).unwrap_or(number);
    let only_digits = digits.chars().all(|c| c.is_ascii_digit() || c == '.');
    let weight = number.parse().ok().filter(|_| only_digits)?;
    Some((weight, behind))
}

impl Reader {
    fn end_run(&mut self) {
        let text = std::mem::take(&mut self.text);
        for (i, part) in split_at_breaks(&text).into_iter().enumerate() {
            self.runs.extend((i > 0).then_some(None));
            self.runs.extend((!part.is_empty()).then(|| {
                Some(Run {
                    text: part.to_owned(),
                    weight: 1.0,
                })
            }));
        }
    }

    fn close_round(&mut self, weight: f32) {
        self.end_run();
        let from = self.round.pop();
        self.multiply(from, weight);
    }

    fn multiply(&mut self, from: Option<usize>, weight: f32) {
        let of = from.and_then(|from| self.runs.get_mut(from..));
        for run in of.into_iter().flatten().flatten() {
            run.weight *= weight;
        }
    }

    fn sections(mut self) -> Result<Vec<Vec<Run>>> {
        self.end_run();
        while let Some(from) = self.round.pop() {
            self.multiply(Some(from), STEP);
        }
        while let Some(from) = self.square.pop() {
            self.multiply(Some(from), 1.0 / STEP);
        }
        let mut sections = vec![Vec::<Run>::new()];
        for run in self.runs {
            let section = sections.last_mut();
            match (run, section) {
                (Some(run), Some(section)) => {
                    // No number does not, either.
                    let fits = run.weight.abs() <= LARGEST;
                    if !fits {
                        return Err(Error::Prompt(format!(
                            "{:?} has a weight of {}; at most {LARGEST} is taken",
                            run.text, run.weight
                        )));
                    }
                    match section.last_mut() {
                        Some(last) if last.weight == run.weight => last.text.push_str(&run.text),
                        _ => section.push(run),
                    }
                }
                _ => sections.push(Vec::new()),
            }
        }
        Ok(sections)
    }
}

/// The parts between the words `BREAK`, without the spaces around these.
fn split_at_breaks(text: &str) -> Vec<&str> {
    let is_letter = |c: char| c.is_alphanumeric() || c == '_';
    let mut parts = Vec::new();
    let mut from = 0;
    for (at, found) in text.match_indices(BREAK) {
        let (before, behind) = (&text[..at], &text[at + found.len()..]);
        if !before.ends_with(is_letter) && !behind.starts_with(is_letter) {
            parts.push((from, at));
            from = at + found.len();
        }
    }
    parts.push((from, text.len()));
    let last = parts.len() - 1;
    let trimmed = parts.into_iter().enumerate().map(|(i, (from, to))| {
        let part = &text[from..to];
        let part = if i > 0 { part.trim_start() } else { part };
        if i < last { part.trim_end() } else { part }
    });
    trimmed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(prompt: &str) -> Vec<Vec<(String, f32)>> {
        let sections = PromptSyntax::Weighted.sections(prompt).unwrap();
        let pairs = |section: Vec<Run>| section.into_iter().map(|run| (run.text, run.weight));
        sections.into_iter().map(|s| pairs(s).collect()).collect()
    }

    fn one(prompt: &str) -> Vec<(String, f32)> {
        let mut sections = read(prompt);
        assert_eq!(sections.len(), 1, "{prompt}");
        sections.remove(0)
    }

    #[test]
    fn brackets_weigh_what_is_between_them() {
        for (prompt, want) in [
            ("a cat", &[("a cat", 1.0)][..]),
            ("a (cat)", &[("a ", 1.0), ("cat", 1.1)]),
            ("((cat)) b", &[("cat", 1.21), (" b", 1.0)]),
            ("[cat] b", &[("cat", 1.0 / 1.1), (" b", 1.0)]),
            ("(cat:1.3)b", &[("cat", 1.3), ("b", 1.0)]),
            ("(a: +.5 )b", &[("a", 0.5), ("b", 1.0)]),
            ("(a [b] c:2)", &[("a ", 2.0), ("b", 2.0 / 1.1), (" c", 2.0)]),
            ("((a:1.5) b)", &[("a", 1.65), (" b", 1.1)]),
            ("(a:-1)", &[("a", -1.0)]),
        ] {
            let got = one(prompt);
            let near = |(got, want): (&(String, f32), &(&str, f32))| {
                got.0 == want.0 && (got.1 - want.1).abs() < 1e-6
            };
            let same = got.len() == want.len() && got.iter().zip(want).all(near);
            assert!(same, "{prompt}: {got:?}");
        }
    }

    #[test]
    fn what_is_no_bracket_is_a_letter() {
        for (prompt, want) in [
            (r"a \(b\) \[c\] \\", r"a (b) [c] \"),
            (r"a\b", r"a\b"),
            ("a) b] 1:2 3:1.5) é", "a) b] 1:2 3:1.5) é"),
        ] {
            assert_eq!(one(prompt), [(want.to_owned(), 1.0)], "{prompt}");
        }
        // A colon without a number in its place is one.
        assert_eq!(one("(a:b)"), [("a:b".to_owned(), 1.1)]);
        assert_eq!(one("(a:1.2.3)"), [("a:1.2.3".to_owned(), 1.1)]);
        // What nothing closes goes to the end; neighbours of one weight are one text.
        assert_eq!(one("(a b"), [("a b".to_owned(), 1.1)]);
        assert_eq!(one("(a)(b)"), [("ab".to_owned(), 1.1)]);
        assert!(one("").is_empty() && one("()").is_empty());
    }

    #[test]
    fn a_break_is_a_word_of_its_own() {
        let texts = |prompt: &str| -> Vec<Vec<String>> {
            let texts = |s: Vec<(String, f32)>| s.into_iter().map(|(text, _)| text).collect();
            read(prompt).into_iter().map(texts).collect()
        };
        assert_eq!(texts("a  BREAK\nb"), [["a"], ["b"]]);
        assert_eq!(texts("BREAKFAST, a break"), [["BREAKFAST, a break"]]);
        assert_eq!(texts("(a BREAK b)"), [["a"], ["b"]]);
        assert_eq!(read("(a BREAK b)")[1][0].1, 1.1);
        let empty: [&[&str]; 4] = [&[], &["a"], &[], &[]];
        assert_eq!(texts("BREAK a BREAK BREAK"), empty);
    }

    #[test]
    fn a_weight_that_is_too_large_is_named() {
        for prompt in [
            "(a cat:1001)",
            "(a cat:99999999999999999999999999999999999999999)",
        ] {
            let error = PromptSyntax::Weighted.sections(prompt).unwrap_err();
            assert!(
                error.to_string().contains("\"a cat\" has a weight"),
                "{error}"
            );
        }
        assert!(PromptSyntax::Long.sections("(a cat:1001)").is_ok());
    }
}
