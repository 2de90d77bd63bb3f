"""Measures by program how well the demo model's pictures follow their prompts.

    python scripts/measure_adherence.py --model assets/demo-model --count 300
    python scripts/measure_adherence.py --model assets/demo-model --count 240 --steps 4 --guidance 1 --scheduler lcm \\
        --lora assets/demo-lcm-lora.safetensors
    python scripts/measure_adherence.py --list-prompts 200 > prompts.txt
    python scripts/measure_adherence.py --pictures DIR --prompts prompts.txt
    python scripts/measure_adherence.py --self-check

The prompts are held out from training (see `demo_shapes.py`); half of them have one shape, half two.
With --pictures the pictures come from elsewhere: picture i of line i is DIR/i.png (from 0), or, if
the files have other names, the i-th of them in sorted order.

How a picture is judged: the background is the palette colour nearest to the median of the border.
What differs from it falls apart into connected components, tiny ones ignored; there must be as many
as the prompt has shapes. A component's colour is the palette colour nearest to the median of its
inner pixels, its kind the one whose drawn silhouette overlaps most, its size and place follow from
its bounding box.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import binary_erosion
from skimage.measure import label, regionprops

import demo_shapes as shapes

REPOSITORY = Path(__file__).resolve().parent.parent

DIFFERS = 60.0
"""A pixel belongs to a shape if its colour is this far (of 441) from the background's; the two
nearest palette colours, orange and red, are 100 apart."""

SMALLEST_COMPONENT = 60
"""Components of fewer pixels are specks, not shapes (a small ring has about 500)."""

BORDER = 4
"""No shape reaches into this many outermost rows and columns by more than a little."""

QUESTIONS = ("background", "colour", "place", "kind", "size")


@dataclass(frozen=True)
class Seen:
    """One component as the judge sees it."""

    colour: str
    kind: str
    size: str
    centre: np.ndarray
    """(x, y) from the picture's middle, y downwards."""


def judge(picture: np.ndarray, scene: shapes.Scene) -> dict[str, bool]:
    """picture (H, W, 3) uint8. For each question whether the picture fits the scene."""
    background, seen = look(picture)
    verdict = dict.fromkeys(QUESTIONS, False)
    verdict["background"] = background == scene.background
    if len(seen) != len(scene.shapes):
        return verdict
    # Which component is which shape is not given: take the reading that fits the prompt best.
    readings = [compare(list(order), scene) for order in permutations(seen)]
    return verdict | max(readings, key=lambda reading: sum(reading.values()))


def compare(seen: list[Seen], scene: shapes.Scene) -> dict[str, bool]:
    pairs = list(zip(seen, scene.shapes))
    return {
        "colour": all(s.colour == wanted.colour for s, wanted in pairs),
        "kind": all(s.kind == wanted.kind for s, wanted in pairs),
        "size": all(s.size == wanted.size for s, wanted in pairs),
        "place": place_fits(seen, scene.where),
    }


def place_fits(seen: list[Seen], where: str) -> bool:
    if len(seen) == 1:
        distance = {
            place: np.hypot(*(seen[0].centre - shapes.OFFSET * np.array(direction)))
            for place, direction in shapes.PLACES.items()
        }
        return min(distance, key=distance.__getitem__) == where
    x, y = seen[0].centre - seen[1].centre
    direction = (int(np.sign(x)), 0) if abs(x) > abs(y) else (0, int(np.sign(y)))
    return direction == shapes.RELATIONS[where]


def look(picture: np.ndarray) -> tuple[str, list[Seen]]:
    """The background's colour and the shapes on it."""
    pixels = picture.astype(np.float32)
    border = np.ones(pixels.shape[:2], bool)
    border[BORDER:-BORDER, BORDER:-BORDER] = False
    ground = np.median(pixels[border], axis=0)
    mask = np.linalg.norm(pixels - ground, axis=2) > DIFFERS
    regions = [r for r in regionprops(label(mask)) if r.area >= SMALLEST_COMPONENT]
    return nearest_colour(ground), [describe(region, pixels) for region in regions]


