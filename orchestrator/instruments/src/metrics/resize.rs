//! Resizing a channel with a separable filter.

/// How a pixel is made of its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// A triangle, support 1.
    Bilinear,
    /// Keys's cubic with a = -1/2, support 2.
    Bicubic,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
            Self::Bicubic => 0.0,
        }
    }
}

/// Which inputs an output is made of, from the first on.
struct Taps {
    first: usize,
    weights: Vec<f64>,
}

/// A channel `[rows, columns]` resized to `to`, columns first and then rows, as Pillow does it in its
/// mode `F`: sums in f64, results in f32. With `antialias` the filter widens as the picture shrinks;
/// without, pixels are skipped, which is what `torch.nn.functional.interpolate` does by default.
///
/// # Panics
/// When `channel` has not `from` values.
pub fn resize(
    channel: &[f32],
    from: [usize; 2],
    to: [usize; 2],
    filter: Filter,
    antialias: bool,
) -> Vec<f32> {
    assert_eq!(channel.len(), from[0] * from[1], "values of a channel");
    let [rows, columns] = [0, 1].map(|axis| taps(from[axis], to[axis], filter, antialias));
    let wide: Vec<f32> = channel
        .chunks_exact(from[1])
        .flat_map(|row| columns.iter().map(|taps| weigh_columns(row, taps)))
        .collect();
    rows.iter()
        .flat_map(|taps| weigh_rows(&wide, to[1], taps))
        .collect()
}

fn weigh_columns(row: &[f32], taps: &Taps) -> f32 {
    let inputs = &row[taps.first..][..taps.weights.len()];
    let terms = inputs.iter().zip(&taps.weights);
    terms.map(|(x, w)| f64::from(*x) * w).sum::<f64>() as f32
}

fn weigh_rows(channel: &[f32], width: usize, taps: &Taps) -> Vec<f32> {
    let mut sums = vec![0.0; width];
    let rows = channel[taps.first * width..].chunks_exact(width);
    for (row, weight) in rows.zip(&taps.weights) {
        for (sum, x) in sums.iter_mut().zip(row) {
            *sum += f64::from(*x) * weight;
        }
    }
    sums.into_iter().map(|sum| sum as f32).collect()
}

/// The weights of each of `to` outputs over `from` inputs, those outside left out and the rest summing
/// to one.
fn taps(from: usize, to: usize, filter: Filter, antialias: bool) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let stretch = if antialias { scale.max(1.0) } else { 1.0 };
    let support = filter.support() * stretch;
    let each = (0..to).map(|i| {
        let centre = (i as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weights = (first..end).map(|j| filter.at((j as f64 - centre + 0.5) / stretch));
        let weights: Vec<f64> = weights.collect();
        let sum: f64 = weights.iter().sum();
        Taps {
            first,
            weights: weights.iter().map(|w| w / sum).collect(),
        }
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_size_gives_the_same_values() {
        let channel: Vec<f32> = (0..35).map(|i| (i * i % 17) as f32).collect();
        for filter in [Filter::Bilinear, Filter::Bicubic] {
            assert_eq!(resize(&channel, [5, 7], [5, 7], filter, true), channel);
        }
    }

    #[test]
    fn a_flat_channel_stays_flat_at_any_size() {
        for to in [[1, 1], [3, 11], [40, 2]] {
            let out = resize(&[7.0; 30], [5, 6], to, Filter::Bicubic, true);
            assert_eq!(out.len(), to[0] * to[1]);
            assert!(out.iter().all(|x| (x - 7.0).abs() < 1e-5), "{out:?}");
        }
    }

    #[test]
    fn shrinking_averages_with_antialiasing_and_skips_without() {
        let stripes: Vec<f32> = (0..8).map(|i| (i % 4 / 2) as f32).collect();
        let smooth = resize(&stripes, [1, 8], [1, 2], Filter::Bilinear, true);
        assert!(smooth.iter().all(|x| (0.3..0.7).contains(x)), "{smooth:?}");
        // Output 0 lies between inputs 1 and 2, output 1 between 5 and 6.
        let points = [0.0, 9.0, 1.0, 9.0, 9.0, 3.0, 5.0, 9.0];
        let skipped = resize(&points, [1, 8], [1, 2], Filter::Bilinear, false);
        assert_eq!(skipped, [5.0, 4.0]);
    }
}
