"""Ways of doing the same thing, timed in turns, so that a busy moment meets all of them."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Spent:
    """What one turn took."""

    wall: float
    cpu: float
    """Of this process and of workers that ended within the turn; what else the machine does is not in it."""


By = Literal["wall", "cpu"]


def paired(
    ways: Mapping[str, Callable[[], int]], rounds: int, unit: str = "samples", by: By = "wall"
) -> dict[str, Any]:
    """Items a second of each way, and the ratio of every way to the first, as median, least and most."""
    items: dict[str, int] = {}

    def counting(name: str) -> Callable[[], None]:
        def work() -> None:
            items[name] = ways[name]()

        return work

    spent = in_turns({name: counting(name) for name in ways}, rounds)
    second = "second" if by == "wall" else "CPU second"
    return {"rounds": rounds, "unit": f"{unit} a {second}", **compare(items, spent, by)}


def compare(items: Mapping[str, int], spent: Mapping[str, list[Spent]], by: By) -> dict[str, Any]:
    """Rates and ratios, round by round.

    The ratio by CPU time stands beside the other: where the two differ much, the machine was busy with something else.
    """
    first = next(iter(spent))
    results = {}
    for name, turns in spent.items():
        seconds = [getattr(turn, by) for turn in turns]
        pairs = list(zip(turns, spent[first], strict=True))
        share = items[name] / items[first]
        results[name] = {
            "items": items[name],
            "per_second": spread([items[name] / value for value in seconds]),
            "ratio": spread([share * getattr(base, by) / getattr(turn, by) for turn, base in pairs]),
            "cpu_ratio": spread([share * base.cpu / turn.cpu for turn, base in pairs]),
            "wall_seconds": [round(turn.wall, 3) for turn in turns],
            "cpu_seconds": [round(turn.cpu, 3) for turn in turns],
        }
    return {"compared_with": first, "ways": results}


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


def spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }
