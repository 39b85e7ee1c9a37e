"""What the paper published, from the data files in eval/paper."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "paper"


@dataclass(frozen=True)
class PublishedRow:
    name: str
    model: str | None
    """What this project calls the model: a recipe, or OpenCLIP's MODEL/TAG."""
    way: int | None
    """1: through pictures, 2: generated latents as they are; None for a model of pixels."""
    reward: str | None
    """What pictures were steered by, `clip` say; `none` if they were not; None where that is nothing we can make."""
    values: dict[str, float]
    """By column; those that were not measured are left out."""


@dataclass(frozen=True)
class PublishedTable:
    title: str
    source: str
    url: str
    columns: list[dict[str, str]]
    ways: dict[str, str]
    data: dict[str, Any]
    """What the numbers were measured on, as far as it tells whether others can stand beside them."""
    rows: list[PublishedRow]

    def row_of(self, model: str | None, way: int | None = None, reward: str | None = None) -> PublishedRow | None:
        """The row of the same model, measured in the same way or steered by the same reward."""
        asked = (model, way, reward)
        if asked == (None, None, None):
            return None
        return next((row for row in self.rows if (row.model, row.way, row.reward) == asked), None)


@cache
def published(name: str) -> PublishedTable:
    """A table of the paper, `table1` say, with this project's names of the models in it."""
    table = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    baselines = json.loads((FOLDER / "baselines.json").read_text(encoding="utf-8"))
    tags = {baseline["name"]: baseline["open_clip"] for baseline in baselines}
    keys = [column["key"] for column in table["columns"]]
    rows = []
    for row in table.pop("rows"):
        values = {key: value for key, value in zip(keys, row["values"], strict=True) if value is not None}
        model = row.get("model", tags.get(row["name"]))
        rows.append(PublishedRow(row["name"], model, row.get("way"), row.get("reward"), values))
    return PublishedTable(**table, rows=rows)