def describe(region, pixels: np.ndarray) -> Seen:
    top, left, bottom, right = region.bbox
    silhouette = region.image
    # The outermost ring of pixels is blended with the background.
    inner = binary_erosion(silhouette, iterations=2)
    chosen = inner if inner.any() else silhouette
    colour = np.median(pixels[top:bottom, left:right][chosen], axis=0)
    middle = np.array([left + right - 1, top + bottom - 1]) / 2
    extent = max(bottom - top, right - left) / 2
    kind, radius = nearest_kind(silhouette, extent)
    size = min(shapes.RADII, key=lambda name: abs(shapes.RADII[name] - radius))
    return Seen(nearest_colour(colour), kind, size, middle - (shapes.PICTURE_SIZE - 1) / 2)


def nearest_colour(rgb: np.ndarray) -> str:
    return min(shapes.COLOURS, key=lambda name: float(np.linalg.norm(rgb - shapes.COLOURS[name])))


def nearest_kind(silhouette: np.ndarray, extent: float) -> tuple[str, float]:
    """The kind, and its radius, whose silhouette in the same bounding box overlaps most."""
    rows, columns = (np.arange(n) - (n - 1) / 2 for n in silhouette.shape)
    best = ("", 0.0, -1.0)
    for kind in shapes.KINDS:
        box = shapes.bounding_box(kind)
        radius = extent / (np.ptp(box, axis=0).max() / 2)
        centre = -box.mean(axis=0) * radius
        template = shapes.coverage(kind, centre, radius, rows, columns) > 0.5
        overlap = (template & silhouette).sum() / (template | silhouette).sum()
        if overlap > best[2]:
            best = (kind, radius, overlap)
    return best[0], best[1]


# ---------------------------------------------------------------------------------------------
# Where pictures come from


SCHEDULERS = {"dpm++": "DPMSolverMultistepScheduler", "lcm": "LCMScheduler"}


def generate(options: argparse.Namespace, prompts: list[str]) -> list[np.ndarray]:
    """One picture a prompt. Prompt i starts from the noise of seed + i, whatever the batch size."""
    import diffusers
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(options.model, dtype=torch.float32).to(device)
    pipeline.set_progress_bar_config(disable=True)
    if options.scheduler:
        chosen = getattr(diffusers, SCHEDULERS[options.scheduler])
        pipeline.scheduler = chosen.from_config(pipeline.scheduler.config)
    if options.lora:
        pipeline.load_lora_weights(options.lora)
    pictures: list[np.ndarray] = []
    for start in range(0, len(prompts), options.batch):
        part = prompts[start : start + options.batch]
        generators = [torch.Generator().manual_seed(options.seed + start + i) for i in range(len(part))]
        made = pipeline(
            part, num_inference_steps=options.steps, guidance_scale=options.guidance, generator=generators
        ).images
        pictures += [np.asarray(picture) for picture in made]
    return pictures


def read_pictures(folder: Path, count: int) -> list[np.ndarray]:
    numbered = [folder / f"{i}.png" for i in range(count)]
    files = numbered if all(file.exists() for file in numbered) else sorted(folder.glob("*.png"))
    if len(files) < count:
        raise SystemExit(f"{folder} holds {len(files)} pictures, but there are {count} prompts")
    return [np.asarray(Image.open(file).convert("RGB")) for file in files[:count]]


def draw_truth(scenes: list[shapes.Scene], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(255 * shapes.draw(scene, rng)).round().astype(np.uint8).transpose(1, 2, 0) for scene in scenes]


# ---------------------------------------------------------------------------------------------
# Report


