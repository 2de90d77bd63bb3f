"""Trains the demo model in assets/demo-model: a tiny Stable Diffusion that draws coloured shapes.

Nothing is downloaded: the pictures and captions come from `demo_shapes.py`, the networks are
diffusers' and transformers' own classes, so what is exported is an ordinary StableDiffusionPipeline.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 scripts/train_demo_model.py   # on two CPU cores
    python scripts/train_demo_model.py --minutes 10         # on a GPU
    python scripts/train_demo_model.py --export-only        # export what the checkpoints hold so far

The stages, each with a time budget of its own (the learning rate falls to zero within it):

1. text     The CLIP text encoder alone learns to say what the picture will be: the words of the
            scene and a thumbnail. Without this the U-Net ignores the prompt for a long time. It is
            frozen afterwards.
2. vae      The autoencoder, 128x128x3 pictures to 32x32x4 latents and back. At the end its latents
            are shifted and scaled to mean 0, deviation 1 per channel, inside its own weights.
3. latents  Many scenes drawn and encoded once, so that U-Net steps neither draw nor encode.
4. unet     The U-Net: velocity prediction, 10 % of captions dropped, averaged weights.
5. decoder  The decoder alone, for sharper pictures; latents keep their meaning.

On CPUs one single-threaded process a core is quicker than threads, more so on a shared machine: the
processes wait for each other once a step and not in every operation. Batches are split among them.

Each stage writes checkpoints into `--work` every few minutes. Started again, the script goes on from
there, and with a larger budget a finished stage goes on as well. To repeat a stage, delete its file
and those of the later stages that depend on it: all for text, all but text for vae.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from pathlib import Path
from typing import Callable

import numpy as np
import torch
import torch.distributed as distributed
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import demo_shapes as shapes

REPOSITORY = Path(__file__).resolve().parent.parent
MAX_TOKENS = 77
TEXT_WIDTH = 128
LATENT_CHANNELS = 4
LATENT_SIZE = shapes.PICTURE_SIZE // 4

LATENT_DEVIATION = 0.4
"""Standard deviation of the latents that the U-Net sees. The noise schedule ends with a little
signal left (7 %); with larger latents a flat background's mean would show through that, the U-Net
would learn to rely on it, and pure noise would have none to offer."""

CHECKPOINT_SECONDS = 180

LONGEST_STEP_SECONDS = 30
"""A step that seems to take longer was suspended meanwhile; that time is not charged to the budget."""


# ---------------------------------------------------------------------------------------------
# Models


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


# ---------------------------------------------------------------------------------------------
# The training loop that all stages share


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def process_count() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def share(batch: int) -> int:
    """This process's part of a batch."""
    return max(1, batch // process_count())


def say(line: str) -> None:
    if rank() == 0:
        print(line, flush=True)


def wait_for_all() -> None:
    if distributed.is_initialized():
        distributed.barrier()


def synchronise(parameters: list[nn.Parameter], elapsed: float) -> float:
    """Averages the gradients over all processes and returns the first one's `elapsed` to all."""
    if not distributed.is_initialized():
        return elapsed
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    clock = torch.tensor([elapsed if rank() == 0 else 0.0], device=gradients[0].device)
    flat = torch.cat([clock, *(gradient.flatten() for gradient in gradients)])
    distributed.all_reduce(flat)
    flat[1:] /= process_count()
    parts = flat[1:].split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts):
        gradient.copy_(part.view(gradient.shape))
    return flat[0].item()


