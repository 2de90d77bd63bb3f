//! How near a recovered picture comes to the true one, over the rows that a provider holds and over
//! the others.

use std::ops::Range;

use serde::Serialize;

use crate::picture::Picture;

/// Mean scores over held-out pictures; none where the rows are too few for the measure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Score {
    /// Of the provider's own rows, in dB.
    pub psnr_seen: f64,
    /// Of all other rows, in dB.
    pub psnr_unseen: f64,
    /// Of its own rows.
    pub ssim_seen: Option<f64>,
    /// Of all other rows.
    pub ssim_unseen: Option<f64>,
}

/// Scores of the `guesses` for `truths`; the provider holds the rows `seen` of the pictures.
pub fn score(guesses: &[Picture], truths: &[&Picture], seen: &Range<usize>) -> Score {
    let each: Vec<[Band; 2]> = guesses
        .iter()
        .zip(truths)
        .map(|(guess, truth)| {
            let [above, below] = [0..seen.start, seen.end..truth.height];
            let over = |bands: &[Range<usize>]| Band::over(guess, truth, bands);
            [over(std::slice::from_ref(seen)), over(&[above, below])]
        })
        .collect();
    let mean = |of: &dyn Fn(&[Band; 2]) -> f64| {
        each.iter().map(of).sum::<f64>() / each.len().max(1) as f64
    };
    let ssim = |side: usize| {
        let known = each.iter().filter_map(|bands| bands[side].ssim);
        let (sum, count) = known.fold((0.0, 0), |(sum, n), ssim| (sum + ssim, n + 1));
        (count > 0).then(|| sum / f64::from(count))
    };
    Score {
        psnr_seen: mean(&|bands| bands[0].psnr),
        psnr_unseen: mean(&|bands| bands[1].psnr),
        ssim_seen: ssim(0),
        ssim_unseen: ssim(1),
    }
}

/// Over some rows of one picture.
struct Band {
    psnr: f64,
    ssim: Option<f64>,
}

impl Band {
    /// Over `bands` of rows together.
    fn over(a: &Picture, b: &Picture, bands: &[Range<usize>]) -> Self {
        let (a8, b8) = (a.to_rgb8(), b.to_rgb8());
        let row = 3 * a.width;
        let (mut squares, mut bytes, mut ssims, mut rows) = (0.0, 0, 0.0, 0);
        for band in bands {
            let [a, b] = [&a8, &b8].map(|x| &x[band.start * row..band.end * row]);
            squares += square_error(a, b);
            bytes += a.len();
            if let Some(value) = ssim(a, b, row / 3) {
                ssims += value * band.len() as f64;
                rows += band.len();
            }
        }
        Self {
            psnr: decibels(squares / bytes.max(1) as f64),
            ssim: (rows > 0).then(|| ssims / rows as f64),
        }
    }
}

fn square_error(a: &[u8], b: &[u8]) -> f64 {
    let pairs = a.iter().zip(b);
    pairs
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
        .sum()
}

/// More than bytes can tell apart.
const IDENTICAL: f64 = 99.0;

fn decibels(mse: f64) -> f64 {
    (10.0 * (255.0 * 255.0 / mse).log10()).min(IDENTICAL)
}

/// Taps of the Gaussian window.
const TAPS: usize = 11;

/// SSIM (Wang et al. 2004) of two RGB pictures of `width` columns: a Gaussian window of sigma 1.5, population
/// covariance, channel by channel, without the border that the window does not fill; none when nothing is
/// left.
fn ssim(a: &[u8], b: &[u8], width: usize) -> Option<f64> {
    let height = a.len() / (3 * width.max(1));
    if width < TAPS || height < TAPS {
        return None;
    }
    let sum: f64 = (0..3).map(|c| ssim_of_channel(a, b, width, c)).sum();
    Some(sum / 3.0)
}

