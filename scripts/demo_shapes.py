"""The little world of the demo model: scenes of one or two shapes, their captions, their pictures.

A *scene* is one or two shapes (size, colour, kind) on a plain background. One shape has a place in
the picture, two shapes have a relation to each other. Every scene has exactly one caption, for
example 'a large red circle above a small blue square on a yellow background'.

A fixed tenth of all captions, chosen by a hash of the text, is held out: training never sees them,
`measure_adherence.py` asks for nothing else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

PICTURE_SIZE = 128
"""Rows and columns of a picture, in pixels."""

COLOURS = {
    "red": (215, 40, 45),
    "orange": (245, 135, 30),
    "yellow": (245, 220, 60),
    "green": (40, 160, 70),
    "cyan": (80, 205, 225),
    "blue": (35, 70, 205),
    "purple": (140, 50, 170),
    "white": (240, 240, 240),
}
KINDS = ("circle", "square", "triangle", "star", "ring")
RADII = {"small": 15.0, "large": 26.0}
"""Radius of each size in pixels (of the circle around the shape, about)."""

PLACES = {
    "in the center": (0, 0),
    "at the top": (0, -1),
    "at the bottom": (0, 1),
    "on the left": (-1, 0),
    "on the right": (1, 0),
}
"""Where a lone shape is: the direction from the middle as (x, y), y downwards."""

RELATIONS = {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}
"""Where the first of two shapes is, seen from the second: (x, y), y downwards."""

OFFSET = 31.0
"""Distance in pixels from the picture's middle to a shape that is not central."""

TWO_SHAPE_FRACTION = 0.7
"""Two-shape captions are harder to learn, so training sees them more often."""

HELD_OUT_ONE_IN = 10


@dataclass(frozen=True)
class Shape:
    size: str
    colour: str
    kind: str

    def words(self) -> str:
        article = "an" if self.size[0] in "aeiou" else "a"
        return f"{article} {self.size} {self.colour} {self.kind}"


@dataclass(frozen=True)
class Scene:
    shapes: tuple[Shape, ...]
    where: str
    """A key of PLACES for one shape, of RELATIONS for two."""
    background: str

    def caption(self) -> str:
        article = "an" if self.background[0] in "aeiou" else "a"
        ground = f"on {article} {self.background} background"
        if len(self.shapes) == 1:
            return f"{self.shapes[0].words()} {self.where} {ground}"
        return f"{self.shapes[0].words()} {self.where} {self.shapes[1].words()} {ground}"


def parse_caption(caption: str) -> Scene:
    """The scene that has this caption; ValueError if there is none."""
    words = caption.lower().split()
    background = words[-2]
    head, middle = words[:4], " ".join(words[4:-4])
    first = Shape(*head[1:])
    if middle in PLACES:
        scene = Scene((first,), middle, background)
    else:
        relation, second = words[4:-8], words[-8:-4]
        scene = Scene((first, Shape(*second[1:])), " ".join(relation), background)
    if scene.caption() != " ".join(words):
        raise ValueError(f"not a caption of a scene: {caption!r}")
    return scene


def vocabulary() -> list[str]:
    """Every word that a caption can hold, in a fixed order."""
    phrases = [*RADII, *COLOURS, *KINDS, *PLACES, *RELATIONS, "a an on background"]
    return sorted({word for phrase in phrases for word in phrase.split()})


