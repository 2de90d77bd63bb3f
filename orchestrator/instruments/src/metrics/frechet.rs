//! Fréchet distance between two sets of features (Heusel et al. 2017, FID).

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par, Side};

use crate::error::{Error, Result};

/// What the distance needs of a set of features `[N, D]`: count, mean and the sums of products of
/// deviations, in f64. Sets merge (Chan, Golub and LeVeque 1983), so shards give what one run gives, in
/// memory that does not grow with `N`.
#[derive(Clone, Debug)]
pub struct FeatureStatistics {
    /// `N`.
    count: usize,
    /// `[D]`.
    mean: Vec<f64>,
    /// `[D, D]`, symmetric: the sum over the set of `(x - mean) (x - mean)^T`.
    m2: Mat<f64>,
}

/// What merging adds to the sums of products: `weight delta delta^T`.
struct Step {
    /// From the one mean to the other, `[D]`.
    delta: Vec<f64>,
    weight: f64,
}

impl FeatureStatistics {
    /// Those of no feature vector of `dim` values.
    pub fn new(dim: usize) -> Self {
        Self {
            count: 0,
            mean: vec![0.0; dim],
            m2: Mat::zeros(dim, dim),
        }
    }

    /// Number of feature vectors.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Those of `count` vectors with `mean` `[D]` and the sums of products `m2` `[D, D]`.
    ///
    /// # Errors
    /// [`Error::Features`] when the sizes do not fit, or a value is not finite.
    pub fn from_parts(count: usize, mean: Vec<f64>, m2: &[f64]) -> Result<Self> {
        let dim = mean.len();
        if m2.len() != dim * dim {
            let reason = format!("{} products of vectors of {dim} values", m2.len());
            return Err(Error::Features(reason));
        }
        if mean.iter().chain(m2).any(|x| !x.is_finite()) {
            return Err(Error::Features("a value is not finite".into()));
        }
        let m2 = Mat::from_fn(dim, dim, |i, j| m2[j * dim + i]);
        Ok(Self { count, mean, m2 })
    }

    /// The mean, `[D]`.
    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// The sums of products of deviations, `[D, D]`.
    pub fn m2(&self) -> Vec<f64> {
        let columns = (0..self.mean.len()).map(|j| self.m2.col_as_slice(j));
        columns.flatten().copied().collect()
    }

    /// Adds vectors, one after the other in `features`.
    ///
    /// # Errors
    /// [`Error::Features`] when they are not whole vectors, or hold a value that is not finite.
    pub fn add(&mut self, features: &[f32]) -> Result<()> {
        let dim = self.mean.len();
        if !features.len().is_multiple_of(dim.max(1)) {
            let reason = format!("{} values are no vectors of {dim}", features.len());
            return Err(Error::Features(reason));
        }
        if features.iter().any(|x| !x.is_finite()) {
            return Err(Error::Features("a value is not finite".into()));
        }
        if features.is_empty() {
            return Ok(());
        }
        let count = features.len() / dim;
        let at = |i: usize, n: usize| f64::from(features[n * dim + i]);
        let mean: Vec<f64> = (0..dim)
            .map(|i| (0..count).map(|n| at(i, n)).sum::<f64>() / count as f64)
            .collect();
        let step = self.take_mean(&mean, count);
        // The step between the means is one more deviation.
        let deviations = Mat::from_fn(dim, count + 1, |i, n| match n < count {
            true => at(i, n) - mean[i],
            false => step.delta[i] * step.weight.sqrt(),
        });
        let transposed = deviations.as_ref().transpose();
        let all = Par::rayon(0);
        matmul(&mut self.m2, Accum::Add, &deviations, transposed, 1.0, all);
        Ok(())
    }

    /// Adds another set.
    ///
    /// # Errors
    /// [`Error::Features`] when its vectors have another length.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        check_lengths(self, other)?;
        let step = self.take_mean(&other.mean, other.count);
        for (j, delta_j) in step.delta.iter().enumerate() {
            let column = self.m2.col_as_slice_mut(j);
            let others = other.m2.col_as_slice(j);
            for ((m2, other), delta_i) in column.iter_mut().zip(others).zip(&step.delta) {
                *m2 += other + delta_i * delta_j * step.weight;
            }
        }
        Ok(())
    }

    /// Moves count and mean to those with `count` further vectors of mean `mean`.
    fn take_mean(&mut self, mean: &[f64], count: usize) -> Step {
        let whole = self.count + count;
        let share = count as f64 / whole.max(1) as f64;
        let delta: Vec<f64> = mean.iter().zip(&self.mean).map(|(b, a)| b - a).collect();
        for (mean, delta) in self.mean.iter_mut().zip(&delta) {
            *mean += delta * share;
        }
        let weight = self.count as f64 * share;
        self.count = whole;
        Step { delta, weight }
    }

    /// The trace of the unbiased covariance.
    fn trace(&self) -> f64 {
        let sum: f64 = (0..self.mean.len()).map(|i| self.m2[(i, i)]).sum();
        sum / self.degrees_of_freedom()
    }

    fn degrees_of_freedom(&self) -> f64 {
        self.count as f64 - 1.0
    }

    /// `F`, `[R, D]`, with `F^T F` the unbiased covariance and `R` its rank.
    ///
    /// Directions without variance (there are some whenever `N <= D`) come out of an eigensolver as
    /// rounding of either sign, whose square root would be far from small. They are left out.
    fn factor(&self) -> Result<Mat<f64>> {
        let eigen = self.m2.self_adjoint_eigen(Side::Lower);
        let eigen = eigen.map_err(|e| Error::Features(format!("no eigenvalues: {e:?}")))?;
        let (values, vectors) = (eigen.S().column_vector(), eigen.U());
        let dim = self.mean.len();
        // They are sorted, the largest last.
        let noise = values[dim - 1] * dim as f64 * f64::EPSILON;
        let most = dim.min(self.count - 1);
        let kept: Vec<usize> = (dim - most..dim).filter(|i| values[*i] > noise).collect();
        let deviation = |i: usize| (values[i] / self.degrees_of_freedom()).sqrt();
        Ok(Mat::from_fn(kept.len(), dim, |r, j| {
            deviation(kept[r]) * vectors[(j, kept[r])]
        }))
    }
}

