//! `scheduler_config.json`: which keys exist, which types they have, what is refused.
//!
//! A configuration may be used with another scheduler than the one it was written for
//! (`--scheduler`). As `diffusers` does then, keys that only other classes know are ignored and
//! missing keys take the default of the class in use. That is why every field is optional here:
//! the default belongs to the scheduler and is written in its file.

use super::SchedulerError;
use super::keys::{flag, refuse_nulls, take, unsupported, without_infinities};
use super::prediction::PredictionType;
use lacuna_model::config::WithoutEffect;
use serde::Deserialize;
use serde_json::{Map, Value};

/// The most training timesteps accepted, a hundred times what any published model uses: the tables
/// are allocated from this number.
const MAX_TRAIN_TIMESTEPS: usize = 100_000;

/// How the noise variances beta_t grow over the timesteps of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Evenly from `beta_start` to `beta_end` (Ho et al. 2020).
    Linear,
    /// Evenly in the square root (latent diffusion, Rombach et al. 2022).
    ScaledLinear,
    /// From a squared cosine of the cumulative product (Nichol and Dhariwal 2021, eq. 17), capped.
    SquaredcosCapV2,
    /// Heun's alone: from an exponential of the cumulative product, capped.
    Exp,
    /// DDPM's alone: from Laplace's distribution of the log signal-to-noise ratio, capped.
    Laplace,
    /// DDPM's alone: along a sigmoid from -6 to 6.
    Sigmoid,
}

impl BetaSchedule {
    /// The name in `scheduler_config.json`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::ScaledLinear => "scaled_linear",
            Self::SquaredcosCapV2 => "squaredcos_cap_v2",
            Self::Exp => "exp",
            Self::Laplace => "laplace",
            Self::Sigmoid => "sigmoid",
        }
    }
}

/// Which training timesteps the sampler visits (Lin et al. 2023, table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Multiples of a whole step from 0 up, shifted by `steps_offset`.
    Leading,
    /// Multiples of a fractional step from the last timestep down.
    Trailing,
    /// Evenly from the first timestep to the last.
    Linspace,
}

