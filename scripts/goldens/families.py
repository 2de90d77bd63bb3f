"""Golden files of models whose pipelines are not Stable Diffusion's own: SDXL, and those that were distilled.

Each case is a tiny model with random weights in `models/<name>`, a picture of it in `<name>.png`, and `<name>.safetensors` with

    text.context        [B, T, D]       what the U-Net is told of the prompts, the negative one's first
    text.pooled         [B, D]          SDXL: the whole texts
    pipe.latents0       [1, 4, H, W]    seeded noise before init_noise_sigma
    pipe.latents        [1, 4, H, W]    after the last step
    pipe.image          [3, h, w]       in 0..1, clamped, not yet rounded to bytes

and the metadata entry `case`, as `models.py` has it; its `flags` are those of `lacuna generate` beside the usual ones.

Every case says what could be ignored in it (`ignored`): the picture is made again without, and must be another one (40 dB at most).
"""

import json
import math
import shutil
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from . import tiny
from .models import NEGATIVE, PROMPT, check_sane, noise, save

POOLED = 24
SIZES = 8


def write(out_dir: Path) -> None:
    """Writes every case."""
    for name, case in CASES.items():
        folder = out_dir / "models" / name
        shutil.rmtree(folder, ignore_errors=True)
        pipe = case["build"]()
        parts = [pipe.unet, pipe.vae, pipe.text_encoder, getattr(pipe, "text_encoder_2", None)]
        for seed, model in enumerate(filter(None, parts)):
            tiny.randomise(model, torch.Generator("cpu").manual_seed(2000 + seed))
        if case.get("half"):
            pipe.to(torch.float16)
        pipe.save_pretrained(folder, safe_serialization=True)
        pipe = load(folder)
        tensors = goldens(pipe, case)
        check_sane(name, tensors)
        check_nothing_is_ignored(name, folder, case, tensors["pipe.image"])
        save(out_dir, name, tensors, describe(name, case, pipe))


