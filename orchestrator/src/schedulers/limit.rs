//! How predictions of the clean latents are kept in range: by clipping (`clip_sample`) or by dynamic
//! thresholding (Saharia et al. 2022, section 2.3).

use super::config::SchedulerConfig;
use super::error::SchedulerError;
use super::keys::unsupported;
use super::prediction::PredictionType;

/// How far predictions of the clean latents may go.
#[derive(Clone, Copy, Debug)]
pub(super) enum Limit {
    /// As far as they like.
    None,
    /// To plus or minus this.
    Clip(f32),
    /// As far as this share of them goes, at least 1 and at most `most`; then they are divided by it.
    Dynamic { ratio: f32, most: f32 },
}

impl Limit {
    /// `thresholding` alone.
    pub(super) fn thresholding(config: &SchedulerConfig) -> Result<Self, SchedulerError> {
        if !config.thresholding.unwrap_or(false) {
            return Ok(Self::None);
        }
        let ratio = config.dynamic_thresholding_ratio.unwrap_or(0.995);
        if !(0.0..=1.0).contains(&ratio) {
            let reason = "expected a number from 0 to 1";
            return Err(unsupported("dynamic_thresholding_ratio", ratio, reason));
        }
        let most = config.sample_max_value.unwrap_or(1.0);
        if !(most > 0.0 && most.is_finite()) {
            let reason = "expected a positive number";
            return Err(unsupported("sample_max_value", most, reason));
        }
        Ok(Self::Dynamic { ratio, most })
    }

    /// `clip_sample` alone, which is `on` where the file does not say.
    pub(super) fn clipping(config: &SchedulerConfig, on: bool) -> Result<Self, SchedulerError> {
        if !config.clip_sample.unwrap_or(on) {
            return Ok(Self::None);
        }
        let range = config.clip_sample_range.unwrap_or(1.0);
        if range.is_nan() || range < 0.0 {
            let reason = "expected a number that is not negative";
            return Err(unsupported("clip_sample_range", range, reason));
        }
        Ok(Self::Clip(range))
    }

    /// `thresholding`, else `clip_sample`.
    pub(super) fn either(config: &SchedulerConfig, clip: bool) -> Result<Self, SchedulerError> {
        match Self::thresholding(config)? {
            Self::None => Self::clipping(config, clip),
            limit => Ok(limit),
        }
    }

    /// x0 in the sample x = `alpha` x0 + `sigma` eps, number by number, in range; `weights` are `alpha` and `sigma`.
    pub(super) fn x0(
        self,
        prediction: PredictionType,
        weights: [f32; 2],
        output: &[f32],
        sample: &[f32],
    ) -> Vec<f32> {
        let pairs = output.iter().zip(sample);
        let x0 = pairs.map(|(&output, &x)| prediction.x0(weights, output, x));
        let mut x0: Vec<f32> = x0.collect();
        self.apply(&mut x0);
        x0
    }

    /// Brings the predictions for one picture, C x H x W of them, into range.
    pub(super) fn apply(self, x0: &mut [f32]) {
        match self {
            Self::None => {}
            Self::Clip(range) => x0.iter_mut().for_each(|x| *x = x.clamp(-range, range)),
            Self::Dynamic { ratio, most } => {
                let bound = quantile(x0, ratio).max(1.0).min(most);
                x0.iter_mut()
                    .for_each(|x| *x = x.clamp(-bound, bound) / bound);
            }
        }
    }
}

/// The magnitude that the share `ratio` of the numbers does not exceed, linear between two of them
/// (`torch.quantile`); 0 of none.
fn quantile(numbers: &[f32], ratio: f32) -> f32 {
    let mut sizes: Vec<f32> = numbers.iter().map(|x| x.abs()).collect();
    sizes.sort_by(f32::total_cmp);
    let Some(last) = sizes.len().checked_sub(1) else {
        return 0.0;
    };
    let rank = ratio * last as f32;
    let low = (rank as usize).min(last);
    let (below, above) = (sizes[low], sizes[(low + 1).min(last)]);
    let weight = rank - low as f32;
    match weight < 0.5 {
        true => below + weight * (above - below),
        false => above - (above - below) * (1.0 - weight),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_lies_between_the_two_nearest_magnitudes() {
        let numbers = [-4.0, 1.0, 3.0, -2.0];
        assert_eq!(quantile(&numbers, 0.5), 2.5);
        assert_eq!(quantile(&numbers, 1.0), 4.0);
        assert_eq!(quantile(&numbers, 0.0), 1.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }
}