/// The contents of a `scheduler_config.json`. `None` means that the key is missing, or null where the
/// class has no value of its own; a switch that is null is off.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SchedulerConfig {
    /// Timesteps the model was trained with.
    pub num_train_timesteps: Option<usize>,
    /// First beta.
    pub beta_start: Option<f64>,
    /// Last beta.
    pub beta_end: Option<f64>,
    /// The curve between them.
    pub beta_schedule: Option<BetaSchedule>,
    /// All betas spelt out, one per training timestep; overrides the three fields above.
    pub trained_betas: Option<Vec<f64>>,
    /// Whether to change the betas so that the last timestep is pure noise.
    pub rescale_betas_zero_snr: Option<bool>,
    /// What the network's output means.
    pub prediction_type: Option<PredictionType>,
    /// Which training timesteps the sampler visits.
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Added to every timestep under leading spacing.
    pub steps_offset: Option<i32>,
    /// DDIM, DDPM, LCM, Heun: clip the predicted noise-free sample.
    pub clip_sample: Option<bool>,
    /// The magnitude it is clipped to.
    pub clip_sample_range: Option<f32>,
    /// DDIM, PNDM: after the last step the sample is noise-free (or as at timestep 0).
    pub set_alpha_to_one: Option<bool>,
    /// PNDM: start without Runge-Kutta steps.
    pub skip_prk_steps: Option<bool>,
    /// Dynamic thresholding of the predicted noise-free sample, in the classes that predict one.
    pub thresholding: Option<bool>,
    /// The share of its numbers that lies below the threshold.
    pub dynamic_thresholding_ratio: Option<f32>,
    /// The highest threshold.
    pub sample_max_value: Option<f32>,
    /// Noise levels spaced after Karras et al. 2022, in the classes that step along those.
    pub use_karras_sigmas: Option<bool>,
    /// Noise levels evenly in their logarithm.
    pub use_exponential_sigmas: Option<bool>,
    /// Noise levels after the beta distribution.
    pub use_beta_sigmas: Option<bool>,
    /// Lowest noise level of these three spacings.
    pub sigma_min: Option<f64>,
    /// Highest noise level of them.
    pub sigma_max: Option<f64>,
    /// Euler, DPM-Solver, UniPC: the noise level after the last step, `zero` or `sigma_min`.
    pub final_sigmas_type: Option<String>,
    /// Euler: how noise levels between training timesteps are found, `linear` or `log_linear`.
    pub interpolation_type: Option<String>,
    /// Euler: what the network is told about time, `discrete` or `continuous`.
    pub timestep_type: Option<String>,
    /// DPM-Solver, DEIS, UniPC: how many model outputs one step combines, 1 to 3.
    pub solver_order: Option<usize>,
    /// DPM-Solver, DEIS: the member of the family.
    pub algorithm_type: Option<String>,
    /// DPM-Solver: the rule of higher orders, `midpoint` or `heun`; UniPC: `bh1` or `bh2`.
    pub solver_type: Option<String>,
    /// DPM-Solver, DEIS, UniPC: lower the order in the last steps (when there are fewer than 15).
    pub lower_order_final: Option<bool>,
    /// DPM-Solver: make the last step first-order.
    pub euler_at_final: Option<bool>,
    /// DPM-Solver: leave out timesteps whose log signal-to-noise ratio is below this.
    pub lambda_min_clipped: Option<f64>,
    /// DDPM: how much fresh noise a step adds. Models that predict it are not supported.
    pub variance_type: Option<String>,
    /// DPM-Solver: noise levels evenly in the log signal-to-noise ratio (Lu et al. 2022).
    pub use_lu_lambdas: Option<bool>,
    /// UniPC: predict the noise-free sample (or the noise).
    pub predict_x0: Option<bool>,
    /// UniPC: the steps that are not corrected.
    pub disable_corrector: Option<Vec<usize>>,
    /// UniPC: another scheduler for its predictor, which is not supported.
    pub solver_p: Option<Value>,
    /// UniPC: flow matching's lowest level, which is not supported.
    pub shift_terminal: Option<Value>,
    /// LCM, TCD: steps of the teacher, from which the sampler's are taken.
    pub original_inference_steps: Option<usize>,
    /// LCM: the factor of timesteps in the boundary condition.
    pub timestep_scaling: Option<f32>,
    /// Flow matching, which is not supported.
    pub use_flow_sigmas: Option<bool>,
    /// Flow matching's dynamic shift, which is not supported.
    pub use_dynamic_shifting: Option<bool>,
}

/// Keys of the supported classes that never change the picture.
pub const WITHOUT_EFFECT: WithoutEffect = &[
    (
        "flow_shift",
        "only read with use_flow_sigmas, which is refused",
    ),
    (
        "time_shift_type",
        "only read with use_dynamic_shifting, which is refused",
    ),
];

/// Keys that a class has and never reads, beside those above.
pub const UNREAD_BY_CLASS: &[(&str, WithoutEffect)] = &[
    (
        "LCMScheduler",
        &[
            ("timestep_spacing", "the timesteps are the teacher's"),
            ("set_alpha_to_one", "the last step leads to clean latents"),
        ],
    ),
    (
        "TCDScheduler",
        &[
            ("timestep_spacing", "the timesteps are the teacher's"),
            ("timestep_scaling", "only read by LCMScheduler"),
            ("set_alpha_to_one", "the last step leads to timestep 0"),
            ("thresholding", "no predictions are kept in range"),
            ("dynamic_thresholding_ratio", "only read with thresholding"),
            ("sample_max_value", "only read with thresholding"),
        ],
    ),
];

