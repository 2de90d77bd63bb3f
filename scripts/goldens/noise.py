"""Golden noise: what torch's CPU generator draws for a seed, over sequences of draws of many sizes.

Run on its own from scripts/: python -m goldens.noise ../tests/goldens
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

# Each case is a seed and the sizes drawn one after the other from one generator: below 16 (number by
# number), exactly 16, multiples of 16, ragged ends, and mixtures (the spare normal survives a large draw).
CASES = {
    "small": (0, [1, 1, 3, 2, 15, 7]),
    "block": (1, [16, 16]),
    "ragged": (42, [17, 31, 33, 100]),
    "mixed": (1234567890123, [3, 16, 1, 2, 40, 5, 15, 16, 1]),
    "latents": (2024, [4 * 16 * 16, 4 * 16 * 16]),
    "odd_latents": (7, [4 * 15 * 13, 4 * 15 * 13]),
    "large_seed": (2**63 - 1, [64, 9, 9]),
}


def write(out_dir: Path) -> None:
    """Writes noise.safetensors: one tensor `<case>.<draw>` per draw, the seeds and sizes as metadata."""
    tensors = {}
    cases = []
    for name, (seed, sizes) in CASES.items():
        generator = torch.Generator("cpu").manual_seed(seed)
        for i, size in enumerate(sizes):
            tensors[f"{name}.{i}"] = torch.randn(size, generator=generator)
        cases.append({"name": name, "seed": seed, "sizes": sizes})
    # One metadata key only: safetensors writes several in random order.
    golden = {"torch": torch.__version__, "cases": cases}
    save_file(tensors, out_dir / "noise.safetensors", metadata={"golden": json.dumps(golden)})


if __name__ == "__main__":
    write(Path(sys.argv[1]))
