//! What a multistep scheduler remembers: the last predictions, by their age.

use std::collections::VecDeque;

/// The last predictions, of which the newest has the age 0.
pub(super) struct History {
    kept: VecDeque<Vec<f32>>,
    most: usize,
}

impl History {
    /// None yet, of which at `most` so many are kept.
    pub(super) fn new(most: usize) -> Self {
        Self {
            kept: VecDeque::with_capacity(most),
            most,
        }
    }

    /// Remembers a prediction, and forgets the oldest where there are too many.
    pub(super) fn push(&mut self, newest: Vec<f32>) {
        self.kept.truncate(self.most.saturating_sub(1));
        self.kept.push_front(newest);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// All of them, the newest first.
    pub(super) fn newest_first(&self) -> Vec<&[f32]> {
        self.kept.iter().map(Vec::as_slice).collect()
    }

    /// Their sum with `weights`, the newest one's first; as many as there are of both.
    pub(super) fn weighted(&self, weights: &[f32]) -> Vec<f32> {
        let mut sum = vec![0.0; self.kept.front().map_or(0, Vec::len)];
        for (kept, weight) in self.kept.iter().zip(weights) {
            for (sum, value) in sum.iter_mut().zip(kept) {
                *sum += weight * value;
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten() {
        let mut history = History::new(2);
        assert_eq!((history.len(), history.weighted(&[1.0])), (0, Vec::new()));
        for value in [1.0, 2.0, 3.0] {
            history.push(vec![value, -value]);
        }
        assert_eq!(history.newest_first(), [[3.0, -3.0], [2.0, -2.0]]);
        assert_eq!(history.weighted(&[10.0, 1.0, 7.0]), [32.0, -32.0]);
        assert_eq!(history.weighted(&[10.0]), [30.0, -30.0]);
    }
}
