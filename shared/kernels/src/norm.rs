//! Group normalisation of `[B, C, H, W]`.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::exp::silu;
use super::simd::{mul_add, vectorised};
use super::{Target, filled, values};
use crate::stats::Moments;

/// Partial sums side by side: enough to keep the adders busy at the widest vectors.
const LANES: usize = 32;

vectorised! {
    /// Sum of `x - centre` and of its square.
    fn deviations(x: &[f32], centre: f64) -> [f64; 2] {
        let (mut sum, mut square) = ([0f64; LANES], [0f64; LANES]);
        for block in x.chunks(LANES) {
            for ((x, sum), square) in block.iter().zip(&mut sum).zip(&mut square) {
                let d = f64::from(*x) - centre;
                *sum += d;
                *square += d * d;
            }
        }
        [sum.iter().sum(), square.iter().sum()]
    }
}

vectorised! {
    fn scale_shift(x: &[f32], scale: f32, shift: f32, y: &mut [MaybeUninit<f32>]) {
        for (y, x) in y.iter_mut().zip(x) {
            y.write(mul_add::<FMA>(*x, scale, shift));
        }
    }
}

vectorised! {
    fn scale_shift_silu(x: &[f32], scale: f32, shift: f32, y: &mut [MaybeUninit<f32>]) {
        for (y, x) in y.iter_mut().zip(x) {
            y.write(silu::<FMA>(mul_add::<FMA>(*x, scale, shift)));
        }
    }
}

/// Count, mean and M2 of `x`: deviations from its first value, summed in f64. That is exact to far
/// more digits than f32 holds, so statistics merged from strips give the scale and shift of the whole,
/// all but always to the last bit.
pub fn moments(x: &[f32]) -> Moments {
    let Some(first) = x.first() else {
        return Moments::default();
    };
    let (count, centre) = (x.len() as f64, f64::from(*first));
    let [sum, square] = deviations(x, centre);
    Moments {
        count,
        mean: centre + sum / count,
        m2: (square - sum * sum / count).max(0.0),
    }
}

/// [`moments`] of each group of `len` values.
///
/// # Panics
/// When `x` is not such groups.
pub fn group_moments(x: &[f32], len: usize) -> Vec<Moments> {
    assert!(
        x.is_empty() || len > 0 && x.len().is_multiple_of(len),
        "values of a group"
    );
    x.par_chunks(len.max(1)).map(moments).collect()
}

/// What turns normalised values into a layer's output.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    /// Scale of each channel, `[C]`.
    pub gamma: &'a [f32],
    /// Shift of each channel, `[C]`.
    pub beta: &'a [f32],
    /// Number of groups; divides `C`.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
    /// Whether SiLU follows.
    pub silu: bool,
}

impl Affine<'_> {
    /// One group's values, channel after channel, into `out` from `start` on.
    fn apply(&self, x: &[f32], group: usize, moments: Moments, out: Target, start: usize) {
        let channels = self.gamma.len() / self.groups;
        let pixels = x.len() / channels;
        let scale = (moments.variance() + self.eps).sqrt().recip();
        for (i, x) in x.chunks_exact(pixels).enumerate() {
            let channel = group % self.groups * channels + i;
            let gamma = f64::from(self.gamma[channel]) * scale;
            let shift = f64::from(self.beta[channel]) - moments.mean * gamma;
            // SAFETY: this channel's values, which only this task has.
            let y = unsafe { out.slice(start + i * pixels, pixels) };
            if self.silu {
                scale_shift_silu(x, gamma as f32, shift as f32, y);
            } else {
                scale_shift(x, gamma as f32, shift as f32, y);
            }
        }
    }
}

/// Group normalisation of `x`, `[B, C, H, W]`, by its own statistics, or by those given: one for
/// each group of each batch entry.
///
/// # Panics
/// When the sizes do not agree, or `given` are not as many as there are groups.
pub fn group_norm(
    x: &[f32],
    batch: usize,
    affine: Affine<'_>,
    given: Option<&[Moments]>,
) -> Vec<f32> {
    let groups = values([batch, affine.groups]);
    if x.is_empty() {
        return Vec::new();
    }
    assert!(groups > 0, "groups of a group norm");
    if let Some(given) = given {
        assert_eq!(given.len(), groups, "statistics of a group norm");
    }
    let channels = affine.gamma.len();
    assert_eq!(affine.beta.len(), channels, "shift of a group norm");
    assert_eq!(channels % affine.groups, 0, "groups of a group norm");
    assert!(
        channels > 0 && x.len().is_multiple_of(values([batch, channels])),
        "input of a group norm"
    );
    let len = x.len() / groups;
    let write = |out: Target| {
        x.par_chunks(len).enumerate().for_each(|(group, x)| {
            let moments = given.map_or_else(|| moments(x), |given| given[group]);
            affine.apply(x, group, moments, out, group * len);
        });
    };
    // SAFETY: the groups are the whole, and each is written channel by channel.
    unsafe { filled(x.len(), write) }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{difference, wave};
    use super::*;

    fn plain(x: &[f32]) -> Moments {
        let count = x.len() as f64;
        let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
        let m2 = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum();
        Moments { count, mean, m2 }
    }

    #[test]
    fn moments_stay_accurate_far_from_zero() {
        for (len, centre) in [
            (1, 3.0),
            (63, 0.0),
            (4097, 1000.0),
            (163_847, -3000.0),
            (163_847, 1e5),
        ] {
            let x: Vec<f32> = wave(len, 0.2).iter().map(|x| x + centre).collect();
            let (got, want) = (moments(&x), plain(&x));
            assert_eq!(got.count, want.count);
            assert!(
                (got.mean - want.mean).abs() < 1e-7 * (1.0 + want.variance().sqrt()),
                "{got:?} {want:?}"
            );
            assert!(
                (got.m2 - want.m2).abs() <= 1e-6 * want.m2,
                "{got:?} {want:?}"
            );
        }
    }

    #[test]
    fn group_norm_is_the_formula() {
        let (batch, channels, groups, pixels) = (2, 15, 5, 7 * 13);
        let x: Vec<f32> = wave(batch * channels * pixels, 0.7)
            .iter()
            .map(|x| 3.0 * x + 50.0)
            .collect();
        let (gamma, beta) = (wave(channels, 1.0), wave(channels, 2.0));
        for silu in [false, true] {
            let affine = Affine {
                gamma: &gamma,
                beta: &beta,
                groups,
                eps: 1e-5,
                silu,
            };
            let len = channels / groups * pixels;
            let mut want = Vec::new();
            for (g, x) in x.chunks(len).enumerate() {
                let m = plain(x);
                for (i, x) in x.iter().enumerate() {
                    let c = g % groups * (channels / groups) + i / pixels;
                    let y = (f64::from(*x) - m.mean) / (m.variance() + 1e-5).sqrt();
                    let y = y * f64::from(gamma[c]) + f64::from(beta[c]);
                    want.push(if silu { y / (1.0 + (-y).exp()) } else { y });
                }
            }
            let off = difference(&group_norm(&x, batch, affine, None), &want);
            assert!(off < 5e-6, "{off}");
            let given = group_moments(&x, len);
            let off = difference(&group_norm(&x, batch, affine, Some(&given)), &want);
            assert!(off < 5e-6, "{off}");
        }
    }
}
