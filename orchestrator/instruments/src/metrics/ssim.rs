//! Structural similarity (Wang et al. 2004).

use lacuna_kernels::ssim::{MAPS, TAPS, products, similarity, weigh};

use super::decode::Rgb8;
use super::same_size;
use crate::error::{Error, Result};

/// Of the Gaussian window.
const SIGMA: f64 = 1.5;

/// Mean structural similarity over the channels and over all windows that lie inside, in f64: an
/// 11x11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, L = 255, population covariance. The same as
/// scikit-image's `structural_similarity(a, b, channel_axis=2, gaussian_weights=True,
/// use_sample_covariance=False, data_range=255)`.
///
/// # Errors
/// [`Error::Sizes`], or [`Error::Request`] for pictures smaller than the window.
pub fn ssim(a: &Rgb8, b: &Rgb8) -> Result<f64> {
    same_size(a, b)?;
    if a.width < TAPS || a.height < TAPS {
        return Err(Error::Request(format!(
            "SSIM needs at least {TAPS}x{TAPS} pixels, these have {}x{}",
            a.width, a.height
        )));
    }
    let line = 3 * a.width;
    let inside = line - 3 * (TAPS - 1);
    let window = window();
    let maps = |len: usize| [(); MAPS].map(|()| vec![0.0; len]);
    // The last rows, each as its four maps, in turn.
    let mut rows: Vec<_> = (0..TAPS).map(|_| maps(line)).collect();
    let (mut column, mut means, mut index) = (vec![0.0; line], maps(inside), vec![0.0; inside]);
    let mut sum = 0.0;
    let lines = a.bytes.chunks_exact(line).zip(b.bytes.chunks_exact(line));
    for (y, (a, b)) in lines.enumerate() {
        products(a, b, &mut rows[y % TAPS]);
        let Some(first) = (y + 1).checked_sub(TAPS) else {
            continue;
        };
        for (map, mean) in means.iter_mut().enumerate() {
            let down = std::array::from_fn(|k| rows[(first + k) % TAPS][map].as_slice());
            weigh(down, &window, &mut column);
            // Pixels are three values apart.
            let along = std::array::from_fn(|k| &column[3 * k..][..inside]);
            weigh(along, &window, mean);
        }
        similarity(&means, &mut index);
        sum += index.iter().sum::<f64>();
    }
    Ok(sum / (inside * (a.height - TAPS + 1)) as f64)
}

/// The Gaussian from its middle outwards, such that the whole of it sums to one.
fn window() -> [f64; TAPS / 2 + 1] {
    let gaussian: [f64; TAPS / 2 + 1] =
        std::array::from_fn(|i| (-0.5 * (i as f64 / SIGMA).powi(2)).exp());
    let whole = gaussian[0] + 2.0 * gaussian[1..].iter().sum::<f64>();
    gaussian.map(|g| g / whole)
}

#[cfg(test)]
mod tests {
    use lacuna_kernels::ssim::{C1, C2};

    use super::*;
    use crate::metrics::psnr::psnr;

    /// The pair whose values were computed with scikit-image.
    fn pair() -> [Rgb8; 2] {
        let size = 64;
        let picture = |value: &dyn Fn(usize, usize, usize) -> u8| {
            let mut bytes = Vec::new();
            for (y, x) in (0..size).flat_map(|y| (0..size).map(move |x| (y, x))) {
                bytes.extend((0..3).map(|c| value(y, x, c)));
            }
            Rgb8 {
                width: size,
                height: size,
                bytes,
            }
        };
        let wave = |y: usize, x: usize, c: usize| {
            let value =
                128.0 + 90.0 * (x as f64 / 9.0 + c as f64).sin() + 30.0 * (y as f64 / 5.0).cos();
            value.clamp(0.0, 255.0) as u8
        };
        let off = |y: usize, x: usize, c: usize| {
            let value = i32::from(wave(y, x, c)) + ((x * y + 5 * c) % 17) as i32 - 8;
            value.clamp(0, 255) as u8
        };
        [picture(&wave), picture(&off)]
    }

    #[test]
    fn a_known_pair_has_its_known_values() {
        let [a, b] = pair();
        let total = |p: &Rgb8| p.bytes.iter().map(|b| u64::from(*b)).sum::<u64>();
        assert_eq!((total(&a), total(&b)), (1_658_328, 1_655_883));
        assert!((psnr(&a, &b).unwrap() - 34.310043685).abs() < 1e-9);
        assert!((ssim(&a, &b).unwrap() - 0.924651406).abs() < 1e-9);
    }

    #[test]
    fn it_is_the_formula_window_by_window() {
        let [a, b] = pair();
        let crop = |p: &Rgb8| Rgb8 {
            width: 13,
            height: 12,
            bytes: (0..12)
                .flat_map(|y| p.bytes[3 * 64 * y..][..3 * 13].to_vec())
                .collect(),
        };
        let (a, b) = (crop(&a), crop(&b));
        let half = window();
        let weight = |y: usize, x: usize| half[y.abs_diff(5)] * half[x.abs_diff(5)];
        let mut sum = 0.0;
        for (top, left, c) in (0..2 * 3 * 3).map(|i| (i / 9, i / 3 % 3, i % 3)) {
            let at = |p: &Rgb8, y: usize, x: usize| {
                f64::from(p.bytes[((top + y) * 13 + left + x) * 3 + c])
            };
            let mean = |f: &dyn Fn(usize, usize) -> f64| -> f64 {
                (0..121)
                    .map(|i| weight(i / 11, i % 11) * f(i / 11, i % 11))
                    .sum()
            };
            let (ma, mb) = (mean(&|y, x| at(&a, y, x)), mean(&|y, x| at(&b, y, x)));
            let va = mean(&|y, x| (at(&a, y, x) - ma).powi(2));
            let vb = mean(&|y, x| (at(&b, y, x) - mb).powi(2));
            let cov = mean(&|y, x| (at(&a, y, x) - ma) * (at(&b, y, x) - mb));
            sum += (2.0 * ma * mb + C1) * (2.0 * cov + C2)
                / ((ma * ma + mb * mb + C1) * (va + vb + C2));
        }
        assert!((ssim(&a, &b).unwrap() - sum / 18.0).abs() < 1e-12);
    }

    #[test]
    fn a_picture_equals_itself_and_a_tiny_one_is_refused() {
        let [a, _] = pair();
        assert!((ssim(&a, &a).unwrap() - 1.0).abs() < 1e-15);
        let tiny = Rgb8 {
            width: 10,
            height: 11,
            bytes: vec![0; 330],
        };
        let error = ssim(&tiny, &tiny).unwrap_err().to_string();
        assert!(
            error.contains("11x11") && error.contains("10x11"),
            "{error}"
        );
    }
}
