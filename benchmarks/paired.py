"""Ways of doing the same thing, timed in turns, so that a busy moment meets all of them."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.figures import Figure
from encode_pipeline.latents.command import CheckFailed


@dataclass(frozen=True)
class Spent:
    """What one turn took."""

    wall: float
    cpu: float
    """Of this process and of workers that ended within the turn; what else the machine does is not in it."""


By = Literal["wall", "cpu"]
TICK = 1e-4
"""Less CPU time than this the kernel does not tell."""


def paired(ways: Mapping[str, Callable[[], int]], rounds: int, unit: str = "samples", by: By = "wall") -> list[Figure]:
    """Items a second of each way, against the first."""
    items: dict[str, int] = {}

    def counting(name: str) -> Callable[[], None]:
        def work() -> None:
            items[name] = ways[name]()

        return work

    spent = in_turns({name: counting(name) for name in ways}, rounds)
    first = next(iter(ways))
    for name, count in items.items():
        if count != items[first]:
            raise CheckFailed(f"{name!r} did {count} of {items[first]} {unit}: other work is not compared")
    return compare(items[first], spent, unit, by)


def compare(items: int, spent: Mapping[str, Sequence[Spent]], unit: str, by: By = "wall") -> list[Figure]:
    """Rates, and ratios to the first way's, round by round, of ways that all did so many items."""
    first = next(iter(spent))
    figures = []
    for name, turns in spent.items():
        pairs = list(zip(turns, spent[first], strict=True))
        figures.append(
            Figure(
                name,
                f"{unit} a {'second' if by == 'wall' else 'CPU second'}",
                tuple(items / getattr(turn, by) for turn in turns),
                "more",
                first,
                tuple(getattr(base, by) / getattr(turn, by) for turn, base in pairs),
                tuple(base.cpu / max(turn.cpu, TICK) for turn, base in pairs),
            )
        )
    return figures


def in_turns(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[Spent]]:
    """What each work took in each round."""
    spent: dict[str, list[Spent]] = {name: [] for name in works}
    for work in works.values():
        work()  # once unmeasured: page cache, allocators, lazy imports
    for _ in range(rounds):
        for name, work in works.items():
            started, cpu_started = time.perf_counter(), cpu_seconds()
            work()
            spent[name].append(Spent(time.perf_counter() - started, cpu_seconds() - cpu_started))
    return spent


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
