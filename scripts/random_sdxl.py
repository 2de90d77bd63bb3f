"""Writes SDXL as it is published, in folders and f16, but for its numbers: these are random. 7 GB.

    python scripts/random_sdxl.py FOLDER [FILE]     # FILE: the same in one file, in the layout in which it was published

For what depends on sizes alone: memory, time, bytes read. The pictures are noise.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from goldens import one_file
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = ROOT / "tests/goldens/models/xl"


def clip(width: int, layers: int, heads: int, act: str, projection: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act=act,
        projection_dim=projection,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )


def main() -> None:
    out = Path(sys.argv[1])
    torch.manual_seed(0)
    # Made in halves from the beginning: 2.6 G numbers in f32 are 10 GB.
    torch.set_default_dtype(torch.float16)
    unet = json.loads((ROOT / "configs/models/sdxl/unet/config.json").read_text())
    UNet2DConditionModel.from_config(unet).save_pretrained(out / "unet", max_shard_size="20GB")
    CLIPTextModel(clip(768, 12, 12, "quick_gelu", 768)).save_pretrained(out / "text_encoder")
    CLIPTextModelWithProjection(clip(1280, 32, 20, "gelu", 1280)).save_pretrained(out / "text_encoder_2")
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=1024,
        scaling_factor=0.13025,
        force_upcast=True,
    )
    vae.save_pretrained(out / "vae")
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )
    scheduler.save_pretrained(out / "scheduler")
    # The tiny model's words do: what a token is called changes no size.
    for part in ("tokenizer", "tokenizer_2"):
        shutil.copytree(TOKENIZER / part, out / part, dirs_exist_ok=True)
    shutil.copy(TOKENIZER / "model_index.json", out / "model_index.json")
    write_vocabulary(out / "vocabulary.txt")
    if len(sys.argv) > 2:
        write_one_file(out, Path(sys.argv[2]))


def write_vocabulary(path: Path) -> None:
    """As many tokens as CLIP has, in the form of its file: a line of comment, and a merge on each. For `--tokenizer` of one file."""
    letters = [chr(code) for code in [*range(33, 127), *range(161, 173), *range(174, 256)]]
    merges = [f"{a} {b}{end}" for a in letters for b in letters for end in ("", "</w>")]
    path.write_text("\n".join(["#", *merges]) + "\n", encoding="utf-8")


def write_one_file(folder: Path, path: Path) -> None:
    parts = {part: load_file(next((folder / part).glob("*.safetensors"))) for part in one_file.parts_of(folder)}
    tensors = one_file.in_one("xl", parts)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)


if __name__ == "__main__":
    main()
