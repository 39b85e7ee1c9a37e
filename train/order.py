"""Which sample stands where: numbers alone, no file opened.

A store's samples form an endless stream, epoch after epoch. In each epoch its shards are shuffled and cut into
windows of a few shards, and the samples of a window are shuffled, so that only so many shards are needed at once.
A batch takes from each stream its share, and any batch can be had without those before it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Key = TypeVar("Key")
Value = TypeVar("Value")
Numbers = npt.NDArray[np.int64]
KEPT = 2
"""Of epochs and of windows, orders in memory: what one batch usually touches."""


@dataclass(frozen=True, order=True)
class Window:
    """A few shards of an epoch, whose samples are mixed."""

    epoch: int
    number: int


@dataclass(frozen=True)
class Piece:
    """Successive samples of a stream, all of one window."""

    window: Window
    place: int
    """Of the first of them in the window."""
    tars: Numbers
    indices: Numbers
    """Of the samples, in their tars."""


@dataclass(frozen=True)
class _Epoch:
    tars: Numbers
    """In the order of this epoch."""
    ends: Numbers
    """Samples up to the end of each tar."""
    bounds: Numbers
    """The number of the first tar of each window, and of that after the last."""
    window_ends: Numbers
    """Samples up to the end of each window."""


class Stream:
    """The samples of one store, from any place of the endless stream on.

    `sizes` are the samples of each shard; a shard has a tar for each view, and tar `shard * views + view` holds it.
    """

    def __init__(self, sizes: Numbers, views: int, mixed: bool, mix: int, seed: Sequence[int]) -> None:
        self._sizes, self._views, self._mixed, self._seed = sizes, views, mixed, list(seed)
        self.samples = int(sizes.sum()) * (views if mixed else 1)
        """In an epoch."""
        units = len(sizes) * (views if mixed else 1)
        windows = -(-units // mix)
        self._bounds = np.arange(windows + 1) * units // windows
        self._epochs: dict[int, _Epoch] = {}
        self._orders: dict[Window, Numbers] = {}
        self._lock = threading.Lock()

    def pieces(self, first: int, last: int) -> Iterator[Piece]:
        """The samples from one place of the stream to another."""
        while first < last:
            number, place = divmod(first, self.samples)
            with self._lock:
                epoch = self._epoch(number)
                window = Window(number, int(np.searchsorted(epoch.window_ends, place, "right")))
                order = self._order(window)
            start = int(epoch.window_ends[window.number]) - len(order)
            taken = order[place - start : place - start + last - first]
            units = np.searchsorted(epoch.ends, start + taken, "right")
            starts = epoch.ends[units] - self._sizes_of(epoch.tars[units])
            yield Piece(window, place - start, epoch.tars[units], start + taken - starts)
            first += len(taken)

    def tars(self, window: Window) -> Numbers:
        """The tars of a window."""
        with self._lock:
            epoch = self._epoch(window.epoch)
        return epoch.tars[epoch.bounds[window.number] : epoch.bounds[window.number + 1]]

    def after(self, window: Window) -> tuple[int, Window]:
        """The window that follows, and the place of the stream at which it begins."""
        with self._lock:
            end = int(self._epoch(window.epoch).window_ends[window.number])
        if window.number + 2 < len(self._bounds):
            return window.epoch * self.samples + end, Window(window.epoch, window.number + 1)
        return (window.epoch + 1) * self.samples, Window(window.epoch + 1, 0)

    def _epoch(self, number: int) -> _Epoch:
        if number not in self._epochs:
            order = permutation(len(self._sizes) * (self._views if self._mixed else 1), [*self._seed, number])
            tars = order if self._mixed else order * self._views + number % self._views
            ends = np.cumsum(self._sizes_of(tars))
            window_ends = ends[self._bounds[1:] - 1]
            _keep(self._epochs, number, _Epoch(tars, ends, self._bounds, window_ends))
        return self._epochs[number]

    def _order(self, window: Window) -> Numbers:
        if window not in self._orders:
            ends = self._epoch(window.epoch).window_ends
            samples = int(ends[window.number] - (ends[window.number - 1] if window.number else 0))
            seed = [*self._seed, window.epoch, window.number + 1]  # 0 would give the seed of the epoch again
            _keep(self._orders, window, permutation(samples, seed))
        return self._orders[window]

    def _sizes_of(self, tars: Numbers) -> Numbers:
        return self._sizes[tars // self._views]


class Shares:
    """How many samples of each store a batch has: whole numbers, exactly in proportion as batches go on."""

    def __init__(self, weights: Sequence[Fraction], batch_size: int) -> None:
        whole = lcm(*(weight.denominator for weight in weights))
        self._weights = [int(weight * whole) for weight in weights]
        self._batch_size = batch_size
        self._order = sorted(range(len(weights)), key=lambda store: (self._weights[store], -store))

    def before(self, number: int) -> list[int]:
        """The samples of each store in all batches before this one.

        From the smallest weight on, each takes its part of what is left, rounded down, and the largest the rest:
        so no store ever has to give back, however small the batches.
        """
        counts = [0] * len(self._weights)
        samples, weight = number * self._batch_size, sum(self._weights)
        for store in self._order[:-1]:
            counts[store] = samples * self._weights[store] // weight
            samples, weight = samples - counts[store], weight - self._weights[store]
        counts[self._order[-1]] = samples
        return counts


def permutation(count: int, seed: Sequence[int]) -> Numbers:
    """The numbers below `count` in an order that the seed decides, for all versions of numpy.

    Of numpy's randomness only the raw bits are promised to stay; its own permutations are not.
    """
    bits = np.random.PCG64(np.random.SeedSequence(list(seed))).random_raw(count)
    return np.argsort(bits, kind="stable").astype(np.int64, copy=False)


def _keep(kept: dict[Key, Value], key: Key, value: Value) -> None:
    while len(kept) >= KEPT:
        del kept[next(iter(kept))]
    kept[key] = value