/// `|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2))` with `A` and `B` the unbiased covariances: FID where
/// the features are Inception's.
///
/// The trace of the root is the sum of the singular values of `F_a F_b^T` for any `F` with `F^T F` the
/// covariance. Unlike the root of `A B` that the reference implementations take, this needs no full rank.
///
/// # Errors
/// [`Error::Features`] for fewer than two vectors on a side, or lengths that differ.
pub fn frechet_distance(a: &FeatureStatistics, b: &FeatureStatistics) -> Result<f64> {
    check_lengths(a, b)?;
    for set in [a, b] {
        if set.count < 2 || set.mean.is_empty() {
            return Err(Error::Features(format!(
                "a covariance needs at least 2 pictures on each side, not {}",
                set.count
            )));
        }
    }
    let means = a.mean.iter().zip(&b.mean).map(|(a, b)| (a - b).powi(2));
    let means: f64 = means.sum();
    let (fa, fb) = (a.factor()?, b.factor()?);
    let root: f64 = if fa.nrows() == 0 || fb.nrows() == 0 {
        0.0
    } else {
        let values = product(&fa, &fb).singular_values();
        let values = values.map_err(|e| Error::Features(format!("no singular values: {e:?}")))?;
        values.iter().sum()
    };
    Ok(means + a.trace() + b.trace() - 2.0 * root)
}

/// `x y^T`, on all cores.
pub(super) fn product(x: &Mat<f64>, y: &Mat<f64>) -> Mat<f64> {
    let mut out = Mat::zeros(x.nrows(), y.nrows());
    let y = y.as_ref().transpose();
    matmul(&mut out, Accum::Replace, x, y, 1.0, Par::rayon(0));
    out
}

fn check_lengths(a: &FeatureStatistics, b: &FeatureStatistics) -> Result<()> {
    let (a, b) = (a.mean.len(), b.mean.len());
    if a == b {
        return Ok(());
    }
    let reason = format!("vectors of {a} and of {b} values do not compare");
    Err(Error::Features(reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` vectors of `dim` values that vary more in some directions than in others.
    fn features(count: usize, dim: usize, phase: f32) -> Vec<f32> {
        (0..count * dim)
            .map(|i| {
                let (n, d) = (i / dim, i % dim);
                let wave = (n as f32 * (d as f32 * 0.37 + 0.11) * 1.7 + phase).sin();
                wave * (1.0 + (d % 5) as f32) + d as f32 * 0.1
            })
            .collect()
    }

    fn statistics(features: &[f32], dim: usize) -> FeatureStatistics {
        let mut all = FeatureStatistics::new(dim);
        all.add(features).unwrap();
        all
    }

    #[test]
    fn of_one_value_it_is_the_distance_of_two_normal_distributions() {
        let a = statistics(&[1.0, 3.0, 5.0], 1);
        let b = statistics(&[10.0, 10.0, 13.0, 11.0], 1);
        // Means 3 and 11, variances 4 and 2.
        let want = 64.0 + 4.0 + 2.0 - 2.0 * 8.0f64.sqrt();
        let got = frechet_distance(&a, &b).unwrap();
        assert!((got - want).abs() < 1e-12, "{got}");
    }

    #[test]
    fn shards_merge_to_what_one_run_gives() {
        let (x, y) = (features(100, 12, 0.0), features(80, 12, 1.0));
        let whole = statistics(&x, 12);
        for cut in [0, 1, 37, 99] {
            let (first, last) = x.split_at(cut * 12);
            let mut merged = statistics(first, 12);
            merged.merge(&statistics(last, 12)).unwrap();
            assert_eq!(merged.count(), 100);
            let other = statistics(&y, 12);
            let want = frechet_distance(&whole, &other).unwrap();
            let got = frechet_distance(&merged, &other).unwrap();
            assert!((got / want - 1.0).abs() < 1e-12, "{cut}: {got} for {want}");
        }
    }

    #[test]
    fn a_set_is_at_no_distance_from_itself_even_with_few_pictures() {
        for count in [2, 5, 40] {
            let set = statistics(&features(count, 16, 0.0), 16);
            let distance = frechet_distance(&set, &set).unwrap();
            assert!(distance.abs() < 1e-9 * set.trace(), "{count}: {distance}");
        }
        let same = statistics(&[2.0; 32], 16);
        assert_eq!(frechet_distance(&same, &same).unwrap(), 0.0);
    }

    #[test]
    fn what_has_no_covariance_is_refused() {
        let one = statistics(&features(1, 4, 0.0), 4);
        let two = statistics(&features(2, 4, 0.0), 4);
        let error = frechet_distance(&two, &one).unwrap_err().to_string();
        assert!(error.contains("at least 2"), "{error}");
        let other = statistics(&features(2, 5, 0.0), 5);
        assert!(frechet_distance(&two, &other).is_err());
        assert!(FeatureStatistics::new(4).add(&[0.0; 6]).is_err());
        assert!(FeatureStatistics::new(1).add(&[f32::NAN]).is_err());
    }
}
