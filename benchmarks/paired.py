"""Two ways of doing the same thing, timed in turns, so that a busy moment meets both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def paired(ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, Any]:
    """Items a second of each way, and the ratio of every way to the first, as median, least and most."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for work in ways.values():
        work()  # once unmeasured: page cache, allocators, lazy imports
    for _ in range(rounds):
        for name, work in ways.items():
            started = time.perf_counter()
            items = work()
            rates[name].append(items / (time.perf_counter() - started))
    first = next(iter(ways))
    ratios = {
        name: [rate / base for rate, base in zip(values, rates[first], strict=True)] for name, values in rates.items()
    }
    return {
        "rounds": rounds,
        "compared_with": first,
        "ways": {name: {"per_second": _spread(rates[name]), "ratio": _spread(ratios[name])} for name in ways},
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }
