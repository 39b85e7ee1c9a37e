"""What has been measured so far, what has not and why, and how much time is left for the rest."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch

from benchmarks.figures import Figure, Measured, under


class Notes:
    """Figures and details as they come, so that a part that fails loses nothing of the others."""

    def __init__(self, details: dict[str, Any]) -> None:
        self.details = details
        self.failed: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self._figures: list[Figure] = []

    def add(self, part: str, figures: Iterable[Figure]) -> None:
        self._figures += under(part, list(figures))

    def give_up(self, name: str, error: BaseException) -> None:
        """Keeps in one line why there is no figure: for want of something here, or as it failed."""
        if isinstance(error, ImportError):
            self.left_out[name] = f"needs what is not installed here: {error}"
        elif is_too_large(error):
            self.left_out[name] = "out of memory"
        else:
            said = " ".join(str(error).split())
            self.failed[name] = f"{type(error).__name__}: {said}"[:300] if said else type(error).__name__

    def measured(self) -> Measured:
        left_out = [f"{name}: {reason}" for name, reason in self.left_out.items()]
        return Measured(tuple(self._figures), {**self.details, "left_out": left_out, "failed": dict(self.failed)})


def is_too_large(error: BaseException | None) -> bool:
    """Whether it began with a GPU's memory coming to its end, whatever others made of that on its way."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        error = error.__context__
    return False


class Clock:
    """Seconds that may be spent, as a part of those that another clock still has."""

    def __init__(self, seconds: float, within: Clock | None = None) -> None:
        self._end = time.perf_counter() + (seconds if within is None else min(seconds, within.left()))

    def left(self) -> float:
        return self._end - time.perf_counter()

    def has(self, seconds: float, name: str, notes: Notes) -> bool:
        """Whether there is time for something; if not, it is named among what was left out."""
        left = self.left()
        if left < seconds:
            notes.left_out[name] = f"takes about {seconds:.0f} s, and {max(0.0, left):.0f} s were left"
        return left >= seconds
