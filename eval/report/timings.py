"""Timings of steering, read back: where the time of an iteration goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from eval.report.runs import Read, Run, damaged, read_config, read_result
from eval.report.setups import RewardFacts, Setup

TASK = "timing"
PARTS = {
    "generator": ("Forward", "generator"),
    "decode": ("Forward", "decode"),
    "reward": ("Forward", "reward"),
    "backward reward": ("Backward", "reward"),
    "backward decode": ("Backward", "decode"),
    "backward generator": ("Backward", "generator"),
    "update": ("Noise", "update"),
}
"""Of an iteration, in the order in which they come: group and name."""


class TimedRow(Read):
    """One way to make pictures, timed."""

    name: str
    rewards: list[RewardFacts] = Field(default_factory=list)
    batch_size: int = 1
    seconds_per_iter: float = Field(gt=0)
    seconds_total: float = Field(gt=0)
    parts: dict[str, Any] = Field(default_factory=dict)

    def seconds_of(self, metric: str) -> float | None:
        """Of a whole iteration, of all, or of a part; None of a part that it does not have."""
        if metric in ("seconds_per_iter", "seconds_total"):
            return float(getattr(self, metric))
        way, _, part = metric.rpartition(" ")
        parts = self.parts.get(way) if way else self.parts
        return parts.get(part) if isinstance(parts, dict) else None


class TimedPair(Read):
    """How many times as long as with latents it takes with pixels."""

    latent: str
    pixel: str
    ratio: float
    low: float | None = None
    high: float | None = None
    saved_per_iter: float | None = None
    """Share of an iteration with pixels that one with latents does without."""
    decode_share: float | None = None
    """Share of an iteration with pixels that decoding takes, there and back."""


class Result(Read):
    """A result.json."""

    generator: dict[str, Any] = Field(default_factory=dict)
    rows: list[TimedRow] = Field(min_length=1)
    pairs: list[TimedPair] = Field(default_factory=list)
    hardware: dict[str, Any] = Field(default_factory=dict)
    iterations: int | None = None
    repeats: int | None = None
    not_comparable: list[str]


@dataclass(frozen=True, kw_only=True)
class Timing(Run):
    """A finished timing."""

    result: Result

    @property
    def verb(self) -> str:
        return "timing"

    @property
    def way(self) -> str:
        return "timed"

    @property
    def subject(self) -> str:
        return f"{self.device}, {self.result.generator.get('generator')}"

    @property
    def device(self) -> str:
        device = str(self.result.hardware.get("device"))
        return str(self.result.hardware.get("cpu") or device) if device == "cpu" else device

    def setup_of(self, row: TimedRow) -> Setup:
        """What a row is a timing of."""
        return Setup(generator=self.result.generator, rewards=row.rewards)

    @property
    def told(self) -> str:
        """How it was timed."""
        told = [(self.result.iterations, "iterations"), (self.result.repeats, "runs of each, taken in turn")]
        return ", ".join(f"{count} {what}" for count, what in told if count)

    @property
    def weights(self) -> str:
        return str(self.result.generator.get("weights_sha256", ""))


def read(folder: Path, written: dict[str, Any]) -> Timing:
    """The timing in a folder; one that is damaged is refused."""
    result = read_result(folder, Result, written)
    known = {row.name for row in result.rows}
    if unknown := [name for pair in result.pairs for name in (pair.latent, pair.pixel) if name not in known]:
        raise damaged(folder, f"a pair of {unknown[0]}, which no row times")
    return Timing(folder=folder, written=written, config=read_config(folder), result=result, name="Timing")
