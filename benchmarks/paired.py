"""Ways of doing the same thing, timed in turns, so that a busy moment meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

Clock = Callable[[], float]


def paired(
    ways: Mapping[str, Callable[[], int]], rounds: int, unit: str = "samples", clock: Clock = time.perf_counter
) -> dict[str, Any]:
    """Items a second of each way, and the ratio of every way to the first, as median, least and most."""
    items: dict[str, int] = {}

    def counting(name: str) -> Callable[[], None]:
        def work() -> None:
            items[name] = ways[name]()

        return work

    seconds = in_turns({name: counting(name) for name in ways}, rounds, clock)
    rates = {name: [items[name] / spent for spent in seconds[name]] for name in ways}
    first = next(iter(ways))
    ratios = {
        name: [rate / base for rate, base in zip(values, rates[first], strict=True)] for name, values in rates.items()
    }
    return {
        "rounds": rounds,
        "unit": f"{unit} a CPU second" if clock is time.process_time else f"{unit} a second",
        "compared_with": first,
        "ways": {
            name: {"items": items[name], "per_second": spread(rates[name]), "ratio": spread(ratios[name])}
            for name in ways
        },
    }


def in_turns(
    works: Mapping[str, Callable[[], object]], rounds: int, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds that each work took in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()  # once unmeasured: page cache, allocators, lazy imports
    for _ in range(rounds):
        for name, work in works.items():
            started = clock()
            work()
            seconds[name].append(clock() - started)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }
