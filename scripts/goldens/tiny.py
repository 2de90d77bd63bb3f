"""Tiny Stable Diffusion pipelines with random weights, in the folder layout of `diffusers`.

Each case varies what real models vary, so that one small folder exercises one family:

- `sd1`: as SD 1.5 is published: four levels, 1x1 convolutions as attention projections, `attention_head_dim` that
  means the number of heads, quick_gelu, PNDM, f16 weights, and the old names in the weight files (see `as_published`).
- `sd2`: as SD 2.1: linear projections, heads per level, gelu, v-prediction, DDIM, padding with "!", f32.
- `odd`: three levels, a level without attention, two transformer layers at the coarsest level, latents of odd size, Euler, no
  merged projection layers in the VAE, and a tokenizer in the one file that today's `transformers` saves.
"""

import math
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .tokenizer import END, write_tokenizer

CONTEXT_DIM = 32
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def assembled(parts, seed: int, pipeline=StableDiffusionPipeline):
    """A pipeline of U-Net, VAE, text encoder, scheduler and tokenizer, with random weights of seeds from `seed` on."""
    unet, vae, text_encoder, scheduler, tokenizer = parts
    for i, model in enumerate([unet, vae, text_encoder]):
        randomise(model, torch.Generator("cpu").manual_seed(seed + i))
    return pipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build(name: str, folder: Path) -> None:
    """Writes the tiny pipeline `name` into `folder`, replacing what was there."""
    shutil.rmtree(folder, ignore_errors=True)
    parts, half = {"sd1": sd1, "sd2": sd2, "odd": odd}[name]()
    tokenizer = parts[-1]
    pipe = assembled(parts, 1000)
    if half:
        pipe.to(torch.float16)
    pipe.save_pretrained(folder, safe_serialization=True)
    if name in ("sd1", "sd2"):
        shutil.rmtree(folder / "tokenizer")
        write_tokenizer(folder / "tokenizer", tokenizer.pad_token)
    if name == "sd1":
        as_published(folder)


def sd1():
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(16, 16, 16, 32),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        layers_per_block=2,
        attention_head_dim=8,
        cross_attention_dim=CONTEXT_DIM,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=8, scaling_factor=0.18215, **vae_blocks(2)
    )
    scheduler = PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False)
    tokenizer = load_tokenizer(END)
    return (unet, vae, text_encoder(tokenizer, 3, "quick_gelu"), scheduler, tokenizer), True


def sd2():
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16, 16),
        down_block_types=("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2,
        layers_per_block=2,
        attention_head_dim=[1, 2, 4],
        cross_attention_dim=CONTEXT_DIM,
        norm_num_groups=4,
        use_linear_projection=True,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, scaling_factor=0.18215, **vae_blocks(2)
    )
    scheduler = DDIMScheduler(
        **BETAS, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    tokenizer = load_tokenizer("!")
    return (unet, vae, text_encoder(tokenizer, 2, "gelu"), scheduler, tokenizer), False


def odd():
    unet = UNet2DConditionModel(
        sample_size=13,
        block_out_channels=(8, 16, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
        transformer_layers_per_block=[1, 1, 2],
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=CONTEXT_DIM,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.5,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=True,
        **vae_blocks(3),
    )
    scheduler = EulerDiscreteScheduler(**BETAS, timestep_spacing="linspace")
    tokenizer = load_tokenizer(END)
    return (unet, vae, text_encoder(tokenizer, 2, "quick_gelu"), scheduler, tokenizer), False


def vae_blocks(levels: int) -> dict:
    return {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "latent_channels": 4,
    }


def load_tokenizer(pad_token: str) -> CLIPTokenizer:
    """The tiny tokenizer, through its files, as a user's model is loaded."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), pad_token)
        return CLIPTokenizer.from_pretrained(folder)


def text_encoder(tokenizer: CLIPTokenizer, layers: int, activation: str) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=CONTEXT_DIM,
            intermediate_size=2 * CONTEXT_DIM,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=77,
            hidden_act=activation,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=1,
        )
    )


# Gains over 1/sqrt(fan-in). Queries and keys are larger, for attention to prefer some tokens; so is the way of the timestep, which
# two activations shrink; the last layers are smaller, so that the picture is not clipped.
GAINS = {
    **{"to_q": 1.6, "to_k": 1.6, "q_proj": 1.6, "k_proj": 1.6},
    **{"time_embedding.linear_1": 2.0, "time_embedding.linear_2": 2.0, "time_emb_proj": 1.5},
    **{"decoder.conv_out": 0.4, "conv_out": 0.7},
}


def randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Redraws every parameter: torch's own start (zero biases, unit norms, small weights) would hide mistakes."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            draw(module.weight, generator, 0.2, mean=1.0)
            draw(module.bias, generator, 0.2)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            fan_in = module.weight[0].numel()
            gain = next((g for end, g in GAINS.items() if name.endswith(end)), 1.0)
            draw(module.weight, generator, gain / math.sqrt(fan_in))
            if module.bias is not None:
                draw(module.bias, generator, 0.1)
        elif isinstance(module, nn.Embedding):
            draw(module.weight, generator, 0.5)


def draw(parameter: nn.Parameter, generator: torch.Generator, std: float, mean: float = 0.0) -> None:
    parameter.data = mean + std * torch.randn(parameter.shape, generator=generator)


def as_published(folder: Path) -> None:
    """Gives the weight files the names that SD 1.5 is published with, which today's save no longer writes.

    The attention of the VAE's middle block is `query`, `key`, `value`, `proj_attn`; every text encoder name starts with
    `text_model.`; and the text encoder carries a `position_ids` buffer that nobody uses.
    """
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in load_file(vae).items():
        for new_part, old_part in old.items():
            name = name.replace(f"attentions.0.{new_part}.", f"attentions.0.{old_part}.")
        renamed[name] = tensor
    save_file(renamed, vae, metadata={"format": "pt"})

    text = folder / "text_encoder" / "model.safetensors"
    renamed = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(text).items()}
    renamed["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(renamed, text, metadata={"format": "pt"})
