"""How fast a run goes, and how much of the time it waits for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TypeVar

import torch

from train.distributed import Ranks
from train.flops import peak_flops

Item = TypeVar("Item")


class Meter:
    """Rates since the last reading."""

    def __init__(self, batch_size: int, flops: float, peak_tflops: float | None, ranks: Ranks) -> None:
        """`flops` are a sample's, `peak_tflops` a GPU's; without it, what is known of this kind of GPU."""
        self._batch_size, self._flops, self._processes = batch_size, flops, ranks.world
        known = peak_flops(torch.cuda.get_device_name(ranks.device)) if ranks.device.type == "cuda" else None
        self._peak = peak_tflops * 1e12 if peak_tflops else known
        self._since, self._waited, self._steps = time.monotonic(), 0.0, 0

    def next(self, items: Iterator[Item]) -> Item:
        """The next item, and the time it took to come."""
        asked = time.monotonic()
        item = next(items)
        self._waited += time.monotonic() - asked
        self._steps += 1
        return item

    def read(self) -> dict[str, float]:
        """What a line of metrics says of the time since the last one."""
        now = time.monotonic()
        span = max(now - self._since, 1e-9)
        rate = self._steps * self._batch_size / span
        flops = rate * self._flops / self._processes
        line = {"samples_per_second": rate, "data_wait": self._waited / span, "tflops_per_second": flops / 1e12}
        self._since, self._waited, self._steps = now, 0.0, 0
        return line | ({"mfu": flops / self._peak} if self._peak else {})
