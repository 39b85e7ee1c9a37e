"""Ways of doing the same thing on a device: opened one by one, so that one that fails is left behind, then timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.figures import Better, Figure, compared
from benchmarks.gpu.device import PeakMemory, wait_for
from benchmarks.gpu.notes import Clock, Notes

Work = Callable[[], float]
"""Does a turn's work and returns how much it was."""


@dataclass(frozen=True)
class Way:
    name: str
    work: Work
    peak_gb: float | None
    """Memory that opening it and a first turn took, above what others hold."""


def opened(part: str, name: str, open_it: Callable[[], Work], notes: Notes, device: torch.device) -> list[Way]:
    """The way after a first turn, which is not timed; none where that failed, with the reason in the notes."""
    peak = PeakMemory(device)
    try:
        work = open_it()
        work()
        wait_for(device)
    except Exception as error:  # of compilers, drivers and libraries: the other ways go on
        notes.give_up(f"{part}: {name}", error)
        return []
    return [Way(name, work, peak.gigabytes())]


def rates_of(
    part: str, ways: Sequence[Way], rounds: int, notes: Notes, clock: Clock, device: torch.device
) -> dict[str, tuple[float, ...]]:
    """Work a second of each way, round by round; none begins that would end, like the one before it, after the time.

    A way that fails now, as for memory that the others hold, is left behind with its reason.
    """
    rates: dict[str, list[float]] = {way.name: [] for way in ways}
    before = 0.0
    for number in range(rounds):
        left = clock.left()
        if number and left < before - left:
            break
        before = left
        for way in ways:
            if way.name not in rates:
                continue
            try:
                wait_for(device)
                started = time.perf_counter()
                done = way.work()
                wait_for(device)
                rates[way.name].append(done / (time.perf_counter() - started))
            except Exception as error:
                notes.give_up(f"{part}: {way.name}", error)
                del rates[way.name]
    return {name: tuple(values) for name, values in rates.items()}


def rate_figures(
    ways: Sequence[Way], rates: Mapping[str, Sequence[float]], unit: str, better: Better = "more"
) -> Iterator[Figure]:
    """The rate of each way that has one, compared with the first, and its memory."""
    timed = [way for way in ways if way.name in rates]
    for way in timed:
        base = Figure(timed[0].name, unit, tuple(rates[timed[0].name]), better)
        yield compared(way.name, unit, rates[way.name], base, better)
    for way in timed:
        if way.peak_gb is not None:
            yield Figure(f"{way.name}: peak memory", "GB", (way.peak_gb,), "less")


def share_figure(name: str, rates: Sequence[float], of: Sequence[float], unit: str = "share") -> Figure:
    """One rate as a share of another, round by round."""
    return Figure(name, unit, tuple(one / whole for one, whole in zip(rates, of, strict=True)))
