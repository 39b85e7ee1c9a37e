"""What GenEval calls a right picture, given what a detector has found in it: its thresholds, counts and positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
"""Scores above which an object counts; of prompts that ask for a number, the second."""
MOST = 16
"""Objects of a class, the surest first."""
MARGIN = 0.1
"""Of the sum of two objects' sides: so far apart they must be, for one to be beside the other."""
TOUCHING = 1e-3
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
COUNTING = "counting"

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""


@dataclass(frozen=True)
class Found:
    """An object that the detector has seen."""

    score: float
    box: Box
    mask: Any = field(default=None, compare=False, repr=False)
    """Which pixels are its own: height x width of truth values."""


Objects = Mapping[str, Sequence[Found]]
"""By class, the surest first; a class of which there is nothing may be missing."""
ColoursOf = Callable[[str, Sequence[Found]], Sequence[str]]
"""The colour of each object of a class."""


def objects_that_count(found: Objects, tag: str) -> dict[str, list[Found]]:
    """Those that are sure enough for a task, at most sixteen of a class, the surest first."""
    least = COUNTING_THRESHOLD if tag == COUNTING else THRESHOLD
    sure = {name: [one for one in objects if one.score > least] for name, objects in found.items()}
    return {
        name: sorted(objects, key=lambda one: one.score, reverse=True)[:MOST]
        for name, objects in sure.items()
        if objects
    }


def relations(one: Found, other: Found) -> set[str]:
    """Where the first object is as seen from the second; nothing where they are too close to say.

    The way between their centres is shortened, along each side, by a tenth of both objects' lengths; what is left
    must be more than half of the whole way.
    """
    way, rest = [], []
    for low, high in ((0, 2), (1, 3)):
        between = (one.box[low] + one.box[high]) / 2 - (other.box[low] + other.box[high]) / 2
        lengths = abs(one.box[high] - one.box[low]) + abs(other.box[high] - other.box[low])
        way.append(between)
        rest.append(math.copysign(max(abs(between) - MARGIN * lengths, 0.0), between))
    if all(abs(part) < TOUCHING for part in rest):
        return set()
    across, down = (part / math.hypot(*way) for part in rest)
    said = {"left of": across < -0.5, "right of": across > 0.5, "above": down < -0.5, "below": down > 0.5}
    return {name for name, holds in said.items() if holds}


def faults(record: Mapping[str, Any], objects: Objects, colours_of: ColoursOf) -> list[str]:
    """What is wrong with a picture of a prompt, by its record in GenEval's file; an empty list if it is right.

    Of each class only as many objects are looked at as are asked for, the surest: they must have the colour, and each
    of them must be where it should be, seen from each of those that it refers to.
    """
    wrong: list[str] = []
    matched: list[Sequence[Found] | None] = []
    for wanted in record.get("include", []):
        name, count = wanted["class"], wanted["count"]
        chosen = objects.get(name, [])[:count]
        fault = None if len(chosen) == count else f"{len(chosen)} of {count} {name}"
        if fault is None and "color" in wanted:
            fault = _miscoloured(name, colours_of(name, chosen), wanted["color"], count)
        if fault is None and "position" in wanted:
            where, target = wanted["position"]
            fault = _misplaced(name, chosen, where, matched[target])
        if fault is not None:
            wrong.append(fault)
        matched.append(chosen if fault is None else None)
    for unwanted in record.get("exclude", []):
        there = len(objects.get(unwanted["class"], []))
        if there >= unwanted["count"]:
            wrong.append(f"{there} {unwanted['class']}, of which there should be fewer than {unwanted['count']}")
    return wrong


def _miscoloured(name: str, colours: Sequence[str], wanted: str, count: int) -> str | None:
    return None if list(colours).count(wanted) >= count else f"{name} not {wanted} but {' and '.join(colours)}"


def _misplaced(name: str, chosen: Sequence[Found], wanted: str, targets: Sequence[Found] | None) -> str | None:
    if targets is None:
        return f"nothing for the {name} to be {wanted}"
    for one in chosen:
        for target in targets:
            seen = relations(one, target)
            if wanted not in seen:
                return f"{name} not {wanted} but {' and '.join(sorted(seen)) or 'too close to say'}"
    return None
