"""Preference pairs of the demo's world, as parquet like Pick-a-Pic's: the picture that matches the caption wins.

The other picture differs in shape, in colour or in both. In some pairs both match: a tie. A few have no label.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from demo.captions import ONE_OBJECT
from demo.drawing import COLORS, SHAPES
from demo.image_tar import jpeg_bytes
from demo.scene import CLASS_NAMES, SPLITS, render_one
from encode_pipeline.latents.command import Settings

WORDINGS = tuple(text for text in ONE_OBJECT if text.count("{") == 1)
"""Those that name the class alone: whatever else a picture shows, it matches or does not."""
KINDS = {"shape": 0.4, "colour": 0.25, "both": 0.2, "tie": 0.15}
"""In what the pictures of a pair differ, and how often."""
UNLABELLED = 0.04
ROW_GROUP = 50


class DemoPairs(Settings):
    """How many preference pairs, and where they go."""

    out: Path = Field(Path("runs/demo/pairs"), description="folder for train.parquet and held-out.parquet")
    train: int = Field(1200, gt=0, description="pairs to learn from")
    held_out: int = Field(300, gt=0, description="pairs to judge by")
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class Choice:
    """A pair before its pictures are drawn."""

    kind: str
    caption: str
    classes: tuple[str, str]
    labels: tuple[float, float]
    has_label: bool


def write_demo_pairs(config: DemoPairs) -> dict[str, Any]:
    """Writes both files; the same ones for the same settings."""
    config.out.mkdir(parents=True, exist_ok=True)
    written: dict[str, Any] = {}
    for split, count in (("train", config.train), ("held-out", config.held_out)):
        path = config.out / f"{split}.parquet"
        choices = [choose(config.seed, f"pairs-{split}", index) for index in range(count)]
        _write(path, config.seed, f"pairs-{split}", choices)
        written[split] = str(path)
        written[f"{split}_kinds"] = dict(Counter(choice.kind for choice in choices))
    return written


def choose(seed: int, split: str, index: int) -> Choice:
    """Pair `index` of a split: the same one for the same arguments, always."""
    rng = _rng(seed, split, index)
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    right = CLASS_NAMES[rng.integers(len(CLASS_NAMES))]
    color, shape = right.split()
    other_color, other_shape = (
        str(rng.choice([name for name in names if name not in (color, shape)])) for names in (COLORS, SHAPES)
    )
    wrong = {
        "shape": f"{color} {other_shape}",
        "colour": f"{other_color} {shape}",
        "both": f"{other_color} {other_shape}",
        "tie": right,
    }[kind]
    winner = int(rng.integers(2))
    caption = WORDINGS[rng.integers(len(WORDINGS))].format(c=right)
    labels = (0.5, 0.5) if kind == "tie" else (1.0 - winner, float(winner))
    return Choice(kind, caption, (wrong, right) if winner else (right, wrong), labels, rng.random() >= UNLABELLED)


def _write(path: Path, seed: int, split: str, choices: list[Choice]) -> None:
    prompts = Counter(choice.caption for choice in choices)
    unfinished = path.with_name(f".{path.name}.unfinished")
    writer = None
    for start in range(0, len(choices), ROW_GROUP):
        some = range(start, min(start + ROW_GROUP, len(choices)))
        table = pa.Table.from_pylist([_row(seed, split, index, choices[index], prompts) for index in some])
        writer = writer or pq.ParquetWriter(unfinished, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
    unfinished.replace(path)


def _row(seed: int, split: str, index: int, choice: Choice, prompts: Counter[str]) -> dict[str, Any]:
    pictures = [
        jpeg_bytes(render_one(name, _rng(seed, split, index, side)).image) for side, name in enumerate(choice.classes)
    ]
    return {
        "are_different": True,
        "caption": choice.caption,
        "has_label": choice.has_label,
        "jpg_0": pictures[0],
        "jpg_1": pictures[1],
        "label_0": choice.labels[0],
        "label_1": choice.labels[1],
        "num_example_per_prompt": prompts[choice.caption],
        "ranking_id": index,
        "user_id": 0,
    }


def _rng(seed: int, split: str, *numbers: int) -> np.random.Generator:
    return np.random.default_rng([seed, SPLITS.index(split), *numbers])
