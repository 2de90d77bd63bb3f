"""Models in one file, in the layout in which Stable Diffusion was published, of the tiny models that are there as folders.

The names are written from the published files' own (the libraries `ldm` and `sgm`). Each file is held against the reference: its
`from_single_file` loads it, with the folder for what is in no such file, and must make the folder's picture.

    one-file/sd1.safetensors    f16, Stable Diffusion 1: CLIP's text encoder; running averages and the schedule are left in it
    one-file/sd2.safetensors    f32, Stable Diffusion 2: OpenCLIP's text encoder, with the layer that nobody asks for
    one-file/xl.safetensors     f16, SDXL: both
    one-file/published.json.gz  names and shapes of files of the published sizes, from the published configs; no weights
    number-types.safetensors    every finite number of each type of eight bits, and some of 64, each beside the same in f32
"""

import gzip
import json
import re
from pathlib import Path

import diffusers
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from . import models

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "models"
VAE_BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
}

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def write(out_dir: Path) -> None:
    """Writes every file, and holds it against the reference."""
    write_number_types(out_dir)
    folder = out_dir / "one-file"
    folder.mkdir(exist_ok=True)
    write_published(folder / "published.json.gz")
    for name in ("sd1", "sd2", "xl"):
        model = out_dir / "models" / name
        parts = {part: load_file(next((model / part).glob("*.safetensors"))) for part in parts_of(model)}
        tensors = in_one(name, parts)
        if name == "sd1":
            tensors |= {
                "model_ema.diffusion_modelinput_blocks00weight": torch.zeros(2),
                "betas": torch.linspace(0.0, 1.0, 4),
                "somebody.elses": torch.ones(1),
            }
        if name == "sd2":
            tensors["global_step"] = torch.tensor(0.0)
        path = folder / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)
        check(name, model, path)


def write_number_types(out_dir: Path) -> None:
    """What torch makes of the number types that single files have beside the usual ones."""
    codes = torch.arange(256).to(torch.uint8)
    numbers = {name: codes.view(getattr(torch, f"float8_{name}")) for name in ("e4m3fn", "e5m2")}
    numbers = {name: values[values.float().isfinite()] for name, values in numbers.items()}
    numbers["f64"] = torch.randn(64, generator=torch.Generator("cpu").manual_seed(5), dtype=torch.float64)
    both = {name: values.clone() for name, values in numbers.items()}
    both |= {f"{name}.f32": values.float() for name, values in numbers.items()}
    save_file(both, out_dir / "number-types.safetensors")


def parts_of(model: Path) -> list[str]:
    return [part for part in ("unet", "vae", "text_encoder", "text_encoder_2") if (model / part).is_dir()]


def in_one(name: str, parts: dict[str, dict]) -> dict[str, torch.Tensor]:
    """All tensors of a model by their original names."""
    return unet(parts["unet"]) | vae(parts["vae"]) | text(name, parts)


def write_published(path: Path) -> None:
    """Names and shapes as published, from configs alone: the tensors are on no device."""
    out = {}
    for name, config in (("sd1", "sd15"), ("xl", "sdxl")):
        with torch.device("meta"):
            models_of = {
                "unet": diffusers.UNet2DConditionModel.from_config(json.loads((CONFIGS / config / "unet/config.json").read_text())),
                "vae": diffusers.AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **VAE_BLOCKS),
                "text_encoder": CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)),
            }
            if name == "xl":
                models_of["text_encoder_2"] = CLIPTextModelWithProjection(
                    CLIPTextConfig(
                        hidden_size=1280,
                        intermediate_size=5120,
                        num_attention_heads=20,
                        num_hidden_layers=32,
                        projection_dim=1280,
                        hidden_act="gelu",
                    )
                )
        tensors = in_one(name, {part: dict(model.state_dict()) for part, model in models_of.items()})
        out[name] = {key: list(value.shape) for key, value in sorted(tensors.items())}
    packed = gzip.compress(json.dumps(out, sort_keys=True).encode(), mtime=0)
    path.write_bytes(packed)


def unet(tensors: dict) -> dict[str, torch.Tensor]:
    """The U-Net's tensors by their original names."""
    levels = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("down_blocks."))
    layers = 1 + max(int(name.split(".")[3]) for name in tensors if name.startswith("down_blocks.0.resnets."))
    return {f"model.diffusion_model.{unet_name(name, layers, levels, tensors)}": value for name, value in tensors.items()}


def unet_name(name: str, layers: int, levels: int, tensors: dict) -> str:
    layer, tensor = name.rsplit(".", 1)
    if layer in OUTSIDE:
        return f"{OUTSIDE[layer]}.{tensor}"
    found = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name)
    if found:
        way, block, kind, number, rest = found.groups()
        first, each = (1, layers + 1) if way == "down" else (0, layers + 1)
        place = first + int(block) * each + int(number)
        return f"{'input' if way == 'down' else 'output'}_blocks.{place}.{inner(kind, rest)}"
    if found := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", name):
        return f"input_blocks.{1 + int(found[1]) * (layers + 1) + layers}.0.op.{found[2]}"
    if found := re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.*)", name):
        attends = any(key.startswith(f"up_blocks.{found[1]}.attentions.") for key in tensors)
        return f"output_blocks.{int(found[1]) * (layers + 1) + layers}.{2 if attends else 1}.conv.{found[2]}"
    found = re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", name)
    kind, number, rest = found.groups()
    place = 1 if kind == "attentions" else 2 * int(number)
    return f"middle_block.{place}.{inner(kind, rest).split('.', 1)[1]}"


