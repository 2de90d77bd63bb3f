//! Ridge regression (Hoerl and Kennard 1970), in the two forms that the attacks need.
//!
//! [`Gram`] is the dual form, for a few runs with any number of features each: a prediction is a mix of the
//! training runs' targets. [`Linear`] is the primal form, for many samples of few features. Both choose the
//! penalty by a part of the training samples that they set aside.

use burn::tensor::{Device, Tensor};
use lacuna_model::host::OnDevice;
use lacuna_wire::HostTensor;

use crate::error::Result;

/// Penalties tried, relative to the mean of the diagonal.
const PENALTIES: [f64; 8] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0];

/// One in so many training samples is set aside to choose the penalty.
const ASIDE: usize = 5;

/// `a b` of `[m, k]` and `[k, n]`.
fn product(a: &HostTensor, b: &HostTensor) -> Result<HostTensor> {
    let device = Device::flex();
    let (a, b): (Tensor<2>, Tensor<2>) = (
        a.clone().into_device(&device)?,
        b.clone().into_device(&device)?,
    );
    Ok(HostTensor::from_device(a.matmul(b))?)
}

/// Inner products of every two runs' features.
#[derive(Clone, Debug)]
pub struct Gram {
    runs: usize,
    /// The first of them are for training.
    train: usize,
    /// `[runs, runs]`.
    values: Vec<f64>,
}

/// How each held-out run's prediction is mixed.
#[derive(Clone, Debug)]
pub struct Mix {
    /// `[held out, train]`.
    weights: HostTensor,
    /// Mean square error of the runs that were set aside.
    pub error: f64,
}

impl Gram {
    /// Of as many `features` for each run; the first `train` runs are for training, and each feature is
    /// centred and scaled by them.
    ///
    /// # Errors
    /// [`lacuna_wire::Error::WrongShape`] when runs differ in their number of features.
    pub fn of(features: &[&[f32]], train: usize) -> Result<Self> {
        let (runs, width) = (features.len(), features.first().map_or(0, |f| f.len()));
        let mut data = vec![0f32; runs * width];
        for j in 0..width {
            let column = |i: usize| features[i].get(j).copied().map_or(0.0, f64::from);
            let mean = (0..train).map(column).sum::<f64>() / train as f64;
            let square = (0..train).map(|i| (column(i) - mean).powi(2)).sum::<f64>();
            let deviation = (square / train as f64).sqrt();
            // What never changes tells nothing; scaled up, its rounding would pass for a feature.
            if deviation > 1e-6 * mean.abs().max(1e-6) {
                let scale = 1.0 / (deviation * (width as f64).sqrt());
                for i in 0..runs {
                    data[i * width + j] = ((column(i) - mean) * scale) as f32;
                }
            }
        }
        let device = Device::flex();
        let x: Tensor<2> = HostTensor::new([runs, width], data)?.into_device(&device)?;
        let values = HostTensor::from_device(x.clone().matmul(x.transpose()))?;
        Ok(Self {
            runs,
            train,
            values: values.data.into_iter().map(f64::from).collect(),
        })
    }

    /// Of the features of all `parts` together, each part weighing the same.
    pub fn sum(parts: &[&Self]) -> Option<Self> {
        let mut all = (*parts.first()?).clone();
        for part in &parts[1..] {
            for (sum, value) in all.values.iter_mut().zip(&part.values) {
                *sum += value;
            }
        }
        Some(all)
    }

    fn at(&self, i: usize, j: usize) -> f64 {
        self.values[i * self.runs + j]
    }

    /// The best mix for `targets` `[train, m]`.
    ///
    /// # Errors
    /// Those of the product of two matrices.
    pub fn fit(&self, targets: &HostTensor) -> Result<Mix> {
        let (aside, kept): (Vec<usize>, Vec<usize>) =
            (0..self.train).partition(|i| i % ASIDE == ASIDE - 1);
        let mut best: Option<(f64, f64)> = None;
        let rows = |of: &[usize]| -> Result<HostTensor> {
            let width = targets.data.len() / self.train;
            let rows = of.iter().flat_map(|i| &targets.data[i * width..][..width]);
            Ok(HostTensor::new([of.len(), width], rows.copied().collect())?)
        };
        let (known, wanted) = (rows(&kept)?, rows(&aside)?);
        for penalty in PENALTIES {
            let weights = self.weights(&kept, &aside, penalty)?;
            let guess = mixed(&weights, &known)?;
            let error = mean_square(&guess.data, &wanted.data);
            if best.is_none_or(|(least, _)| error < least) {
                best = Some((error, penalty));
            }
        }
        let (error, penalty) = best.unwrap_or((f64::INFINITY, 1.0));
        let [train, held]: [Vec<usize>; 2] =
            [(0..self.train).collect(), (self.train..self.runs).collect()];
        Ok(Mix {
            weights: self.weights(&train, &held, penalty)?,
            error,
        })
    }

