"""Holds pipelines of diffusers whose U-Net is `lacuna unet`'s against the same pipelines with their own, and times the hop.

    cargo build --release --no-default-features -p lacuna
    pip install ./python
    python scripts/drop_in.py target/release/lacuna

The models are the tiny ones of the goldens, with random weights, and the demo model; two workers of this machine compute them
under the default scheme, `resident`. A picture below 60 dB (of values in 0..1) fails.

The hop is what a U-Net call takes in the pipeline's process beyond what the server says that the U-Net took: tensors to bytes
and back, HTTP both ways, and handing the call to the picture's thread. It is timed at 4x64x64.
"""

import argparse
import contextlib
import math
import os
import statistics
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    LatentConsistencyModelPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging

import lacuna
from goldens import tiny

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "tests/goldens/models"
LEAST = 60.0
PROMPT = "a large red circle above a small blue square"


@contextlib.contextmanager
def served(program: Path, model: Path, *flags: str):
    """`lacuna unet` of a model, by a door of its own; ended by Ctrl-C, as a user ends it."""
    with tempfile.TemporaryDirectory() as folder:
        door = Path(folder) / "unet.json"
        command = [program, "unet", "--model", model, "--workers", "2", "--device", "cpu", "--door", door, *flags]
        # Another one's settings are not to be tried.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LACUNA_")}
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        try:
            deadline = time.monotonic() + 120
            while not door.exists():
                if server.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"`lacuna unet` does not serve {model}")
                time.sleep(0.05)
            yield door
        finally:
            server.send_signal(subprocess.signal.SIGINT)
            code = server.wait(30)
        assert code in (130, -2), f"ended with {code}"


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator("cpu").manual_seed(seed))


def picture(pipe, **call) -> torch.Tensor:
    """[B, 3, h, w] in 0..1."""
    pipe.set_progress_bar_config(disable=True)
    pipe.watermark = None
    generator = torch.Generator("cpu").manual_seed(5)
    return pipe(PROMPT, generator=generator, output_type="pt", **call).images


def decibels(one: torch.Tensor, other: torch.Tensor) -> float:
    return -10 * math.log10(float(((one - other) ** 2).mean()) + 1e-30)


def of_channels(channels: int, pipeline, folder: Path) -> Path:
    """A tiny model whose U-Net takes more than latents: a mask and a masked picture, or the picture to change."""
    unet, *others = tiny.sd2()[0]
    unet = UNet2DConditionModel.from_config(unet.config, in_channels=channels)
    tiny.assembled([unet, *others], 70, pipeline).save_pretrained(folder)
    return folder


def scheduled(pipe, scheduler, **keys):
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **keys)
    return pipe


