"""Golden trajectories of diffusers' schedulers, fed fixed random numbers in place of a network.

Run on its own from scripts/: python -m goldens.schedulers ../tests/goldens
"""

import json
import sys
from pathlib import Path

import diffusers
import torch
from safetensors.torch import save_file

SHAPE = (1, 4, 3, 5)

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD15 = SD | {"clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}
SDXL = SD15 | {"interpolation_type": "linear", "prediction_type": "epsilon", "sample_max_value": 1.0,
               "timestep_spacing": "leading", "use_karras_sigmas": False}
LATENT_DDIM = SD | {"clip_sample": False}
V = {"prediction_type": "v_prediction"}
TRAILING = {"timestep_spacing": "trailing"}
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
LINSPACE = {"timestep_spacing": "linspace"}
ZERO_SNR = {"rescale_betas_zero_snr": True}
KARRAS = {"use_karras_sigmas": True}
EXPONENTIAL = {"use_exponential_sigmas": True}
BETA = {"use_beta_sigmas": True}
ENDS = {"sigma_min": 0.05, "sigma_max": 10.0}
LAST = {"final_sigmas_type": "sigma_min"}
THIRD = {"solver_order": 3}
FULL = {"lower_order_final": False}
THRESHOLD = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 2.5}
CLIP = {"clip_sample": True, "clip_sample_range": 1.5}
SAMPLE = {"prediction_type": "sample"}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
TRAINED = {"num_train_timesteps": 40, "trained_betas": [0.001 + 0.0007 * i for i in range(40)]}

DDIM = "DDIMScheduler"
PNDM = "PNDMScheduler"
EULER = "EulerDiscreteScheduler"
ANCESTRAL = "EulerAncestralDiscreteScheduler"
DPM = "DPMSolverMultistepScheduler"
SINGLE = "DPMSolverSinglestepScheduler"
DDPM = "DDPMScheduler"
LMS = "LMSDiscreteScheduler"
HEUN = "HeunDiscreteScheduler"
KDPM2 = "KDPM2DiscreteScheduler"
KDPM2A = "KDPM2AncestralDiscreteScheduler"
DEIS = "DEISMultistepScheduler"
UNIPC = "UniPCMultistepScheduler"
LCM = "LCMScheduler"
TCD = "TCDScheduler"

