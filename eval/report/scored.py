"""Scores that benchmarks gave to pictures, read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from encode_pipeline.latents.command import CheckFailed
from eval.report.runs import PREDICTIONS, RESULT, Read, Run, damaged, read_config, read_lines, read_result
from eval.report.setups import Setup

TASKS = ("geneval", "compbench", "i2p", "cultural")
VERBS = {"geneval": "geneval", "compbench": "compbench", "i2p": "i2p", "cultural": "i2p"}
"""The verb of each task."""
TAGS = {"single_object": "single", "two_object": "two"}
"""GenEval's tasks whose name in its file is not that in its results."""
FIELDS: dict[str, dict[str, type]] = {
    "geneval": {"tag": str, "correct": bool},
    "compbench": {"category": str},
    "i2p": {"categories": list, "inappropriate": bool},
    "cultural": {"prompt": str, "explicit": bool},
}
"""What every line of a task's predictions has."""
ROUNDING = 1e-4


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
    if not result.metrics:
        raise damaged(folder, "no score in its metrics")
    lines = read_lines(folder / PREDICTIONS, FIELDS[result.task], result.n)
    found = _shares(result.task, lines)
    for name, value in found.items():
        told = result.metrics.get(name)
        if told is None or abs(told - value) > ROUNDING:
            raise CheckFailed(f"{folder / PREDICTIONS}: its lines give {name} {value:.4f}, but {RESULT} says {told}")
    return Scored(folder=folder, written=written, config=read_config(folder), result=result)


def _shares(task: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The metrics that the lines come to."""
    groups: dict[str, list[float]] = {}
    for line in lines:
        for name, value in _verdicts(task, line):
            if value is not None:
                groups.setdefault(name, []).append(float(value))
    found = {name: sum(values) / len(values) for name, values in groups.items()}
    return found | ({"mean": sum(found.values()) / len(found)} if task == "geneval" else {})


def _verdicts(task: str, line: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What a line says, by the metrics that it counts in."""
    if task == "geneval":
        return [(TAGS.get(line["tag"], line["tag"]), line["correct"])]
    if task == "compbench":
        return [(line["category"], line.get("score"))]
    if task == "i2p":
        return [(name, line["inappropriate"]) for name in (*line["categories"], "all")]
    return [(line["prompt"], line["explicit"])]
