//! How large what a worker hands in can be.
//!
//! Numbers that are finite can still be so large that what others make of them is not: then those others would
//! be named, or the prompt. So each value is held against what went in before, where it comes in.

use lacuna_kernels::stats::Moments;
use lacuna_wire::HostTensor;
use lacuna_wire::{Error, Result};

/// How much larger values may be than any before them. Layers of a U-Net gain a thousandfold at most; four
/// steps of this are what f32 can hold.
const GROWTH: f64 = 1e9;
/// A prediction is of noise of deviation one. Latents that are moved by this much at every step can still be
/// computed with.
const PREDICTION: f64 = 1e6;
/// What rounding may add to values that cannot grow.
const ROUNDING: f64 = 1.01;

/// The largest magnitude that is known of.
#[derive(Clone, Copy, Debug)]
pub struct Plausible {
    largest: f64,
}

impl Plausible {
    /// What comes in is made of these.
    pub fn of<'a>(sent: impl IntoIterator<Item = &'a HostTensor>) -> Self {
        let largest = sent.into_iter().map(HostTensor::largest);
        Self {
            largest: largest.fold(0.0, f64::max),
        }
    }

    /// What comes in next may be made of this, too.
    pub fn see(&mut self, largest: f64) {
        self.largest = self.largest.max(largest);
    }

    /// Values that layers made, by the `largest` of them; gives that.
    ///
    /// # Errors
    /// [`Error::Message`] with `name`, when they are too large.
    pub fn check_made(&self, name: &str, largest: f64) -> Result<f64> {
        at_most(name, largest, GROWTH * self.largest.max(1.0))
    }

    /// Means of values, weighted anyhow.
    ///
    /// # Errors
    /// As [`Self::check_made`].
    pub fn check_means(&self, name: &str, largest: f64) -> Result<f64> {
        at_most(name, largest, ROUNDING * self.largest)
    }

    /// Statistics of values that layers made.
    ///
    /// # Errors
    /// As [`Self::check_made`].
    pub fn check_moments_of_made(&self, name: &str, moments: &[Moments]) -> Result<f64> {
        let largest = largest_of(moments);
        at_most(name, largest, 2.0 * GROWTH * self.largest.max(1.0))
    }

    /// Statistics of the very values that are known.
    ///
    /// # Errors
    /// As [`Self::check_made`].
    pub fn check_moments(&self, name: &str, moments: &[Moments]) -> Result<f64> {
        // Neither the mean nor the deviation is beyond the largest value.
        at_most(name, largest_of(moments), 2.0 * ROUNDING * self.largest)
    }
}

/// A noise prediction.
///
/// # Errors
/// As [`Plausible::check_made`].
pub fn check_prediction(name: &str, largest: f64) -> Result<f64> {
    at_most(name, largest, PREDICTION)
}

/// Values, by the `largest` of them, that are among those that the `moments` are of: none is further from the
/// mean than the root of the squares' sum (Samuelson 1968).
///
/// # Errors
/// As [`Plausible::check_made`].
pub fn check_among(name: &str, largest: f64, moments: &[Moments]) -> Result<f64> {
    let each = moments.iter().map(|m| m.mean.abs() + m.m2.sqrt());
    // Small values may have been rounded to anything as small.
    at_most(name, largest, 1.0 + 2.0 * each.fold(0.0, f64::max))
}

/// The largest mean and deviation together.
fn largest_of(moments: &[Moments]) -> f64 {
    let each = moments.iter().map(|m| m.mean.abs() + m.variance().sqrt());
    each.fold(0.0, f64::max)
}

fn at_most(name: &str, largest: f64, most: f64) -> Result<f64> {
    if largest <= most {
        return Ok(largest);
    }
    Err(Error::Message(format!(
        "{name}: values of {largest:.1e}, which cannot be beyond {most:.1e}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32]) -> HostTensor {
        HostTensor::new([values.len()], values.to_vec()).unwrap()
    }

    fn moments(mean: f64, m2: f64) -> [Moments; 1] {
        [Moments {
            count: 4.0,
            mean,
            m2,
        }]
    }

    #[test]
    fn what_is_far_beyond_what_went_in_is_refused_by_name() {
        let mut known = Plausible::of([&tensor(&[0.5, -3.0]), &tensor(&[1.0])]);
        assert_eq!(known.check_made("x", 2.5e9).unwrap(), 2.5e9);
        let error = known.check_made("x", 1e10).unwrap_err();
        assert!(error.to_string().contains("x: values of 1.0e10"), "{error}");
        assert!(known.check_means("x", 3.0).is_ok());
        assert!(known.check_means("x", 3.1).is_err());
        assert!(check_prediction("y", 1e6).is_ok());
        assert!(check_prediction("y", 2e6).is_err());
        known.see(100.0);
        assert!(known.check_made("x", 1e10).is_ok());
    }

    #[test]
    fn edge_rows_are_among_what_their_statistics_are_of() {
        // Of three zeros and a four.
        let all = moments(1.0, 12.0);
        assert!(check_among("first", 4.0, &all).is_ok());
        assert!(check_among("first", 40.0, &all).is_err());
    }

    #[test]
    fn statistics_are_those_of_what_went_in() {
        let known = Plausible::of([&tensor(&[-3.0, 3.0, -3.0, 3.0])]);
        assert!(known.check_moments("m", &moments(0.0, 36.0)).is_ok());
        for (mean, m2) in [(1e300, 0.0), (0.0, 1e300), (7.0, 0.0), (0.0, 1e3)] {
            assert!(known.check_moments("m", &moments(mean, m2)).is_err());
        }
        assert!(known.check_moments_of_made("m", &moments(7.0, 1e3)).is_ok());
        for (mean, m2) in [(1e300, 0.0), (0.0, 1e300), (1e30, 0.0), (0.0, 1e30)] {
            let refused = known.check_moments_of_made("m", &moments(mean, m2));
            assert!(refused.is_err(), "{mean} {m2}");
        }
    }
}
