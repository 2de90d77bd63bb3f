"""Golden files of whole models: text encoder, U-Net with its blocks, VAE, and a picture, from `diffusers` in f32.

For each case `<name>.safetensors` holds the tensors below and one metadata entry, `case`, a JSON object with everything that
is not a tensor (prompts, sizes, timesteps, seed, versions). Letters: P prompts, B batch, C channels, H W rows and columns of
the latents, h w of a picture, T = 77 tokens, D text width, N sampler steps.

    text.ids            i32 [P, T]      token ids of case.text.prompts
    text.embeddings     [P', T, D]      last_hidden_state for the prompts at case.text.embedded
    text.penultimate    [1, T, D]       clip_skip=1 for the prompt at case.text.penultimate
    unet.sample         [2, 4, H, W]    input; unet.context [2, T, D], unet.t [1] (f32, may be fractional)
    unet.out            [2, 4, H, W]    output
    unet.act.<module>                   output of that module, before what its caller adds or concatenates
    unet.t2, unet.out2, unet.act2.<m>   the same inputs at a second timestep, fewer modules
    vae.image           [1, 3, h, w]    in -1..1; vae.moments [1, 8, H, W]: mean, log-variance (unclamped, unscaled)
    vae.latents         [1, 4, H, W]    what `vae.decode` takes (already divided by scaling_factor)
    vae.decoded         [1, 3, h, w]    what it gives; vae.act.<module> a few of its modules
    pipe.latents0       [1, 4, H, W]    seeded noise before init_noise_sigma; pipe.latents after the last step
    pipe.steps          [N, 4, H, W]    after every sampler step; pipe.timesteps [N]
    pipe.image          [3, h, w]       in 0..1, clamped, not yet rounded to bytes; `<name>.png` is round(255 * image)

Where case.act_stride is above 1, `unet.act.*`, `unet.act2.*` and `vae.act.*` are flat and hold only every act_stride-th number.
"""

import json
import math
from pathlib import Path

import diffusers
import torch
import torch.nn.functional as F
import transformers
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from PIL import Image
from safetensors.torch import save_file

from . import tiny

DEMO_MODEL = Path(__file__).resolve().parents[2] / "assets" / "demo-model"

PROMPT = "a large red circle above a small blue square on a yellow background"
NEGATIVE = "blurry, low quality"
LONG = "a very detailed painting of the mountains at sunset, " * 12
TEXT_PROMPTS = [
    PROMPT,
    NEGATIVE,
    "",
    LONG,
    "A Photo of an ASTRONAUT riding a Horse, 4K!",
    "it's a dog's life; they're sure we'd've gone, I'm told he'll, DON'T",
    "caf\u00e9 na\u00efve \u00c5ngstr\u00f6m cr\u00e8me br\u00fbl\u00e9e",
    # The same letters as base and combining mark: NFC makes them one again.
    "cafe\u0301 nai\u0308ve A\u030angstro\u0308m",
    "emoji \U0001f3a8\U0001f680 and \U0001f469\u200d\U0001f469\u200d\U0001f467 family \u2764\ufe0f",
    "  two  spaces\tand\ttabs\r\nand newlines  ",
    "fish &amp; chips &lt;b&gt;bold&lt;/b&gt; &#39;quoted&#39; &eacute;",
    "in 1984 there were 007 agents, 3.14159 and \u00bd of x\u00b2 in MMXXIV \u2163 \u0663",
    "wow!!! really?! (((nested))) [brackets] a_b snake-case #hash @at \u2026 \u2018s \u201cquotes\u201d",
    # Final sigma, dotted capital I, sharp s, a ligature: lower-casing one character at a time, no NFKC.
    "\u65e5\u672c\u8a9e \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0422\u0415\u041a\u0421\u0422 \u039f\u0394\u039f\u03a3 \u0130stanbul Stra\u00dfe \ufb01ne",
    "<|endoftext|> stop<|startoftext|>go",
    "non\u00a0breaking zero\u200bwidth ideographic\u3000space",
]
EMBEDDED = [0, 1, 2, 3]
PENULTIMATE = 0