fn ssim_of_channel(a: &[u8], b: &[u8], width: usize, channel: usize) -> f64 {
    let plane = |x: &[u8]| -> Vec<f64> {
        let values = x.iter().skip(channel).step_by(3);
        values.map(|v| f64::from(*v)).collect()
    };
    let [a, b] = [plane(a), plane(b)];
    let product = |x: &[f64], y: &[f64]| -> Vec<f64> {
        let pairs = x.iter().zip(y);
        pairs.map(|(x, y)| x * y).collect()
    };
    let [mean_a, mean_b] = [blur(&a, width), blur(&b, width)];
    let [aa, bb, ab] = [(&a, &a), (&b, &b), (&a, &b)].map(|(x, y)| blur(&product(x, y), width));
    let [c1, c2] = [0.01f64, 0.03].map(|k| (k * 255.0).powi(2));
    let at = |i: usize| {
        let (x, y) = (mean_a[i], mean_b[i]);
        let [vx, vy, cov] = [aa[i] - x * x, bb[i] - y * y, ab[i] - x * y];
        (2.0 * x * y + c1) * (2.0 * cov + c2) / ((x * x + y * y + c1) * (vx + vy + c2))
    };
    (0..mean_a.len()).map(at).sum::<f64>() / mean_a.len() as f64
}

/// The means under the window, where it lies inside.
fn blur(x: &[f64], width: usize) -> Vec<f64> {
    let weights: [f64; TAPS] = std::array::from_fn(|i| {
        let from_centre = i as f64 - (TAPS / 2) as f64;
        (-from_centre * from_centre / (2.0 * 1.5 * 1.5)).exp()
    });
    let sum: f64 = weights.iter().sum();
    let along_rows: Vec<Vec<f64>> = x
        .chunks_exact(width)
        .map(|row| {
            let windows = row.windows(TAPS);
            let dot = |w: &[f64]| w.iter().zip(&weights).map(|(x, w)| x * w).sum::<f64>();
            windows.map(|w| dot(w) / sum).collect()
        })
        .collect();
    let down = |rows: &[Vec<f64>]| -> Vec<f64> {
        let columns = 0..rows[0].len();
        let dot = |c: usize| {
            rows.iter()
                .zip(&weights)
                .map(|(r, w)| r[c] * w)
                .sum::<f64>()
        };
        columns.map(|c| dot(c) / sum).collect()
    };
    along_rows.windows(TAPS).flat_map(down).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two pictures whose scores scikit-image has given.
    fn pictures() -> [Vec<u8>; 2] {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for y in 0..64 {
            for x in 0..64 {
                for c in 0..3 {
                    let (xf, yf, cf) = (f64::from(x), f64::from(y), f64::from(c));
                    let v = 128.0 + 90.0 * (xf / 9.0 + cf).sin() + 30.0 * (yf / 5.0).cos();
                    let v = v.clamp(0.0, 255.0) as u8;
                    a.push(v);
                    let noise = (x * y + 5 * c) % 17 - 8;
                    b.push((i32::from(v) + noise).clamp(0, 255) as u8);
                }
            }
        }
        [a, b]
    }

    #[test]
    fn scores_are_those_of_scikit_image() {
        let [a, b] = pictures();
        let psnr = decibels(square_error(&a, &b) / a.len() as f64);
        assert!((psnr - 34.310043685).abs() < 1e-6, "{psnr}");
        let ssim = ssim(&a, &b, 64).unwrap();
        assert!((ssim - 0.924651406).abs() < 1e-6, "{ssim}");
    }

    #[test]
    fn each_part_is_scored_by_its_own_rows() {
        let truth = Picture {
            width: 16,
            height: 48,
            rgb: vec![0.5; 3 * 16 * 48],
        };
        let mut guess = truth.clone();
        for plane in guess.rgb.chunks_exact_mut(16 * 48) {
            plane[..16 * 16].fill(0.6);
        }
        let score = score(&[guess], &[&truth], &(16..32));
        assert_eq!(score.psnr_seen, IDENTICAL);
        assert_eq!(score.ssim_seen, Some(1.0));
        // Half of the other rows is off by 153 - 128.
        let want = decibels(25.0 * 25.0 / 2.0);
        assert!((score.psnr_unseen - want).abs() < 1e-9, "{score:?}");
        assert!(score.ssim_unseen.unwrap() < 1.0);
    }
}