def inner(kind: str, rest: str) -> str:
    """What is behind a block's number."""
    if kind == "attentions":
        return f"1.{rest}"
    layer, tensor = rest.rsplit(".", 1)
    return f"0.{RESNET[layer]}.{tensor}"


def vae(tensors: dict) -> dict[str, torch.Tensor]:
    """The autoencoder's tensors by their original names; its attention is of 1x1 convolutions there."""
    levels = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("decoder.up_blocks."))
    out = {}
    for name, value in tensors.items():
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{levels - 1 - int(m[1])}.upsample.", name)
        name = re.sub(r"mid_block\.resnets\.(\d+)\.", lambda m: f"mid.block_{1 + int(m[1])}.", name)
        name = name.replace("mid_block.attentions.0.", "mid.attn_1.")
        if ".mid.attn_1." in name:
            parts = {
                **{"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"},
                **{"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"},
            }
            side, rest = name.split(".mid.attn_1.")
            layer, tensor = rest.rsplit(".", 1)
            name = f"{side}.mid.attn_1.{parts[layer]}.{tensor}"
            if value.dim() == 2:
                value = value[:, :, None, None]
        out[f"first_stage_model.{name}"] = value
    return out


def text(name: str, parts: dict[str, dict]) -> dict[str, torch.Tensor]:
    """The text encoders' tensors by their original names."""
    first = parts["text_encoder"]
    if name == "sd1":
        return {f"cond_stage_model.transformer.{prefixed(key)}": value for key, value in first.items()}
    if name == "sd2":
        tensors = open_clip(first, "cond_stage_model.model.")
        last = max(int(key.split(".")[4]) for key in tensors if ".resblocks." in key)
        for key in [key for key in tensors if f".resblocks.{last}." in key]:
            tensors[key.replace(f".resblocks.{last}.", f".resblocks.{last + 1}.")] = torch.full_like(tensors[key], 9.0)
        return tensors | {"cond_stage_model.model.logit_scale": torch.tensor(1.0)}
    second = parts["text_encoder_2"]
    first = {f"conditioner.embedders.0.transformer.{prefixed(key)}": value for key, value in first.items()}
    return first | open_clip(second, "conditioner.embedders.1.model.")


def prefixed(name: str) -> str:
    return name if name.startswith("text_model.") else f"text_model.{name}"


def open_clip(tensors: dict[str, torch.Tensor], start: str) -> dict[str, torch.Tensor]:
    """A text encoder as OpenCLIP has it: the projections of an attention in one, that of the whole text turned."""
    tensors = {key.removeprefix("text_model."): value for key, value in tensors.items()}
    out = {
        "token_embedding.weight": tensors["embeddings.token_embedding.weight"],
        "positional_embedding": tensors["embeddings.position_embedding.weight"],
        "ln_final.weight": tensors["final_layer_norm.weight"],
        "ln_final.bias": tensors["final_layer_norm.bias"],
    }
    if "text_projection.weight" in tensors:
        out["text_projection"] = tensors["text_projection.weight"].T
    for key, value in tensors.items():
        found = re.match(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)", key)
        if not found or found[2].startswith("self_attn") and not found[2].endswith("out_proj"):
            continue
        out[f"transformer.resblocks.{found[1]}.{OPEN_CLIP[found[2]]}.{found[3]}"] = value
    for layer in {key.split(".")[2] for key in tensors if key.startswith("encoder.layers.")}:
        for kind in ("weight", "bias"):
            parts = [tensors[f"encoder.layers.{layer}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
            out[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat(parts)
    return {start + key: value for key, value in out.items()}


def check(name: str, model: Path, path: Path) -> None:
    """The reference makes the folder's picture of the file, too."""
    pictures = []
    for load in (
        lambda: diffusers.DiffusionPipeline.from_pretrained(model, dtype=torch.float32),
        lambda: single(name, model, path),
    ):
        pipe = load()
        pipe.set_progress_bar_config(disable=True)
        pipe.check_inputs = lambda *args, **kwargs: None
        pictures.append(
            pipe(
                models.PROMPT,
                num_inference_steps=2,
                height=32,
                width=32,
                generator=torch.Generator("cpu").manual_seed(3),
                output_type="pt",
                return_dict=False,
            )[0]
        )
    difference = float((pictures[0] - pictures[1]).abs().max())
    assert difference < 1e-4, f"{name}: the reference makes another picture of the file: {difference}"


def single(name: str, model: Path, path: Path):
    kind = diffusers.StableDiffusionXLPipeline if name == "xl" else diffusers.StableDiffusionPipeline
    pipe = kind.from_single_file(path, config=str(model), torch_dtype=torch.float32, local_files_only=True)
    return pipe.to(torch.float32)