class Stage:
    """One stage: modules to train, a checkpoint file, and a budget of wall time.

    The modules are filled from the checkpoint at once, if there is one.
    Time spent in earlier runs counts, so an interrupted stage ends after its budget in total.
    Of several processes the first keeps the clock, writes checkpoints and prints.
    """

    def __init__(self, name: str, work: Path, minutes: float, modules: dict[str, nn.Module], learning_rate: float):
        self.name = name
        self.file = work / f"{name}.pt"
        self.budget = 60 * minutes
        self.modules = modules
        self.learning_rate = learning_rate
        self.elapsed = 0.0
        self.steps = 0
        self.done = False
        self._optimizer_state: dict | None = None
        if self.file.exists():
            self._load()
        # Differs between processes, and after an interruption lest the same batches come again.
        self.seed = [sum(name.encode()), rank(), self.steps]

    def _load(self) -> None:
        saved = torch.load(self.file, map_location="cpu", weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(saved["modules"][name])
        self.elapsed, self.steps, self.done = saved["elapsed"], saved["steps"], saved["done"]
        self._optimizer_state = saved["optimizer"]

    def run(
        self,
        parameters: list[nn.Parameter],
        loss_of_batch: Callable[[], Tensor],
        after_step: Callable[[], None] = lambda: None,
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        """Trains until the budget is spent. `at_end` may still change the modules before the last save."""
        if self.done and self.elapsed >= self.budget:
            return
        optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
        if self._optimizer_state:
            optimizer.load_state_dict(self._optimizer_state)
        torch.manual_seed(int(np.random.default_rng(self.seed).integers(2**62)))
        last_saved = last_step = time.monotonic()
        recent: list[float] = []
        while self.elapsed < self.budget:
            for group in optimizer.param_groups:
                group["lr"] = self._current_learning_rate()
            loss = loss_of_batch()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            now = time.monotonic()
            step_seconds = min(now - last_step, LONGEST_STEP_SECONDS)
            last_step = now
            self.elapsed = synchronise(parameters, self.elapsed + step_seconds)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            after_step()
            self.steps += 1
            recent.append(loss.detach().item())
            if len(recent) == 100:
                say(f"{self.name} step {self.steps} {self.elapsed / 60:.1f} min loss {np.mean(recent):.4f}")
                recent.clear()
            if time.monotonic() - last_saved > CHECKPOINT_SECONDS:
                self._save(optimizer)
                last_saved = time.monotonic()
        at_end()
        self.done = True
        self._save(optimizer)
        wait_for_all()
        self._load()
        say(f"{self.name} done after {self.steps} steps")

    def _current_learning_rate(self) -> float:
        warm = min(1.0, (self.steps + 1) / 100)
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, self.elapsed / self.budget)))

    def _save(self, optimizer: torch.optim.Optimizer) -> None:
        if rank() != 0:
            return
        state = {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizer": optimizer.state_dict(),
            "elapsed": self.elapsed,
            "steps": self.steps,
            "done": self.done,
        }
        # Written aside and renamed, so that a reader or a crash never meets half a checkpoint.
        aside = self.file.with_suffix(".tmp")
        torch.save(state, aside)
        aside.replace(self.file)


# ---------------------------------------------------------------------------------------------
# Stage 1: text


class SceneReader(nn.Module):
    """Heads that read a scene off the text encoder's output; used in stage 1 only.

    The end token must name every attribute and show a thumbnail. A second thumbnail is read by
    cross-attention, as the U-Net will read: one learned query for each of its cells.
    """

    CELLS = 8

    def __init__(self) -> None:
        super().__init__()
        sizes, colours, kinds = list(shapes.RADII), list(shapes.COLOURS), list(shapes.KINDS)
        wheres = [*shapes.PLACES, *shapes.RELATIONS]
        absent = [None]
        # For each answer its possible values; a lone shape has no second one.
        self.answers = [sizes, colours, kinds, sizes + absent, colours + absent, kinds + absent, wheres, colours]
        self.heads = nn.ModuleList(nn.Linear(TEXT_WIDTH, len(values)) for values in self.answers)
        pixels = 3 * self.CELLS**2
        self.thumbnail = nn.Sequential(nn.Linear(TEXT_WIDTH, 256), nn.SiLU(), nn.Linear(256, pixels))
        self.queries = nn.Parameter(torch.randn(self.CELLS**2, TEXT_WIDTH))
        self.attention = nn.MultiheadAttention(TEXT_WIDTH, 4, batch_first=True)
        self.cell = nn.Sequential(nn.LayerNorm(TEXT_WIDTH), nn.Linear(TEXT_WIDTH, 256), nn.SiLU(), nn.Linear(256, 3))

    def targets(self, scenes: list[shapes.Scene]) -> Tensor:
        """Index of the right value of each answer: (B, answers)."""
        rows = []
        for scene in scenes:
            first = scene.shapes[0]
            second = scene.shapes[1] if len(scene.shapes) == 2 else shapes.Shape(None, None, None)
            told = [first.size, first.colour, first.kind, second.size, second.colour, second.kind]
            told += [scene.where, scene.background]
            rows.append([values.index(value) for values, value in zip(self.answers, told)])
        return torch.tensor(rows)

    def loss(self, tokens: Tensor, end: Tensor, targets: Tensor, pictures: Tensor) -> Tensor:
        """tokens (B, T, D), end (B, D), targets (B, answers), pictures (B, 3, H, W)."""
        named = sum(F.cross_entropy(head(end), targets[:, i]) for i, head in enumerate(self.heads))
        small = F.adaptive_avg_pool2d(pictures, self.CELLS).flatten(2)
        from_end = self.thumbnail(end).view_as(small)
        queries = self.queries.expand(len(tokens), -1, -1)
        read, _ = self.attention(queries, tokens, tokens, need_weights=False)
        from_tokens = self.cell(queries + read).transpose(1, 2)
        return named / len(self.heads) + 10 * (F.mse_loss(from_end, small) + F.mse_loss(from_tokens, small))


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    return tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids


def train_text_encoder(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, options: argparse.Namespace) -> None:
    reader = SceneReader().to(options.device)
    stage = Stage("text", options.work, options.text_minutes, {"text": text_encoder, "reader": reader}, 2e-3)
    rng = np.random.default_rng(stage.seed)

    def loss_of_batch() -> Tensor:
        scenes = shapes.training_scenes(rng, share(32))
        ids = tokenize(tokenizer, [scene.caption() for scene in scenes]).to(options.device)
        output = text_encoder(ids)
        targets = reader.targets(scenes).to(options.device)
        return reader.loss(output.last_hidden_state, output.pooler_output, targets, draw_tensor(scenes, rng, options))

    stage.run([*text_encoder.parameters(), *reader.parameters()], loss_of_batch)
    text_encoder.requires_grad_(False).eval()


def draw_tensor(scenes: list[shapes.Scene], rng: np.random.Generator, options: argparse.Namespace) -> Tensor:
    """Pictures in [-1, 1]: (B, 3, H, W)."""
    pictures = torch.from_numpy(shapes.draw_batch(scenes, rng)).to(options.device)
    return (2 * pictures - 1).contiguous(memory_format=torch.channels_last)


# ---------------------------------------------------------------------------------------------
# Stages 2, 3 and 5: autoencoder


