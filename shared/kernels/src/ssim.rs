//! The loops of SSIM (Wang et al. 2004), in f64: what of them takes long, over one row of pixels at a time.

use crate::vectorised;

/// Rows (and columns) of the window.
pub const TAPS: usize = 11;
/// `(K1 L)^2`.
pub const C1: f64 = (0.01 * 255.0) * (0.01 * 255.0);
/// `(K2 L)^2`.
pub const C2: f64 = (0.03 * 255.0) * (0.03 * 255.0);

/// A value of every local mean that the index is made of: of `x`, `y`, `x^2 + y^2` and `x y`.
/// The variances are only ever added, so their squares are averaged together.
pub const MAPS: usize = 4;

vectorised! {
    /// The maps of one row of pixels.
    pub fn products(a: &[u8], b: &[u8], maps: &mut [Vec<f64>; MAPS]) {
        let [x, y, squares, product] = maps;
        let sums = x.iter_mut().zip(y).zip(squares.iter_mut().zip(product));
        for ((a, b), ((x, y), (squares, product))) in a.iter().zip(b).zip(sums) {
            (*x, *y) = (f64::from(*a), f64::from(*b));
            (*squares, *product) = (*x * *x + *y * *y, *x * *y);
        }
    }
}

vectorised! {
    /// The window's mean of each value, from the values at its taps.
    pub fn weigh(taps: [&[f64]; TAPS], window: &[f64; TAPS / 2 + 1], out: &mut [f64]) {
        // A pass for each pair of taps: rows stay in the core's first cache, and the loops vectorise.
        for (out, x) in out.iter_mut().zip(taps[TAPS / 2]) {
            *out = window[0] * x;
        }
        for k in 1..=TAPS / 2 {
            let pair = taps[TAPS / 2 - k].iter().zip(taps[TAPS / 2 + k]);
            for (out, (before, after)) in out.iter_mut().zip(pair) {
                *out += window[k] * (before + after);
            }
        }
    }
}

vectorised! {
    /// The index from the local means.
    pub fn similarity(means: &[Vec<f64>; MAPS], index: &mut [f64]) {
        let [x, y, squares, product] = means;
        let means = x.iter().zip(y).zip(squares.iter().zip(product));
        for (index, ((x, y), (squares, product))) in index.iter_mut().zip(means) {
            let variances = squares - x * x - y * y;
            let covariance = product - x * y;
            *index = (2.0 * x * y + C1) * (2.0 * covariance + C2)
                / ((x * x + y * y + C1) * (variances + C2));
        }
    }
}
