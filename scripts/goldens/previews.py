"""Golden file of a tiny autoencoder's decoder (TAESD), `taesd.safetensors`, and its weights in `taesd/`.

    latents     [1, 4, H, W]
    decoded     [1, 3, h, w]    in about -1..1
"""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file

from . import tiny
from .models import noise


def write(out_dir: Path) -> None:
    """Writes it."""
    model = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 2, 1),
    )
    tiny.randomise(model, torch.Generator("cpu").manual_seed(3000))
    model.save_pretrained(out_dir / "taesd", safe_serialization=True)
    latents = 2 * noise((1, 4, 5, 6), 81)
    decoded = model.eval().decode(latents).sample
    assert decoded.std() > 0.1
    tensors = {"latents": latents, "decoded": decoded.contiguous()}
    case = {"name": "taesd", "act_stride": 1}
    save_file(tensors, out_dir / "taesd.safetensors", metadata={"case": json.dumps(case)})
