"""Golden file of one tiny model with something in its files changed, as published models vary.

`variations.safetensors` holds for each variation V the tensors below, and one metadata entry, `case`: what all have in common
(the model, prompts, sizes, steps, seed), and under `variations` for each its name, its edits, and what differs in the call
(prompt, `--scheduler`, options of it, steps, guidance, eta, variant). The Rust tests make the same edits; each is an object with one of these keys:

    set     [file, key, value]      writes a key of a JSON file
    unset   [file, key]             removes one
    write   [file, text]            writes a file
    scale   [from, to, factor]      writes the tensors of a weight file, times a factor, as another file
    shard   [file, stem, count]     splits a weight file into shards with an index, and keeps it
    rows    [file, name, rows]      keeps these rows of a tensor, some perhaps twice
    waves   [file, {name: shape}]   writes a weight file of these tensors, their numbers by a sine

`case` also lists every parameter of the reference's classes under `keys`, for the test that changes each of them.

    V.latents   [1, 4, H, W]        after the last sampler step
    V.picture   [C, h, w]           in 0..1, clamped, not yet rounded to bytes; only where the VAE is what varies
"""

import inspect
import json
import math
import shutil
import tempfile
from pathlib import Path

import diffusers
import torch
from diffusers import AsymmetricAutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTokenizer

from .models import NEGATIVE, PROMPT, load

MODEL = "sd2"
CASE = {"name": MODEL, "width": 16, "height": 16, "steps": 4, "guidance": 5.0, "seed": 21}
CLASSES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "pndm": "PNDMScheduler",
    "lms": "LMSDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "kdpm2": "KDPM2DiscreteScheduler",
    "kdpm2-a": "KDPM2AncestralDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "dpm++-sde": "DPMSolverMultistepScheduler",
    "dpm++-single": "DPMSolverSinglestepScheduler",
    "deis": "DEISMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lcm": "LCMScheduler",
    "tcd": "TCDScheduler",
}
# What else a name of ours says.
SAID = {"dpm++-sde": {"algorithm_type": "sde-dpmsolver++"}}

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"
TOKENIZER = "tokenizer/tokenizer_config.json"
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
LONG = "a large red circle above a small blue square, " * 12 + "on a yellow background"
UNREAD = {
    "cross_attention_norm": "layer_norm",
    "mid_block_only_cross_attention": True,
    "resnet_out_scale_factor": 2.0,
    "resnet_skip_time_act": True,
}
VECTORS = {"<cat-toy>": 674, "<cat-toy>_1": 675, "<cat-toy>_2": 676}


def of_class(name: str, **keys) -> list[dict]:
    """A scheduler of this class, by a file with these keys alone."""
    config = {"_class_name": name, "_diffusers_version": "0.6.0", **BETAS, **keys}
    return [
        {"write": [SCHEDULER, json.dumps(config)]},
        {"set": ["model_index.json", "scheduler", ["diffusers", name]]},
    ]


def recipe(name: str, scheduler: str, steps: int, guidance: float, eta: float = 0.0, **keys) -> dict:
    """A scheduler with the call that its models want."""
    return {"name": name, "steps": steps, "guidance": guidance, "eta": eta, "edits": of_class(scheduler, **keys)}


def tokenizer(**keys) -> list[dict]:
    return [{"set": [TOKENIZER, key, value]} for key, value in keys.items()]


