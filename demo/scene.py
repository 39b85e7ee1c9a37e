"""One picture of the world, its caption, and what is really in it, from (seed, split, index) alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from demo.captions import caption_one, caption_two, place_phrase, size_word
from demo.drawing import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    Pixels,
    Placement,
    add_grain,
    draw_background,
    draw_object,
    outlines,
)

CLASS_NAMES: tuple[str, ...] = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)
SPLITS = ("train", "test", "warts", "pairs-train", "pairs-held-out")
"""A split's place here goes into the seed: append only."""
SIDES = (512, 544, 576, 640, 704, 768)


@dataclass(frozen=True)
class Picture:
    """A picture, its caption, and what is really in it."""

    image: Pixels  # H×W×3, RGB
    caption: str
    truth: dict[str, Any]


def render(seed: int, split: str, index: int, two_object_share: float = 0.15) -> Picture:
    """Picture `index` of a split: the same one for the same arguments, always."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    two_before = two_after = 0
    if split == "train":
        # Spread evenly instead of drawn: the one-object pictures in between stay exactly balanced.
        two_before, two_after = int(index * two_object_share), int((index + 1) * two_object_share)
    if two_after > two_before:
        return _render_two(rng)
    return render_one(_class_of(seed, split, index - two_before), rng)


def _class_of(seed: int, split: str, ordinal: int) -> str:
    """Every run of 48 one-object pictures has each class once, in a shuffled order of its own."""
    block, place = divmod(ordinal, len(CLASS_NAMES))
    order = np.random.default_rng([seed, SPLITS.index(split), block, 48]).permutation(len(CLASS_NAMES))
    return CLASS_NAMES[int(order[place])]


def _draw_size(rng: np.random.Generator) -> tuple[int, int]:
    width, height = (int(side) for side in rng.choice(SIDES, 2))
    return width, height


def _place(
    class_name: str, diameter: float, area: tuple[float, float, float, float], rng: np.random.Generator
) -> Placement:
    """The object somewhere wholly inside `area` (left, top, right, bottom)."""
    color, shape = class_name.split()
    turn, stretch = rng.uniform(-14, 14), rng.uniform(0.88, 1.14)
    placed = Placement(color, shape, 0.0, 0.0, diameter / 2, turn, stretch)
    corners = np.concatenate(outlines(placed))
    lowest = np.array(area[:2]) - corners.min(axis=0)
    highest = np.array(area[2:]) - corners.max(axis=0)
    # The mean of two draws: centres lean to the middle a little.
    lean = (rng.random(2) + rng.random(2)) / 2
    x, y = lowest + lean * np.maximum(highest - lowest, 0)
    return Placement(color, shape, float(x), float(y), diameter / 2, turn, stretch)


def render_one(class_name: str, rng: np.random.Generator) -> Picture:
    """A picture of one object of a class, the rest by chance."""
    width, height = _draw_size(rng)
    side = min(width, height)
    share = rng.uniform(0.44, 0.74)
    left, top = (width - side) / 2, (height - side) / 2
    margin = 0.02 * side
    area = (left + margin, top + margin, left + side - margin, top + side - margin)
    placed = _place(class_name, share * side, area, rng)
    background = str(rng.choice(BACKGROUNDS))
    image = _paint(width, height, background, [placed], rng)
    x, y = (placed.center_x - width / 2) * 2 / side, (placed.center_y - height / 2) * 2 / side
    caption = caption_one(class_name, size_word(share), place_phrase(x, y), background, rng)
    truth = _truth([placed], None, background)
    return Picture(image, caption, truth)


def _render_two(rng: np.random.Generator) -> Picture:
    width, height = _draw_size(rng)
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    relation = str(rng.choice(["left of", "above"]))
    half = side / 2
    if relation == "left of":
        areas = [(left, top, left + half, top + side), (left + half, top, left + side, top + side)]
    else:
        areas = [(left, top, left + side, top + half), (left, top + half, left + side, top + side)]
    first, second = (str(name) for name in rng.choice(CLASS_NAMES, 2, replace=False))
    placed = []
    for name, (x0, y0, x1, y1) in zip((first, second), areas, strict=True):
        margin = 0.02 * side
        inside = (x0 + margin, y0 + margin, x1 - margin, y1 - margin)
        placed.append(_place(name, rng.uniform(0.30, 0.42) * side, inside, rng))
    background = str(rng.choice(BACKGROUNDS))
    image = _paint(width, height, background, placed, rng)
    caption = caption_two(first, second, relation, background, rng)
    return Picture(image, caption, _truth(placed, relation, background))


def _paint(width: int, height: int, background: str, objects: list[Placement], rng: np.random.Generator) -> Pixels:
    pixels = draw_background(background, width, height, rng)
    for placed in objects:
        draw_object(pixels, placed, rng)
    return add_grain(pixels, rng.uniform(0, 6), rng)


def _truth(objects: list[Placement], relation: str | None, background: str) -> dict[str, Any]:
    listed = [
        {"class_name": f"{o.color} {o.shape}", "color": o.color, "shape": o.shape, "box": o.box()} for o in objects
    ]
    only = listed[0] if len(listed) == 1 else {"class_name": None, "color": None, "shape": None}
    truth = {name: only[name] for name in ("class_name", "color", "shape")}
    return truth | {"objects": listed, "relation": relation, "background": background}