# name: class, config, steps, eta
CASES = {
    "ddim_sd15": (DDIM, SD15, 50, 0.0),
    "ddim_defaults": (DDIM, {}, 10, 0.0),
    "ddim_eta": (DDIM, LATENT_DDIM, 10, 0.6),
    "ddim_eta_one": (DDIM, LATENT_DDIM | {"set_alpha_to_one": False}, 7, 1.0),
    "ddim_clip_range": (DDIM, SD | {"clip_sample_range": 2.5, "set_alpha_to_one": True}, 8, 0.3),
    "ddim_v": (DDIM, LATENT_DDIM | V, 10, 0.0),
    "ddim_sample": (DDIM, LATENT_DDIM | {"prediction_type": "sample"}, 8, 0.2),
    "ddim_trailing": (DDIM, LATENT_DDIM | TRAILING, 7, 0.0),
    "ddim_trailing_ties": (DDIM, LATENT_DDIM | TRAILING, 16, 0.0),
    "ddim_linspace": (DDIM, LATENT_DDIM | LINSPACE, 9, 0.0),
    "ddim_zero_snr": (DDIM, LATENT_DDIM | V | TRAILING | ZERO_SNR, 10, 0.0),
    "ddim_zero_snr_eta": (DDIM, LATENT_DDIM | V | TRAILING | ZERO_SNR, 5, 0.5),
    "ddim_cosine": (DDIM, COSINE | {"clip_sample": False}, 8, 0.0),
    "ddim_trained_betas": (DDIM, TRAINED | {"clip_sample": False}, 8, 0.0),
    "ddim_one_step": (DDIM, LATENT_DDIM | TRAILING, 1, 0.0),
    "ddim_from_sdxl": (DDIM, SDXL, 6, 0.0),
    "pndm_sd15": (PNDM, SD15, 50, 0.0),
    "pndm_short": (PNDM, SD15, 2, 0.0),
    "pndm_one_step": (PNDM, SD15, 1, 0.0),
    "pndm_alpha_one": (PNDM, SD15 | {"set_alpha_to_one": True}, 6, 0.0),
    "pndm_v_trailing": (PNDM, SD15 | V | TRAILING, 7, 0.0),
    "pndm_linspace": (PNDM, SD15 | LINSPACE, 7, 0.0),
    "pndm_runge_kutta": (PNDM, SD, 8, 0.0),
    "pndm_runge_kutta_v": (PNDM, SD | V | {"steps_offset": 1}, 4, 0.0),
    "euler_sdxl": (EULER, SDXL, 30, 0.0),
    "euler_defaults": (EULER, {}, 10, 0.0),
    "euler_trailing": (EULER, SD | TRAILING, 7, 0.0),
    "euler_v_zero_snr": (EULER, SD | V | TRAILING | ZERO_SNR, 8, 0.0),
    "euler_sample": (EULER, SD | {"prediction_type": "sample"}, 6, 0.0),
    "euler_karras": (EULER, SD | KARRAS, 10, 0.0),
    "euler_karras_leading": (EULER, SDXL | KARRAS, 10, 0.0),
    "euler_karras_ends": (EULER, SD | KARRAS | {"sigma_min": 0.02, "sigma_max": 12.0}, 8, 0.0),
    "euler_sigma_min": (EULER, SD | {"final_sigmas_type": "sigma_min"}, 8, 0.0),
    "euler_cosine": (EULER, COSINE | LEADING, 6, 0.0),
    "euler_one_step": (EULER, SD | TRAILING, 1, 0.0),
    "euler_a_linspace": (ANCESTRAL, SD, 12, 0.0),
    "euler_a_leading": (ANCESTRAL, SDXL, 10, 0.0),
    "euler_a_trailing_v": (ANCESTRAL, SD | V | TRAILING, 7, 0.0),
    "euler_a_zero_snr": (ANCESTRAL, SD | V | TRAILING | ZERO_SNR, 8, 0.0),
    "dpm_sd15": (DPM, SD15, 25, 0.0),
    "dpm_defaults": (DPM, {}, 10, 0.0),
    "dpm_karras": (DPM, SD | KARRAS, 20, 0.0),
    "dpm_karras_few": (DPM, SDXL | KARRAS, 8, 0.0),
    "dpm_karras_ends": (DPM, SD | KARRAS | {"sigma_min": 0.05, "sigma_max": 10.0}, 6, 0.0),
    "dpm_karras_cosine": (DPM, COSINE | KARRAS, 8, 0.0),
    "dpm_heun": (DPM, SD | {"solver_type": "heun"}, 10, 0.0),
    "dpm_order_1": (DPM, SD | {"solver_order": 1}, 8, 0.0),
    "dpm_order_3": (DPM, SD | {"solver_order": 3}, 10, 0.0),
    "dpm_order_3_long": (DPM, SD | {"solver_order": 3, "lower_order_final": False}, 16, 0.0),
    "dpm_sigma_min": (DPM, SD | {"final_sigmas_type": "sigma_min"}, 16, 0.0),
    "dpm_sigma_min_full_order": (
        DPM, SD | {"final_sigmas_type": "sigma_min", "lower_order_final": False}, 8, 0.0),
    "dpm_euler_at_final": (
        DPM, SD | {"final_sigmas_type": "sigma_min", "euler_at_final": True, "lower_order_final": False}, 8, 0.0),
    "dpm_trailing": (DPM, SD | TRAILING, 7, 0.0),
    "dpm_leading": (DPM, SD | LEADING, 9, 0.0),
    "dpm_v_zero_snr": (DPM, SD | V | TRAILING | ZERO_SNR, 8, 0.0),
    "dpm_sample": (DPM, SD | {"prediction_type": "sample"}, 6, 0.0),
    "dpm_lambda_clipped": (DPM, COSINE | {"lambda_min_clipped": -5.1}, 10, 0.0),
    "dpm_lambda_clipped_trailing": (DPM, COSINE | TRAILING | {"lambda_min_clipped": -2.0}, 10, 0.0),
    "dpm_solver_of_deis": (DPM, SD | {"solver_type": "logrho"}, 6, 0.0),
    "ddim_threshold": (DDIM, SD | THRESHOLD, 6, 0.0),
    "euler_turbo": (EULER, SD | TRAILING, 4, 0.0),
    "euler_a_turbo": (ANCESTRAL, SD | TRAILING, 1, 0.0),
    "euler_exponential": (EULER, SD | EXPONENTIAL, 6, 0.0),
    "euler_beta": (EULER, SD | BETA, 12, 0.0),
    "euler_beta_ends": (EULER, SD | BETA | ENDS, 5, 0.0),
    "euler_log_linear": (EULER, SD | {"interpolation_type": "log_linear"}, 6, 0.0),
    "euler_log_linear_karras": (EULER, SD | KARRAS | {"interpolation_type": "log_linear"}, 5, 0.0),
    "euler_continuous": (EULER, SD | V | KARRAS | {"timestep_type": "continuous"}, 6, 0.0),
    "dpm_exponential": (DPM, SD | EXPONENTIAL, 8, 0.0),
    "dpm_beta": (DPM, SD | BETA, 8, 0.0),
    "dpm_lu": (DPM, SD | {"use_lu_lambdas": True}, 8, 0.0),
    "dpm_lu_cosine": (DPM, COSINE | {"use_lu_lambdas": True}, 6, 0.0),
    "dpm_threshold": (DPM, SD | THRESHOLD, 6, 0.0),
    "dpm_sde": (DPM, SD | KARRAS | {"algorithm_type": "sde-dpmsolver++"}, 10, 0.0),
    "dpm_sde_heun": (DPM, SD | {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}, 8, 0.0),
    "dpm_sde_third": (DPM, SD | THIRD | LAST | FULL | {"algorithm_type": "sde-dpmsolver++"}, 8, 0.0),
    "dpm_of_noise": (DPM, SD | LAST | {"algorithm_type": "dpmsolver"}, 8, 0.0),
    "dpm_of_noise_heun": (DPM, SD | LAST | FULL | V | {"algorithm_type": "dpmsolver", "solver_type": "heun"}, 6, 0.0),
    "dpm_of_noise_third": (DPM, SD | LAST | THIRD | SAMPLE | {"algorithm_type": "dpmsolver"}, 6, 0.0),
    "dpm_of_noise_threshold": (DPM, SD | LAST | THRESHOLD | {"algorithm_type": "dpmsolver"}, 6, 0.0),
    "dpm_sde_of_noise": (DPM, SD | LAST | {"algorithm_type": "sde-dpmsolver"}, 6, 0.0),
    "dpm_sde_of_noise_heun": (DPM, SD | LAST | FULL | {"algorithm_type": "sde-dpmsolver", "solver_type": "heun"}, 6, 0.0),
    "single_defaults": (SINGLE, {}, 10, 0.0),
    "single_odd": (SINGLE, SD, 7, 0.0),
    "single_one": (SINGLE, SD, 1, 0.0),
    "single_heun": (SINGLE, SD | LAST | {"solver_type": "heun"}, 6, 0.0),
    "single_third": (SINGLE, SD | LAST | THIRD, 9, 0.0),
    "single_third_heun": (SINGLE, SD | LAST | THIRD | {"solver_type": "heun"}, 6, 0.0),
    "single_third_lower": (SINGLE, SD | LAST | THIRD | {"lower_order_final": True}, 6, 0.0),
    "single_third_zero": (SINGLE, SD | THIRD, 8, 0.0),
    "single_first": (SINGLE, SD | V | {"solver_order": 1}, 4, 0.0),
    "single_sde": (SINGLE, SD | {"algorithm_type": "sde-dpmsolver++"}, 6, 0.0),
    "single_sde_third": (SINGLE, SD | LAST | THIRD | {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}, 6, 0.0),
    "single_of_noise": (SINGLE, SD | LAST | {"algorithm_type": "dpmsolver"}, 6, 0.0),
    "single_of_noise_third": (SINGLE, SD | LAST | THIRD | {"algorithm_type": "dpmsolver", "solver_type": "heun"}, 6, 0.0),
    "single_karras": (SINGLE, SD | KARRAS, 6, 0.0),
    "single_exponential": (SINGLE, SD | EXPONENTIAL, 6, 0.0),
    "single_beta": (SINGLE, SD | BETA | SAMPLE, 6, 0.0),
    "single_clipped": (SINGLE, COSINE | {"lambda_min_clipped": -5.1}, 6, 0.0),
    "single_threshold": (SINGLE, SD | THRESHOLD, 6, 0.0),
    "ddpm_defaults": (DDPM, {}, 8, 0.0),
    "ddpm_sd15": (DDPM, SD15, 10, 0.0),
    "ddpm_small_log": (DDPM, SD15 | {"variance_type": "fixed_small_log"}, 6, 0.0),
    "ddpm_large": (DDPM, SD15 | {"variance_type": "fixed_large"}, 6, 0.0),
    "ddpm_trailing_v": (DDPM, SD15 | V | TRAILING, 6, 0.0),
    "ddpm_zero_snr": (DDPM, SD15 | V | TRAILING | ZERO_SNR, 5, 0.0),
    "ddpm_linspace_sample": (DDPM, SD15 | LINSPACE | SAMPLE, 6, 0.0),
    "ddpm_clip": (DDPM, SD | CLIP, 6, 0.0),
    "ddpm_threshold": (DDPM, SD | THRESHOLD, 6, 0.0),
    "ddpm_sigmoid": (DDPM, {"beta_schedule": "sigmoid", "clip_sample": False}, 6, 0.0),
    "ddpm_laplace": (DDPM, {"beta_schedule": "laplace", "clip_sample": False}, 6, 0.0),
    "lms_sd15": (LMS, SD15, 10, 0.0),
    "lms_defaults": (LMS, {}, 8, 0.0),
    "lms_leading": (LMS, SD | LEADING, 6, 0.0),
    "lms_v_trailing": (LMS, SD | V | TRAILING, 6, 0.0),
    "lms_sample": (LMS, SD | SAMPLE, 6, 0.0),
    "lms_karras": (LMS, SD | KARRAS | ENDS, 6, 0.0),
    "lms_exponential": (LMS, SD | EXPONENTIAL | ENDS, 6, 0.0),
    "lms_beta": (LMS, SD | BETA, 6, 0.0),
    "heun_defaults": (HEUN, {}, 6, 0.0),
    "heun_sd": (HEUN, SDXL, 8, 0.0),
    "heun_one_step": (HEUN, SD | TRAILING, 1, 0.0),
    "heun_v_trailing": (HEUN, SD | V | TRAILING, 5, 0.0),
    "heun_sample_clip": (HEUN, SD | SAMPLE | CLIP, 5, 0.0),
    "heun_karras": (HEUN, SD | KARRAS | ENDS, 5, 0.0),
    "heun_exponential": (HEUN, SD | EXPONENTIAL, 5, 0.0),
    "heun_beta": (HEUN, SD | BETA, 5, 0.0),
    "heun_exp": (HEUN, {"beta_schedule": "exp"}, 5, 0.0),
    "kdpm2_defaults": (KDPM2, {}, 6, 0.0),
    "kdpm2_sd": (KDPM2, SDXL, 8, 0.0),
    "kdpm2_one_step": (KDPM2, SD | TRAILING, 1, 0.0),
    "kdpm2_v_trailing": (KDPM2, SD | V | TRAILING, 5, 0.0),
    "kdpm2_karras": (KDPM2, SD | KARRAS | ENDS, 5, 0.0),
    "kdpm2_exponential": (KDPM2, SD | EXPONENTIAL, 5, 0.0),
    "kdpm2_beta": (KDPM2, SD | BETA, 5, 0.0),
    "kdpm2_a_defaults": (KDPM2A, {}, 6, 0.0),
    "kdpm2_a_sd": (KDPM2A, SDXL, 8, 0.0),
    "kdpm2_a_one_step": (KDPM2A, SD | TRAILING, 1, 0.0),
    "kdpm2_a_v_trailing": (KDPM2A, SD | V | TRAILING, 5, 0.0),
    "kdpm2_a_karras": (KDPM2A, SD | KARRAS, 5, 0.0),
    "kdpm2_a_exponential": (KDPM2A, SD | EXPONENTIAL | ENDS, 5, 0.0),
    "kdpm2_a_beta": (KDPM2A, SD | BETA, 5, 0.0),
    "deis_defaults": (DEIS, {}, 10, 0.0),
    "deis_first": (DEIS, SD | {"solver_order": 1}, 6, 0.0),
    "deis_third": (DEIS, SD | THIRD, 10, 0.0),
    "deis_third_full": (DEIS, SD | THIRD | FULL, 7, 0.0),
    "deis_v_trailing": (DEIS, SD | V | TRAILING, 6, 0.0),
    "deis_leading_sample": (DEIS, SD | LEADING | SAMPLE, 6, 0.0),
    "deis_karras": (DEIS, SD | KARRAS, 6, 0.0),
    "deis_exponential": (DEIS, SD | EXPONENTIAL, 6, 0.0),
    "deis_beta": (DEIS, SD | BETA | ENDS, 6, 0.0),
    "deis_threshold": (DEIS, SD | THRESHOLD, 6, 0.0),
    "unipc_defaults": (UNIPC, {}, 10, 0.0),
    "unipc_sd15": (UNIPC, SD15, 20, 0.0),
    "unipc_bh1": (UNIPC, SD | LAST | {"solver_type": "bh1"}, 6, 0.0),
    "unipc_first": (UNIPC, SD | {"solver_order": 1}, 6, 0.0),
    "unipc_third": (UNIPC, SD | THIRD, 10, 0.0),
    "unipc_third_full": (UNIPC, SD | THIRD | FULL | LAST, 8, 0.0),
    "unipc_of_noise": (UNIPC, SD | LAST | {"predict_x0": False}, 6, 0.0),
    "unipc_of_noise_third": (UNIPC, SD | V | LAST | THIRD | {"predict_x0": False, "solver_type": "bh1"}, 6, 0.0),
    "unipc_of_noise_sample": (UNIPC, SD | SAMPLE | LAST | {"predict_x0": False}, 6, 0.0),
    "unipc_uncorrected": (UNIPC, SD | {"disable_corrector": [0, 1, 3]}, 6, 0.0),
    "unipc_trailing_v": (UNIPC, SD | V | TRAILING, 6, 0.0),
    "unipc_zero_snr": (UNIPC, SD | V | TRAILING | ZERO_SNR, 6, 0.0),
    "unipc_leading_sample": (UNIPC, SD | LEADING | SAMPLE, 6, 0.0),
    "unipc_karras": (UNIPC, SD | KARRAS | ENDS, 6, 0.0),
    "unipc_karras_last": (UNIPC, SD | KARRAS | LAST, 6, 0.0),
    "unipc_exponential": (UNIPC, SD | EXPONENTIAL, 6, 0.0),
    "unipc_beta": (UNIPC, SD | BETA, 6, 0.0),
    "unipc_threshold": (UNIPC, SD | THRESHOLD, 6, 0.0),
    "lcm_defaults": (LCM, {}, 4, 0.0),
    "lcm_sdxl": (LCM, SDXL, 8, 0.0),
    "lcm_one_step": (LCM, {}, 1, 0.0),
    "lcm_original": (LCM, {"original_inference_steps": 7}, 5, 0.0),
    "lcm_scaling": (LCM, {"timestep_scaling": 0.002}, 4, 0.0),
    "lcm_v": (LCM, V, 4, 0.0),
    "lcm_sample_clip": (LCM, SAMPLE | CLIP, 4, 0.0),
    "lcm_threshold": (LCM, THRESHOLD, 4, 0.0),
    "lcm_zero_snr": (LCM, V | ZERO_SNR, 4, 0.0),
    "lcm_betas": (LCM, {"beta_schedule": "linear", "beta_end": 0.02}, 4, 0.0),
    "tcd_defaults": (TCD, {}, 4, 0.0),
    "tcd_eta": (TCD, {}, 4, 0.3),
    "tcd_eta_one": (TCD, SDXL, 8, 1.0),
    "tcd_eta_v": (TCD, V, 6, 0.7),
    "tcd_sample": (TCD, SAMPLE, 5, 0.0),
    "tcd_original": (TCD, {"original_inference_steps": 7}, 5, 0.2),
    "tcd_one_step": (TCD, {}, 1, 1.0),
}

