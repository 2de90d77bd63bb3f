"""Write the golden files that hold the Rust numerics against Python `diffusers`.

    python -m venv venv && venv/bin/pip install -r scripts/requirements.txt
    venv/bin/python scripts/make_goldens.py                  # everything, into tests/goldens
    venv/bin/python scripts/make_goldens.py --only models    # one part of it
    venv/bin/python scripts/make_goldens.py --out /tmp/g     # elsewhere, to compare two runs

Nothing is downloaded. Two runs with the same package versions on the same kind of CPU write the same
bytes; another CPU may change last digits, which the tolerances of the Rust tests allow.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path

# One thread: the order of floating-point sums must not depend on the number of cores. Set before torch loads.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

PARTS = {
    # part: (module in scripts/goldens, function that takes the output folder)
    "models": ("models", "write"),
    "large": ("models", "write_large"),
    "families": ("families", "write"),
    "pictures-in": ("pictures_in", "write"),
    "one-file": ("one_file", "write"),
    "previews": ("previews", "write"),
    "adapters": ("adapters", "write"),
    "prompts": ("prompts", "write"),
    "variations": ("variations", "write"),
    "schedulers": ("schedulers", "write"),
    "noise": ("noise", "write"),
    "demo": ("models", "write_demo"),
    "demo-lcm": ("demo_lcm", "write"),
    "metrics": ("metrics", "write"),
}
ROOT = Path(__file__).resolve().parent.parent


def make_deterministic() -> None:
    """Fixes everything in torch that could make two runs differ."""
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=sorted(PARTS), help="write only this part")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "goldens", help="output folder")
    args = parser.parse_args()

    make_deterministic()
    args.out.mkdir(parents=True, exist_ok=True)
    for part in [args.only] if args.only else PARTS:
        module, function = PARTS[part]
        # Imported one at a time, so that one part can be made without what the others need.
        getattr(importlib.import_module(f"goldens.{module}"), function)(args.out)
        print(f"{part}: written", file=sys.stderr)


if __name__ == "__main__":
    main()