def rates(verdicts: list[dict[str, bool]]) -> dict[str, float]:
    """Percentages: each question alone, the three of the target together, and all five together."""
    target = ("background", "colour", "place")
    columns = {question: [v[question] for v in verdicts] for question in QUESTIONS}
    columns["background+colour+place"] = [all(v[q] for q in target) for v in verdicts]
    columns["all"] = [all(v.values()) for v in verdicts]
    return {name: round(100 * float(np.mean(values)), 1) for name, values in columns.items()}


def report(scenes: list[shapes.Scene], verdicts: list[dict[str, bool]]) -> dict[str, dict]:
    groups = {"one shape": 1, "two shapes": 2}
    result = {}
    for name, shape_count in groups.items():
        chosen = [v for scene, v in zip(scenes, verdicts) if len(scene.shapes) == shape_count]
        if chosen:
            result[name] = {"prompts": len(chosen), **rates(chosen)}
    return result


def print_table(result: dict[str, dict]) -> None:
    names = list(result)
    rows = list(next(iter(result.values())))
    print(f"{'':26}" + "".join(f"{name:>12}" for name in names))
    for row in rows:
        unit = "" if row == "prompts" else " %"
        print(f"{row:26}" + "".join(f"{f'{result[name][row]}{unit}':>12}" for name in names))


def save_grid(pictures: list[np.ndarray], file: Path) -> None:
    """All pictures in one, eight a row."""
    size = shapes.PICTURE_SIZE
    grid = Image.new("RGB", (8 * size, -(-len(pictures) // 8) * size))
    for i, picture in enumerate(pictures):
        grid.paste(Image.fromarray(picture), (i % 8 * size, i // 8 * size))
    grid.save(file)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path, help="a folder in diffusers' layout: generate with it, then judge")
    source.add_argument("--pictures", type=Path, help="a folder of PNG files to judge; needs --prompts")
    source.add_argument("--self-check", action="store_true", help="judge freshly drawn, true pictures")
    source.add_argument("--list-prompts", type=int, metavar="N", help="print N held-out prompts")
    parser.add_argument("--prompts", type=Path, help="the prompts of --pictures, one a line")
    parser.add_argument("--count", type=int, default=300, help="number of held-out prompts")
    parser.add_argument("--steps", type=int, default=50, help="sampler steps")
    parser.add_argument("--scheduler", choices=SCHEDULERS, help="another scheduler than the model's own, DDIM")
    parser.add_argument("--lora", type=Path, help="an adapter's file")
    parser.add_argument("--guidance", type=float, default=2.0, help="guidance scale")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first picture's noise")
    parser.add_argument("--batch", type=int, default=12, help="pictures generated at a time")
    parser.add_argument("--json", type=Path, help="write the rates and every verdict here")
    parser.add_argument("--grid", type=Path, help="write the pictures here, side by side")
    options = parser.parse_args()
    if (options.pictures is None) != (options.prompts is None):
        parser.error("--pictures and --prompts go together")
    return options


def main() -> None:
    options = parse_options()
    if options.list_prompts is not None:
        for scene in shapes.held_out_scenes(options.list_prompts):
            print(scene.caption())
        return

    if options.prompts:
        scenes = [shapes.parse_caption(line) for line in options.prompts.read_text().splitlines() if line.strip()]
        pictures = read_pictures(options.pictures, len(scenes))
    else:
        scenes = shapes.held_out_scenes(options.count)
        if options.self_check:
            pictures = draw_truth(scenes, options.seed)
        else:
            prompts = [scene.caption() for scene in scenes]
            pictures = generate(options, prompts)

    verdicts = [judge(picture, scene) for picture, scene in zip(pictures, scenes)]
    result = report(scenes, verdicts)
    print_table(result)
    if options.grid:
        save_grid(pictures, options.grid)
    if options.json:
        details = [{"prompt": scene.caption(), **verdict} for scene, verdict in zip(scenes, verdicts)]
        options.json.write_text(json.dumps({"rates": result, "verdicts": details}, indent=2) + "\n")


if __name__ == "__main__":
    main()
