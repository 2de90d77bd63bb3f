//! A chunk of a prompt, and what the weights of its tokens do.

/// `T` tokens of a prompt, from its start to its end.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chunk {
    /// Start, tokens, end, padding.
    pub ids: Vec<u32>,
    /// How much each counts.
    pub weights: Vec<f32>,
}

/// Multiplies rows of `d` values with their weights, and all with what brings the mean back.
pub(super) fn weigh(states: &mut [f32], weights: &[f32], d: usize) {
    let sum = |states: &[f32]| states.iter().map(|v| f64::from(*v)).sum::<f64>();
    let before = sum(states);
    for (row, weight) in states.chunks_mut(d.max(1)).zip(weights) {
        row.iter_mut().for_each(|v| *v *= weight);
    }
    let back = (before / sum(states)) as f32;
    // Of no weight at all there is nothing to bring back.
    if back.is_finite() {
        states.iter_mut().for_each(|v| *v *= back);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_leave_the_mean_as_it_was() {
        let mut states = [1.0, 3.0, 2.0, -1.0];
        weigh(&mut states, &[1.0, 2.0], 2);
        // 1, 3, 4, -2 have a sum of 6, where it was 5.
        let want = [5.0 / 6.0, 2.5, 20.0 / 6.0, -10.0 / 6.0];
        let near = states
            .iter()
            .zip(want)
            .all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-6);
        assert!(near, "{states:?}");
        let mut states = [1.0, 1.0];
        weigh(&mut states, &[0.0], 2);
        assert_eq!(states, [0.0, 0.0]);
    }
}