def variations() -> list[dict]:
    """Every variation; `picture` asks for the picture, too."""
    all_of_them = [
        # What the pipeline corrects, and what it hands on to another scheduler.
        {"name": "ddim without clip_sample", "edits": of_class("DDIMScheduler", set_alpha_to_one=False, steps_offset=1)},
        {"name": "ddim bare", "edits": of_class("DDIMScheduler")},
        {"name": "ddim off", "edits": of_class("DDIMScheduler", clip_sample=None, steps_offset=None, set_alpha_to_one=None)},
        {"name": "pndm bare", "edits": of_class("PNDMScheduler", skip_prk_steps=True)},
        {"name": "pndm offset", "edits": of_class("PNDMScheduler", skip_prk_steps=True, steps_offset=3)},
        {"name": "euler leading", "edits": of_class("EulerDiscreteScheduler", timestep_spacing="leading")},
        {"name": "euler-a leading", "edits": of_class("EulerAncestralDiscreteScheduler", timestep_spacing="leading")},
        {"name": "dpm leading", "edits": of_class("DPMSolverMultistepScheduler", timestep_spacing="leading")},
        {"name": "dpm off", "edits": of_class("DPMSolverMultistepScheduler", lower_order_final=None)},
        {
            "name": "defaults listed",
            "edits": of_class("DDIMScheduler", beta_end=0.5, _use_default_values=["beta_end", "set_alpha_to_one"]),
        },
        {
            "name": "strays of other classes",
            "edits": of_class("PNDMScheduler", skip_prk_steps=True, decay=0.9, original_inference_steps=50, predict_x0=True),
        },
        # The class is the index's.
        {
            "name": "class of the index",
            "edits": of_class("PNDMScheduler", skip_prk_steps=True)
            + [{"set": ["model_index.json", "scheduler", ["diffusers", "DDIMScheduler"]]}],
        },
        {
            "name": "no class in the config",
            "edits": of_class("PNDMScheduler", skip_prk_steps=True) + [{"unset": [SCHEDULER, "_class_name"]}],
        },
        {
            "name": "deis by dpm++",
            "scheduler": "dpm++",
            "edits": of_class("DEISMultistepScheduler", algorithm_type="deis", solver_type="logrho", final_sigmas_type="sigma_min"),
        },
        {"name": "ddpm by dpm++", "scheduler": "dpm++", "edits": of_class("DDPMScheduler", variance_type="fixed_small")},
        # Classes that are lacking here, and what stands in for them.
        {"name": "sa by dpm++", "scheduler": "dpm++", "edits": of_class("SASolverScheduler", use_karras_sigmas=True)},
        {"name": "sa by euler", "scheduler": "euler", "edits": of_class("SASolverScheduler", predictor_order=2, tau_func=None)},
        {"name": "ipndm by heun", "scheduler": "heun", "edits": of_class("IPNDMScheduler")},
        {"name": "parallel by unipc", "scheduler": "unipc", "edits": of_class("DDIMParallelScheduler", clip_sample=False)},
        # As distilled models are sampled.
        recipe("turbo", "EulerAncestralDiscreteScheduler", 1, 0.0, timestep_spacing="trailing"),
        recipe("turbo in four", "EulerAncestralDiscreteScheduler", 4, 0.0, timestep_spacing="trailing"),
        recipe("lightning", "EulerDiscreteScheduler", 4, 0.0, timestep_spacing="trailing"),
        recipe("hyper", "DDIMScheduler", 4, 0.0, timestep_spacing="trailing"),
        recipe("hyper by tcd", "TCDScheduler", 4, 0.0, eta=1.0),
        recipe("lcm", "LCMScheduler", 4, 1.0),
        {
            **recipe("lightning by an option", "PNDMScheduler", 4, 0.0, skip_prk_steps=True),
            "scheduler": "euler",
            "options": {"timestep_spacing": "trailing"},
        },
        {
            **recipe("dmd2 by an option", "EulerDiscreteScheduler", 4, 0.0),
            "scheduler": "lcm",
            "options": {"original_inference_steps": 1000},
        },
        {"name": "options of the own class", "options": {"use_karras_sigmas": True}, "edits": of_class("EulerDiscreteScheduler")},
        recipe("lcm guided", "LCMScheduler", 8, 1.8, original_inference_steps=100),
        # Which file wins.
        {"name": "shards of the unet", "edits": [{"shard": [UNET, "diffusion_pytorch_model", 3]}, {"scale": [UNET, UNET, 0.5]}]},
        {
            "name": "shards of the vae",
            "picture": True,
            "edits": [{"shard": [VAE, "diffusion_pytorch_model", 2]}, {"scale": [VAE, VAE, 0.5]}],
        },
        {"name": "shards of the text encoder", "edits": [{"shard": [TEXT, "model", 2]}, {"scale": [TEXT, TEXT, 0.5]}]},
        {"name": "variant of the unet", "variant": "half", "edits": [{"scale": [UNET, UNET.replace(".s", ".half.s"), 0.5]}]},
        {"name": "variant of the text encoder", "variant": "half", "edits": [{"scale": [TEXT, TEXT.replace(".s", ".half.s"), 0.5]}]},
        {"name": "variant not asked for", "edits": [{"scale": [TEXT, TEXT.replace(".s", ".half.s"), 0.5]}]},
        # Keys.
        {"name": "no middle block", "edits": [{"set": ["unet/config.json", "mid_block_type", None]}]},
        {"name": "sine before cosine", "edits": [{"set": ["unet/config.json", "flip_sin_to_cos", None]}]},
        {
            "name": "strays of a running average",
            "edits": [{"set": ["unet/config.json", key, value]} for key, value in {"decay": 0.9, "optimization_step": 7}.items()],
        },
        {
            "name": "unet keys that nobody reads",
            "edits": [{"set": ["unet/config.json", key, value]} for key, value in UNREAD.items()],
        },
        {"name": "fewer text layers", "edits": [{"set": ["text_encoder/config.json", "num_hidden_layers", 1]}]},
        {"name": "padding left", "edits": tokenizer(padding_side="left")},
        {"name": "truncation left", "prompt": LONG, "edits": tokenizer(truncation_side="left")},
        {"name": "shorter", "prompt": LONG, "edits": tokenizer(model_max_length=20)},
        {"name": "split special tokens", "prompt": "circle <|endoftext|> square", "edits": tokenizer(split_special_tokens=True)},
        {"name": "special tokens whole", "prompt": "circle <|endoftext|> square", "edits": []},
        {
            "name": "tokenizer strays",
            "edits": tokenizer(add_prefix_space=True, do_lower_case=False, errors="strict", add_eos_token=False, nonsense=1),
        },
        {
            "name": "several vectors",
            "prompt": "a large <cat-toy> on a yellow background",
            "edits": [{"write": ["tokenizer/added_tokens.json", json.dumps(VECTORS)]}, *more_rows()],
        },
        {
            "name": "several vectors in capitals",
            "prompt": "a large <Toy> <toy> on a yellow background",
            "edits": [{"write": ["tokenizer/added_tokens.json", json.dumps({"<Toy>": 674, "<Toy>_1": 675})]}, *more_rows()],
        },
        {
            "name": "a token of its own",
            "prompt": "a large <image> on a yellow background",
            "edits": [*tokenizer(image_token="<image>"), *more_rows()],
        },
        {
            "name": "added ids with gaps",
            "prompt": "a large <cat> and a small <dog> on a yellow background",
            "edits": [{"write": ["tokenizer/added_tokens.json", json.dumps({"<cat>": 680, "<dog>": 700})]}, *more_rows()],
        },
        {"name": "a tokenizer as its file says", "prompt": "A large RED circle", "edits": as_written()},
        # Channels.
        {"name": "grey", "picture": True, "edits": channels([1])},
        {"name": "grey and alpha", "picture": True, "edits": channels([1, 0])},
        {"name": "alpha", "picture": True, "edits": channels([0, 1, 2, 1])},
        {"name": "a larger decoder", "picture": True, "edits": asymmetric()},
        {"name": "vae keys that nobody reads", "picture": True, "edits": [{"set": ["vae/config.json", "shift_factor", 0.5]}]},
    ]
    explicit = of_class("PNDMScheduler", skip_prk_steps=True, steps_offset=0, clip_sample=True)
    for name, own in CLASSES.items():
        if name not in SAID:
            all_of_them.append({"name": f"{name} as the file has it", "edits": of_class(own, timestep_spacing="trailing")})
        all_of_them.append({"name": f"bare by {name}", "scheduler": name, "edits": of_class("PNDMScheduler", skip_prk_steps=True)})
        all_of_them.append({"name": f"explicit by {name}", "scheduler": name, "edits": explicit})
    return all_of_them


def channels(rows: list[int]) -> list[dict]:
    """The decoder's last layer with these of its three channels."""
    keep = [{"rows": [VAE, f"decoder.conv_out.{kind}", rows]} for kind in ("weight", "bias")]
    return [*keep, {"set": ["vae/config.json", "out_channels", len(rows)]}]


def more_rows() -> list[dict]:
    """Embeddings for three tokens more than the vocabulary has."""
    rows = [*range(674), 5, 60, 600]
    return [
        {"rows": [TEXT, "embeddings.token_embedding.weight", rows]},
        {"set": ["text_encoder/config.json", "vocab_size", len(rows)]},
    ]


def asymmetric() -> list[dict]:
    """An autoencoder whose decoder has more channels and layers than its encoder."""
    config = {
        "_class_name": "AsymmetricAutoencoderKL",
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "down_block_out_channels": [8, 16],
        "layers_per_down_block": 1,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "up_block_out_channels": [16, 24],
        "layers_per_up_block": 2,
        "norm_num_groups": 4,
        "scaling_factor": 0.2,
    }
    shapes = {name: list(tensor.shape) for name, tensor in AsymmetricAutoencoderKL(**config).state_dict().items()}
    return [
        {"write": ["vae/config.json", json.dumps(config)]},
        {"waves": [VAE, shapes]},
        {"set": ["model_index.json", "vae", ["diffusers", "AsymmetricAutoencoderKL"]]},
    ]


def as_written() -> list[dict]:
    """The tokenizer as one that is all in its file, which knows no capitals and joins fewer letters."""
    folder = Path(__file__).resolve().parents[2] / "tests/goldens/models" / MODEL / "tokenizer"
    with tempfile.TemporaryDirectory() as saved:
        CLIPTokenizer.from_pretrained(folder).save_pretrained(saved)
        whole = json.loads((Path(saved) / "tokenizer.json").read_text())
    whole["normalizer"]["normalizers"] = [kind for kind in whole["normalizer"]["normalizers"] if kind["type"] != "Lowercase"]
    whole["model"]["merges"] = whole["model"]["merges"][:80]
    return [
        {"write": ["tokenizer/tokenizer.json", json.dumps(whole)]},
        {"set": ["model_index.json", "tokenizer", ["transformers", "PreTrainedTokenizerFast"]]},
        *tokenizer(tokenizer_class="PreTrainedTokenizerFast"),
    ]


