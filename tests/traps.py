"""What a test waits for, and the traps that it sets: places where something goes wrong on purpose."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from encode_pipeline.latents.failpoints import ENVIRONMENT

PATIENCE = 240.0
"""Seconds after which a test that waits for something fails."""
T = TypeVar("T")


class Busy(Protocol):
    """Something that works while a test waits."""

    @property
    def over(self) -> bool: ...

    @property
    def end(self) -> object:
        """How it ended."""
        ...


def wait_for(what: str, condition: Callable[[], T], busy: Busy | None = None) -> T:
    """The first answer of a condition that is true. The wait fails if it is long, or what is busy has ended."""
    until = time.monotonic() + PATIENCE
    while not (answer := condition()):
        assert busy is None or not busy.over, f"it ended without {what}:\n{busy.end}"
        assert time.monotonic() < until, f"waited {PATIENCE:g} s for {what}"
        time.sleep(0.02)
    return answer


@dataclass(frozen=True)
class Mark:
    """Who met a trap."""

    shard: str
    process: int


class Trap:
    """A failpoint that was set for a test."""

    def __init__(self, folder: Path, at: str, do: str, shard: str, times: int | None) -> None:
        folder.mkdir()
        self.at, self.folder = at, folder
        self.facts = {"at": at, "do": do, "shard": shard, "times": times, "marks": str(folder)}

    def met(self) -> list[Mark]:
        """By whom it was met, in order."""
        files = sorted(self.folder.glob(f"{self.at}-*"), key=lambda file: int(file.name.rsplit("-", 1)[1]))
        lines = [line for file in files if (line := file.read_text()).endswith("\n")]
        return [Mark(words[0], int(words[1])) for words in map(str.split, lines)]

    def wait(self, count: int, busy: Busy) -> list[Mark]:
        """Those who met it, once there are so many."""
        wait_for(f"{count} at {self.at}", lambda: len(self.met()) >= count, busy)
        return self.met()

    def release(self) -> None:
        """Lets everybody go who is held, and who comes later."""
        (self.folder / "release").touch()

    def hold(self) -> None:
        """Holds whoever comes after a release."""
        (self.folder / "release").unlink()


class Traps:
    """The failpoints of a test, in the environment that drivers hand on to their encoders."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._monkeypatch, self._folder = monkeypatch, folder
        self._traps: list[Trap] = []

    def set(self, at: str, do: str, shard: str = "*", times: int | None = 1) -> Trap:
        trap = Trap(self._folder / f"trap-{len(self._traps)}", at, do, shard, times)
        self._traps.append(trap)
        self._monkeypatch.setenv(ENVIRONMENT, json.dumps([trap.facts for trap in self._traps]))
        return trap

    def lift(self) -> None:
        """Nothing goes wrong on purpose in what is started from now on."""
        self._monkeypatch.delenv(ENVIRONMENT)
