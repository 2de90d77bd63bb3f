//! Group statistics that merge exactly.
//!
//! A strip's (count, mean, M2) merged with the others' gives the whole tensor's mean and variance
//! (Chan, Golub and LeVeque 1983); PPIDM averages them instead, which is where its loss comes from.

/// Count, mean and sum of squared deviations of one group.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moments {
    /// Number of values.
    pub count: f64,
    /// Their mean.
    pub mean: f64,
    /// Sum of the squared deviations from the mean (M2).
    pub m2: f64,
}

impl Moments {
    /// The population variance.
    pub fn variance(&self) -> f64 {
        if self.count == 0.0 {
            0.0
        } else {
            self.m2 / self.count
        }
    }

    /// The moments of both sets of values together.
    pub fn merge(self, other: Self) -> Self {
        if self.count == 0.0 {
            return other;
        }
        if other.count == 0.0 {
            return self;
        }
        let count = self.count + other.count;
        let delta = other.mean - self.mean;
        Self {
            count,
            mean: self.mean + delta * (other.count / count),
            m2: self.m2 + other.m2 + delta * delta * (self.count * other.count / count),
        }
    }

    /// The moments whose mean and variance are the plain averages of the strips', as in PPIDM:
    /// the spread between the strips is lost.
    pub fn average(strips: &[Self]) -> Self {
        let filled: Vec<&Self> = strips.iter().filter(|s| s.count > 0.0).collect();
        let n = filled.len().max(1) as f64;
        let count: f64 = filled.iter().map(|s| s.count).sum();
        Self {
            count,
            mean: filled.iter().map(|s| s.mean).sum::<f64>() / n,
            m2: filled.iter().map(|s| s.variance()).sum::<f64>() / n * count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(values: &[f64]) -> Moments {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let m2 = values.iter().map(|v| (v - mean).powi(2)).sum();
        Moments { count, mean, m2 }
    }

    #[test]
    fn merged_strips_have_the_moments_of_the_whole() {
        let values: Vec<f64> = (0..97)
            .map(|i| ((i * i) % 31) as f64 * 0.37 + 1000.0)
            .collect();
        let whole = moments(&values);
        for cuts in [vec![40], vec![1, 2, 96], vec![10, 20, 30, 40, 50]] {
            let mut start = 0;
            let mut merged = Moments::default();
            for cut in cuts.into_iter().chain([values.len()]) {
                merged = merged.merge(moments(&values[start..cut]));
                start = cut;
            }
            assert_eq!(merged.count, whole.count);
            assert!((merged.mean - whole.mean).abs() < 1e-11);
            assert!((merged.variance() - whole.variance()).abs() < 1e-10);
        }
    }

    #[test]
    fn averaging_loses_the_spread_between_strips() {
        let (low, high) = (moments(&[0.0, 1.0]), moments(&[10.0, 11.0]));
        assert_eq!(Moments::average(&[low, high]).variance(), 0.25);
        assert_eq!(low.merge(high).variance(), 25.25);
    }
}