def write(out_dir: Path) -> None:
    """Writes `variations.safetensors`."""
    tensors, listed = {}, variations()
    for variation in listed:
        tensors |= golden(out_dir / "models" / MODEL, variation)
    case = CASE | {"prompt": PROMPT, "negative_prompt": NEGATIVE, "variations": listed, "keys": keys()}
    save_file(tensors, out_dir / "variations.safetensors", metadata={"case": json.dumps(case, sort_keys=True)})


def keys() -> dict[str, list[str]]:
    """The parameters of every class that reads a config file, by the class's name."""
    names = ["UNet2DConditionModel", "AutoencoderKL", "StableDiffusionPipeline", *CLASSES.values()]
    listed = {name: [*inspect.signature(getattr(diffusers, name).__init__).parameters][1:] for name in names}
    listed["CLIPTextConfig"] = [key for key in CLIPTextConfig().to_dict() if not key.startswith("_")]
    return listed


def golden(model: Path, variation: dict) -> dict[str, torch.Tensor]:
    """The tensors of one variation."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "model"
        shutil.copytree(model, copy)
        for change in variation["edits"]:
            apply(copy, change)
        pipe = load(copy, variation.get("variant"))
        if "scheduler" in variation or "options" in variation:
            name = variation.get("scheduler")
            chosen = getattr(diffusers, CLASSES[name]) if name else type(pipe.scheduler)
            said = SAID.get(name, {}) | variation.get("options", {})
            pipe.scheduler = chosen.from_config(pipe.scheduler.config, **said)
        latents = sample(pipe, variation)
        assert latents.isfinite().all(), variation["name"]
        tensors = {f"{variation['name']}.latents": latents}
        if variation.get("picture"):
            decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
            tensors[f"{variation['name']}.picture"] = (decoded[0] / 2 + 0.5).clamp(0, 1)
        return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def sample(pipe: StableDiffusionPipeline, variation: dict) -> torch.Tensor:
    said = CASE | variation
    return pipe(
        said.get("prompt", PROMPT),
        negative_prompt=NEGATIVE,
        height=CASE["height"],
        width=CASE["width"],
        num_inference_steps=said["steps"],
        guidance_scale=said["guidance"],
        eta=said.get("eta", 0.0),
        generator=torch.Generator("cpu").manual_seed(CASE["seed"]),
        output_type="latent",
    ).images


def apply(model: Path, change: dict) -> None:
    """Makes one of the edits that are listed at the top."""
    [(kind, arguments)] = change.items()
    path = model / arguments[0]
    match kind, arguments[1:]:
        case "set", [key, value]:
            path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
        case "unset", [key]:
            path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))
        case "write", [text]:
            path.write_text(text)
        case "scale", [to, factor]:
            scaled = {name: tensor * factor for name, tensor in load_file(path).items()}
            save_file(scaled, model / to, metadata={"format": "pt"})
        case "shard", [stem, count]:
            shard(path, stem, count)
        case "waves", [shapes]:
            save_file({name: wave(name, shape) for name, shape in shapes.items()}, path, metadata={"format": "pt"})
        case "rows", [name, rows]:
            tensors = load_file(path)
            tensors[name] = tensors[name][rows].contiguous()
            save_file(tensors, path, metadata={"format": "pt"})


def wave(name: str, shape: list[int]) -> torch.Tensor:
    """Numbers as small as a layer's are, about 1 for the scale of a normalisation and about 0 else."""
    inputs, numbers = math.prod(shape[1:]), math.prod(shape)
    scale = len(shape) == 1 and name.endswith("weight")
    angles = torch.arange(numbers, dtype=torch.float64) * 0.731 + numbers % 17
    values = float(scale) + angles.sin() * (0.1 if len(shape) == 1 else inputs**-0.5)
    return values.float().reshape(shape)


def shard(path: Path, stem: str, count: int) -> None:
    """Deals the tensors of a file out, in the order of their names."""
    shards, places = [{} for _ in range(count)], {}
    for i, (name, tensor) in enumerate(sorted(load_file(path).items())):
        places[name] = f"{stem}-{i % count + 1:05}-of-{count:05}.safetensors"
        shards[i % count][name] = tensor
    for i, tensors in enumerate(shards):
        save_file(tensors, path.with_name(f"{stem}-{i + 1:05}-of-{count:05}.safetensors"), metadata={"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    path.with_name(f"{stem}.safetensors.index.json").write_text(json.dumps(index))
