//! Which prompts are one machine's.

use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The `index`-th of `of` parts of a run, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Shard {
    /// Below `of`.
    pub index: usize,
    /// Number of parts.
    pub of: usize,
}

impl Default for Shard {
    fn default() -> Self {
        Self { index: 0, of: 1 }
    }
}

impl Shard {
    /// Its part of `count` prompts: neighbours, so that the parts in order are the whole in order.
    pub fn of_prompts(self, count: usize) -> Range<usize> {
        count * self.index / self.of..count * (self.index + 1) / self.of
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text
            .split_once('/')
            .and_then(|(i, n)| Some((i.trim().parse().ok()?, n.trim().parse().ok()?)));
        match parts {
            Some((index, of)) if index < of => Ok(Self { index, of }),
            _ => Err(format!("{text:?} is no i/n with i from 0 to n - 1")),
        }
    }
}

impl TryFrom<String> for Shard {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Shard> for String {
    fn from(shard: Shard) -> Self {
        shard.to_string()
    }
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_the_whole_without_overlap() {
        for (count, of) in [(10, 3), (2, 5), (16, 4)] {
            let parts = (0..of).flat_map(|index| Shard { index, of }.of_prompts(count));
            assert!(parts.eq(0..count), "{count} in {of}");
        }
    }

    #[test]
    fn what_is_no_shard_is_refused() {
        assert_eq!("1/4".parse(), Ok(Shard { index: 1, of: 4 }));
        for bad in ["4/4", "0/0", "1", "-1/2", "a/b", "1/2/3"] {
            let error = bad.parse::<Shard>().unwrap_err();
            assert!(error.contains(bad), "{error}");
        }
    }
}
