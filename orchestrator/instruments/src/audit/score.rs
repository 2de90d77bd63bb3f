//! How near a recovered picture comes to the true one, over the rows that a provider holds and over
//! the others.

use std::ops::Range;

use serde::Serialize;

use crate::metrics::decode::Rgb8;
use crate::metrics::psnr::psnr;
use crate::metrics::ssim::ssim;
use lacuna_orchestrator::picture::Picture;

/// Mean scores over held-out pictures; none where the rows are too few for the measure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Score {
    /// Of the provider's own rows, in dB.
    pub psnr_seen: Option<f64>,
    /// Of all other rows, in dB.
    pub psnr_unseen: Option<f64>,
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
            let [guess, truth] = [guess, truth].map(rgb8);
            let over = |bands: &[Range<usize>]| Band::over(&guess, &truth, bands);
            [over(std::slice::from_ref(seen)), over(&[above, below])]
        })
        .collect();
    let mean = |side: usize, of: fn(&Band) -> Option<f64>| {
        let known = each.iter().filter_map(|bands| of(&bands[side]));
        let (sum, count) = known.fold((0.0, 0), |(sum, n), value| (sum + value, n + 1));
        (count > 0).then(|| sum / f64::from(count))
    };
    Score {
        psnr_seen: mean(0, |band| band.psnr),
        psnr_unseen: mean(1, |band| band.psnr),
        ssim_seen: mean(0, |band| band.ssim),
        ssim_unseen: mean(1, |band| band.ssim),
    }
}

fn rgb8(picture: &Picture) -> Rgb8 {
    Rgb8 {
        width: picture.width,
        height: picture.height,
        bytes: picture.to_rgb8(),
    }
}

/// Over some rows of one picture.
struct Band {
    psnr: Option<f64>,
    ssim: Option<f64>,
}

/// More than bytes can tell apart.
const IDENTICAL: f64 = 99.0;

impl Band {
    /// Over `bands` of rows together. The window of SSIM does not reach from one band into another.
    fn over(a: &Rgb8, b: &Rgb8, bands: &[Range<usize>]) -> Self {
        let (mut ssims, mut rows) = (0.0, 0);
        for band in bands {
            let [a, b] = [a, b].map(|x| rows_of(x, std::slice::from_ref(band)));
            // A band may be too low for the window.
            if let Ok(value) = ssim(&a, &b) {
                ssims += value * band.len() as f64;
                rows += band.len();
            }
        }
        let [a, b] = [a, b].map(|x| rows_of(x, bands));
        Self {
            psnr: match a.height {
                0 => None,
                _ => psnr(&a, &b).ok().map(|db| db.min(IDENTICAL)),
            },
            ssim: (rows > 0).then(|| ssims / rows as f64),
        }
    }
}

/// A picture of some rows, one band below the other.
fn rows_of(picture: &Rgb8, bands: &[Range<usize>]) -> Rgb8 {
    let row = 3 * picture.width;
    let bytes = bands
        .iter()
        .flat_map(|band| &picture.bytes[band.start * row..band.end * row]);
    Rgb8 {
        width: picture.width,
        height: bands.iter().map(ExactSizeIterator::len).sum(),
        bytes: bytes.copied().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_is_scored_by_its_own_rows() {
        let truth = Picture {
            width: 16,
            height: 48,
            rgb: vec![0.5; 3 * 16 * 48],
            alpha: None,
        };
        let mut guess = truth.clone();
        for plane in guess.rgb.chunks_exact_mut(16 * 48) {
            plane[..16 * 16].fill(0.6);
        }
        let score = score(&[guess], &[&truth], &(16..32));
        assert_eq!(score.psnr_seen, Some(IDENTICAL));
        assert_eq!(score.ssim_seen, Some(1.0));
        // Half of the other rows is off by 153 - 128.
        let want = 10.0 * (2.0f64 * 255.0 * 255.0 / (25.0 * 25.0)).log10();
        assert!(
            (score.psnr_unseen.unwrap() - want).abs() < 1e-9,
            "{score:?}"
        );
        assert!(score.ssim_unseen.unwrap() < 1.0);
    }
}
