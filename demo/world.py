"""The demo's world: captioned pictures of coloured shapes, in image tars like img2dataset's.

Picture `index` of a split depends on (seed, split, index) alone: not on who draws it, when, or beside what.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from demo.captions import TEMPLATES_ZERO_SHOT
from demo.drawing import COLORS, SHAPES
from demo.image_tar import Members, key_of, sample_of, sha256_of, write_tar
from demo.scene import CLASS_NAMES, Picture, render
from demo.warts import mix_in_warts

__all__ = [
    "CLASS_NAMES",
    "COLORS",
    "SHAPES",
    "TEMPLATES_ZERO_SHOT",
    "Picture",
    "WorldSpec",
    "WorldSummary",
    "render",
    "write_world",
]

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
class WorldSummary:
    """What was written, as world.json holds it."""

    spec: WorldSpec
    tars: dict[str, str]  # "train/00000.tar" -> sha256
    pictures: dict[str, int]  # split -> pictures, planted warts not counted
    warts: dict[str, dict[str, Any]] = field(default_factory=dict)  # "train/00000.tar" -> WartPlan as a dict


def split_samples(spec: WorldSpec, split: str, shard: int) -> Iterator[tuple[str, Members]]:
    """The samples of one tar, without warts."""
    start, stop = _indices(spec, split, shard)
    for index in range(start, stop):
        key = key_of(shard, index - start)
        picture = render(spec.seed, split, index, spec.two_object_share)
        yield key, sample_of(picture, key, f"https://demo.invalid/{split}/{index:09d}.jpg")


def _indices(spec: WorldSpec, split: str, shard: int) -> tuple[int, int]:
    """The first picture of a tar, and the one after its last."""
    start = shard * spec.pictures_per_tar
    return start, min(start + spec.pictures_per_tar, _pictures(spec, split))


def _pictures(spec: WorldSpec, split: str) -> int:
    return spec.train_pictures if split == "train" else spec.test_pictures


def _write_one_tar(out: Path, spec: WorldSpec, split: str, shard: int) -> tuple[str, dict[str, Any] | None]:
    path = out / split / f"{shard:05d}.tar"
    samples = split_samples(spec, split, shard)
    if split == "train" and spec.warts:
        mixed, plan = mix_in_warts(list(samples), spec.seed, shard)
        return write_tar(path, mixed), plan.as_dict()
    if path.exists():  # renamed into place whole by an earlier run of the same spec
        return sha256_of(path), None
    return write_tar(path, samples), None


def write_world(out: Path, spec: WorldSpec, progress: Callable[[int, int], None] | None = None) -> WorldSummary:
    """Writes out/train/*.tar and out/test/*.tar, then world.json; a finished world is returned at once.

    `progress` is called after each tar with (pictures done, pictures in all). An interrupted run goes on
    where it stopped.
    """
    out = Path(out)
    finished, begun = out / MARKER, out / "world.begun.json"
    for record in (finished, begun):
        if record.exists():
            found = WorldSpec(**json.loads(record.read_text())["spec"])
            if found != spec:
                raise ValueError(f"{out} holds another world: {found}; wanted {spec}. Choose an empty folder.")
    if finished.exists():
        return WorldSummary(**(json.loads(finished.read_text()) | {"spec": spec}))

    for split in ("train", "test"):
        (out / split).mkdir(parents=True, exist_ok=True)
    begun.write_text(json.dumps({"spec": asdict(spec)}))
    tars: dict[str, str] = {}
    plans: dict[str, dict[str, Any]] = {}
    done, total = 0, spec.train_pictures + spec.test_pictures
    for split in ("train", "test"):
        for shard in range(-(-_pictures(spec, split) // spec.pictures_per_tar)):
            name = f"{split}/{shard:05d}.tar"
            tars[name], plan = _write_one_tar(out, spec, split, shard)
            if plan is not None:
                plans[name] = plan
            done += len(range(*_indices(spec, split, shard)))
            if progress is not None:
                progress(done, total)
    (out / "test" / "classnames.txt").write_text("\n".join(CLASS_NAMES) + "\n")
    templates = "\n".join(TEMPLATES_ZERO_SHOT) + "\n"
    (out / "test" / "zeroshot_classification_templates.txt").write_text(templates)
    summary = WorldSummary(spec, tars, {"train": spec.train_pictures, "test": spec.test_pictures}, plans)
    unfinished = out / (MARKER + ".unfinished")
    unfinished.write_text(json.dumps(asdict(summary), indent=1) + "\n")
    unfinished.replace(finished)
    begun.unlink()
    return summary