/// Does the same to every field, each with how its key is read.
macro_rules! each_key {
    ($($key:ident by $read:ident),* $(,)?) => {
        impl SchedulerConfig {
            /// All keys that are read.
            pub const KEYS: &[&str] = &[$(stringify!($key)),*];

            /// The same with what `other` says in place of what this does.
            pub fn overridden_by(self, other: Self) -> Self {
                Self { $($key: other.$key.or(self.$key)),* }
            }

            /// Takes every key out of `map`.
            fn take_all(map: &mut Map<String, Value>) -> Result<Self, SchedulerError> {
                Ok(Self { $($key: $read(map, stringify!($key))?),* })
            }
        }
    };
}

each_key!(
    num_train_timesteps by take,
    beta_start by take,
    beta_end by take,
    beta_schedule by take,
    trained_betas by take,
    rescale_betas_zero_snr by flag,
    prediction_type by take,
    timestep_spacing by take,
    steps_offset by take,
    clip_sample by flag,
    clip_sample_range by take,
    set_alpha_to_one by flag,
    skip_prk_steps by flag,
    thresholding by flag,
    dynamic_thresholding_ratio by take,
    sample_max_value by take,
    use_karras_sigmas by flag,
    use_exponential_sigmas by flag,
    use_beta_sigmas by flag,
    sigma_min by take,
    sigma_max by take,
    final_sigmas_type by take,
    interpolation_type by take,
    timestep_type by take,
    solver_order by take,
    algorithm_type by take,
    solver_type by take,
    lower_order_final by flag,
    euler_at_final by flag,
    lambda_min_clipped by take,
    variance_type by take,
    use_lu_lambdas by flag,
    predict_x0 by flag,
    disable_corrector by take,
    solver_p by take,
    shift_terminal by take,
    original_inference_steps by take,
    timestep_scaling by take,
    use_flow_sigmas by flag,
    use_dynamic_shifting by flag,
);

impl SchedulerConfig {
    /// What the network's output means.
    ///
    /// # Errors
    /// [`SchedulerError::Unsupported`] for one that no scheduler knows.
    pub fn prediction_type(&self) -> Result<PredictionType, SchedulerError> {
        self.prediction(PredictionType::ALL)
    }

    /// Reads the text of a `scheduler_config.json`.
    ///
    /// `diffusers` writes the default of `lambda_min_clipped` as a bare `-Infinity`, which JSON does
    /// not have; it is read as a missing value, which means the same.
    pub fn from_json(text: &str) -> Result<Self, SchedulerError> {
        Self::from_value(serde_json::from_str(&without_infinities(text))?)
    }

    /// Takes the fields out of a parsed `scheduler_config.json`. A key that no supported class knows is
    /// ignored with a warning, as the reference does; a value of the wrong type is an error, and so is
    /// null where every class needs a value.
    pub fn from_value(value: Value) -> Result<Self, SchedulerError> {
        let Value::Object(mut map) = value else {
            return Err(SchedulerError::NotAnObject);
        };
        let m = &mut map;
        if let Some(Value::Array(defaults)) = m.remove("_use_default_values") {
            for key in defaults.iter().filter_map(Value::as_str) {
                m.remove(key);
            }
        }
        refuse_nulls(m)?;
        let config = Self::take_all(m)?;
        let known = |key: &str| WITHOUT_EFFECT.iter().any(|(known, _)| *known == key);
        let left = map
            .into_iter()
            .filter(|(key, value)| !key.starts_with('_') && !value.is_null() && !known(key));
        let strays: Vec<String> = left.map(|(key, _)| key).collect();
        if !strays.is_empty() {
            let strays = strays.join(", ");
            tracing::warn!("scheduler config: ignored, as no supported class has them: {strays}");
        }
        Ok(config)
    }

    /// `num_train_timesteps`, or 1000 as in every class.
    pub(super) fn trained(&self) -> Result<usize, SchedulerError> {
        let trained = self.num_train_timesteps.unwrap_or(1000);
        if !(2..=MAX_TRAIN_TIMESTEPS).contains(&trained) {
            let reason = format!("expected 2 to {MAX_TRAIN_TIMESTEPS}");
            return Err(unsupported("num_train_timesteps", trained, reason));
        }
        Ok(trained)
    }

