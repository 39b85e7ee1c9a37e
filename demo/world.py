"""Captioned pictures of coloured shapes, and the image tars that hold them.

Picture `index` of a split depends on (seed, split, index) alone: not on who draws it, when, or beside what.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from demo.captions import TEMPLATES_ZERO_SHOT, caption_one, caption_two, place_phrase, size_word
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
from demo.image_tar import Members, jpeg_bytes, json_bytes, key_of, sha256_of, write_tar

__all__ = [
    "CLASS_NAMES",
    "COLORS",
    "SHAPES",
    "TEMPLATES_ZERO_SHOT",
    "Picture",
    "WorldSpec",
    "WorldSummary",
    "metadata_of",
    "render",
    "sample_of",
    "write_world",
]

CLASS_NAMES: tuple[str, ...] = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)
SPLITS = ("train", "test", "warts")  # a split's place here goes into the seed: append only
SIDES = (512, 544, 576, 640, 704, 768)
MARKER = "world.json"


@dataclass(frozen=True)
class WorldSpec:
    """All that decides the bytes of a world. Bad values raise here, before anything is drawn."""

    seed: int = 0
    train_pictures: int = 1200
    test_pictures: int = 480
    pictures_per_tar: int = 100
    two_object_share: float = 0.15
    warts: bool = False

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.train_pictures < 1:
            raise ValueError(f"train_pictures must be at least 1, got {self.train_pictures}")
        if self.test_pictures < 0 or self.test_pictures % len(CLASS_NAMES):
            raise ValueError(
                f"test_pictures must be a multiple of {len(CLASS_NAMES)} (every class as often),"
                f" got {self.test_pictures}"
            )
        if not 1 <= self.pictures_per_tar <= 9000:
            raise ValueError(f"pictures_per_tar must lie in 1..9000, got {self.pictures_per_tar}")
        if not 0 <= self.two_object_share < 1:
            raise ValueError(f"two_object_share must lie in [0, 1), got {self.two_object_share}")


@dataclass(frozen=True)
class Picture:
    """A picture, its caption, and what is really in it."""

    image: Pixels  # H×W×3, RGB
    caption: str
    truth: dict[str, Any]


@dataclass(frozen=True)
class WorldSummary:
    """What was written, as world.json holds it."""

    spec: WorldSpec
    tars: dict[str, str]  # "train/00000.tar" -> sha256
    pictures: dict[str, int]  # split -> pictures, planted warts not counted
    warts: dict[str, dict[str, Any]] = field(default_factory=dict)  # "train/00000.tar" -> WartPlan as a dict


def render(seed: int, split: str, index: int, two_object_share: float = 0.15) -> Picture:
    """Picture `index` of a split: the same one for the same arguments, always."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    two_before = two_after = 0
    if split == "train":
        # Spread evenly instead of drawn: the one-object pictures in between stay exactly balanced.
        two_before, two_after = int(index * two_object_share), int((index + 1) * two_object_share)
    if two_after > two_before:
        return _render_two(rng)
    return _render_one(_class_of(seed, split, index - two_before), rng)


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
    # The square root of the room there is on either side decides: centres lean to the middle a little.
    lean = (rng.random(2) + rng.random(2)) / 2
    x, y = lowest + lean * np.maximum(highest - lowest, 0)
    return Placement(color, shape, float(x), float(y), diameter / 2, turn, stretch)


def _render_one(class_name: str, rng: np.random.Generator) -> Picture:
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


def _paint(
    width: int, height: int, background: str, objects: list[Placement], rng: np.random.Generator
) -> Pixels:
    pixels = draw_background(background, width, height, rng)
    for placed in objects:
        draw_object(pixels, placed, rng)
    return add_grain(pixels, rng.uniform(0, 6), rng)


def _truth(objects: list[Placement], relation: str | None, background: str) -> dict[str, Any]:
    listed = [
        {"class_name": f"{o.color} {o.shape}", "color": o.color, "shape": o.shape, "box": o.box()}
        for o in objects
    ]
    only = listed[0] if len(listed) == 1 else {"class_name": None, "color": None, "shape": None}
    truth = {name: only[name] for name in ("class_name", "color", "shape")}
    return truth | {"objects": listed, "relation": relation, "background": background}


def metadata_of(picture: Picture, key: str, url: str) -> dict[str, Any]:
    """The .json member of a picture: img2dataset's fields, and the truth."""
    height, width = picture.image.shape[:2]
    # Any number in LAION's usual range will do, as long as the same picture gets the same one.
    similarity = 0.28 + 0.14 * (int(picture.image[::37, ::37].sum(dtype=np.int64)) % 997) / 997
    return {
        "url": url,
        "caption": picture.caption,
        "width": width,
        "height": height,
        "similarity": round(similarity, 6),
        "key": key,
        "status": "success",
        "class_name": picture.truth["class_name"],
        "truth": picture.truth,
    }


def sample_of(picture: Picture, key: str, url: str) -> Members:
    """A picture as the members of its sample."""
    return {
        "jpg": jpeg_bytes(picture.image),
        "txt": picture.caption.encode(),
        "json": json_bytes(metadata_of(picture, key, url)),
    }


def split_samples(spec: WorldSpec, split: str, shard: int) -> Iterator[tuple[str, Members]]:
    """The samples of one tar, without warts."""
    start = shard * spec.pictures_per_tar
    stop = min(start + spec.pictures_per_tar, _pictures(spec, split))
    for index in range(start, stop):
        key = key_of(shard, index - start)
        picture = render(spec.seed, split, index, spec.two_object_share)
        yield key, sample_of(picture, key, f"https://demo.invalid/{split}/{index:09d}.jpg")


def _pictures(spec: WorldSpec, split: str) -> int:
    return spec.train_pictures if split == "train" else spec.test_pictures


def _write_one_tar(out: Path, spec: WorldSpec, split: str, shard: int) -> tuple[str, dict[str, Any] | None]:
    from demo.warts import mix_in_warts  # which draws its pictures with this module

    cv2.setNumThreads(1)  # the processes are the parallelism
    path = out / split / f"{shard:05d}.tar"
    samples = split_samples(spec, split, shard)
    if split == "train" and spec.warts:
        mixed, plan = mix_in_warts(list(samples), spec.seed, shard)
        return write_tar(path, mixed), plan.as_dict()
    if path.exists():  # renamed into place whole by an earlier run of the same spec
        return sha256_of(path), None
    return write_tar(path, samples), None


def write_world(
    out: Path, spec: WorldSpec, progress: Callable[[int, int], None] | None = None
) -> WorldSummary:
    """Writes out/train/*.tar and out/test/*.tar, then world.json; a finished world is returned at once.

    `progress` is called with (tars done, tars in all). An interrupted run goes on where it stopped.
    """
    out = Path(out)
    finished, begun = out / MARKER, out / "world.begun.json"
    for record in (finished, begun):
        if record.exists():
            found = WorldSpec(**json.loads(record.read_text())["spec"])
            if found != spec:
                raise ValueError(
                    f"{out} holds another world: {found}; wanted {spec}. Choose an empty folder."
                )
    if finished.exists():
        return WorldSummary(**(json.loads(finished.read_text()) | {"spec": spec}))

    for split in ("train", "test"):
        (out / split).mkdir(parents=True, exist_ok=True)
    begun.write_text(json.dumps({"spec": asdict(spec)}))
    jobs = [
        (split, shard)
        for split in ("train", "test")
        for shard in range(-(-_pictures(spec, split) // spec.pictures_per_tar))
    ]
    tars: dict[str, str] = {}
    plans: dict[str, dict[str, Any]] = {}
    with ProcessPoolExecutor(max_workers=min(len(jobs), os.cpu_count() or 1)) as pool:
        futures = [pool.submit(_write_one_tar, out, spec, split, shard) for split, shard in jobs]
        for done, ((split, shard), future) in enumerate(zip(jobs, futures, strict=True), start=1):
            name = f"{split}/{shard:05d}.tar"
            tars[name], plan = future.result()
            if plan is not None:
                plans[name] = plan
            if progress is not None:
                progress(done, len(jobs))
    (out / "test" / "classnames.txt").write_text("\n".join(CLASS_NAMES) + "\n")
    templates = "\n".join(TEMPLATES_ZERO_SHOT) + "\n"
    (out / "test" / "zeroshot_classification_templates.txt").write_text(templates)
    summary = WorldSummary(spec, tars, {"train": spec.train_pictures, "test": spec.test_pictures}, plans)
    unfinished = out / (MARKER + ".unfinished")
    unfinished.write_text(json.dumps(asdict(summary), indent=1) + "\n")
    unfinished.replace(finished)
    begun.unlink()
    return summary
