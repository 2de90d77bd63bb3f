"""The demo model's networks before training: a tokenizer of the captions' words, and diffusers' and
transformers' own classes at a size that two CPU cores can train."""

from __future__ import annotations

import json
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import demo_shapes as shapes

MAX_TOKENS = 77
TEXT_WIDTH = 128
LATENT_CHANNELS = 4
LATENT_SIZE = shapes.PICTURE_SIZE // 4

LATENT_DEVIATION = 0.4
"""Standard deviation of the latents that the U-Net sees. The noise schedule ends with a little
signal left (7 %); with larger latents a flat background's mean would show through that, the U-Net
would learn to rely on it, and pure noise would have none to offer."""


def bytes_to_unicode() -> dict[int, str]:
    """CLIP's printable stand-in for each byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(256 + len(table) - len(printable))
    return table


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE in CLIP's own format in which every word of a caption is one token.

    Each word adds the merges that it still lacks. New merges rank below all earlier ones, so they
    cannot break up a word that is whole already.
    """
    alphabet = list(bytes_to_unicode().values())
    vocabulary = alphabet + [f"{letter}</w>" for letter in alphabet]
    merges: list[tuple[str, str]] = []
    for word in shapes.vocabulary():
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        for pair in merges:
            pieces = _merge(pieces, pair)
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            merges.append(pair)
            vocabulary.append("".join(pair))
            pieces = _merge(pieces, pair)
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: index for index, token in enumerate(vocabulary)}
    assert len(ids) == len(vocabulary)

    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_TOKENS,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
        **special,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged, i = [], 0
    while i < len(pieces):
        if tuple(pieces[i : i + 2]) == pair:
            merged.append("".join(pair))
            i += 2
        else:
            merged.append(pieces[i])
            i += 1
    return merged


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    return tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=shapes.PICTURE_SIZE,
        scaling_factor=LATENT_DEVIATION,
        force_upcast=False,
    )


def new_unet() -> UNet2DConditionModel:
    """Three levels of 32, 16 and 8 rows. Attention at 32 rows would double the cost of a step and
    a scene is composed at the coarser levels, so the finest has convolutions only (as in SDXL)."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 160),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        # With one channel a group (32 groups of 32) normalisation would erase flat colours.
        norm_num_groups=8,
    )


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's settings, with 2.x's velocity prediction. Our pictures are flat colours: at
    high noise a small error of predicted noise is a large one of the colour (fifteen times, at the
    first step), and plain backgrounds came out in the wrong colour or mottled."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )
