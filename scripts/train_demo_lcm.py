"""Trains assets/demo-lcm-lora.safetensors: the adapter that draws the demo model's pictures in four calls.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 scripts/train_demo_lcm.py   # on two CPU cores
    python scripts/train_demo_lcm.py --export-only          # export what the checkpoint holds so far

A consistency model (Song et al. 2023) maps every point of one trajectory of the sampler to the
trajectory's end; in the space of latents, with guidance within, it is an LCM (Luo et al. 2023a), and as
an adapter an LCM-LoRA (Luo et al. 2023b). The demo model is small enough to follow whole trajectories,
so targets are true ends, where published ones are the student's own guesses one solver step further on.

1. trajectories  The demo model follows each from noise to picture, with guidance, by DPM-Solver++.
2. lcm           Low-rank sums at the U-Net's linear maps and convolutions learn to say from any point,
                 and without guidance, where its trajectory ended.

Both stages can be interrupted, and go on when the script is started again.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

import demo_shapes as shapes
from demo_training import Stage, begin, process_count, rank, say, share, wait_for_all
from train_demo_model import GUIDANCE, REPOSITORY, encode_captions

CALLS = 4
"""Calls that a picture takes with the adapter; points that they start from are trained on most."""

POINTS = 8
"""Points of a trajectory; every second one is where one of four calls starts."""

LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
          "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj", "conv_in", "conv_out",
          "time_embedding.linear_1", "time_embedding.linear_2")
"""Ends of the names of layers that get an adapter: those of published LCM-LoRAs, the first and last two more."""

LARGEST_ERROR_FOLLOWED = 0.03
"""Where the pseudo-Huber loss turns from a square to a line, in latents (their deviation is 0.4): lines
are followed to a median, so that shapes stay sharp where a mean would blur them."""


# ---------------------------------------------------------------------------------------------
# Stage 1: trajectories


def call_timesteps(pipeline: StableDiffusionPipeline, calls: int) -> list[int]:
    """Where an LCM of `calls` calls starts each."""
    scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(calls)
    return scheduler.timesteps.tolist()


@torch.no_grad()
def follow(pipeline: StableDiffusionPipeline, hidden: Tensor, unconditional: Tensor, start: Tensor) -> Tensor:
    """All points of the trajectories from `start`, and their ends: (B, POINTS + 1, C, H, W). `start` is
    (B, C, H, W), hidden (B, T, D), unconditional (T, D)."""
    scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(timesteps=call_timesteps(pipeline, POINTS))
    text = torch.cat([unconditional.expand_as(hidden), hidden])
    latents, points = start, [start]
    for timestep in scheduler.timesteps:
        without, with_prompt = predict(pipeline.unet, latents.repeat(2, 1, 1, 1), timestep, text).chunk(2)
        guided = without + GUIDANCE * (with_prompt - without)
        latents = scheduler.step(guided, timestep, latents).prev_sample
        points.append(latents)
    return torch.stack(points, 1)


def predict(unet: UNet2DConditionModel, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
    with torch.autocast(latents.device.type, torch.bfloat16):
        return unet(latents.contiguous(memory_format=torch.channels_last), timesteps, text).sample.float()


def load_or_follow(pipeline: StableDiffusionPipeline, options: argparse.Namespace) -> tuple[Tensor, list[str]]:
    """Points in f16 (8 KiB each) and captions of this process's trajectories, a file for each part of them."""
    points, captions = [], []
    unconditional = encode_captions(pipeline.text_encoder, pipeline.tokenizer, [""], options.device)[0].float()
    for part in range(rank(), options.trajectories // options.part, process_count()):
        file = options.work / f"trajectories-{part}.pt"
        if not file.exists():
            rng = np.random.default_rng(part)
            torch.manual_seed(int(rng.integers(2**62)))
            told = [scene.caption() for scene in shapes.training_scenes(rng, options.part)]
            hidden = encode_captions(pipeline.text_encoder, pipeline.tokenizer, told, options.device).float()
            noise = torch.randn(len(told), *latent_shape(pipeline))
            parts = zip(hidden.split(32), noise.split(32))
            followed = [follow(pipeline, h, unconditional, n.to(options.device)).half().cpu() for h, n in parts]
            aside = file.with_suffix(".tmp")
            torch.save({"points": torch.cat(followed), "captions": told}, aside)
            aside.replace(file)
            say(f"trajectories {(part + 1) * options.part} of {options.trajectories}")
        saved = torch.load(file, weights_only=True)
        points.append(saved["points"])
        captions += saved["captions"]
    return torch.cat(points), captions


def latent_shape(pipeline: StableDiffusionPipeline) -> tuple[int, int, int]:
    config = pipeline.unet.config
    return config.in_channels, config.sample_size, config.sample_size


# ---------------------------------------------------------------------------------------------
# Stage 2: the adapter


class LowRank(nn.Module):
    """A weight, and a product of two narrow matrices on top of it. `down` is (rank, what one output reads),
    `up` (outputs, rank); at first their product is 0."""

    def __init__(self, weight: Tensor, most: int):
        super().__init__()
        outputs, inputs = weight.shape[0], weight[0].numel()
        rank_ = min(most, outputs, inputs)
        self.down = nn.Parameter(torch.randn(rank_, inputs) / inputs**0.5)
        self.up = nn.Parameter(torch.zeros(outputs, rank_))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def adapt(unet: UNet2DConditionModel, most: int) -> nn.ModuleDict:
    """Gives the layers their low-rank sums; by the layers' names, with / for the points."""
    unet.requires_grad_(False)
    added = nn.ModuleDict()
    for name, module in list(unet.named_modules()):
        if isinstance(module, (nn.Linear, nn.Conv2d)) and name.endswith(LAYERS):
            added[name.replace(".", "/")] = sums = LowRank(module.weight, most)
            register_parametrization(module, "weight", sums)
    return added


def train(unet: UNet2DConditionModel, sums: nn.ModuleDict, pipeline: StableDiffusionPipeline, hidden: Tensor,
          points: Tensor, options: argparse.Namespace) -> None:
    """hidden (N, T, D) and points (N, POINTS + 1, C, H, W), in f16."""
    every = torch.tensor(call_timesteps(pipeline, POINTS))
    alphas = pipeline.scheduler.alphas_cumprod[every]
    likely = torch.where(torch.isin(every, torch.tensor(call_timesteps(pipeline, CALLS))), 4.0, 1.0)
    batch = share(options.batch)
    stage = Stage("lcm", options.work, options.minutes, {"sums": sums}, options.learning_rate)

    def loss_of_batch() -> Tensor:
        chosen = torch.randint(len(points), (batch,))
        where = torch.multinomial(likely, batch, replacement=True)
        start, end = points[chosen, where].float(), points[chosen, POINTS].float()
        # The call's own point, or one with the same picture and other noise: the sampler of an LCM adds
        # fresh noise between calls. Where a trajectory begins there is noise alone.
        signal, noise = alphas[where].sqrt()[:, None, None, None], (1 - alphas[where]).sqrt()[:, None, None, None]
        again = (torch.rand(batch) < options.fresh) & (where > 0)
        start[again] = (signal * end + noise * torch.randn_like(end))[again]
        velocity = predict(unet, start.to(options.device), every[where].to(options.device),
                           hidden[chosen].float().to(options.device))
        found = signal.to(options.device) * start.to(options.device) - noise.to(options.device) * velocity
        error = found - end.to(options.device)
        bend = LARGEST_ERROR_FOLLOWED
        return ((error.square() + bend**2).sqrt() - bend).mean()

    stage.run(list(sums.parameters()), loss_of_batch)


def export(sums: nn.ModuleDict, pipeline: StableDiffusionPipeline, unet: UNet2DConditionModel, file: Path) -> None:
    """Writes the sums in peft's names, as diffusers does, in f16; and holds them to the U-Net when they are read."""
    tensors = {}
    for name, module in sums.items():
        layer = unet.get_submodule(name.replace("/", "."))
        kernel = layer.weight.shape[2:]
        layer_name = "unet." + name.replace("/", ".")
        down, up = module.down.detach(), module.up.detach()
        tensors[f"{layer_name}.lora_A.weight"] = down.view(len(down), -1, *kernel).half().contiguous()
        tensors[f"{layer_name}.lora_B.weight"] = up.view(*up.shape, *([1] * len(kernel))).half().contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    print(f"{file}: {file.stat().st_size} bytes", flush=True)

    latents = torch.randn(1, *latent_shape(pipeline))
    text = torch.randn(1, pipeline.text_encoder.config.max_position_embeddings, unet.config.cross_attention_dim)
    timestep = torch.tensor(499)
    with torch.no_grad():
        wanted = unet(latents, timestep, text).sample
        base = pipeline.unet(latents, timestep, text).sample
        pipeline.load_lora_weights(load_file(file))
        got = pipeline.unet(latents, timestep, text).sample
    error, change = (got - wanted).norm() / wanted.norm(), (got - base).norm() / base.norm()
    print(f"read by the reference: {error:.1e} from the U-Net that was trained, {change:.1e} from the demo model's")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=REPOSITORY / "assets/demo-model", help="the model that is adapted")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "target/demo-lcm", help="folder for checkpoints")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "assets/demo-lcm-lora.safetensors")
    parser.add_argument("--trajectories", type=int, default=6144, help="trajectories to follow in stage 1")
    parser.add_argument("--part", type=int, default=256, help="trajectories in a file")
    parser.add_argument("--minutes", type=float, default=30, help="wall time for stage 2")
    parser.add_argument("--rank", type=int, default=15, help="largest rank of a sum")
    parser.add_argument("--batch", type=int, default=16, help="pictures in a step")
    parser.add_argument("--fresh", type=float, default=0.5, help="share of points that get other noise")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="highest rate")
    parser.add_argument("--export-only", action="store_true", help="train nothing; export the latest checkpoint")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    begin(options)
    pipeline = StableDiffusionPipeline.from_pretrained(options.model, dtype=torch.float32).to(options.device)
    pipeline.unet.to(memory_format=torch.channels_last).requires_grad_(False)
    # On a CPU fused attention's backward pass in bf16 is slower than all the rest together.
    pipeline.unet.set_attn_processor(AttnProcessor())
    student = copy.deepcopy(pipeline.unet)
    sums = adapt(student, options.rank)
    say(f"{len(sums)} layers, {sum(p.numel() for p in sums.parameters())} parameters")

    if options.export_only:
        Stage("lcm", options.work, 0, {"sums": sums}, 0)
    else:
        points, captions = load_or_follow(pipeline, options)
        hidden = encode_captions(pipeline.text_encoder, pipeline.tokenizer, captions, options.device)
        train(student, sums, pipeline, hidden, points, options)
    if rank() == 0:
        export(sums, pipeline, student, options.out)
    wait_for_all()


if __name__ == "__main__":
    main()