def train_autoencoder(vae: AutoencoderKL, options: argparse.Namespace) -> None:
    stage = Stage("vae", options.work, options.vae_minutes, {"vae": vae}, 3e-3)
    rng = np.random.default_rng(stage.seed)

    def loss_of_batch() -> Tensor:
        # Quarter pictures teach nearly as much as whole ones at a quarter of the cost; the last
        # third has whole ones, so that group normalisation sees the statistics it will meet.
        whole = stage.elapsed > 2 / 3 * stage.budget
        pictures = draw_tensor(shapes.training_scenes(rng, share(4 if whole else 6)), rng, options)
        if not whole:
            top, left = rng.integers(0, shapes.PICTURE_SIZE // 2 + 1, 2)
            pictures = pictures[:, :, top:, left:][..., : shapes.PICTURE_SIZE // 2, : shapes.PICTURE_SIZE // 2]
        posterior = vae.encode(pictures).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        return picture_loss(decoded, pictures) + 1e-4 * posterior.kl().mean() / posterior.mean[0].numel()

    def normalise() -> None:
        normalise_latents(vae, draw_tensor(shapes.training_scenes(rng, 256), rng, options))

    stage.run(list(vae.parameters()), loss_of_batch, at_end=normalise)
    vae.requires_grad_(False).eval()


def picture_loss(decoded: Tensor, pictures: Tensor) -> Tensor:
    """The absolute term keeps edges sharp, the square one keeps colours true. Pixels off the
    background count five times: they are a tenth of the picture and the point of it."""
    background = pictures.flatten(2).median(2).values[:, :, None, None]
    on_shape = (pictures - background).abs().amax(1, keepdim=True) > 0.1
    error = (decoded - pictures).abs()
    return ((1 + 4 * on_shape) * (error.square() + 0.5 * error)).mean()


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Moves a shift and a scale into the 1x1 convolutions around the latents: afterwards each
    channel has mean 0 and deviation 1, and pictures decode as before."""
    latents = encode(vae, pictures)
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    before, after = vae.quant_conv, vae.post_quant_conv
    after.bias += (after.weight[:, :, 0, 0] * mean).sum(1)
    after.weight *= deviation[None, :, None, None]
    means, log_variances = slice(0, LATENT_CHANNELS), slice(LATENT_CHANNELS, None)
    before.weight[means] /= deviation[:, None, None, None]
    before.bias[means] = (before.bias[means] - mean) / deviation
    before.bias[log_variances] -= 2 * deviation.log()


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """The posterior's mean, before scaling: (B, C, H/4, W/4)."""
    return torch.cat([vae.encode(part).latent_dist.mode() for part in pictures.split(16)])


def load_or_make_latents(vae: AutoencoderKL, options: argparse.Namespace) -> tuple[Tensor, list[str]]:
    """Scaled latents in f16 (8 KiB a picture) and their captions; each process makes its own."""
    file = options.work / f"latents-{rank()}-of-{process_count()}.pt"
    if not file.exists():
        rng = np.random.default_rng(rank())
        latents, captions = [], []
        while len(captions) < share(options.pictures):
            scenes = shapes.training_scenes(rng, 256)
            encoded = encode(vae, draw_tensor(scenes, rng, options)) * vae.config.scaling_factor
            latents.append(encoded.contiguous().half().cpu())
            captions += [scene.caption() for scene in scenes]
            say(f"latents {len(captions)} of {share(options.pictures)}")
        torch.save({"latents": torch.cat(latents), "captions": captions}, file)
    saved = torch.load(file, weights_only=True)
    return saved["latents"], saved["captions"]


def train_decoder(vae: AutoencoderKL, options: argparse.Namespace) -> None:
    stage = Stage("decoder", options.work, options.decoder_minutes, {"vae": vae}, 1e-3)
    rng = np.random.default_rng(stage.seed)
    trained = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)

    def loss_of_batch() -> Tensor:
        pictures = draw_tensor(shapes.training_scenes(rng, share(4)), rng, options)
        latents = encode(vae, pictures)
        # The U-Net's latents are not exact; the decoder must bear small errors.
        noisy = latents + 0.05 * torch.randn_like(latents)
        return picture_loss(vae.decode(noisy).sample, pictures)

    stage.run(trained, loss_of_batch)
    vae.requires_grad_(False).eval()


# ---------------------------------------------------------------------------------------------
# Stage 4: U-Net


def train_unet(
    unet: UNet2DConditionModel,
    average: UNet2DConditionModel,
    hidden: Tensor,
    unconditional: Tensor,
    latents: Tensor,
    options: argparse.Namespace,
) -> None:
    """hidden (N, T, D) and latents (N, C, H, W) in f16; unconditional (T, D) of the empty caption."""
    scheduler = new_scheduler()
    signal = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    # Velocity's own weight (in terms of the picture: signal-to-noise ratio + 1), limited as min-SNR
    # does at gamma 5 (Hang et al. 2023) so that the last, easy steps do not take all the learning.
    weights = ((signal + 1).clamp(max=5) / (signal + 1)).to(options.device)
    stage = Stage("unet", options.work, options.minutes, {"unet": unet, "average": average}, options.learning_rate)
    batch = share(options.batch)
    # On a CPU fused attention's backward pass in bf16 is slower than all the rest together.
    unet.set_attn_processor(AttnProcessor())

    def loss_of_batch() -> Tensor:
        chosen = torch.randint(len(latents), (batch,))
        clean = latents[chosen].float().to(options.device)
        text = hidden[chosen].float()
        text[torch.rand(batch) < 0.1] = unconditional
        # One timestep from each of `batch` equal parts of the schedule: less variance than free draws.
        parts = (torch.arange(batch) + torch.rand(batch)) / batch
        timesteps = (1000 * parts).long().to(options.device)
        noise = torch.randn(clean.shape).to(options.device)
        noisy = scheduler.add_noise(clean, noise, timesteps).contiguous(memory_format=torch.channels_last)
        velocity = scheduler.get_velocity(clean, noise, timesteps)
        with torch.autocast(options.device, torch.bfloat16):
            predicted = unet(noisy, timesteps, text.to(options.device)).sample
        return (weights[timesteps] * (predicted.float() - velocity).square().mean((1, 2, 3))).mean()

    @torch.no_grad()
    def update_average() -> None:
        decay = min(0.998, (1 + stage.steps) / (10 + stage.steps))
        torch._foreach_lerp_(list(average.parameters()), list(unet.parameters()), 1 - decay)

    stage.run(list(unet.parameters()), loss_of_batch, after_step=update_average)


@torch.no_grad()
def encode_captions(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[str], device: str) -> Tensor:
    """The text encoder's hidden states in f16: (N, T, D)."""
    ids = tokenize(tokenizer, captions)
    return torch.cat([text_encoder(part.to(device)).last_hidden_state.half().cpu() for part in ids.split(128)])


# ---------------------------------------------------------------------------------------------
# Export and command line


def export(
    folder: Path,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
) -> None:
    """The whole pipeline in diffusers' layout, weights in f16."""
    pipeline = StableDiffusionPipeline(
        vae=copy.deepcopy(vae).half(),
        text_encoder=copy.deepcopy(text_encoder).half(),
        tokenizer=tokenizer,
        unet=copy.deepcopy(unet).half(),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    _name_text_weights_as_published(folder / "text_encoder" / "model.safetensors")
    # transformers now saves a tokenizer as one tokenizer.json; CLIP's own files are what others read.
    for file in (folder / "tokenizer").iterdir():
        file.unlink()
    write_tokenizer(folder / "tokenizer")
    print(f"exported to {folder}", flush=True)


def _name_text_weights_as_published(file: Path) -> None:
    """transformers 5 saves CLIP's text weights without the prefix that every published Stable
    Diffusion has and that other readers expect; it reads both."""
    weights = load_file(file)
    save_file({f"text_model.{name}": weight for name, weight in weights.items()}, file, metadata={"format": "pt"})


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=REPOSITORY / "target/demo-model", help="folder for checkpoints")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "assets/demo-model", help="folder for the model")
    parser.add_argument("--text-minutes", type=float, default=2.5, help="wall time for stage 1")
    parser.add_argument("--vae-minutes", type=float, default=17, help="wall time for stage 2")
    parser.add_argument("--pictures", type=int, default=24000, help="pictures to encode in stage 3")
    parser.add_argument("--minutes", type=float, default=100, help="wall time for stage 4, the U-Net")
    parser.add_argument("--decoder-minutes", type=float, default=5, help="wall time for stage 5")
    parser.add_argument("--batch", type=int, default=16, help="pictures in a U-Net step")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="highest rate of the U-Net")
    parser.add_argument("--export-only", action="store_true", help="train nothing; export the latest checkpoints")
    options = parser.parse_args()
    options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