    /// `K_q (K + penalty)^-1` of the runs `queries` over the runs `known`, `[queries, known]`.
    fn weights(&self, known: &[usize], queries: &[usize], penalty: f64) -> Result<HostTensor> {
        let n = known.len();
        let trace: f64 = known.iter().map(|i| self.at(*i, *i)).sum();
        let penalty = penalty * (trace / n.max(1) as f64).max(f64::MIN_POSITIVE) * n as f64;
        let mut matrix: Vec<f64> = known
            .iter()
            .flat_map(|i| known.iter().map(|j| self.at(*i, *j)))
            .collect();
        (0..n).for_each(|i| matrix[i * n + i] += penalty);
        // The matrix is symmetric, so a column of the solution is a query's row of weights.
        let mut columns: Vec<f64> = known
            .iter()
            .flat_map(|i| queries.iter().map(|q| self.at(*q, *i)))
            .collect();
        solve(&mut matrix, n, &mut columns, queries.len());
        let m = queries.len();
        let weights = (0..m * n).map(|at| columns[at % n * m + at / n] as f32);
        Ok(HostTensor::new([m, n], weights.collect())?)
    }
}

impl Mix {
    /// Predictions of the held-out runs from `targets` `[train, m]`.
    ///
    /// # Errors
    /// Those of the product of two matrices.
    pub fn predict(&self, targets: &HostTensor) -> Result<HostTensor> {
        mixed(&self.weights, targets)
    }
}

/// The targets' mean, and `weights` of their differences from it.
fn mixed(weights: &HostTensor, targets: &HostTensor) -> Result<HostTensor> {
    let [n, m] = targets.dims()?;
    let mean = column_means(targets);
    let mut centred = targets.clone();
    for row in centred.data.chunks_exact_mut(m) {
        row.iter_mut().zip(&mean).for_each(|(x, mean)| *x -= mean);
    }
    debug_assert_eq!(weights.shape[1], n);
    let mut guess = product(weights, &centred)?;
    for row in guess.data.chunks_exact_mut(m) {
        row.iter_mut().zip(&mean).for_each(|(x, mean)| *x += mean);
    }
    Ok(guess)
}

/// Means over the rows of `[n, m]`.
pub fn column_means(x: &HostTensor) -> Vec<f32> {
    let rows = x.shape[0].max(1);
    let width = x.data.len() / rows;
    let mut sums = vec![0f64; width];
    for row in x.data.chunks_exact(width.max(1)) {
        sums.iter_mut()
            .zip(row)
            .for_each(|(sum, x)| *sum += f64::from(*x));
    }
    sums.iter().map(|sum| (sum / rows as f64) as f32).collect()
}

fn mean_square(a: &[f32], b: &[f32]) -> f64 {
    let pairs = a.iter().zip(b);
    let sum: f64 = pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum();
    sum / a.len().max(1) as f64
}

/// A linear map with an offset, fitted to samples.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[D + 1, M]`, the offset last.
    map: HostTensor,
    /// Mean square error of the runs that were set aside.
    pub error: f64,
}

impl Linear {
    /// Fits samples of one run after the other: each has features `[n, D]` and targets `[n, M]`.
    ///
    /// # Errors
    /// [`lacuna_wire::Error::WrongShape`] when runs differ in their features or targets.
    pub fn fit(runs: &[(HostTensor, HostTensor)]) -> Result<Self> {
        let mut kept = Sums::default();
        let mut aside = Sums::default();
        let is_aside = |i: usize| i % ASIDE == ASIDE - 1;
        for (i, (x, y)) in runs.iter().enumerate() {
            let sums = if is_aside(i) { &mut aside } else { &mut kept };
            sums.add(x, y)?;
        }
        let mut best: Option<(f64, f64)> = None;
        for penalty in PENALTIES {
            let linear = kept.solve(penalty)?;
            let mut error = 0.0;
            for (x, y) in runs.iter().skip(ASIDE - 1).step_by(ASIDE) {
                error += mean_square(&linear.predict(x)?.data, &y.data);
            }
            if best.is_none_or(|(least, _)| error < least) {
                best = Some((error, penalty));
            }
        }
        kept.merge(&aside);
        let (error, penalty) = best.unwrap_or((f64::INFINITY, 1.0));
        let aside = runs.len() / ASIDE;
        Ok(Self {
            error: error / aside.max(1) as f64,
            ..kept.solve(penalty)?
        })
    }