CASES = [
    ("SD 1, PNDM", MODELS / "sd1", StableDiffusionPipeline, lambda p: p, dict(num_inference_steps=6)),
    (
        "SD 2, v-prediction, two pictures of a prompt",
        MODELS / "sd2",
        StableDiffusionPipeline,
        lambda p: p,
        dict(num_inference_steps=6, num_images_per_prompt=2),
    ),
    (
        "SDXL, Euler",
        MODELS / "xl",
        StableDiffusionXLPipeline,
        lambda p: p,
        dict(num_inference_steps=5, height=32, width=24, original_size=(50, 40)),
    ),
    (
        "SD 1, DPM-Solver++ of Karras' noise levels",
        MODELS / "sd1",
        StableDiffusionPipeline,
        lambda p: scheduled(p, DPMSolverMultistepScheduler, use_karras_sigmas=True),
        dict(num_inference_steps=6),
    ),
    (
        "SD 2, picture to picture",
        MODELS / "sd2",
        StableDiffusionImg2ImgPipeline,
        lambda p: p,
        dict(num_inference_steps=8, strength=0.6, image=noise(1, 3, 32, 32)),
    ),
    (
        "SD 2, inpainting, Heun",
        MODELS / "sd2",
        StableDiffusionInpaintPipeline,
        lambda p: scheduled(p, HeunDiscreteScheduler, prediction_type="v_prediction"),
        dict(
            num_inference_steps=5,
            strength=1.0,
            height=32,
            width=32,
            image=noise(1, 3, 32, 32),
            mask_image=(noise(1, 1, 32, 32, seed=2) > 0.5).float(),
        ),
    ),
    (
        "a U-Net for inpainting, 9 channels",
        9,
        StableDiffusionInpaintPipeline,
        lambda p: p,
        dict(
            num_inference_steps=5,
            height=32,
            width=32,
            image=noise(1, 3, 32, 32),
            mask_image=(noise(1, 1, 32, 32, seed=2) > 0.5).float(),
        ),
    ),
    (
        "a U-Net for instructions, 8 channels, batch of 3",
        8,
        StableDiffusionInstructPix2PixPipeline,
        lambda p: p,
        dict(num_inference_steps=5, image=noise(1, 3, 32, 32)),
    ),
    (
        "latent consistency",
        MODELS / "consistency",
        LatentConsistencyModelPipeline,
        lambda p: p,
        dict(num_inference_steps=4, height=32, width=32),
    ),
    ("the demo model", ROOT / "assets/demo-model", StableDiffusionPipeline, lambda p: p, dict(num_inference_steps=10)),
]


def compare(program: Path) -> bool:
    good = True
    made = tempfile.TemporaryDirectory()
    for name, model, pipeline, change, call in CASES:
        if isinstance(model, int):
            model = of_channels(model, pipeline, Path(made.name, str(model)))
        theirs = picture(change(pipeline.from_pretrained(model, dtype=torch.float32)), **call)
        with served(program, model) as door, lacuna.UNet.connect(door) as unet:
            pipe = change(pipeline.from_pretrained(model, unet=unet, dtype=torch.float32))
            with warnings.catch_warnings():
                warnings.simplefilter("error", lacuna.LacunaWarning)
                ours = [picture(pipe, **call) for _ in range(2)]
            unet.end_picture()
            views = unet.report()["ledger"]
        db = min(decibels(theirs, one) for one in ours)
        # Each run of the pipeline is a picture, though the prompt is the same.
        pictures = {view["pictures"] for view in views.values()}
        fine = db >= LEAST and pictures == {2} and len(views) == 2
        good &= fine
        print(f"{name:<48} {db:6.1f} dB{'' if fine else f'  FAILED ({pictures} pictures)'}", flush=True)
    made.cleanup()
    return good


def time_hop(program: Path, calls: int) -> None:
    model = ROOT / "assets/demo-model"
    for batch in (1, 2):
        with served(program, model) as door, lacuna.UNet.connect(door) as unet:
            sample = torch.randn(batch, 4, 64, 64)
            context = torch.randn(batch, 77, unet.config.cross_attention_dim)
            hops = []
            for i in range(calls + 2):
                start = time.perf_counter()
                unet(sample, 999 - i, context)
                hops.append(1e3 * (time.perf_counter() - start - unet.last_call.seconds))
            # The first one opens the picture.
            hops = sorted(hops[2:])
            print(
                f"the hop at {batch}x4x64x64: fastest {hops[0]:.2f} ms, median {statistics.median(hops):.2f} ms, "
                f"90 % within {hops[int(0.9 * len(hops))]:.2f} ms, of {calls} calls",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", type=Path, help="the built lacuna")
    parser.add_argument("--calls", type=int, default=40, help="of the timing")
    parser.add_argument("--no-pictures", action="store_true", help="time the hop alone")
    args = parser.parse_args()
    logging.set_verbosity_error()
    good = args.no_pictures or compare(args.program)
    time_hop(args.program, args.calls)
    if not good:
        raise SystemExit(f"below {LEAST:.0f} dB, or not two pictures by two providers")


if __name__ == "__main__":
    main()
