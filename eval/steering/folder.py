"""The folder of a run that made pictures of prompts, steered by a reward or not: what is in it, and reading it back.

OUT/request.json config.yaml    what was asked
OUT/items/NNNNNN-SSS.npz        all of an item: prompt number, sample number
OUT/images/NNNNNN-SSS.png       its kept latents decoded, if that was wanted
OUT/items.jsonl                 a line an item
OUT/result.json                 written last
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.latents.disk import replace
from encode_pipeline.records import Pixels
from eval.parts import RESULT
from eval.steering.prompt_sets import SAMPLES, Prompt

TASK = "steering"
ITEMS, IMAGES, LINES, CONFIG = "items", "images", "items.jsonl", "config.yaml"
SCORE = "score:"
"""Before a reward's name, in an item's file."""

Floats = npt.NDArray[np.float32]


def item_name(number: int, sample: int) -> str:
    """How the item of a prompt's number and a sample's is called in every file."""
    return f"{number:06d}-{sample:03d}"


def write_image(out: Path, item: str, pixels: Pixels) -> None:
    """Writes the picture of an item, whole or not at all."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    replace(out / IMAGES / f"{item}.png", file.getvalue())


@dataclass(frozen=True)
class Item:
    """All that is kept of one picture on its way from noise, before anything is decoded."""

    about: dict[str, Any]
    """As its line in items.jsonl, with the prompt's number and the sample's."""
    noise: Floats
    """Of the iterate that was kept: channels, height, width; as are the latents."""
    latents: Floats
    """In the scale of the diffusion model."""
    first: Floats
    """The latents before any update."""
    loss: Floats
    """Of the rewards alone, at each iteration."""
    norm: Floats
    """Of the noise."""
    scores: dict[str, Floats] = field(default_factory=dict)
    """Of each reward, at each iteration."""
    previews: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 0, 0, 3), np.uint8))
    """The latents as small pictures, at some iterations: count, height, width, colour."""
    preview_at: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """At which."""

    def to_bytes(self) -> bytes:
        """The item as its file holds it: the same bytes for the same item."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "about": np.frombuffer(json.dumps(self.about).encode(), np.uint8),
            "noise": self.noise,
            "latents": self.latents,
            "first": self.first,
            "loss": self.loss,
            "norm": self.norm,
            **{SCORE + name: values for name, values in self.scores.items()},
            "previews": self.previews,
            "preview_at": self.preview_at,
        }
        file = io.BytesIO()
        np.savez(file, **arrays)  # type: ignore[arg-type]
        return file.getvalue()

    @classmethod
    def from_file(cls, path: Path) -> Item:
        """The item in a file; a missing or damaged one is a failed check that names it."""
        try:
            with np.load(path) as file:
                arrays = {name: file[name] for name in file.files}
            about = json.loads(arrays.pop("about").tobytes())
            scores = {name.removeprefix(SCORE): arrays.pop(name) for name in list(arrays) if name.startswith(SCORE)}
            return cls(about, scores=scores, **arrays)
        except FileNotFoundError:
            raise CheckFailed(f"{path}: not there") from None
        # A flipped bit may also ask for a password, or for more memory than there is.
        except (
            ValueError,
            KeyError,
            TypeError,
            OSError,
            EOFError,
            RuntimeError,
            MemoryError,
            zipfile.BadZipFile,
        ) as error:
            raise CheckFailed(f"{path}: damaged: {' '.join(str(error).split())}") from None


@dataclass(frozen=True)
class SteeredRun:
    """A finished run, read back."""

    path: Path
    result: dict[str, Any]
    lines: list[dict[str, Any]]
    """What items.jsonl says of each item, in order."""

    @classmethod
    def open(cls, folder: str | Path) -> SteeredRun:
        """The run in a folder; refuses one that is not finished, or whose lines are not all there."""
        path = Path(folder).expanduser()
        place = path / RESULT
        if not path.is_dir():
            raise RequestError(f"{path}: no such folder")
        if not place.is_file():
            raise RequestError(f"{path}: no {RESULT}: not a finished run; the command that began it goes on with it")
        try:
            result = json.loads(place.read_bytes())
            lines = [json.loads(line) for line in (path / LINES).read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError, RecursionError) as error:
            raise CheckFailed(f"{path}: damaged: {' '.join(str(error).split())}") from None
        if not isinstance(result, dict) or result.get("task") != TASK:
            kind = result.get("task") if isinstance(result, dict) else type(result).__name__
            raise RequestError(f"{place}: is of {kind!r}, not of a run that made pictures ({TASK!r})")
        prompts, reasons = result.get("prompts"), result.get("not_comparable")
        if not isinstance(prompts, dict) or prompts.get("kind") not in SAMPLES or not isinstance(reasons, list):
            raise CheckFailed(f"{place}: damaged: does not say of what prompts its pictures are")
        if wrong := [number for number, line in enumerate(lines, 1) if not _is_line(line)]:
            raise CheckFailed(f"{path / LINES}: line {wrong[0]}: damaged: not an item")
        if result.get("n") != len(lines):
            raise CheckFailed(f"{path / LINES}: {len(lines)} items, {RESULT} says {result.get('n')}")
        return cls(path, result, lines)

    def read(self, name: str) -> Item:
        """All of an item, by its name."""
        return Item.from_file(self.path / ITEMS / f"{name}.npz")

    def image(self, name: str) -> Path:
        """The picture of an item; a failed check if it was not decoded."""
        return self._pictures([name])[0]

    def images(self) -> list[Path]:
        """The pictures of all items, in their order; a failed check if one is missing."""
        return self._pictures([line["item"] for line in self.lines])

    def _pictures(self, names: Sequence[str]) -> list[Path]:
        paths = [self.path / IMAGES / f"{name}.png" for name in names]
        if missing := [path for path in paths if not path.is_file()]:
            broken = {line["item"]: line["broken"] for line in self.lines if "broken" in line}
            why = broken.get(missing[0].stem, "the command that made the run decodes it with decode=true")
            others = f" ({len(missing)} of {len(paths)} are not)" if len(paths) > 1 else ""
            raise CheckFailed(f"{missing[0]}: not there{others}: {why}")
        return paths

    def items(self) -> Iterator[tuple[Prompt, int, str]]:
        """Prompt, sample number and name of each item, in order."""
        for line in self.lines:
            number, _, sample = str(line["item"]).partition("-")
            yield Prompt(int(number), line["prompt"], line["about"]), int(sample), line["item"]


def _is_line(line: Any) -> bool:
    """Whether it says whose picture it is of which prompt."""
    if not isinstance(line, dict) or not isinstance(line.get("prompt"), str) or not isinstance(line.get("about"), dict):
        return False
    return re.fullmatch(r"\d{6,}-\d{3,}", str(line.get("item"))) is not None