def main() -> None:
    options = parse_options()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # set by torchrun
        distributed.init_process_group("gloo")
    options.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)  # the same first weights in every process

    if rank() == 0:
        write_tokenizer(options.work / "tokenizer")
    wait_for_all()
    tokenizer = CLIPTokenizer.from_pretrained(options.work / "tokenizer")
    text_encoder = new_text_encoder(tokenizer).to(options.device)
    # Channels last is what makes f32 convolutions fast on a CPU, backwards above all.
    vae = new_autoencoder().to(options.device, memory_format=torch.channels_last)
    unet = new_unet().to(options.device, memory_format=torch.channels_last)
    average = copy.deepcopy(unet).requires_grad_(False)

    if options.export_only:
        load_latest(options.work, text_encoder, vae, unet, average)
    else:
        train_text_encoder(text_encoder, tokenizer, options)
        train_autoencoder(vae, options)
        latents, captions = load_or_make_latents(vae, options)
        hidden = encode_captions(text_encoder, tokenizer, captions, options.device)
        unconditional = encode_captions(text_encoder, tokenizer, [""], options.device)[0].float()
        train_unet(unet, average, hidden, unconditional, latents, options)
        train_decoder(vae, options)
    if rank() == 0:
        export(options.out, text_encoder, tokenizer, vae, average)
    wait_for_all()


def load_latest(
    work: Path,
    text_encoder: CLIPTextModel,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    average: UNet2DConditionModel,
) -> None:
    """Fills the models from whatever stages have left checkpoints so far."""
    Stage("text", work, 0, {"text": text_encoder}, 0)
    Stage("vae", work, 0, {"vae": vae}, 0)
    Stage("unet", work, 0, {"unet": unet, "average": average}, 0)
    Stage("decoder", work, 0, {"vae": vae}, 0)


if __name__ == "__main__":
    main()
