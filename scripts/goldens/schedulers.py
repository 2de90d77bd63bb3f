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
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
TRAINED = {"num_train_timesteps": 40, "trained_betas": [0.001 + 0.0007 * i for i in range(40)]}

DDIM = "DDIMScheduler"
PNDM = "PNDMScheduler"
EULER = "EulerDiscreteScheduler"
ANCESTRAL = "EulerAncestralDiscreteScheduler"
DPM = "DPMSolverMultistepScheduler"

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
}


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
    if class_name in (DDIM, ANCESTRAL):
        extra["generator"] = generator
    if class_name == DDIM:
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