NOISY = (DDIM, ANCESTRAL, DDPM, KDPM2A, DPM, SINGLE, LCM, TCD)


def trajectory(name: str, class_name: str, config: dict, steps: int, eta: float, seed: int) -> dict:
    """One sampler run: every sample, and what went in. The generator draws the first noise, then the rest."""
    scheduler = getattr(diffusers, class_name).from_config(config)
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        # Without it diffusers looks the first step up by its timestep, and starts one late where two are equal.
        scheduler.set_begin_index(0)
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.randn(SHAPE, generator=generator)
    outputs = torch.randn((len(scheduler.timesteps), *SHAPE), generator=torch.Generator("cpu").manual_seed(seed + 1))
    extra = {}
    if class_name in NOISY:
        extra["generator"] = generator
    if class_name in (DDIM, TCD):
        extra["eta"] = eta
    init_noise_sigma = torch.as_tensor(scheduler.init_noise_sigma, dtype=torch.float32)
    sample = noise * scheduler.init_noise_sigma
    samples, scales = [], []
    for timestep, output in zip(scheduler.timesteps, outputs):
        scales.append(scheduler.scale_model_input(torch.ones(1), timestep))
        sample = scheduler.step(output, timestep, sample, **extra).prev_sample
        samples.append(sample)
    return {
        f"{name}.noise": noise,
        f"{name}.init_noise_sigma": init_noise_sigma.reshape(1),
        f"{name}.timesteps": scheduler.timesteps.to(torch.float32),
        f"{name}.input_scales": torch.cat(scales),
        f"{name}.model_outputs": outputs,
        f"{name}.samples": torch.stack(samples),
    }


def write(out_dir: Path) -> None:
    """Writes schedulers.safetensors: the tensors of every case, and the cases themselves as metadata."""
    tensors = {}
    cases = []
    for i, (name, (class_name, config, steps, eta)) in enumerate(CASES.items()):
        seed = 1000 + 2 * i
        made = trajectory(name, class_name, config, steps, eta, seed)
        for key, tensor in made.items():
            if not tensor.isfinite().all():
                raise ValueError(f"{key} is not finite")
        tensors |= made
        cases.append({"name": name, "class": class_name, "config": config, "steps": steps, "eta": eta, "seed": seed})
    # One metadata key only: safetensors writes several in random order.
    golden = {"diffusers": diffusers.__version__, "torch": torch.__version__, "cases": cases}
    save_file(tensors, out_dir / "schedulers.safetensors", metadata={"golden": json.dumps(golden)})


if __name__ == "__main__":
    write(Path(sys.argv[1]))
