//! Whether what a party has tells two prompts apart: a linear classifier's accuracy, and how sure that is.

use serde::Serialize;

use lacuna_wire::HostTensor;

use super::ridge::Gram;
use crate::error::Result;

/// Parts that each are told apart by what the others taught.
const FOLDS: usize = 5;

/// Half the width of an interval of 95 %, in standard deviations of a normal distribution.
const NORMAL: f64 = 1.96;

/// How often a classifier was right.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Told {
    /// Times that it was right.
    pub right: usize,
    /// Times that it was asked.
    pub of: usize,
}

impl Told {
    /// The share of right answers, 0 to 1.
    pub fn accuracy(self) -> f64 {
        self.right as f64 / self.of.max(1) as f64
    }

    /// The interval that holds the accuracy with 95 % (Wilson 1927).
    pub fn interval(self) -> [f64; 2] {
        let (n, p) = (self.of.max(1) as f64, self.accuracy());
        let square = NORMAL * NORMAL / n;
        let middle = (p + square / 2.0) / (1.0 + square);
        let half = NORMAL / (1.0 + square) * (p * (1.0 - p) / n + square / (4.0 * n)).sqrt();
        [middle - half, middle + half]
    }
}

/// A vector's mean, standard deviation, skewness, kurtosis and extremes, and the same of its differences from one value to
/// the next: what a classifier of single values would miss.
pub fn summary(x: &[f32]) -> Vec<f32> {
    let differences: Vec<f32> = x.windows(2).map(|pair| pair[1] - pair[0]).collect();
    [x, &differences].into_iter().flat_map(moments).collect()
}

fn moments(x: &[f32]) -> [f32; 6] {
    let n = x.len().max(1) as f64;
    let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
    let central = |k: i32| {
        let each = x.iter().map(|x| (f64::from(*x) - mean).powi(k));
        each.sum::<f64>() / n
    };
    let deviation = central(2).sqrt();
    let [third, fourth] = [3, 4].map(|k| central(k) / deviation.powi(k).max(f64::MIN_POSITIVE));
    let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let least = x.iter().copied().fold(f32::INFINITY, f32::min);
    let all = [mean, deviation, third, fourth].map(|x| x as f32);
    [all[0], all[1], all[2], all[3], largest, least]
}

/// Ridge regression to the label, from every run's `parts`, each of which weighs the same, in five folds: every run is
/// told by what runs of other folds taught. The penalty is chosen within those.
///
/// # Errors
/// [`lacuna_wire::Error::WrongShape`] when runs differ in their number of features.
pub fn told(parts: &[Vec<&[f32]>], labels: &[bool]) -> Result<Told> {
    let mut right = 0;
    for fold in 0..FOLDS {
        let (asked, taught): (Vec<usize>, Vec<usize>) =
            (0..labels.len()).partition(|i| i % FOLDS == fold);
        let order: Vec<usize> = taught.iter().chain(&asked).copied().collect();
        let gram = |features: &Vec<&[f32]>| {
            let ordered = order.iter().filter_map(|i| features.get(*i).copied());
            Gram::of(&ordered.collect::<Vec<_>>(), taught.len())
        };
        let grams = parts.iter().map(gram).collect::<Result<Vec<_>>>()?;
        let Some(gram) = Gram::sum(&grams.iter().collect::<Vec<_>>()) else {
            continue;
        };
        let sign = |i: &usize| if labels[*i] { 1.0 } else { -1.0 };
        let targets = HostTensor::new([taught.len(), 1], taught.iter().map(sign).collect())?;
        let guesses = gram.fit(&targets)?.predict(&targets)?;
        let pairs = asked.iter().zip(&guesses.data);
        right += pairs
            .filter(|(i, guess)| labels[**i] == (**guess > 0.0))
            .count();
    }
    Ok(Told {
        right,
        of: labels.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacuna_orchestrator::noise::TorchRng;

    /// Runs of noise, to which a little of a pattern is added for one of the labels.
    fn accuracy(pattern: f32) -> Told {
        let (runs, width) = (120, 300);
        let noise = TorchRng::new(4).randn(runs * width);
        let labels: Vec<bool> = (0..runs).map(|i| i % 7 < 3).collect();
        let rows = noise.chunks_exact(width).zip(&labels);
        let rows = rows.map(|(row, label)| {
            let shift = if *label { pattern } else { 0.0 };
            let shifted = row.iter().enumerate();
            shifted
                .map(|(j, x)| x + shift * (j as f32).sin())
                .collect::<Vec<f32>>()
        });
        let rows: Vec<Vec<f32>> = rows.collect();
        let summaries: Vec<Vec<f32>> = rows.iter().map(|row| summary(row)).collect();
        let parts = [&rows, &summaries].map(|part| part.iter().map(Vec::as_slice).collect());
        told(&parts, &labels).unwrap()
    }

    #[test]
    fn a_pattern_is_told_and_noise_is_not() {
        assert!(accuracy(1.0).accuracy() > 0.95);
        let [low, high] = accuracy(0.0).interval();
        assert!(low < 0.5 && high > 0.42, "{low} to {high}");
    }

    /// Of 10 of 20: 0.299 to 0.701.
    #[test]
    fn the_interval_is_wilsons() {
        let [low, high] = Told { right: 10, of: 20 }.interval();
        assert!((low - 0.299).abs() < 1e-3 && (high - 0.701).abs() < 1e-3);
    }
}