# Picture sizes are (h, w). The U-Net's two timesteps are those that the sampler could ask for.
CASES = {
    "sd1": {"size": (64, 16), "encode": (64, 16), "steps": 8, "timesteps": (601.0, 41.0), "seed": 7},
    "sd2": {"size": (32, 24), "encode": (32, 24), "steps": 8, "timesteps": (501.0, 126.0), "seed": 8},
    # 13 x 11 latents; the encoder gets a picture that its levels do not divide either.
    "odd": {"size": (52, 44), "encode": (53, 45), "steps": 9, "timesteps": (374.625, 124.875), "seed": 9},
}
DEMO = {"size": (128, 128), "encode": (64, 64), "steps": 20, "timesteps": (601.0, 101.0), "seed": 42}
# Nine rows at the coarsest level, for more strips than the small cases have rows; only the picture is kept.
LARGE = {"latents": (72, 56), "steps": 6, "timesteps": (601.0, 41.0), "seed": 11}
GUIDANCE = 5.0
# A prime, so that the sampled numbers fall on all rows, columns and channels.
DEMO_ACT_STRIDE = 97

HOOKED = (ResnetBlock2D, Transformer2DModel, Downsample2D, Upsample2D)
HOOKED_NAMES = ("conv_in", "time_proj", "time_embedding", "mid_block", "conv_norm_out", "conv_act")
SECOND_NAMES = ("time_proj", "time_embedding", "conv_in", "mid_block", "conv_norm_out")
VAE_NAMES = ("encoder.mid_block", "encoder.down_blocks.0", "decoder.mid_block", "decoder.up_blocks.0")


def write(out_dir: Path) -> None:
    """Writes the three tiny models and their golden files."""
    for name, case in CASES.items():
        tiny.build(name, out_dir / "models" / name)
        pipe = load(out_dir / "models" / name)
        with AttentionMeter() as meter:
            tensors = goldens(pipe, case)
        check_sane(name, tensors)
        check_telling(name, tensors, meter.entropies)
        save(out_dir, name, tensors, describe(name, case, pipe, act_stride=1))


def write_large(out_dir: Path) -> None:
    """Writes the picture of the tiny model sd1 in a size that is cut into three, five or seven strips."""
    pipe = load(out_dir / "models" / "sd1")
    case = LARGE | {"size": tuple(side * pipe.vae_scale_factor for side in LARGE["latents"])}
    tensors = pipe_goldens(pipe, case)
    check_sane("large", tensors)
    del tensors["pipe.steps"]
    save(out_dir, "large", tensors, describe("sd1", case, pipe, act_stride=1))


def write_demo(out_dir: Path) -> None:
    """Writes the golden file of the trained demo model, whose activations are sampled to keep it small."""
    if not (DEMO_MODEL / "model_index.json").exists():
        raise SystemExit("assets/demo-model is not there: train it first, or use --only for the other parts")
    pipe = load(DEMO_MODEL)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    tensors = goldens(pipe, DEMO)
    check_sane("demo", tensors)
    for key in tensors:
        if ".act" in key:
            tensors[key] = tensors[key].flatten()[::DEMO_ACT_STRIDE]
    save(out_dir, "demo", tensors, describe("demo", DEMO, pipe, DEMO_ACT_STRIDE))


def goldens(pipe: StableDiffusionPipeline, case: dict) -> dict[str, torch.Tensor]:
    """Every tensor of one case."""
    tensors = text_goldens(pipe)
    tensors |= unet_goldens(pipe, case, tensors["text.embeddings"])
    tensors |= vae_goldens(pipe, case)
    return tensors | pipe_goldens(pipe, case)


def save(
    out_dir: Path, name: str, tensors: dict[str, torch.Tensor], description: dict, left_out: tuple[str, ...] = ()
) -> None:
    """Writes `<name>.safetensors`, without the tensors `left_out`, and `<name>.png`."""
    kept = {key: tensor for key, tensor in tensors.items() if key not in left_out}
    save_file(
        {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in kept.items()},
        out_dir / f"{name}.safetensors",
        metadata={"case": json.dumps(description, sort_keys=True)},
    )
    picture = (tensors["pipe.image"].permute(1, 2, 0) * 255).round().to(torch.uint8)
    Image.fromarray(picture.numpy()).save(out_dir / f"{name}.png")