    /// `prediction_type`, or `epsilon` as in every class; an error if it is not one of `accepted`.
    pub(super) fn prediction(
        &self,
        accepted: &[PredictionType],
    ) -> Result<PredictionType, SchedulerError> {
        let prediction = self.prediction_type.unwrap_or(PredictionType::Epsilon);
        if !accepted.contains(&prediction) {
            let names: Vec<_> = accepted.iter().map(|choice| choice.name()).collect();
            let reason = format!("expected one of {}", names.join(", "));
            return Err(unsupported("prediction_type", prediction.name(), reason));
        }
        Ok(prediction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn stable_diffusion_1_5_and_xl_files_are_read() {
        // The files as published, each for another class.
        let sd15 = SchedulerConfig::from_value(json!({
            "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
            "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000,
            "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1,
            "trained_betas": null, "clip_sample": false
        }))
        .unwrap();
        assert_eq!(sd15.beta_schedule, Some(BetaSchedule::ScaledLinear));
        assert_eq!(sd15.trained_betas, None);
        let sdxl = SchedulerConfig::from_value(json!({
            "_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.19.0.dev0",
            "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
            "clip_sample": false, "interpolation_type": "linear", "num_train_timesteps": 1000,
            "prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": false,
            "skip_prk_steps": true, "steps_offset": 1, "timestep_spacing": "leading",
            "trained_betas": null, "use_karras_sigmas": false
        }))
        .unwrap();
        assert_eq!(sdxl.timestep_spacing, Some(TimestepSpacing::Leading));
    }

    #[test]
    fn a_bare_minus_infinity_is_read() {
        let config =
            SchedulerConfig::from_json(r#"{"lambda_min_clipped": -Infinity, "_note": "a\"b"}"#);
        assert_eq!(config.unwrap().lambda_min_clipped, None);
    }

    #[test]
    fn keys_of_other_classes_are_ignored() {
        // Of the solvers of stochastic equations and a running average.
        let strays = json!({"predictor_order": 2, "noise_sampler_seed": 7, "decay": 0.99});
        let config = SchedulerConfig::from_value(strays).unwrap();
        assert_eq!(config, SchedulerConfig::default());
    }

    #[test]
    fn wrong_types_are_named() {
        let error = |value| {
            SchedulerConfig::from_value(value)
                .expect_err("a bad config")
                .to_string()
        };
        let message = error(json!({"beta_start": "small"}));
        assert!(message.contains("beta_start = \"small\""), "{message}");
        let message = error(json!({"beta_schedule": "steep"}));
        assert!(message.contains("beta_schedule = \"steep\""), "{message}");
        let message = error(json!({"prediction_type": "flow_prediction"}));
        assert!(message.contains("prediction_type"), "{message}");
        assert_eq!(error(json!([])), "scheduler config is not a JSON object");
        assert!(matches!(
            SchedulerConfig::from_json("{"),
            Err(SchedulerError::Json(_))
        ));
    }

    #[test]
    fn nulls_are_off_or_refused() {
        let read = |value| SchedulerConfig::from_value(value);
        let nulls = json!({"lower_order_final": null, "trained_betas": null, "sigma_min": null});
        let config = read(nulls).unwrap();
        assert_eq!(config.lower_order_final, Some(false));
        assert_eq!((config.trained_betas, config.sigma_min), (None, None));
        for key in ["beta_start", "prediction_type", "timestep_spacing"] {
            let error = read(json!({key: null})).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        read(json!({"beta_start": null, "trained_betas": [0.1, 0.2]})).unwrap();
    }

    #[test]
    fn a_key_that_was_left_at_its_default_is_absent() {
        let config = json!({"steps_offset": 1, "_use_default_values": ["steps_offset"]});
        let config = SchedulerConfig::from_value(config).unwrap();
        assert_eq!(config, SchedulerConfig::default());
    }
}
