"""Golden file of an adapter in the names of kohya's tools: of SDXL's U-Net and both text encoders, on the tiny model `xl`.

    adapter.safetensors         the adapter, with an alpha for each layer
    xl-adapted.safetensors      as `families.py` has it, of the picture with the adapter at a strength of 0.8; `xl-adapted.png`

Whoever ignores a network's part of it makes another picture.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

from . import families
from .models import check_sane, save

STRENGTH = 0.8
RANK = 3
LAYERS = {
    "unet": [
        "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
        "down_blocks_1_attentions_1_transformer_blocks_0_attn2_to_v",
        "down_blocks_2_attentions_0_transformer_blocks_1_ff_net_2",
        "mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0",
        "up_blocks_0_attentions_2_transformer_blocks_0_attn2_to_k",
        "up_blocks_1_attentions_1_proj_in",
    ],
    "te1": ["text_model_encoder_layers_0_self_attn_q_proj", "text_model_encoder_layers_1_mlp_fc2"],
    "te2": ["text_model_encoder_layers_0_self_attn_v_proj", "text_model_encoder_layers_1_mlp_fc1"],
}


def write(out_dir: Path) -> None:
    """Writes the adapter and its picture."""
    folder, case = out_dir / "models" / "xl", families.CASES["xl"]
    tensors = adapter(families.load(folder))
    path = out_dir / "adapter.safetensors"
    save_file(tensors, path)
    made = goldens(folder, case, tensors)
    check_sane("xl-adapted", made)
    for network in LAYERS:
        rest = {name: value for name, value in tensors.items() if not name.startswith(f"lora_{network}_")}
        without = goldens(folder, case, rest)["pipe.image"]
        psnr = -10 * float(torch.log10(((without - made["pipe.image"]) ** 2).mean()))
        assert psnr < 40, f"without {network} the picture differs by {psnr:.1f} dB only"
    save(out_dir, "xl-adapted", made, families.describe("xl", case, families.load(folder)))


def goldens(folder: Path, case: dict, tensors: dict) -> dict[str, torch.Tensor]:
    """The U-Net's part as the reference loads it. That of text encoders is merged here, by the definition: the reference's
    loading of it draws their weights anew under today's `transformers`."""
    pipe = families.load(folder)
    of_unet = {name: value for name, value in tensors.items() if name.startswith("lora_unet_")}
    if of_unet:
        pipe.load_lora_weights(dict(of_unet), adapter_name="a")
        pipe.set_adapters(["a"], [STRENGTH])
    for part, encoder in (("te1", pipe.text_encoder), ("te2", pipe.text_encoder_2)):
        for layer in LAYERS[part]:
            name = f"lora_{part}_{layer}"
            if f"{name}.alpha" in tensors:
                change = tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"]
                module(encoder, layer).weight.data += STRENGTH * float(tensors[f"{name}.alpha"]) / RANK * change
    return families.goldens(pipe, case)


def module(model, layer: str):
    """A layer by its name with underscores."""
    modules = {name.replace(".", "_"): module for name, module in model.named_modules()}
    bare = layer.removeprefix("text_model_")
    return next(modules[name] for name in (layer, bare, f"text_model_{bare}") if name in modules)


def adapter(pipe) -> dict[str, torch.Tensor]:
    """Random factors of every layer that is listed."""
    parts = {"unet": pipe.unet, "te1": pipe.text_encoder, "te2": pipe.text_encoder_2}
    generator = torch.Generator("cpu").manual_seed(77)
    out = {}
    for part, layers in LAYERS.items():
        for layer in layers:
            rows, columns = module(parts[part], layer).weight.shape[:2]
            name = f"lora_{part}_{layer}"
            out[f"{name}.lora_down.weight"] = torch.randn((RANK, columns), generator=generator) * 0.5
            out[f"{name}.lora_up.weight"] = torch.randn((rows, RANK), generator=generator) * 0.5
            out[f"{name}.alpha"] = torch.tensor(2.0)
    return out


