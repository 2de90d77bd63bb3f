//! Which keys of a scheduler's config which scheduler reads: those of its class in the reference (`__init__`).

use super::{SchedulerKind, UNREAD_BY_CLASS};

/// Of every class.
const OF_ALL: &[&str] = &[
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
];
const TIMESTEPS: &[&str] = &["timestep_spacing", "steps_offset"];
const SIGMAS: &[&str] = &[
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
];
const THRESHOLDING: &[&str] = &[
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
];
const CLIPPING: &[&str] = &["clip_sample", "clip_sample_range"];
const SOLVER: &[&str] = &["solver_order", "solver_type", "lower_order_final"];
/// Of flow matching: they are refused.
const FLOW: &[&str] = &["use_flow_sigmas", "use_dynamic_shifting"];
const DPM_SOLVER: &[&str] = &[
    "algorithm_type",
    "final_sigmas_type",
    "lambda_min_clipped",
    "variance_type",
];
const CONSISTENCY: &[&str] = &[
    "original_inference_steps",
    "timestep_scaling",
    "set_alpha_to_one",
    "rescale_betas_zero_snr",
];

impl SchedulerKind {
    /// The keys that it reads, or refuses.
    pub fn keys(self) -> impl Iterator<Item = &'static str> {
        let own: &[&[&str]] = match self {
            Self::Ddim => &[
                TIMESTEPS,
                THRESHOLDING,
                CLIPPING,
                &["set_alpha_to_one", "rescale_betas_zero_snr"],
            ],
            Self::Ddpm => &[
                TIMESTEPS,
                THRESHOLDING,
                CLIPPING,
                &["variance_type", "rescale_betas_zero_snr"],
            ],
            Self::Pndm => &[TIMESTEPS, &["skip_prk_steps", "set_alpha_to_one"]],
            Self::Lms | Self::Kdpm2 | Self::Kdpm2Ancestral => &[TIMESTEPS, SIGMAS],
            Self::Euler => &[
                TIMESTEPS,
                SIGMAS,
                &[
                    "interpolation_type",
                    "sigma_min",
                    "sigma_max",
                    "timestep_type",
                    "rescale_betas_zero_snr",
                    "final_sigmas_type",
                ],
            ],
            Self::EulerAncestral => &[TIMESTEPS, &["rescale_betas_zero_snr"]],
            Self::Heun => &[TIMESTEPS, SIGMAS, CLIPPING],
            Self::DpmSolver | Self::DpmSolverSde => &[
                TIMESTEPS,
                SIGMAS,
                THRESHOLDING,
                SOLVER,
                FLOW,
                DPM_SOLVER,
                &["euler_at_final", "use_lu_lambdas", "rescale_betas_zero_snr"],
            ],
            Self::DpmSingle => &[SIGMAS, THRESHOLDING, SOLVER, FLOW, DPM_SOLVER],
            Self::Deis => &[
                TIMESTEPS,
                SIGMAS,
                THRESHOLDING,
                SOLVER,
                FLOW,
                &["algorithm_type"],
            ],
            Self::UniPc => &[
                TIMESTEPS,
                SIGMAS,
                THRESHOLDING,
                SOLVER,
                FLOW,
                &[
                    "predict_x0",
                    "disable_corrector",
                    "solver_p",
                    "final_sigmas_type",
                    "rescale_betas_zero_snr",
                    "sigma_min",
                    "sigma_max",
                    "shift_terminal",
                ],
            ],
            Self::Lcm | Self::Tcd => &[TIMESTEPS, THRESHOLDING, CLIPPING, CONSISTENCY],
        };
        let unread = UNREAD_BY_CLASS
            .iter()
            .find(|(class, _)| *class == self.class());
        let unread = unread.map_or(&[][..], |(_, keys)| keys);
        let all = OF_ALL.iter().chain(own.iter().copied().flatten()).copied();
        all.filter(|key| unread.iter().all(|(other, _)| other != key))
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
