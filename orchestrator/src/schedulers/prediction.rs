//! What the network's output says of the clean latents and of the noise in a sample.

use serde::Deserialize;

/// What the network's output means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise in the sample.
    Epsilon,
    /// The noise-free sample itself.
    Sample,
    /// The velocity (Salimans and Ho 2022, appendix D).
    VPrediction,
}

impl PredictionType {
    /// All there are.
    pub(super) const ALL: &'static [Self] = &[Self::Epsilon, Self::Sample, Self::VPrediction];

    /// The name in `scheduler_config.json`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Epsilon => "epsilon",
            Self::Sample => "sample",
            Self::VPrediction => "v_prediction",
        }
    }

    /// x0 in the sample x = `alpha` x0 + `sigma` eps.
    pub(super) fn x0(self, [alpha, sigma]: [f32; 2], output: f32, x: f32) -> f32 {
        match self {
            Self::Epsilon => (x - sigma * output) / alpha,
            Self::Sample => output,
            Self::VPrediction => alpha * x - sigma * output,
        }
    }

    /// eps in the sample x = `alpha` x0 + `sigma` eps.
    pub(super) fn noise(self, [alpha, sigma]: [f32; 2], output: f32, x: f32) -> f32 {
        match self {
            Self::Epsilon => output,
            Self::Sample => (x - alpha * output) / sigma,
            Self::VPrediction => alpha * output + sigma * x,
        }
    }

    /// x0 in samples of which these are the `weights` of x0 and noise, however they are scaled.
    pub fn clean(self, [alpha, sigma]: [f32; 2], output: &[f32], sample: &[f32]) -> Vec<f32> {
        let norm = alpha.hypot(sigma);
        let weights = [alpha / norm, sigma / norm];
        let pairs = output.iter().zip(sample);
        pairs
            .map(|(output, x)| self.x0(weights, *output, x / norm))
            .collect()
    }

    /// What [`x0`](Self::x0) or [`noise`](Self::noise) divides by: it must not be 0.
    pub(super) fn divisor(self, [alpha, sigma]: [f32; 2], of_noise: bool) -> f32 {
        match (self, of_noise) {
            (Self::Epsilon, false) => alpha,
            (Self::Sample, true) => sigma,
            _ => 1.0,
        }
    }

    /// x0 in the sample x = x0 + `sigma` eps, of which the network saw a copy of unit variance (Karras et al. 2022,
    /// table 1, VP column).
    pub(super) fn x0_exploding(self, sigma: f32, output: f32, x: f32) -> f32 {
        match self {
            Self::Epsilon => x - sigma * output,
            Self::Sample => output,
            Self::VPrediction => {
                let variance = sigma * sigma + 1.0;
                output * (-sigma / variance.sqrt()) + x / variance
            }
        }
    }
}