    /// Predictions `[n, M]` from `[n, D]`.
    ///
    /// # Errors
    /// [`lacuna_wire::Error::WrongShape`].
    pub fn predict(&self, x: &HostTensor) -> Result<HostTensor> {
        product(&with_one(x)?, &self.map)
    }
}

/// `[n, D]` with a column of ones.
fn with_one(x: &HostTensor) -> Result<HostTensor> {
    let [n, d] = x.dims()?;
    let rows = x.data.chunks_exact(d.max(1));
    let data = rows.flat_map(|row| row.iter().copied().chain([1.0]));
    Ok(HostTensor::new([n, d + 1], data.collect())?)
}

/// Sums over samples: of `x^T x` and of `x^T y`.
#[derive(Clone, Default)]
struct Sums {
    xx: Vec<f64>,
    xy: Vec<f64>,
}

impl Sums {
    fn add(&mut self, x: &HostTensor, y: &HostTensor) -> Result<()> {
        let device = Device::flex();
        let x: Tensor<2> = with_one(x)?.into_device(&device)?;
        let y: Tensor<2> = y.clone().into_device(&device)?;
        let across = x.clone().transpose();
        let xx = HostTensor::from_device(across.clone().matmul(x))?;
        let xy = HostTensor::from_device(across.matmul(y))?;
        for (sums, more) in [(&mut self.xx, xx), (&mut self.xy, xy)] {
            sums.resize(more.data.len(), 0.0);
            sums.iter_mut()
                .zip(more.data)
                .for_each(|(sum, x)| *sum += f64::from(x));
        }
        Ok(())
    }

    fn merge(&mut self, other: &Self) {
        for (sums, more) in [(&mut self.xx, &other.xx), (&mut self.xy, &other.xy)] {
            sums.resize(more.len().max(sums.len()), 0.0);
            sums.iter_mut().zip(more).for_each(|(sum, x)| *sum += x);
        }
    }

    fn solve(&self, penalty: f64) -> Result<Linear> {
        let d = self.xx.len().isqrt();
        let m = self.xy.len() / d.max(1);
        let mut matrix = self.xx.clone();
        // Each feature by its own scale; the offset (the last) is not held down.
        for i in 0..d.saturating_sub(1) {
            let own = matrix[i * d + i];
            matrix[i * d + i] += penalty * own.max(1e-9);
        }
        let mut map = self.xy.clone();
        solve(&mut matrix, d, &mut map, m);
        let map = map.into_iter().map(|x| x as f32).collect();
        Ok(Linear {
            map: HostTensor::new([d, m], map)?,
            error: f64::INFINITY,
        })
    }
}

