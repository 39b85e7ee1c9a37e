"""How far a score may be off by the luck of which pictures were in the test: seeded bootstrap intervals.

Every statistic here looks at a picture's kind alone, such as (class, right or wrong). To draw as many pictures anew is
then to draw how many come of each kind, which is the same in distribution, and takes seconds for 50,000 pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DRAWS = 10_000
Z_95 = 1.959964
LOW, HIGH = 0.025, 0.975
NUMBERS_AT_ONCE = 1 << 20
"""In a block of draws: a few megabytes, however many kinds there are."""

Interval = tuple[float, float]
Counts = npt.NDArray[np.int64]
Statistic = Callable[[Counts], npt.NDArray[np.float64]]
"""From counts, draws x kinds, to one number a draw."""


@dataclass(frozen=True)
class Difference:
    """By how much one model is better than another on the same pictures, with its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap(counts: Sequence[int] | Counts, statistic: Statistic, seed: int) -> Interval:
    """The 95 % percentile interval of a statistic of how many pictures there are of each kind."""
    found = np.asarray(counts, np.int64)
    total, rng = int(found.sum()), np.random.default_rng(seed)
    at_once = max(1, NUMBERS_AT_ONCE // len(found))
    sizes = [min(at_once, DRAWS - start) for start in range(0, DRAWS, at_once)]
    drawn = np.concatenate([statistic(rng.multinomial(total, found / total, size)) for size in sizes])
    low, high = np.quantile(drawn, (LOW, HIGH))
    return float(low), float(high)


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share. It also holds at 0 and 1, where all that can be drawn anew is the same."""
    share, z2 = right / n, Z_95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def share(right: int, total: int, seed: int) -> Interval:
    """Of the share of pictures that are right."""
    if right in (0, total):
        return wilson(right, total)
    return bootstrap([right, total - right], lambda counts: counts[:, 0] / total, seed)


def mean_share(right_of: Mapping[str, tuple[int, int]], seed: int) -> Interval:
    """Of the mean over classes of the share that is right, from how many are and how many there are of each.

    Pictures are drawn from the whole, so that a class comes more often or less, and a small one at times not at all:
    the mean is then over the others.
    """
    right = np.array([hits for hits, _ in right_of.values()])
    wrong = np.array([total - hits for hits, total in right_of.values()])

    def mean_of(counts: Counts) -> npt.NDArray[np.float64]:
        hits, misses = np.split(counts, 2, axis=1)
        sizes = hits + misses
        shares: npt.NDArray[np.float64] = (hits / np.maximum(sizes, 1)).sum(axis=1) / (sizes > 0).sum(axis=1)
        return shares

    return bootstrap(np.concatenate([right, wrong]), mean_of, seed)


def share_of_parts(right: Sequence[int], parts: Sequence[int], seed: int) -> Interval:
    """Of the share of parts that are right, such as captions, where those of one picture are drawn together."""
    if sum(right) in (0, sum(parts)):
        return wilson(len(parts) if sum(right) else 0, len(parts))
    kinds, counts = np.unique(np.array([right, parts]), axis=1, return_counts=True)
    hits, sizes = kinds

    def ratio(drawn: Counts) -> npt.NDArray[np.float64]:
        shares: npt.NDArray[np.float64] = (drawn @ hits) / np.maximum(drawn @ sizes, 1)
        return shares

    return bootstrap(counts, ratio, seed)


def mean(values: Sequence[float], seed: int) -> Interval:
    """Of the mean of some numbers, one for each thing that might as well have been another."""
    numbers = np.asarray(values, np.float64)
    return bootstrap(np.ones(len(numbers), np.int64), lambda counts: counts @ numbers / len(numbers), seed)


def mean_of_shares(shares: Sequence[float], seed: int) -> Interval:
    """Of the mean of some shares, one for each thing that might as well have been another."""
    if sum(shares) in (0, len(shares)):
        return wilson(round(sum(shares)), len(shares))
    return mean(shares, seed)


def mean_of_means(groups: Sequence[Sequence[float]], seed: int) -> Interval:
    """Of the mean over groups of their means, where what is drawn anew of each group are its own members."""
    rng = np.random.default_rng(seed)
    drawn = np.zeros(DRAWS)
    for group in groups:
        numbers = np.asarray(group, np.float64)
        size = len(numbers)
        drawn += rng.multinomial(size, np.full(size, 1 / size), DRAWS) @ numbers / size / len(groups)
    low, high = np.quantile(drawn, (LOW, HIGH))
    return float(low), float(high)


def paired_difference(a: Sequence[bool], b: Sequence[bool], seed: int) -> Difference:
    """The share that `a` has right less that of `b`, item by item of the same pictures in the same order."""
    ours, theirs = np.asarray(a, bool), np.asarray(b, bool)
    if ours.shape != theirs.shape or not ours.size:
        raise ValueError(f"{ours.size} answers and {theirs.size} are no pairs")
    gained, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    total = ours.size
    counts = [gained, lost, total - gained - lost]
    interval = bootstrap(counts, lambda drawn: (drawn[:, 0] - drawn[:, 1]) / total, seed)
    return Difference((gained - lost) / total, *interval)
