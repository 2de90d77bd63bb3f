//! Which keys of a scheduler's config which scheduler reads.

use super::SchedulerKind;

/// Of every scheduler.
const OF_ALL: [&str; 6] = [
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
];

impl SchedulerKind {
    /// The keys that it reads, or refuses: its class's of the reference (`__init__`), but for those that are never read there.
    pub fn keys(self) -> impl Iterator<Item = &'static str> {
        let own: &[&str] = match self {
            Self::Ddim => &[
                "clip_sample",
                "set_alpha_to_one",
                "steps_offset",
                "thresholding",
                "dynamic_thresholding_ratio",
                "clip_sample_range",
                "sample_max_value",
                "timestep_spacing",
                "rescale_betas_zero_snr",
            ],
            Self::Ddpm => &[
                "variance_type",
                "clip_sample",
                "thresholding",
                "dynamic_thresholding_ratio",
                "clip_sample_range",
                "sample_max_value",
                "timestep_spacing",
                "steps_offset",
                "rescale_betas_zero_snr",
            ],
            Self::Pndm => &[
                "skip_prk_steps",
                "set_alpha_to_one",
                "timestep_spacing",
                "steps_offset",
            ],
            Self::Lms | Self::Kdpm2 | Self::Kdpm2Ancestral => &[
                "use_karras_sigmas",
                "use_exponential_sigmas",
                "use_beta_sigmas",
                "timestep_spacing",
                "steps_offset",
            ],
            Self::Euler => &[
                "interpolation_type",
                "use_karras_sigmas",
                "use_exponential_sigmas",
                "use_beta_sigmas",
                "sigma_min",
                "sigma_max",
                "timestep_spacing",
                "timestep_type",
                "steps_offset",
                "rescale_betas_zero_snr",
                "final_sigmas_type",
            ],
            Self::EulerAncestral => &["timestep_spacing", "steps_offset", "rescale_betas_zero_snr"],
            Self::Heun => &[
                "use_karras_sigmas",
                "use_exponential_sigmas",
                "use_beta_sigmas",
                "clip_sample",
                "clip_sample_range",
                "timestep_spacing",
                "steps_offset",
            ],
            Self::DpmSolver | Self::DpmSolverSde => &[
                "solver_order",
                "thresholding",
                "dynamic_thresholding_ratio",
                "sample_max_value",
                "algorithm_type",
                "solver_type",
                "lower_order_final",
                "euler_at_final",
                "use_karras_sigmas",
                "use_exponential_sigmas",
                "use_beta_sigmas",
                "use_lu_lambdas",
                "use_flow_sigmas",
                "final_sigmas_type",
                "lambda_min_clipped",
                "variance_type",
                "timestep_spacing",
                "steps_offset",
                "rescale_betas_zero_snr",
                "use_dynamic_shifting",
            ],
            Self::DpmSingle => &[
                "solver_order",
                "thresholding",
                "dynamic_thresholding_ratio",
                "sample_max_value",
                "algorithm_type",
                "solver_type",
                "lower_order_final",
                "use_karras_sigmas",
                "use_exponential_sigmas",
                "use_beta_sigmas",
                "use_flow_sigmas",
                "final_sigmas_type",
                "lambda_min_clipped",
                "variance_type",
                "use_dynamic_shifting",
            ],
            Self::Deis => &[
                "solver_order",
                "thresholding",
                "dynamic_thresholding_ratio",
                "sample_max_value",
                "algorithm_type",
                "solver_type",
                "lower_order_final",
                "use_karras_sigmas",
                "use_exponential_sigmas",
                "use_beta_sigmas",
                "use_flow_sigmas",
                "timestep_spacing",
                "steps_offset",
                "use_dynamic_shifting",
            ],
            Self::UniPc => &[
                "solver_order",
                "thresholding",
                "dynamic_thresholding_ratio",
                "sample_max_value",
                "predict_x0",
                "solver_type",
                "lower_order_final",
                "disable_corrector",
                "solver_p",
                "use_karras_sigmas",
                "use_exponential_sigmas",
                "use_beta_sigmas",
                "use_flow_sigmas",
                "timestep_spacing",
                "steps_offset",
                "final_sigmas_type",
                "rescale_betas_zero_snr",
                "use_dynamic_shifting",
                "sigma_min",
                "sigma_max",
                "shift_terminal",
            ],
            Self::Lcm => &[
                "original_inference_steps",
                "clip_sample",
                "clip_sample_range",
                "steps_offset",
                "thresholding",
                "dynamic_thresholding_ratio",
                "sample_max_value",
                "timestep_scaling",
                "rescale_betas_zero_snr",
            ],
            Self::Tcd => &[
                "original_inference_steps",
                "clip_sample",
                "clip_sample_range",
                "steps_offset",
                "rescale_betas_zero_snr",
            ],
        };
        OF_ALL.into_iter().chain(own.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::ValueEnum;

    use super::*;
    use crate::schedulers::SchedulerConfig;

    #[test]
    fn every_key_is_some_schedulers() {
        let kinds = SchedulerKind::value_variants().iter();
        let read: BTreeSet<&str> = kinds.flat_map(|kind| kind.keys()).collect();
        assert_eq!(read, SchedulerConfig::KEYS.iter().copied().collect());
    }
}
