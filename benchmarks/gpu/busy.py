"""For how much of a run the device was computing, as it noted itself.

On a GPU two events stand round each replay of the encoder's graph, on its own stream: the GPU writes down when it comes
to them. That costs two time stamps a batch, where a profiler slows every launch down and nvidia-smi only samples.
Copies, which run beside, are not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from encode_pipeline.encoder import LatentEncoder

Span = tuple[float, float]
"""When something began and ended, in seconds from some moment."""


class Busy:
    """The spans in which an encoder's device computes, from now on."""

    def __init__(self, encoder: LatentEncoder) -> None:
        backend: Any = encoder._backend
        self._events: list[tuple[Any, Any]] = []
        self._is_gpu = encoder.device.type == "cuda"
        if self._is_gpu:
            backend._graph = SimpleNamespace(replay=self._watched(backend._graph))
        else:
            backend._one = self._timed(backend._one)

    def spans(self) -> list[Span]:
        """Since the last time that this was asked."""
        events = list(self._events)
        self._events.clear()
        if not self._is_gpu or not events:
            return events
        torch.cuda.synchronize()
        zero = events[0][0]
        return [(zero.elapsed_time(begun) / 1000, zero.elapsed_time(ended) / 1000) for begun, ended in events]

    def _watched(self, graph: torch.cuda.CUDAGraph) -> Callable[[], None]:
        def replay() -> None:
            begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begun.record()
            graph.replay()
            ended.record()
            self._events.append((begun, ended))

        return replay

    def _timed(self, one: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            begun = time.perf_counter()
            made = one(*arguments)
            self._events.append((begun, time.perf_counter()))
            return made

        return timed


def covered(spans: Sequence[Span]) -> float:
    """Seconds in which at least one of the spans was under way."""
    total, reached = 0.0, float("-inf")
    for begun, ended in sorted(spans):
        total += max(0.0, ended - max(begun, reached))
        reached = max(reached, ended)
    return total


def share_between_ends(spans: Sequence[Span]) -> float:
    """Of the time from the first beginning to the last end."""
    return covered(spans) / (max(ended for _, ended in spans) - min(begun for begun, _ in spans))
