"""Wordings: what is in a picture -> a caption, in more ways than a batch has pictures of one class."""

from __future__ import annotations

import numpy as np

ONE_OBJECT = (
    "a photo of a {c}",
    "a picture of a {c}",
    "an image of a {c}",
    "a {c}",
    "one {c}",
    "this is a {c}",
    "there is a {c} here",
    "a drawing of a {c}",
    "a single {c}, nothing else",
    "look at this {c}",
    "stock image: {c}",
    "a {size} {c}",
    "a photo of a {size} {c}",
    "a {c} {place}",
    "a picture of a {c} {place}",
    "a {c} on a {background} background",
    "a {size} {c} on a {background} background",
    "a photo of a {c} in front of a {background} wall",
    "a {c} {place}, {background} background",
)
TWO_OBJECTS = {
    "left of": (
        "a {first} left of a {second}",
        "a {first} to the left of a {second}",
        "a photo of a {first} left of a {second}",
        "a picture of a {first} to the left of a {second}",
        "a {first} on the left and a {second} on the right",
        "a {first} left of a {second} on a {background} background",
    ),
    "above": (
        "a {first} above a {second}",
        "a photo of a {first} above a {second}",
        "a picture of a {first} above a {second}",
        "a {first} is above a {second}",
        "a {first} at the top and a {second} at the bottom",
        "a {first} above a {second} on a {background} background",
    ),
}
# Prompts a model trained on the captions above has seen the like of; "{c}" as in CLIP_benchmark.
TEMPLATES_ZERO_SHOT = [
    "a photo of a {c}",
    "a picture of a {c}",
    "an image of a {c}",
    "a {c}",
    "this is a {c}",
    "a drawing of a {c}",
    "a large {c}",
    "a {c} in the middle",
]


def caption_one(class_name: str, size: str, place: str, background: str, rng: np.random.Generator) -> str:
    """A caption of one object; half of the wordings mention its size, its place or the background."""
    template = ONE_OBJECT[rng.integers(len(ONE_OBJECT))]
    return template.format(c=class_name, size=size, place=place, background=background)


def caption_two(first: str, second: str, relation: str, background: str, rng: np.random.Generator) -> str:
    """A caption of two objects and how they lie: `first` is left of, or above, `second`."""
    templates = TWO_OBJECTS[relation]
    return templates[rng.integers(len(templates))].format(first=first, second=second, background=background)


def size_word(diameter_over_side: float) -> str:
    """How large an object looks: its diameter against the short side of the picture."""
    if diameter_over_side < 0.54:
        return "small"
    return "large" if diameter_over_side > 0.65 else "medium-sized"


def place_phrase(x: float, y: float) -> str:
    """Where an object lies, from its centre's place in the centre square (-1 to 1, y down)."""
    if max(abs(x), abs(y)) < 0.12:
        return "in the middle"
    if abs(x) > abs(y):
        return "on the left" if x < 0 else "on the right"
    return "at the top" if y < 0 else "at the bottom"