def is_held_out(caption: str) -> bool:
    digest = hashlib.sha256(caption.encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT_ONE_IN == 0


def random_scene(rng: np.random.Generator, shapes: int) -> Scene:
    """A uniformly drawn scene; no shape has the background's colour."""
    background = rng.choice(list(COLOURS))
    inks = [c for c in COLOURS if c != background]
    drawn = tuple(
        Shape(str(rng.choice(list(RADII))), str(rng.choice(inks)), str(rng.choice(KINDS)))
        for _ in range(shapes)
    )
    where = rng.choice(list(PLACES if shapes == 1 else RELATIONS))
    return Scene(drawn, str(where), str(background))


def training_scenes(rng: np.random.Generator, count: int) -> list[Scene]:
    """Scenes to train on: none of their captions is held out."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = random_scene(rng, 2 if rng.random() < TWO_SHAPE_FRACTION else 1)
        if not is_held_out(scene.caption()):
            scenes.append(scene)
    return scenes


def held_out_scenes(count: int, seed: int = 0) -> list[Scene]:
    """Distinct scenes with held-out captions, one-shape and two-shape in turn for as long as there
    are one-shape ones (there are fewer than 300; beyond 2 x 200 only two-shape ones follow)."""
    rng = np.random.default_rng(seed)
    scenes: dict[str, Scene] = {}
    while len(scenes) < count:
        one = len(scenes) % 2 == 0 and len(scenes) < 400
        scene = random_scene(rng, 1 if one else 2)
        if is_held_out(scene.caption()):
            scenes.setdefault(scene.caption(), scene)
    return list(scenes.values())


def draw(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The scene as float32 (3, H, W) in [0, 1], with a little jitter of place, size and colour."""
    picture = np.empty((3, PICTURE_SIZE, PICTURE_SIZE), np.float32)
    picture[:] = _jittered_colour(scene.background, rng)[:, None, None]
    if len(scene.shapes) == 1:
        directions = [PLACES[scene.where]]
        along, across = 5.0, 5.0
    else:
        x, y = RELATIONS[scene.where]
        directions = [(x, y), (-x, -y)]
        # Two large shapes must not touch: little play along the axis that they share.
        along, across = 2.0, 8.0
    for shape, (x, y) in zip(scene.shapes, directions):
        play = np.array([along, across] if x else [across, along])
        middle = (PICTURE_SIZE - 1) / 2 + OFFSET * np.array([x, y])
        centre = middle + rng.uniform(-1, 1, 2) * play
        radius = RADII[shape.size] + rng.uniform(-1.5, 1.5)
        _paint(picture, shape.kind, centre, radius, _jittered_colour(shape.colour, rng))
    return picture


def draw_batch(scenes: list[Scene], rng: np.random.Generator) -> np.ndarray:
    """Pictures of the scenes: (B, 3, H, W) in [0, 1]."""
    return np.stack([draw(scene, rng) for scene in scenes])


def coverage(kind: str, centre: np.ndarray, radius: float, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """How much of each pixel the shape covers, 0 to 1 (anti-aliased by its signed distance)."""
    x, y = np.meshgrid(columns - centre[0], rows - centre[1])
    return np.clip(0.5 - _signed_distance(kind, x, y, radius), 0.0, 1.0)


def bounding_box(kind: str) -> np.ndarray:
    """Edges of a shape of radius 1 around its centre: [[left, top], [right, bottom]]."""
    if kind in ("circle", "ring"):
        return np.array([[-1.0, -1.0], [1.0, 1.0]])
    if kind == "square":
        return 0.86 * np.array([[-1.0, -1.0], [1.0, 1.0]])
    corners = _corners(kind, 1.0)
    return np.stack([corners.min(axis=0), corners.max(axis=0)])


def _jittered_colour(name: str, rng: np.random.Generator) -> np.ndarray:
    return (np.array(COLOURS[name], np.float32) + rng.uniform(-6, 6, 3).astype(np.float32)) / 255


def _paint(picture: np.ndarray, kind: str, centre: np.ndarray, radius: float, colour: np.ndarray) -> None:
    reach = radius + 2
    x0, y0 = np.maximum(np.floor(centre - reach), 0).astype(int)
    x1, y1 = np.minimum(np.ceil(centre + reach) + 1, PICTURE_SIZE).astype(int)
    alpha = coverage(kind, centre, radius, np.arange(y0, y1), np.arange(x0, x1)).astype(np.float32)
    patch = picture[:, y0:y1, x0:x1]
    patch += alpha * (colour[:, None, None] - patch)


def _signed_distance(kind: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Distance in pixels to the shape's edge, negative inside."""
    if kind == "circle":
        return np.hypot(x, y) - radius
    if kind == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.86 * radius
    if kind == "ring":
        return np.abs(np.hypot(x, y) - 0.76 * radius) - 0.24 * radius
    return _polygon_distance(x, y, _corners(kind, radius))


def _corners(kind: str, radius: float) -> np.ndarray:
    if kind == "triangle":
        return radius * np.array([(0.0, -0.95), (1.0, 0.8), (-1.0, 0.8)])
    if kind == "star":
        angles = np.pi * np.arange(10) / 5
        spokes = radius * np.where(np.arange(10) % 2 == 0, 1.05, 0.45)
        return np.stack([spokes * np.sin(angles), -spokes * np.cos(angles)], axis=1)
    raise ValueError(f"unknown kind of shape: {kind!r}")


def _polygon_distance(x: np.ndarray, y: np.ndarray, corners: np.ndarray) -> np.ndarray:
    nearest = np.full(x.shape, np.inf)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0)):
        dx, dy = bx - ax, by - ay
        along = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1)
        nearest = np.minimum(nearest, (x - ax - along * dx) ** 2 + (y - ay - along * dy) ** 2)
        if ay != by:
            # Even-odd rule: a ray to the right crosses this edge.
            inside ^= ((ay > y) != (by > y)) & (x < ax + dx * (y - ay) / dy)
    return np.where(inside, -1.0, 1.0) * np.sqrt(nearest)
