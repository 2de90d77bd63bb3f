"""Trains the demo features: a network that names what is in a picture of the demo model's world.

Its last layer before the answers serves the Fréchet distance that `lacuna eval` prints as `demo`. That is
not FID, and compares with nothing but itself: Inception knows photographs, this network knows flat shapes.

    python scripts/train_demo_features.py --minutes 6 --out assets/demo-model/features.safetensors

The scenes are those that the demo model is trained on; the accuracy that is printed is on held-out ones.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import demo_shapes as shapes
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

CHANNELS = [3, 16, 32, 64, 64, 96, 128, 128]
"""Of the picture and after each layer; each halves the size, from 128x128 to one place."""

PLACES = [*shapes.PLACES, *shapes.RELATIONS]
WORDS = {
    "background": list(shapes.COLOURS),
    "where": PLACES,
    "size": list(shapes.RADII),
    "colour": list(shapes.COLOURS),
    "kind": list(shapes.KINDS),
    "second size": list(shapes.RADII),
    "second colour": list(shapes.COLOURS),
    "second kind": list(shapes.KINDS),
}
"""The questions, each with its answers; those of a second shape are not asked where there is none."""

NOT_ASKED = -100
"""What torch's cross-entropy leaves out."""


class Features(nn.Module):
    """`[B, 3, 128, 128]` in -1..1 to `[B, 128]`: convolutions of stride 2 with ReLU."""

    def __init__(self) -> None:
        super().__init__()
        pairs = zip(CHANNELS, CHANNELS[1:])
        self.layers = nn.ModuleList(nn.Conv2d(c_in, c_out, 3, 2, 1) for c_in, c_out in pairs)
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = functional.relu(layer(x))
        return x.flatten(1)


def answers(scene: shapes.Scene) -> list[int]:
    """In the order of WORDS."""
    first, *rest = scene.shapes
    words = [scene.background, scene.where, first.size, first.colour, first.kind]
    words += [rest[0].size, rest[0].colour, rest[0].kind] if rest else [None] * 3
    lists = WORDS.values()
    return [NOT_ASKED if word is None else options.index(word) for word, options in zip(words, lists)]


def batch(scenes: list[shapes.Scene], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    pictures = torch.from_numpy(shapes.draw_batch(scenes, rng)) * 2 - 1
    # The decoder's pictures are not perfectly flat.
    pictures += 0.03 * torch.randn_like(pictures)
    return pictures, torch.tensor([answers(scene) for scene in scenes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network, heads = Features(), nn.ModuleList(nn.Linear(CHANNELS[-1], len(words)) for words in WORDS.values())
    parameters = [*network.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=1e-3)
    start, step = time.monotonic(), 0
    while (done := (time.monotonic() - start) / 60 / args.minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * done))
        pictures, wanted = batch(shapes.training_scenes(rng, 48), rng)
        features = network(pictures)
        loss = sum(functional.cross_entropy(head(features), wanted[:, i]) for i, head in enumerate(heads))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 200 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
        step += 1

    with torch.no_grad():
        pictures, wanted = batch(shapes.held_out_scenes(400), rng)
        features = network(pictures)
        for i, (question, head) in enumerate(zip(WORDS, heads)):
            asked = wanted[:, i] != NOT_ASKED
            right = (head(features).argmax(1) == wanted[:, i])[asked].float().mean()
            print(f"{question}: {100 * right:.1f} % of {int(asked.sum())} held-out pictures right")
    tensors = {name: tensor.detach().half().contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, args.out)
    print(f"{args.out}: {step} steps, {sum(t.numel() for t in tensors.values())} parameters")


if __name__ == "__main__":
    main()
