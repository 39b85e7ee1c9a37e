"""Named places at which a test makes something go wrong on purpose: `failpoint("before-commit", shard)`.

Traps come as a JSON list in the environment, so that every process of a run knows them:

    LATENTS_FAILPOINTS='[{"at": "mid-shard", "do": "kill", "shard": "00001*", "times": 1, "marks": "/tmp/marks"}]'

Without them a failpoint is one look at an empty tuple.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from pydantic import Field

from encode_pipeline.latents.command import RequestError, Settings, build

ENVIRONMENT = "LATENTS_FAILPOINTS"
POLL = 0.01

Place = Literal[
    "before-read",
    "mid-shard",
    "after-build",
    "after-payload",
    "before-commit",
    "after-commit",
    "after-seal",
    "after-verify",
    "after-compare",
    "before-promotion",
    "after-promotion",
    "before-current",
    "after-lease",
    "before-freeing",
    "after-freeing",
    "mid-freeing",
]


class Trap(Settings):
    """What goes wrong, where, for which shards and how often, counted over all processes."""

    at: Place
    do: Literal["kill", "hold", "pass", "EIO", "ENOSPC"]
    """Kill this process, hold it until MARKS/release is there, only leave the mark, or fail as the system would."""
    shard: str = "*"
    times: int | None = Field(1, gt=0)
    marks: Path
    """Folder in which the n-th time that a trap is met leaves a file PLACE-n holding the shard and the process."""

    def spring(self, shard: str) -> None:
        if not fnmatchcase(shard, self.shard) or not self._leave_mark(shard):
            return
        if self.do == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.do == "hold":
            while not (self.marks / "release").exists():
                time.sleep(POLL)
        if code := getattr(errno, self.do, None):
            raise OSError(code, f"{os.strerror(code)} (failpoint {self.at})")

    def _leave_mark(self, shard: str) -> bool:
        """Whether this time is one of those wanted."""
        number = 0
        while self.times is None or number < self.times:
            number += 1
            try:
                with (self.marks / f"{self.at}-{number}").open("x") as mark:
                    mark.write(f"{shard} {os.getpid()}\n")
            except FileExistsError:
                continue
            return True
        return False


def read_traps(text: str) -> tuple[Trap, ...]:
    try:
        return tuple(build(Trap, trap) for trap in json.loads(text))
    except (ValueError, TypeError, RequestError) as error:
        raise RequestError(f"{ENVIRONMENT}: {error}") from None


_traps = read_traps(os.environ.get(ENVIRONMENT) or "[]")


def failpoint(place: Place, shard: str) -> None:
    """Where a trap for this place and shard springs, if one is set."""
    for trap in _traps:
        if trap.at == place:
            trap.spring(shard)


def set_traps(*traps: Trap) -> None:
    """Sets the traps of this process instead of those from its environment."""
    global _traps
    _traps = traps
