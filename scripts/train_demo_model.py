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
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

import demo_shapes as shapes
from demo_networks import (
    LATENT_CHANNELS,
    TEXT_WIDTH,
    new_autoencoder,
    new_scheduler,
    new_text_encoder,
    new_unet,
    tokenize,
    write_tokenizer,
)
from demo_training import Stage, begin, process_count, rank, say, share, wait_for_all

REPOSITORY = Path(__file__).resolve().parent.parent

GUIDANCE = 2.0
"""The guidance scale that the exported model recommends."""


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
    # What pictures are best at: more guidance than this oversaturates flat colours.
    (folder / "generation_config.json").write_text(json.dumps({"guidance_scale": GUIDANCE, "whole_words": True}) + "\n")
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
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    begin(options)

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