def load(folder: Path):
    """The pipeline in f32, as a user loads it."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.check_inputs = lambda *args, **kwargs: None
    pipe.watermark = None
    return pipe


def goldens(pipe, case: dict) -> dict[str, torch.Tensor]:
    """Every tensor of a case."""
    height, width = case["size"]
    scale = pipe.vae_scale_factor
    seen = {}

    def remember(_module, args, kwargs, _output):
        seen["text.context"] = kwargs["encoder_hidden_states"].clone()
        if kwargs.get("added_cond_kwargs"):
            seen["text.pooled"] = kwargs["added_cond_kwargs"]["text_embeds"].clone()

    hook = pipe.unet.register_forward_hook(remember, with_kwargs=True)
    latents = call(pipe, case, output_type="latent")[0]
    hook.remove()
    image = call(pipe, case, output_type="pt")[0]
    return seen | {
        "pipe.latents0": noise((1, pipe.unet.config.in_channels, height // scale, width // scale), case["seed"]),
        "pipe.latents": latents,
        "pipe.image": image[0],
    }


def call(pipe, case: dict, **more):
    """One picture of a case."""
    height, width = case["size"]
    # Some have no place for one.
    negative = {} if case["negative"] is None else {"negative_prompt": case["negative"]}
    return pipe(
        **negative,
        **{
            "prompt": PROMPT,
            "height": height,
            "width": width,
            "num_inference_steps": case["steps"],
            "guidance_scale": case["guidance"],
            "generator": torch.Generator("cpu").manual_seed(case["seed"]),
            "return_dict": False,
            **case.get("call", {}),
            **more,
        }
    )


def check_nothing_is_ignored(name: str, folder: Path, case: dict, image: torch.Tensor) -> None:
    """Whoever ignores a part of a case makes another picture."""
    for what, change in case["ignored"].items():
        pipe = load(folder)
        changed = change(pipe, case) or case
        other = call(pipe, changed, output_type="pt")[0][0]
        psnr = -10 * math.log10(float(((other - image) ** 2).mean()) + 1e-30)
        assert psnr < 40, f"{name}: without {what} the picture differs by {psnr:.1f} dB only"


def describe(name: str, case: dict, pipe) -> dict:
    height, width = case["size"]
    return {
        "name": name,
        "act_stride": 1,
        "prompt": PROMPT,
        "negative_prompt": case["negative"],
        "steps": case["steps"],
        "guidance": case["guidance"],
        "seed": case["seed"],
        "flags": case.get("flags", []),
        "scheduler": type(pipe.scheduler).__name__,
        "height": height,
        "width": width,
        "versions": {
            "diffusers": diffusers.__version__,
            "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__,
        },
    }


def text_encoder(kind, tokenizer, width: int, **keys):
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=1,
            **keys,
        )
    )


def vae(**keys) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, force_upcast=True, **tiny.vae_blocks(2), **keys
    )


def xl_pipe(unet: UNet2DConditionModel, vae: AutoencoderKL, eos_token_id: int | None, **keys):
    """As SDXL is published: two tokenizers that pad in their own ways, two text encoders, sizes as an input."""
    first, second = tiny.load_tokenizer(tiny.END), tiny.load_tokenizer("!")
    eos = first.eos_token_id
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoder(
            CLIPTextModel, first, 32, num_hidden_layers=3, hidden_act="quick_gelu", eos_token_id=eos
        ),
        text_encoder_2=text_encoder(
            CLIPTextModelWithProjection,
            second,
            16,
            num_hidden_layers=2,
            hidden_act="gelu",
            eos_token_id=eos_token_id or eos,
            projection_dim=POOLED,
        ),
        tokenizer=first,
        tokenizer_2=second,
        unet=unet,
        scheduler=EulerDiscreteScheduler(**tiny.BETAS, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
        **keys,
    )


def xl_unet(**keys) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        **{
            "sample_size": 16,
            "block_out_channels": (8, 16, 16),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": [1, 1, 2],
            "layers_per_block": 2,
            "attention_head_dim": [1, 2, 4],
            "cross_attention_dim": 48,
            "norm_num_groups": 4,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": SIZES,
            "projection_class_embeddings_input_dim": 6 * SIZES + POOLED,
            **keys,
        }
    )


def xl():
    normalised = {"latents_mean": [0.3, -0.2, 0.1, 0.4], "latents_std": [0.8, 1.3, 0.9, 1.1]}
    return xl_pipe(xl_unet(), vae(scaling_factor=0.6, **normalised), 2)


def xl_distilled():
    """As SSD-1B and Vega: a middle of one residual block, and transformers of different depths within a level."""
    unet = xl_unet(
        mid_block_type="UNetMidBlock2D",
        transformer_layers_per_block=[1, [1, 2], [2, 1]],
        reverse_transformer_layers_per_block=[[2, 1, 1], [1, 2, 1], 1],
    )
    return xl_pipe(unet, vae(scaling_factor=0.13025), None, force_zeros_for_empty_prompt=False)


def consistency():
    """As a latent consistency model is published."""
    parts = with_guidance_inside().components
    parts["scheduler"] = LCMScheduler(**tiny.BETAS, clip_sample=False, set_alpha_to_one=True, steps_offset=0)
    parts.pop("image_encoder")
    return LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)


def with_guidance_inside():
    """Its U-Net takes the guidance scale as an input."""
    tokenizer = tiny.load_tokenizer(tiny.END)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=tiny.CONTEXT_DIM,
        norm_num_groups=4,
        time_cond_proj_dim=16,
    )
    return StableDiffusionPipeline(
        vae=vae(scaling_factor=0.18215),
        text_encoder=tiny.text_encoder(tokenizer, 2, "quick_gelu"),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**tiny.BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


# Ways to ignore something: each changes the loaded pipeline, or gives another case.


def without_pooled(pipe, _case):
    pipe.text_encoder_2.text_projection.weight.data.zero_()


def last_states(pipe, case):
    # One layer less to leave out is none: clip_skip counts from the layer before the last.
    return case | {"call": case.get("call", {}) | {"clip_skip": -1}}


def plain_latents(pipe, _case):
    pipe.vae.register_to_config(latents_mean=None, latents_std=None)


def empty_negative(_pipe, case):
    return case | {"negative": ""}


def own_sizes(_pipe, case):
    return case | {"call": {}}


def other_end(pipe, _case):
    """The text is pooled at its first token."""
    pipe.text_encoder_2.text_model.eos_token_id = pipe.tokenizer.bos_token_id


def guidance_of_one(_pipe, case):
    return case | {"guidance": 1.0}


CASES = {
    "xl": {
        "build": xl,
        "half": True,
        "size": (32, 24),
        "steps": 5,
        "guidance": 5.0,
        "seed": 31,
        "negative": None,
        "call": {"original_size": (50, 40), "crops_coords_top_left": (6, 2)},
        "flags": ["--original-size", "40x50", "--crop", "2x6"],
        "ignored": {
            "the whole text": without_pooled,
            "the sizes": own_sizes,
            "no negative prompt as zeros": empty_negative,
            "the states before the last layer": last_states,
            "the latents' mean": plain_latents,
            "the text's end": other_end,
        },
    },
    "xl-distilled": {
        "build": xl_distilled,
        "size": (24, 32),
        "steps": 4,
        "guidance": 4.0,
        "seed": 32,
        "negative": None,
        "call": {"clip_skip": 1},
        "flags": ["--clip-skip", "1"],
        "ignored": {
            "the negative prompt": lambda _pipe, case: case | {"negative": NEGATIVE},
            "the whole text": without_pooled,
            "the text's end": other_end,
            "clip skip": lambda _pipe, case: case | {"call": {}},
        },
    },
    "guided-inside": {
        "build": with_guidance_inside,
        "size": (32, 32),
        "steps": 4,
        "guidance": 6.0,
        "seed": 33,
        "negative": NEGATIVE,
        "ignored": {"the guidance scale": guidance_of_one},
    },
    "consistency": {
        "build": consistency,
        "size": (32, 32),
        "steps": 4,
        "guidance": 8.5,
        "seed": 34,
        "negative": None,
        "ignored": {"the guidance scale": guidance_of_one},
    },
}
