//! Kernel distance between two sets of features (Binkowski et al. 2018, KID).

use faer::Mat;
use serde::{Deserialize, Serialize};

use super::frechet::product;
use crate::error::{Error, Result};
use lacuna_orchestrator::noise::TorchRng;

/// How many subsets are drawn, and how large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subsets {
    /// Number of subsets.
    pub count: usize,
    /// Most feature vectors of one.
    pub size: usize,
    /// Of the draw: the subsets are those of clean-fid after `numpy.random.seed(seed)`.
    pub seed: u64,
}

impl Default for Subsets {
    /// Those of clean-fid and of torch-fidelity, but for the seed, which clean-fid leaves open.
    fn default() -> Self {
        Self {
            count: 100,
            size: 1000,
            seed: 0,
        }
    }
}

/// A kernel distance, estimated from subsets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct KernelDistance {
    /// Over the subsets.
    pub mean: f64,
    /// Population deviation of the subsets' estimates.
    pub std: f64,
}

/// The squared maximum mean discrepancy, unbiased, under the kernel `(x.y / D + 1)^3`, in f64: the mean
/// over subsets of each set, drawn without replacement, of as many vectors as the smaller set has, at
/// most `subsets.size`. `a` and `b` are `[N, D]`, one vector after the other.
///
/// Where the subsets can only be the sets themselves, one is computed.
///
/// # Errors
/// [`Error::Features`] for fewer than two vectors on a side or in a subset.
pub fn kernel_distance(
    a: &[f32],
    b: &[f32],
    dim: usize,
    subsets: Subsets,
) -> Result<KernelDistance> {
    let (na, nb) = (a.len() / dim.max(1), b.len() / dim.max(1));
    let m = na.min(nb).min(subsets.size);
    if m < 2 || subsets.count == 0 {
        return Err(Error::Features(format!(
            "KID needs a subset of at least 2 pictures on each side, not {m}"
        )));
    }
    let whole = na == m && nb == m;
    let count = if whole { 1 } else { subsets.count };
    let mut rng = TorchRng::new(subsets.seed);
    let estimates: Vec<f64> = (0..count)
        .map(|_| {
            // In clean-fid's order.
            let y = gather(b, dim, &choice(&mut rng, nb, m));
            let x = gather(a, dim, &choice(&mut rng, na, m));
            discrepancy(&x, &y)
        })
        .collect();
    let mean = estimates.iter().sum::<f64>() / count as f64;
    let squares = estimates.iter().map(|e| (e - mean).powi(2));
    Ok(KernelDistance {
        mean,
        std: (squares.sum::<f64>() / count as f64).sqrt(),
    })
}

/// The unbiased estimate from two sets of `m` vectors, `[m, D]`.
fn discrepancy(x: &Mat<f64>, y: &Mat<f64>) -> f64 {
    let m = x.nrows() as f64;
    let within = |x: &Mat<f64>| kernel_sum(x, x, true) / (m * (m - 1.0));
    within(x) + within(y) - 2.0 * kernel_sum(x, y, false) / (m * m)
}

/// The sum of the kernel over all pairs, or over those of two different rows.
fn kernel_sum(x: &Mat<f64>, y: &Mat<f64>, different: bool) -> f64 {
    let products = product(x, y);
    let kernel = |p: &f64| (p / x.ncols() as f64 + 1.0).powi(3);
    let columns = (0..products.ncols()).map(|j| {
        let column = products.col_as_slice(j);
        let own = if different { kernel(&column[j]) } else { 0.0 };
        column.iter().map(kernel).sum::<f64>() - own
    });
    columns.sum()
}

fn gather(features: &[f32], dim: usize, rows: &[usize]) -> Mat<f64> {
    Mat::from_fn(rows.len(), dim, |i, j| {
        f64::from(features[rows[i] * dim + j])
    })
}

/// `numpy.random.choice(n, m, replace=False)` of numpy's legacy generator: the first `m` of a shuffle.
fn choice(rng: &mut TorchRng, n: usize, m: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, rng.below(i));
    }
    order.truncate(m);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(count: usize, phase: f32) -> Vec<f32> {
        (0..count * 3)
            .map(|i| (i as f32 * 0.7 + phase).sin())
            .collect()
    }

    #[test]
    fn the_draw_is_numpys() {
        // numpy.random.seed(5); numpy.random.choice(10, 4, replace=False), twice
        let mut rng = TorchRng::new(5);
        assert_eq!(choice(&mut rng, 10, 4), [9, 5, 2, 4]);
        assert_eq!(choice(&mut rng, 10, 4), [2, 5, 6, 3]);
    }

    #[test]
    fn it_is_the_formula_over_pairs() {
        let (a, b) = (features(5, 0.0), features(5, 0.4));
        let kernel = |x: &[f32], y: &[f32]| {
            let dot: f64 = x
                .iter()
                .zip(y)
                .map(|(x, y)| f64::from(*x) * f64::from(*y))
                .sum();
            (dot / 3.0 + 1.0).powi(3)
        };
        let row = |set: &[f32], i: usize| set[3 * i..3 * i + 3].to_vec();
        let mut want = 0.0;
        for (i, j) in (0..5).flat_map(|i| (0..5).map(move |j| (i, j))) {
            if i != j {
                want +=
                    (kernel(&row(&a, i), &row(&a, j)) + kernel(&row(&b, i), &row(&b, j))) / 20.0;
            }
            want -= 2.0 * kernel(&row(&a, i), &row(&b, j)) / 25.0;
        }
        let got = kernel_distance(&a, &b, 3, Subsets::default()).unwrap();
        assert!((got.mean - want).abs() < 1e-12, "{got:?} for {want}");
        assert_eq!(got.std, 0.0);
    }

    #[test]
    fn subsets_differ_and_a_seed_gives_the_same_ones() {
        let (a, b) = (features(20, 0.0), features(30, 0.4));
        let draw = |seed| {
            let subsets = Subsets {
                count: 7,
                size: 6,
                seed,
            };
            kernel_distance(&a, &b, 3, subsets).unwrap()
        };
        assert!(draw(0).std > 0.0);
        assert_eq!(draw(0), draw(0));
        assert_ne!(draw(0), draw(1));
    }

    #[test]
    fn too_few_pictures_are_named() {
        let error = kernel_distance(&features(1, 0.0), &features(9, 0.0), 3, Subsets::default());
        let error = error.unwrap_err().to_string();
        assert!(error.contains("at least 2"), "{error}");
    }
}
