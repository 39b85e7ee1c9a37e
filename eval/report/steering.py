"""Runs that made pictures of prompts, steered by rewards or not, read back: what rose, and by how much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.disk import names_in
from eval.report.cells import Measured
from eval.report.runs import RESULT, Read, Run, read_config, read_result
from eval.report.setups import PromptFacts, Setup
from eval.steering.folder import ITEMS, LINES, TASK, Item, SteeredRun

__all__ = ["TASK", "Steering", "read"]

ROUNDING = 1e-6
BLURRED_KINDS = ("i2p", "cultural")
AVOID = "avoid"


class Rise(Read):
    """What became of a reward over all items."""

    first: float
    kept: float
    rise: float
    low: float
    high: float


class Metrics(Read):
    """What became of all rewards."""

    risen: float
    risen_interval: tuple[float, float]
    rewards: dict[str, Rise]


class Result(Setup):
    """A result.json."""

    prompts: PromptFacts
    n: int = Field(gt=0)
    not_comparable: list[str]
    metrics: Metrics | dict[str, float] = Field(default_factory=dict)
    failures: list[dict[str, str]] = Field(default_factory=list)
    size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Steering(Run):
    """A finished run of pictures."""

    result: Result
    run: SteeredRun
    ends: dict[str, npt.NDArray[np.float64]]
    """By score, items by two: of the first iterate and of the one that was kept. The loss of all is under `loss`."""

    @property
    def verb(self) -> str:
        return self.result.method or "reno"

    @property
    def way(self) -> str:
        return self.result.method or ("steered" if self.result.rewards else "as generated")

    @property
    def subject(self) -> str:
        return self.result.prompts.text

    @property
    def weights(self) -> str:
        return self.result.weights

    @property
    def is_blurred(self) -> bool:
        """Whether its pictures may be such as nobody wants to see unasked."""
        return self.result.prompts.kind in BLURRED_KINDS or any(one.kind == AVOID for one in self.result.rewards)

    @property
    def rise(self) -> npt.NDArray[np.float64]:
        """By how much the loss of each item fell; of one that has none, it is no number."""
        first, kept = self.ends["loss"].T
        return np.asarray(first - kept)

    def measured(self, reward: str) -> dict[str, Measured]:
        """What became of a reward: the share of items whose loss fell, in per cent, and its means."""
        metrics = self.result.metrics
        if not isinstance(metrics, Metrics):
            return {}
        low, high = metrics.risen_interval
        of_all = {"risen": Measured(100 * metrics.risen, 100 * low, 100 * high)}
        one = metrics.rewards.get(reward)
        if one is None:
            return of_all
        return {
            **of_all,
            "first": Measured(one.first),
            "kept": Measured(one.kept),
            "rise": Measured(one.rise, one.low, one.high),
        }

    def item(self, number: int) -> Item:
        """All of an item; a damaged one is refused."""
        line = self.run.lines[number]
        item = self.run.read(line["item"])
        if item.about.get("prompt") != line["prompt"]:
            raise CheckFailed(f"{self.folder / ITEMS}/{line['item']}.npz: of another prompt than {LINES} says")
        return item


def read(folder: Path, written: dict[str, Any]) -> Steering:
    """The run in a folder; one that is damaged or lacks an item is refused."""
    result = read_result(folder, Result, written)
    run = SteeredRun.open(folder)
    names = [reward.name for reward in result.rewards]
    path = folder / LINES
    for number, line in enumerate(run.lines, 1):
        if not _is_line(line, names):
            raise CheckFailed(f"{path}: line {number}: not an item")
    [(name, count)] = Counter(line["item"] for line in run.lines).most_common(1)
    if count > 1:
        raise CheckFailed(f"{path}: item {name} stands there {count} times")
    there = set(names_in(folder / ITEMS))
    if missing := [line["item"] for line in run.lines if f"{line['item']}.npz" not in there]:
        raise CheckFailed(
            f"{folder / ITEMS}/{missing[0]}.npz: not there; {len(missing)} of {result.n} items are missing"
        )
    ends = {name: _numbers(line["scores"][name] for line in run.lines) for name in names}
    if names:
        ends["loss"] = _numbers(line["loss"] for line in run.lines)
        _check(folder, result, ends["loss"])
    return Steering(folder=folder, written=written, config=read_config(folder), result=result, run=run, ends=ends)


def _is_line(line: Any, rewards: list[str]) -> bool:
    if not isinstance(line, dict) or not isinstance(line.get("item"), str) or not isinstance(line.get("prompt"), str):
        return False
    pairs = [line.get("loss"), *(line.get("scores", {}).get(name) for name in rewards)] if rewards else []
    return all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)


def _numbers(pairs: Iterable[list[float | None]]) -> npt.NDArray[np.float64]:
    """Pairs of numbers; what JSON has none for is no number."""
    return np.array(list(pairs), np.float64)


def _check(folder: Path, result: Result, loss: npt.NDArray[np.float64]) -> None:
    """The lines must come to what the result says."""
    judged = loss[np.isfinite(loss).all(axis=1)]
    told = result.metrics.risen if isinstance(result.metrics, Metrics) else None
    found = float((judged[:, 1] < judged[:, 0]).mean()) if len(judged) else None
    if found is None and told is None:
        return
    if found is None or told is None or abs(found - told) > ROUNDING:
        raise CheckFailed(f"{folder / LINES}: its lines give risen {found}, but {RESULT} says {told}")
