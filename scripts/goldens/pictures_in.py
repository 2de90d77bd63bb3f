"""Golden files of pictures that are made from pictures: image to image, and inpainting.

`pictures/` holds what they begin with. Each case is a picture `<name>.png` of a tiny model of another part, and `<name>.safetensors` with

    pipe.latents            [1, 4, H, W]    after the last step
    unet.conv_in.weight     [O, 9, 3, 3]    inpainting models: that of the model in `models/<model>`, with five channels more

and the metadata entry `case`, as `families.py` has it. `flags` are those of `lacuna generate` beside the usual ones, with the names of files in `pictures/`; `class` is the pipeline's.
`instead` lists flags and values, each of which alone makes another picture (40 dB at most). `unset` lists keys that are taken out of the VAE's config.

`pictures-in.safetensors` has for every scheduler S the latents `S.from` of image to image and `S.masked` of inpainting with four channels; its `case` says of what.
`pictures/resized/<width>x<height>-<name>` is what PIL makes of two of them. (Since its version 13 it goes along the columns first where these shrink by more than the rows, which
differs in last bits; these do not.)
"""

import json
import math
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from diffusers import (
    LatentConsistencyModelImg2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import load_image
from PIL import Image
from safetensors.torch import save_file

from . import tiny
from .models import NEGATIVE, PROMPT, noise
from .variations import CLASSES, SAID

CHANNELS = 9
ORIENTATION = 0x0112
TURNED = 6


def write(out_dir: Path) -> None:
    """Writes every case."""
    write_pictures(out_dir / "pictures")
    for name, case in CASES.items():
        pipe = load(out_dir, case)
        latents = call(pipe, case, out_dir, output_type="latent")[0]
        image = call(pipe, case, out_dir, output_type="pt")[0][0]
        assert latents.isfinite().all() and image.std(dim=(1, 2)).min() > 0.03, name
        for flag, value in case["instead"]:
            changed = case | {"flags": change(case["flags"], flag, value)}
            other = call(load(out_dir, case), changed, out_dir, output_type="pt")[0][0]
            psnr = decibels(other, image)
            assert psnr < 40, f"{name}: with {flag} {value} the picture differs by {psnr:.1f} dB only"
        tensors = {"pipe.latents": latents.contiguous()}
        if case.get("inpainting"):
            tensors["unet.conv_in.weight"] = pipe.unet.conv_in.weight.data.clone()
        save_file(
            tensors,
            out_dir / f"{name}.safetensors",
            metadata={"case": json.dumps(describe(case, pipe, image), sort_keys=True)},
        )
        picture = (image.permute(1, 2, 0) * 255).round().to(torch.uint8)
        Image.fromarray(picture.numpy()).save(out_dir / f"{name}.png")
    write_schedulers(out_dir)


def write_pictures(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    Image.fromarray(photo(32, 32)).save(folder / "photo.png")
    # Transparent in a corner, where the colours are still there.
    large = photo(41, 50)
    alpha = np.full((41, 50, 1), 255, dtype=np.uint8)
    alpha[:15, :20] = 0
    Image.fromarray(np.concatenate([large, alpha], axis=2)).save(folder / "photo-large.png")
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED
    Image.fromarray(photo(24, 32)).save(folder / "photo-turned.jpg", quality=95, subsampling=0, exif=exif)
    mask(32, 32).save(folder / "mask.png")
    mask(45, 53).save(folder / "mask-large.png")
    write_resized(folder)


def photo(height: int, width: int) -> np.ndarray:
    """Slopes, a hard edge and some noise, different in every channel."""
    y = torch.linspace(-1, 1, height)[:, None]
    x = torch.linspace(-1, 1, width)[None, :]
    disc = ((x + 0.3) ** 2 + (y - 0.2) ** 2 < 0.3).float()
    planes = torch.stack([0.8 * y - 0.6 * disc, torch.cos(5 * x - 2 * y) * 0.7, 0.9 * x * y + 0.4 * disc])
    planes = (planes + 0.1 * noise((3, height, width), 6)).clamp(-1, 1)
    return ((planes + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()


def mask(height: int, width: int) -> Image.Image:
    """White where the picture is painted anew; grey at the edge, and of another grey in each channel."""
    y = torch.linspace(-1, 1, height)[:, None]
    x = torch.linspace(-1, 1, width)[None, :]
    inside = (1.5 - 3 * ((x - 0.3) ** 2 + (y + 0.1) ** 2)).clamp(0, 1)
    channels = torch.stack([inside, inside**1.2, inside**0.8], dim=2)
    return Image.fromarray((channels * 255).round().to(torch.uint8).numpy())


def load(out_dir: Path, case: dict):
    """The pipeline of a case in f32, as a user loads it."""
    kind = case["class"]
    folder = out_dir / "models" / case["model"]
    parts = {}
    if case.get("inpainting"):
        parts["unet"] = with_mask(folder)
    pipe = kind.from_pretrained(folder, dtype=torch.float32, **parts)
    pipe.set_progress_bar_config(disable=True)
    # It refuses sizes that 8 does not divide.
    pipe.check_inputs = lambda *args, **kwargs: None
    pipe.watermark = None
    pipe.vae.register_to_config(**dict.fromkeys(case.get("unset", [])))
    scheduler = flags(case).get("--scheduler")
    if scheduler:
        use(pipe, scheduler)
    return pipe


def with_mask(folder: Path) -> UNet2DConditionModel:
    """The U-Net of a model with five channels more: a mask, and the latents of what it leaves."""
    plain = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    wide = UNet2DConditionModel.from_config({**plain.config, "in_channels": CHANNELS})
    state = plain.state_dict()
    narrow = state["conv_in.weight"]
    more = torch.randn(
        (narrow.shape[0], CHANNELS - narrow.shape[1], 3, 3), generator=torch.Generator("cpu").manual_seed(77)
    )
    state["conv_in.weight"] = torch.cat([narrow, more / math.sqrt(9 * more.shape[1])], dim=1)
    wide.load_state_dict(state)
    return wide.eval()


def use(pipe, name: str) -> None:
    kind = getattr(diffusers, CLASSES[name])
    pipe.scheduler = kind.from_config({**pipe.scheduler.config, **SAID.get(name, {})})


def flags(case: dict) -> dict[str, str]:
    pairs = iter(case["flags"])
    return dict(zip(pairs, pairs, strict=True))


def change(given: list[str], flag: str, value: str) -> list[str]:
    at = given.index(flag)
    return [*given[: at + 1], value, *given[at + 2 :]]


def call(pipe, case: dict, out_dir: Path, **more):
    """One picture of a case."""
    given = flags(case)
    # As a user reads a picture for a pipeline: turned as EXIF says, and in RGB.
    read = lambda name: load_image(str(out_dir / "pictures" / name))
    if "--mask" in given:
        more["mask_image"] = read(given["--mask"])
    if "--size" in given:
        more["width"], more["height"] = map(int, given["--size"].split("x"))
    if "--eta" in given:
        more["eta"] = float(given["--eta"])
    if case["negative"] is not None:
        more["negative_prompt"] = case["negative"]
    return pipe(
        prompt=PROMPT,
        image=read(given["--init-image"]),
        strength=float(given["--strength"]),
        num_inference_steps=case["steps"],
        guidance_scale=case["guidance"],
        generator=torch.Generator("cpu").manual_seed(case["seed"]),
        return_dict=False,
        **more,
    )


def decibels(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.shape != b.shape:
        return 0.0
    return -10 * math.log10(float(((a - b) ** 2).mean()) + 1e-30)


def describe(case: dict, pipe, image: torch.Tensor) -> dict:
    return {
        "name": case["model"],
        "act_stride": 1,
        "prompt": PROMPT,
        "negative_prompt": case["negative"],
        "steps": case["steps"],
        "guidance": case["guidance"],
        "seed": case["seed"],
        "flags": case["flags"],
        "instead": case["instead"],
        "unset": case.get("unset", []),
        "class": type(pipe).__name__,
        "height": image.shape[1],
        "width": image.shape[2],
        "versions": versions(),
    }


def versions() -> dict:
    return {
        "diffusers": diffusers.__version__,
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
    }


def write_schedulers(out_dir: Path) -> None:
    """Each scheduler begins in the middle, and is told at every call what lies outside the mask."""
    tensors = {}
    base = {"model": "sd2", "steps": 7, "guidance": 3.0, "seed": 71, "negative": NEGATIVE}
    from_flags = ["--init-image", "photo.png", "--strength", "0.75"]
    masked_flags = [*from_flags, "--mask", "mask.png", "--size", "32x32"]
    for name in CLASSES:
        for key, kind, given in [
            ("from", StableDiffusionImg2ImgPipeline, from_flags),
            ("masked", StableDiffusionInpaintPipeline, masked_flags),
        ]:
            case = base | {"class": kind, "flags": given}
            pipe = load(out_dir, case)
            # Its Runge-Kutta start knows no middle.
            pipe.scheduler.register_to_config(skip_prk_steps=True)
            use(pipe, name)
            latents = call(pipe, case, out_dir, output_type="latent")[0]
            assert latents.isfinite().all(), f"{name}.{key}"
            tensors[f"{name}.{key}"] = latents.contiguous()
    case = {
        "name": "sd2",
        "act_stride": 1,
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "steps": base["steps"],
        "guidance": base["guidance"],
        "seed": base["seed"],
        "flags": [],
        "from": from_flags,
        "masked": masked_flags,
        "width": 32,
        "height": 32,
        "versions": versions(),
    }
    save_file(tensors, out_dir / "pictures-in.safetensors", metadata={"case": json.dumps(case, sort_keys=True)})


def write_resized(folder: Path) -> None:
    (folder / "resized").mkdir(exist_ok=True)
    for name in ["photo-large.png", "mask.png"]:
        for width, height in [(48, 40), (17, 23), (96, 64)]:
            resized = load_image(str(folder / name)).resize((width, height), resample=Image.LANCZOS)
            resized.save(folder / "resized" / f"{width}x{height}-{name}")


CASES = {
    # PNDM begins in its middle.
    "from-picture": {
        "model": "sd1",
        "class": StableDiffusionImg2ImgPipeline,
        "steps": 5,
        "guidance": 4.0,
        "seed": 61,
        "negative": NEGATIVE,
        "flags": ["--init-image", "photo.png", "--strength", "0.4"],
        "instead": [["--init-image", "mask.png"], ["--strength", "0.8"]],
    },
    # Of a size that the model does not have, and with alpha.
    "from-picture-resized": {
        "model": "odd",
        "class": StableDiffusionImg2ImgPipeline,
        "steps": 4,
        "guidance": 3.0,
        "seed": 62,
        "negative": None,
        "flags": ["--init-image", "photo-large.png", "--strength", "0.5"],
        "instead": [["--strength", "0.75"]],
    },
    # Turned by a quarter, as a phone's picture; and JPEG.
    "from-picture-turned": {
        "model": "sd2",
        "class": StableDiffusionImg2ImgPipeline,
        "steps": 4,
        "guidance": 1.0,
        "seed": 63,
        "negative": None,
        "flags": ["--init-image", "photo-turned.jpg", "--strength", "0.5"],
        "instead": [["--strength", "0.75"]],
    },
    # With the latents' mean and standard deviation.
    "from-picture-xl": {
        "model": "xl",
        "class": StableDiffusionXLImg2ImgPipeline,
        "steps": 5,
        "guidance": 5.0,
        "seed": 64,
        "negative": None,
        "flags": ["--init-image", "photo.png", "--strength", "0.5"],
        "instead": [["--init-image", "mask.png"], ["--strength", "0.8"]],
    },
    # Its own way of beginning in the middle.
    "from-picture-consistency": {
        "model": "consistency",
        "class": LatentConsistencyModelImg2ImgPipeline,
        "steps": 4,
        "guidance": 8.5,
        "seed": 65,
        "negative": None,
        "flags": ["--init-image", "photo.png", "--strength", "0.2"],
        "instead": [["--init-image", "mask.png"], ["--strength", "0.8"]],
    },
    # Fresh noise shows in which order the generator was asked.
    "masked": {
        "model": "sd2",
        "class": StableDiffusionInpaintPipeline,
        "steps": 6,
        "guidance": 4.0,
        "seed": 66,
        "negative": NEGATIVE,
        "flags": [
            *("--init-image", "photo.png", "--mask", "mask.png"),
            *("--strength", "0.7", "--eta", "0.5", "--size", "32x32"),
        ],
        "instead": [["--init-image", "mask.png"], ["--mask", "photo.png"], ["--strength", "1.0"], ["--eta", "0"]],
    },
    # At strength 1 it begins with noise alone. Picture and mask are of other sizes.
    "masked-xl": {
        "model": "xl",
        # Its pipeline would normalise by them on the way out alone.
        "unset": ["latents_mean", "latents_std"],
        "class": StableDiffusionXLInpaintPipeline,
        "steps": 4,
        "guidance": 4.0,
        "seed": 67,
        "negative": NEGATIVE,
        "flags": [
            *("--init-image", "photo-large.png", "--mask", "mask-large.png"),
            *("--strength", "1.0", "--scheduler", "euler-a", "--size", "32x24"),
        ],
        "instead": [["--init-image", "mask.png"], ["--mask", "photo.png"], ["--strength", "0.5"]],
    },
    "inpainting": {
        "model": "sd2",
        "class": StableDiffusionInpaintPipeline,
        "inpainting": True,
        "steps": 4,
        "guidance": 4.0,
        "seed": 68,
        "negative": NEGATIVE,
        "flags": [
            *("--init-image", "photo.png", "--mask", "mask.png"),
            *("--strength", "1.0", "--eta", "0.5", "--size", "32x32"),
        ],
        "instead": [["--init-image", "mask.png"], ["--mask", "photo.png"], ["--strength", "0.5"]],
    },
    "inpainting-xl": {
        "model": "xl-distilled",
        "class": StableDiffusionXLInpaintPipeline,
        "inpainting": True,
        "steps": 5,
        "guidance": 4.0,
        "seed": 69,
        "negative": NEGATIVE,
        "flags": [
            *("--init-image", "photo-large.png", "--mask", "mask-large.png"),
            *("--strength", "0.7", "--scheduler", "euler-a", "--size", "24x32"),
        ],
        "instead": [["--init-image", "mask.png"], ["--mask", "photo.png"], ["--strength", "1.0"]],
    },
}
