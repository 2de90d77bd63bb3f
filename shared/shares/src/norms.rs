//! Norms of weights, which products are divided by before they are rounded.

/// The norm of each output's row of weights `[outputs, K]`.
pub(crate) fn norms(weights: &[f32], outputs: usize) -> Vec<f64> {
    let fan_in = weights
        .len()
        .checked_div(outputs)
        .unwrap_or_default()
        .max(1);
    let rows = weights.chunks(fan_in).map(|row| {
        let squares = row.iter().fold(0.0, |sum, w| sum + f64::from(*w).powi(2));
        squares.sqrt()
    });
    rows.collect()
}

/// The same from weights by input, `[K, outputs]`, to the last bit.
pub(crate) fn norms_by_input(weights: &[f32], outputs: usize) -> Vec<f64> {
    let mut squares = vec![0.0_f64; outputs];
    for line in weights.chunks_exact(outputs.max(1)) {
        let pairs = squares.iter_mut().zip(line);
        pairs.for_each(|(sum, w)| *sum += f64::from(*w).powi(2));
    }
    squares.into_iter().map(f64::sqrt).collect()
}

/// `unit / |w|` of weights of such a norm. A row of zeros gives zeros, whatever they are multiplied with.
pub(crate) fn scale(norm: f64, unit: f64) -> f32 {
    (if norm > 0.0 { unit / norm } else { unit }) as f32
}
