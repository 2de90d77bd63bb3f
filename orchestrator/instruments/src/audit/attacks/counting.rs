//! Counting right answers, and what guessing gets.

use serde::Serialize;

/// Shares of the words that say something of the picture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Accuracy {
    /// That were recovered.
    pub right: f64,
    /// That the most frequent word at each position gets right.
    pub chance: f64,
}

/// Where the largest value is.
pub fn largest(values: &[f32]) -> usize {
    let best = values.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(at, _)| at)
}

/// The most frequent of `words`, the first by the alphabet of several.
pub fn most_frequent<'a>(words: &[&'a str]) -> Option<&'a str> {
    let mut sorted = words.to_vec();
    sorted.sort_unstable();
    let runs = sorted.chunk_by(|a, b| a == b);
    let longest = runs.rev().max_by_key(|run| run.len());
    longest.map(|run| run[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_word_wins() {
        assert_eq!(most_frequent(&["b", "a", "b", "c"]), Some("b"));
        assert_eq!(most_frequent(&["b", "a"]), Some("a"));
        assert_eq!(most_frequent(&[]), None);
    }
}
