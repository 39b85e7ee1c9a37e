"""How a run is going: the same facts on standard error and as JSON lines beside the store."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO

from encode_pipeline.latents.status import Tally, moment
from encode_pipeline.latents.storage import Storage
from encode_pipeline.records import ShardFailure, ShardReport

TICK = 10.0
"""Seconds between lines while no shard is finished."""
WINDOW = 60.0
"""Seconds that the rate is taken over."""


class RunLog:
    """JSON lines of one run, in the store. Object stores cannot append, so every minute's lines are a file.

    Nothing depends on it: when it cannot be written, that is said once and the run goes on.
    """

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage, self._folder = storage, folder
        self._lines: list[str] = []
        self._files = 0
        self._failed = False
        self._since = time.monotonic()
        self._lock = threading.Lock()

    def write(self, event: str, facts: Mapping[str, Any]) -> None:
        with self._lock:
            self._lines.append(json.dumps({"at": moment(time.time()), "event": event, **facts}))
            if time.monotonic() - self._since >= WINDOW:
                self._publish()

    def close(self) -> None:
        with self._lock:
            self._publish()

    def _publish(self) -> None:
        if self._lines:
            self._files += 1
            text = "".join(line + "\n" for line in self._lines)
            try:
                self._storage.create(f"{self._folder}/{self._files:06d}.jsonl", text.encode())
            except Exception as error:
                if not self._failed:
                    reason = " ".join(str(error).split()) or type(error).__name__
                    print(f"the log of this run is not complete: {reason}", file=sys.stderr, flush=True)
                self._failed = True
        self._lines.clear()
        self._since = time.monotonic()


class Progress:
    """Collects what engines report, and tells a person and the log about it."""

    def __init__(self, shards: int, views: int, log: RunLog | None = None, out: TextIO | None = None) -> None:
        self.shards, self.tally = shards, Tally(views)
        self.lost_races = 0
        self.failures: list[ShardFailure] = []
        self._log, self._out = log, out or sys.stderr
        self._started = self._spoke = time.monotonic()
        self._latents = 0
        self._recent = deque([(self._started, 0)])
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def tell(self, latents: int) -> None:
        """Counts latents as they are made, long before their shard is finished."""
        with self._lock:
            now = time.monotonic()
            self._latents += latents
            self._recent.append((now, self._latents))
            while self._recent[0][0] < now - WINDOW and len(self._recent) > 2:
                self._recent.popleft()

    def add(self, outcome: ShardReport | ShardFailure) -> None:
        """Counts a finished shard and says where the run stands."""
        if isinstance(outcome, ShardFailure):
            with self._lock:
                self.failures.append(outcome)
            facts = {"source": outcome.source.uri, "error": outcome.error, "attempts": outcome.attempts}
            self._say(f"given up on after {outcome.attempts} attempt(s): {outcome.error}", "failure", facts)
            return
        with self._lock:
            self.tally.add(outcome.commit)
            self.lost_races += not outcome.won
        commit = outcome.commit
        facts = {"shard": commit.shard, "read": commit.read, "encoded": commit.encoded, "rejected": commit.rejected}
        self._say(self._line(), "shard", {**facts, "rescued": commit.rescued, "seconds": commit.made_by["seconds"]})

    def summary(self) -> dict[str, Any]:
        return {
            "shards": {"done": self.tally.done, "failed": len(self.failures), "done_by_others": self.lost_races},
            **self.tally.to_dict(),
            "seconds": round(self.elapsed, 2),
            "latents_per_second": round(self.tally.encoded * self.tally.views / max(self.elapsed, 1e-9), 2),
            "failures": [{"source": f.source.uri, "error": f.error, "attempts": f.attempts} for f in self.failures],
        }

    def __enter__(self) -> Progress:
        self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._ticker.join()
        if self._log is not None:
            self._log.write("end" if kind is None else "broken off", self.summary())
            self._log.close()

    def _tick(self) -> None:
        while not self._over.wait(1.0):
            if time.monotonic() - self._spoke >= TICK:
                self._say(self._line(), "progress", {"latents": self._latents, "latents_per_second": self._rate()})

    def _rate(self) -> float:
        """Latents a second of the last minute, those of unfinished shards included."""
        with self._lock:
            (then, before), latents = self._recent[0], self._latents
        return round((latents - before) / max(time.monotonic() - then, 1e-9), 2)

    def _line(self) -> str:
        rate = self._rate()
        with self._lock:
            return self._line_of(self.tally, rate)

    def _line_of(self, tally: Tally, rate: float) -> str:
        finished = tally.done + len(self.failures)
        left = tally.seconds_left(self.shards - finished, rate)
        parts = [
            f"shard {finished}/{self.shards}",
            f"{tally.encoded} encoded, {tally.rejected.total()} rejected{_most(tally.rejected)}",
            f"{rate:.1f} latents/s",
            f"{clock_text(left)} left" if left is not None else f"{clock_text(self.elapsed)} so far",
        ]
        if share := tally.to_dict()["time_share"]:
            parts.append("time: " + ", ".join(f"{stage} {part:.0%}" for stage, part in list(share.items())[:3]))
        return "  ".join(parts)

    def _say(self, text: str, event: str, facts: Mapping[str, Any]) -> None:
        self._spoke = time.monotonic()
        print(text, file=self._out, flush=True)
        if self._log is not None:
            self._log.write(event, facts)


def clock_text(seconds: float) -> str:
    """A duration as people read it: 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _most(rejected: Mapping[str, int]) -> str:
    if not rejected:
        return ""
    named = sorted(rejected.items(), key=lambda item: -item[1])[:3]
    return " (" + ", ".join(f"{count} {reason}" for reason, count in named) + ")"
