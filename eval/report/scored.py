"""Scores that benchmarks gave to pictures, read back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from eval.report.runs import PREDICTIONS, Read, Run, damaged, read_config, read_lines, read_result
from eval.report.setups import Setup

TASKS = ("geneval", "compbench", "i2p", "cultural")
VERBS = {"geneval": "geneval", "compbench": "compbench", "i2p": "i2p", "cultural": "i2p"}
"""The verb of each task."""
NEEDED = {"geneval": "mean", "i2p": "all"}
"""What the metrics of a task cannot lack."""


class Result(Read):
    """A result.json."""

    task: Literal["geneval", "compbench", "i2p", "cultural"]
    metrics: dict[str, float | None]
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    n: int = Field(gt=0)
    run: Setup
    scorer: dict[str, Any] = Field(default_factory=dict)
    not_comparable: list[str]
    clip_score: float | None = None
    aesthetic: float | None = None


@dataclass(frozen=True, kw_only=True)
class Scored(Run):
    """A finished scoring."""

    result: Result

    @property
    def scores(self) -> dict[str, float | None]:
        """By column."""
        return {"clip_score": self.result.clip_score, "aesthetic": self.result.aesthetic, **self.result.metrics}

    @property
    def verb(self) -> str:
        return VERBS[self.result.task]

    @property
    def way(self) -> str:
        return "scored"

    @property
    def subject(self) -> str:
        prompts = self.result.run.prompts
        return prompts.text if prompts else f"{self.result.n:,} pictures of {self.result.run.folder}"

    @property
    def weights(self) -> str:
        return self.result.run.weights


def read(folder: Path, written: dict[str, Any]) -> Scored:
    """The scores in a folder; those that are damaged are refused."""
    result = read_result(folder, Result, written)
    needed = NEEDED.get(result.task)
    if not result.metrics or (needed and needed not in result.metrics):
        raise damaged(folder, f"no {needed or 'score'} in its metrics")
    read_lines(folder / PREDICTIONS, {}, result.n)
    return Scored(folder=folder, written=written, config=read_config(folder), result=result)