/// Solves `a x = b` for a symmetric positive `a` `[n, n]` and `b` `[n, m]`, in place, by Cholesky's
/// factors. A direction that rounding has made flat is left out.
pub fn solve(a: &mut [f64], n: usize, b: &mut [f64], m: usize) {
    let largest = (0..n).map(|i| a[i * n + i]).fold(0.0, f64::max);
    for j in 0..n {
        let (done, rest) = a.split_at_mut(j * n);
        let row = &mut rest[..n];
        for i in 0..j {
            let other = &done[i * n..][..=i];
            let dot: f64 = other[..i].iter().zip(&row[..i]).map(|(x, y)| x * y).sum();
            row[i] = match other[i] {
                0.0 => 0.0,
                pivot => (row[i] - dot) / pivot,
            };
        }
        let square: f64 = row[..j].iter().map(|x| x * x).sum();
        let left = row[j] - square;
        row[j] = if left > 1e-14 * largest {
            left.sqrt()
        } else {
            0.0
        };
    }
    let divide = |row: &mut [f64], pivot: f64| {
        let inverse = if pivot == 0.0 { 0.0 } else { 1.0 / pivot };
        row.iter_mut().for_each(|x| *x *= inverse);
    };
    for i in 0..n {
        let (done, rest) = b.split_at_mut(i * m);
        let row = &mut rest[..m];
        for (factor, above) in a[i * n..][..i].iter().zip(done.chunks_exact(m.max(1))) {
            row.iter_mut()
                .zip(above)
                .for_each(|(x, y)| *x -= factor * y);
        }
        divide(row, a[i * n + i]);
    }
    for i in (0..n).rev() {
        let (rest, done) = b.split_at_mut((i + 1) * m);
        let row = &mut rest[i * m..];
        for (k, below) in done.chunks_exact(m.max(1)).enumerate() {
            let factor = a[(i + 1 + k) * n + i];
            row.iter_mut()
                .zip(below)
                .for_each(|(x, y)| *x -= factor * y);
        }
        divide(row, a[i * n + i]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacuna_orchestrator::noise::TorchRng;

    fn noise(seed: u64, shape: [usize; 2]) -> HostTensor {
        let data = TorchRng::new(seed).randn(shape[0] * shape[1]);
        HostTensor::new(shape, data).unwrap()
    }

    fn rows(x: &HostTensor) -> Vec<&[f32]> {
        x.data.chunks_exact(x.shape[1]).collect()
    }

    fn head(x: &HostTensor, rows: usize) -> HostTensor {
        let data = x.data[..rows * x.shape[1]].to_vec();
        HostTensor::new([rows, x.shape[1]], data).unwrap()
    }

    /// Mean square error of the rows beyond `train`.
    fn held_out_error(guess: &HostTensor, truth: &HostTensor, train: usize) -> f64 {
        mean_square(&guess.data, &truth.data[train * truth.shape[1]..])
    }

    #[test]
    fn the_solution_solves() {
        let x = noise(1, [9, 5]);
        let (n, m) = (5, 2);
        let mut a = vec![0.0; n * n];
        for row in rows(&x) {
            for (at, sum) in a.iter_mut().enumerate() {
                *sum += f64::from(row[at / n] * row[at % n]);
            }
        }
        let want: Vec<f64> = (0..n * m).map(|i| i as f64 - 3.0).collect();
        let mut b = vec![0.0; n * m];
        for i in 0..n {
            for j in 0..m {
                b[i * m + j] = (0..n).map(|k| a[i * n + k] * want[k * m + j]).sum();
            }
        }
        solve(&mut a, n, &mut b, m);
        let worst = b.iter().zip(&want).map(|(x, y)| (x - y).abs());
        assert!(worst.fold(0.0, f64::max) < 1e-9, "{b:?}");
    }

    #[test]
    fn a_planted_linear_relation_is_found() {
        let (runs, train) = (80, 60);
        let hidden = noise(2, [runs, 4]);
        // More features than runs, all of them mixtures of the four hidden numbers.
        let features = product(&hidden, &noise(3, [4, 300])).unwrap();
        let targets = product(&hidden, &noise(4, [4, 50])).unwrap();
        let gram = Gram::of(&rows(&features), train).unwrap();
        let known = head(&targets, train);
        let guess = gram.fit(&known).unwrap().predict(&known).unwrap();
        let error = held_out_error(&guess, &targets, train);
        assert!(error < 1e-3, "{error}");

        let run = |i: usize| {
            let row = |x: &HostTensor| {
                let width = x.shape[1];
                HostTensor::new([1, width], x.data[i * width..][..width].to_vec()).unwrap()
            };
            (row(&hidden), row(&targets))
        };
        let samples: Vec<_> = (0..train).map(run).collect();
        let linear = Linear::fit(&samples).unwrap();
        let (x, y) = run(train + 3);
        let error = mean_square(&linear.predict(&x).unwrap().data, &y.data);
        assert!(error < 1e-6, "{error}");
    }

    #[test]
    fn from_noise_nothing_is_learned() {
        let (runs, train) = (120, 90);
        let targets = noise(6, [runs, 40]);
        let known = head(&targets, train);
        let mean = column_means(&known);
        let baseline: Vec<f32> = mean.repeat(runs - train);
        let baseline = HostTensor::new([runs - train, 40], baseline).unwrap();
        let baseline = held_out_error(&baseline, &targets, train);
        let features = noise(5, [runs, 500]);
        let gram = Gram::of(&rows(&features), train).unwrap();
        let guess = gram.fit(&known).unwrap().predict(&known).unwrap();
        let error = held_out_error(&guess, &targets, train);
        assert!(error > 0.98 * baseline, "{error} against {baseline}");
    }
}