def load(model: Path, variant: str | None = None) -> StableDiffusionPipeline:
    """Loads a pipeline in f32, whatever precision is on disk, so that both sides compute on the same values."""
    pipe = StableDiffusionPipeline.from_pretrained(model, dtype=torch.float32, variant=variant, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    # The pipeline refuses sizes that 8 does not divide; its pieces do not, and neither does Lacuna.
    pipe.check_inputs = lambda *args, **kwargs: None
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.eval()
        assert all(p.dtype == torch.float32 for p in part.parameters())
    return pipe


def describe(name: str, case: dict, pipe: StableDiffusionPipeline, act_stride: int) -> dict:
    """What the golden file's metadata says about the case."""
    height, width = case["size"]
    return {
        "name": name,
        "act_stride": act_stride,
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "steps": case["steps"],
        "guidance": GUIDANCE,
        "seed": case["seed"],
        "scheduler": type(pipe.scheduler).__name__,
        "height": height,
        "width": width,
        "unet": {"t": case["timesteps"][0], "t2": case["timesteps"][1]},
        "text": {"prompts": TEXT_PROMPTS, "embedded": EMBEDDED, "penultimate": PENULTIMATE},
        "versions": {
            "diffusers": diffusers.__version__,
            "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__,
        },
    }


def text_goldens(pipe: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    """Token ids, and embeddings exactly as the pipeline makes them."""
    ids = tokenize(pipe, TEXT_PROMPTS)
    hidden = pipe.text_encoder(ids[[PENULTIMATE]], output_hidden_states=True).hidden_states[-2]
    # The pipeline's own clip_skip reaches for `text_model.final_layer_norm`, a name that recent transformers dropped.
    final_norm = getattr(pipe.text_encoder, "text_model", pipe.text_encoder).final_layer_norm
    return {
        "text.ids": ids.to(torch.int32),
        "text.embeddings": torch.cat([embed(pipe, TEXT_PROMPTS[i]) for i in EMBEDDED]),
        "text.penultimate": final_norm(hidden),
    }


def tokenize(pipe: StableDiffusionPipeline, prompts: list[str]) -> torch.Tensor:
    """[P, T] ids, with the arguments that the pipeline uses."""
    length = pipe.tokenizer.model_max_length
    return pipe.tokenizer(
        prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids


def embed(pipe: StableDiffusionPipeline, prompt: str) -> torch.Tensor:
    """[1, T, D] prompt embeddings from the pipeline's own method."""
    return pipe.encode_prompt(prompt, "cpu", 1, False)[0]


def latent_size(pipe: StableDiffusionPipeline, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the latents of a picture of this size."""
    return size[0] // pipe.vae_scale_factor, size[1] // pipe.vae_scale_factor


def noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def unet_goldens(pipe: StableDiffusionPipeline, case: dict, embeddings: torch.Tensor) -> dict[str, torch.Tensor]:
    """One guidance batch (negative, then prompt) through the U-Net at two timesteps, with the output of every block."""
    sample = noise((2, 4, *latent_size(pipe, case["size"])), case["seed"] + 100)
    context = embeddings[[1, 0]]
    tensors = {"unet.sample": sample, "unet.context": context}
    names = [n for n, m in pipe.unet.named_modules() if isinstance(m, HOOKED) or n in HOOKED_NAMES]
    for suffix, t, watched in [("", case["timesteps"][0], names), ("2", case["timesteps"][1], SECOND_NAMES)]:
        with Watch(pipe.unet, watched, f"unet.act{suffix}.") as watch:
            out = pipe.unet(sample, torch.tensor(t), encoder_hidden_states=context).sample
        tensors |= {f"unet.t{suffix}": torch.tensor([t]), f"unet.out{suffix}": out} | watch.seen
    return tensors


def vae_goldens(pipe: StableDiffusionPipeline, case: dict) -> dict[str, torch.Tensor]:
    """One picture through the encoder, and the mean it gives through the decoder."""
    image = test_picture(*case["encode"])
    with Watch(pipe.vae, VAE_NAMES, "vae.act.") as watch:
        posterior = pipe.vae.encode(image).latent_dist
        latents = posterior.mean
        decoded = pipe.vae.decode(latents).sample
    return {
        "vae.image": image,
        "vae.moments": posterior.parameters,
        "vae.latents": latents,
        "vae.decoded": decoded,
    } | watch.seen


def test_picture(height: int, width: int) -> torch.Tensor:
    """[1, 3, h, w] in -1..1: slopes, a hard edge and some noise, different in every channel."""
    y = torch.linspace(-1, 1, height)[:, None]
    x = torch.linspace(-1, 1, width)[None, :]
    disc = ((x - 0.2) ** 2 + (y + 0.3) ** 2 < 0.25).float()
    planes = torch.stack([0.7 * x * y + 0.3 * disc, 0.6 * y - 0.5 * disc, torch.sin(4 * x + 3 * y) * 0.6])
    return (planes + 0.1 * noise((3, height, width), 5)).clamp(-1, 1)[None]


def pipe_goldens(pipe: StableDiffusionPipeline, case: dict) -> dict[str, torch.Tensor]:
    """A whole picture from a seed, with the latents after every sampler step."""
    height, width = case["size"]
    steps, timesteps = [], []

    def remember(_pipe, _index, t, values):
        steps.append(values["latents"][0].clone())
        timesteps.append(float(t))
        return values

    latents = pipe(
        PROMPT,
        negative_prompt=NEGATIVE,
        height=height,
        width=width,
        num_inference_steps=case["steps"],
        guidance_scale=GUIDANCE,
        generator=torch.Generator("cpu").manual_seed(case["seed"]),
        output_type="latent",
        callback_on_step_end=remember,
    ).images
    decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return {
        "pipe.latents0": noise((1, 4, *latent_size(pipe, case["size"])), case["seed"]),
        "pipe.latents": latents,
        "pipe.steps": torch.stack(steps),
        "pipe.timesteps": torch.tensor(timesteps),
        "pipe.image": (decoded[0] / 2 + 0.5).clamp(0, 1),
    }


class Watch:
    """Keeps the outputs of named modules while it is open."""

    def __init__(self, model: torch.nn.Module, names, prefix: str):
        modules = dict(model.named_modules())
        self.modules = {prefix + name: modules[name] for name in names}
        self.seen = {}

    def __enter__(self):
        self.handles = [m.register_forward_hook(self.hook(key)) for key, m in self.modules.items()]
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()

    def hook(self, key: str):
        def keep(_module, _inputs, output):
            # Blocks give a tuple whose first element is the feature map (the down blocks add their skips).
            output = output[0] if isinstance(output, tuple) else output
            self.seen[key] = output.detach().clone()

        return keep


class AttentionMeter:
    """Records how far attention is from uniform: the entropy of its weights, 1 for uniform, 0 for one token."""

    def __enter__(self):
        self.entropies = []
        self.original = F.scaled_dot_product_attention
        F.scaled_dot_product_attention = self.measure
        return self

    def __exit__(self, *_):
        F.scaled_dot_product_attention = self.original

    def measure(self, query, key, value, *args, **kwargs):
        tokens = key.shape[-2]
        if tokens > 1 and not kwargs.get("is_causal"):
            weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
            self.entropies.append(float(torch.special.entr(weights).sum(-1).mean()) / math.log(tokens))
        return self.original(query, key, value, *args, **kwargs)


def check_sane(name: str, tensors: dict[str, torch.Tensor]) -> None:
    """Refuses golden files that are broken: numbers that are not finite, or a flat picture."""
    for key, tensor in tensors.items():
        assert tensor.isfinite().all(), f"{name}: {key} is not finite"
    spread = tensors["pipe.image"].std(dim=(1, 2)).min()
    assert spread > 0.04, f"{name}: the picture is flat ({spread:.3f})"


def check_telling(name: str, tensors: dict[str, torch.Tensor], entropies: list[float]) -> None:
    """Refuses random models that could not tell right from wrong: faint activations, idle inputs, uniform attention."""
    for key, tensor in tensors.items():
        if ".act" in key:
            assert 0.2 < tensor.std() < 10, f"{name}: {key} has standard deviation {tensor.std():.3g}"
    moved = (tensors["unet.out2"] - tensors["unet.out"]).std() / tensors["unet.out"].std()
    assert moved > 0.2, f"{name}: the timestep hardly matters ({moved:.3f})"
    image = tensors["pipe.image"]
    clipped = ((image == 0) | (image == 1)).float().mean()
    assert clipped < 0.1, f"{name}: {clipped:.0%} of the picture is clipped"
    assert entropies and max(entropies) < 0.97, f"{name}: attention is uniform somewhere ({max(entropies):.4f})"
