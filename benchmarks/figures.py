"""What a benchmark leaves: figures, each with a value a round, and beside it what it was compared with."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Better = Literal["more", "less", "neither"]


@dataclass(frozen=True)
class Figure:
    """One measured thing. What is counted, not timed, has one value."""

    name: str
    unit: str
    rounds: tuple[float, ...]
    better: Better = "more"
    against: str | None = None
    """The name of the figure of the same benchmark that `ratios` are to."""
    ratios: tuple[float, ...] = ()
    """This to the other, round by round, so that a busy moment meets both."""
    cpu_ratios: tuple[float, ...] = ()
    """The same by CPU time: where it is far from the other, the machine was busy with something else."""
    exact: bool = False
    """Whether it is counted, and so the same every time."""

    def to_dict(self) -> dict[str, Any]:
        content = {
            "name": self.name,
            "unit": self.unit,
            "better": self.better,
            **spread(self.rounds),
            "rounds": [significant(value) for value in self.rounds],
        }
        if self.against is not None:
            content |= {"against": self.against, "ratio": spread(self.ratios)}
        if self.cpu_ratios:
            content["cpu_ratio"] = spread(self.cpu_ratios)
        if self.exact:
            content["exact"] = True
        return content


@dataclass(frozen=True)
class Measured:
    """All that one benchmark found."""

    figures: tuple[Figure, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    """What a reader may want to know beside the figures: sizes, shares of time, why a way was left out."""

    def and_again(self, other: Measured) -> Measured:
        """With the rounds of another time, which went through the same figures."""
        if [figure.name for figure in self.figures] != [figure.name for figure in other.figures]:
            raise ValueError("the second time measured other figures")
        pairs = zip(self.figures, other.figures, strict=True)
        return Measured(tuple(_joined(one, another) for one, another in pairs), other.details)

    def to_dict(self) -> dict[str, Any]:
        return {"figures": [figure.to_dict() for figure in self.figures], "details": dict(self.details)}


def _joined(one: Figure, another: Figure) -> Figure:
    if one.exact and one.rounds == another.rounds:
        return one
    return replace(
        one,
        rounds=one.rounds + another.rounds,
        ratios=one.ratios + another.ratios,
        cpu_ratios=one.cpu_ratios + another.cpu_ratios,
        exact=False,
    )


def under(part: str, figures: Sequence[Figure]) -> Iterator[Figure]:
    """The figures of one of several parts, `part: name`, so that no two of a benchmark share a name."""
    for figure in figures:
        against = None if figure.against is None else f"{part}: {figure.against}"
        yield replace(figure, name=f"{part}: {figure.name}", against=against)


def compared(name: str, unit: str, rounds: Sequence[float], base: Figure, better: Better = "more") -> Figure:
    """A figure against another of the same rounds."""
    ratios = tuple(value / first for value, first in zip(rounds, base.rounds, strict=True))
    return Figure(name, unit, tuple(rounds), better, base.name, ratios)


def counted(name: str, unit: str, value: float, better: Better = "neither") -> Figure:
    """What is the same whenever it is looked at: bytes, decibels, shares."""
    return Figure(name, unit, (float(value),), better, exact=True)


def measured_once(name: str, unit: str, value: float, better: Better = "less") -> Figure:
    """What took too long, or was seen in passing, and so states no noise of its own."""
    return Figure(name, unit, (float(value),), better)


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median, and the least and the most, which are what a figure states as its noise."""
    return {
        "median": significant(statistics.median(values)),
        "least": significant(min(values)),
        "most": significant(max(values)),
    }


def significant(value: float) -> float:
    """Five digits: more would be of the clock, not of the thing."""
    return float(f"{value:.5g}")
