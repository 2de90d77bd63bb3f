"""Golden file of the demo model in four calls, by the adapter that `train_demo_lcm.py` trains.

    demo-in-four.safetensors    `pipe.latents` after the last call; `case`: prompt, steps, guidance, seed, sizes, flags
    demo-in-four.png            the picture
"""

from pathlib import Path

import torch
from diffusers import LCMScheduler

from .models import DEMO_MODEL, check_sane, load, save

ADAPTER = DEMO_MODEL.parent / "demo-lcm-lora.safetensors"
CASE = {
    "name": "demo",
    "prompt": "a large red circle above a small blue square on a yellow background",
    "steps": 4,
    "guidance": 1.0,
    "seed": 7,
    "width": 128,
    "height": 128,
    "flags": ["--scheduler", "lcm"],
}


def write(out_dir: Path) -> None:
    """Writes `demo-in-four`."""
    pipe = load(DEMO_MODEL)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.load_lora_weights(ADAPTER)
    call = {"num_inference_steps": CASE["steps"], "guidance_scale": CASE["guidance"]}
    generator = torch.Generator("cpu").manual_seed(CASE["seed"])
    latents = pipe(CASE["prompt"], **call, generator=generator, output_type="latent").images
    decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    tensors = {"pipe.latents": latents, "pipe.image": (decoded[0] / 2 + 0.5).clamp(0, 1)}
    check_sane("demo-in-four", tensors)
    save(out_dir, "demo-in-four", tensors, CASE, left_out=("pipe.image",))
