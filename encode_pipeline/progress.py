"""How a run is going: the same facts on standard error and as JSON lines beside the store."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, TextIO

from encode_pipeline.latents.status import Tally, moment
from encode_pipeline.latents.storage import Storage, StorageError
from encode_pipeline.listener import Listener
from encode_pipeline.records import ShardFailure, ShardReport

TICK = 10.0
"""Seconds without a word on where the run stands, after which it is said again."""
WINDOW = 60.0
"""Seconds that the rate is taken over, and that a file of the log holds."""
ENDS = ("end", "broken off")
"""What the last line of a run's log is called."""
MOST_LINES = 100_000
"""That wait for a store which does not take them."""


class RunLog:
    """JSON lines of one run, in the store. Object stores cannot append, so every minute's lines are a file.

    Nothing depends on it: when it cannot be written, that is said once and the lines wait for the next minute.
    """

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage, self._folder = storage, folder
        self._lines: deque[str] = deque(maxlen=MOST_LINES)
        self._files = 0
        self._failed = False
        self._since = time.monotonic()
        self._lock = threading.Lock()

    def write(self, event: str, facts: Mapping[str, Any]) -> None:
        line = json.dumps({"at": moment(time.time()), "event": event, **facts}) + "\n"
        with self._lock:
            self._lines.append(line)

    def keep(self) -> None:
        """Brings a minute's lines into the store, which may take its time over it: nothing for an engine's thread."""
        if time.monotonic() - self._since >= WINDOW:
            self.close()

    def close(self) -> None:
        self._since = time.monotonic()
        with self._lock:
            lines = list(self._lines)
            self._lines.clear()
        if not lines:
            return
        try:
            self._files += 1  # whatever comes of it: one that failed may be there all the same
            self._storage.create(f"{self._folder}/{self._files:06d}.jsonl", "".join(lines).encode())
        except Exception as error:
            with self._lock:
                self._lines = deque([*lines, *self._lines], MOST_LINES)
            if not self._failed:
                reason = " ".join(str(error).split()) or type(error).__name__
                print(f"the log of this run is not complete: {reason}", file=sys.stderr, flush=True)
            self._failed = True


def ends_of_runs(storage: Storage) -> Iterator[dict[str, Any]]:
    """The summaries with which the runs in a version's log ended, or were broken off."""
    for path in sorted(storage.files("runs")):
        if not path.endswith(".jsonl"):
            continue
        for line in storage.read(path).splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                raise StorageError(f"{storage.url(path)}: damaged: not the log of a run") from None
            if event["event"] in ENDS:
                yield event


class Progress(Listener):
    """Collects what engines report, and tells a person and the log about it.

    `gpus` is what each encoder holds of a GPU, none on CPUs; with a price it becomes what the latents cost.
    """

    def __init__(
        self,
        shards: int,
        views: int,
        log: RunLog | None = None,
        out: TextIO | None = None,
        gpus: float = 0.0,
        gpu_hour_price: float | None = None,
    ) -> None:
        self.shards, self.tally = shards, Tally(views)
        self.lost_races = 0
        self.failures: list[ShardFailure] = []
        self._log, self._out = log, out or sys.stderr
        self._started = self._spoke = time.monotonic()
        self._gpus, self._price = gpus, gpu_hour_price
        self._encoders, self._most_encoders = 0, 0
        self._encoders_since, self._encoder_seconds = self._started, 0.0
        self._latents = self._committed = 0
        self._recent = deque([(self._started, 0)])
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._started

    @property
    def gpu_hours(self) -> float:
        """GPU-hours held so far, whether there was work or not: what is paid for."""
        with self._lock:
            seconds = self._encoder_seconds + self._encoders * (time.monotonic() - self._encoders_since)
        return seconds * self._gpus / 3600

    def live(self, encoders: int) -> None:
        """Takes note of how many encoders are up from now on."""
        with self._lock:
            now = time.monotonic()
            self._encoder_seconds += self._encoders * (now - self._encoders_since)
            self._encoders, self._encoders_since = encoders, now
            self._most_encoders = max(self._most_encoders, encoders)

    def event(self, name: str, text: str | None, /, **facts: Any) -> None:
        """Something that happened besides: a line for a person unless there is no text, and one for the log."""
        self._say(text, name, facts)

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
            self._committed += outcome.won * outcome.commit.encoded * self.tally.views
        commit = outcome.commit
        facts = {"shard": commit.shard, "read": commit.read, "encoded": commit.encoded, "rejected": commit.rejected}
        facts |= {"rescued": commit.rescued, "seconds": commit.made_by["seconds"], "encoders": self._encoders}
        self._say(self._line(), "shard", facts)

    def summary(self) -> dict[str, Any]:
        latents, hours = self._committed, self.gpu_hours  # what others have committed is none of this run's work
        return {
            "shards": {"done": self.tally.done, "failed": len(self.failures), "done_by_others": self.lost_races},
            **self.tally.to_dict(),
            "seconds": round(self.elapsed, 2),
            "latents_per_second": round(latents / max(self.elapsed, 1e-9), 2),
            **self._gpu_facts(),
            **({"cost": cost(hours, self._price, latents)} if hours and self._price else {}),
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
        self.live(0)
        if self._log is not None:
            self._log.write(ENDS[kind is not None], self.summary())
            self._log.close()

    def _tick(self) -> None:
        while not self._over.wait(1.0):
            if self._log is not None:
                self._log.keep()
            if time.monotonic() - self._spoke >= TICK:
                facts = {"latents": self._latents, "latents_per_second": self._rate(), "encoders": self._encoders}
                self._say(self._line(), "progress", facts | self._gpu_facts())

    def _gpu_facts(self) -> dict[str, float]:
        return {"gpu_hours": round(hours, 4)} if (hours := self.gpu_hours) else {}

    def _rate(self) -> float:
        """Latents a second of the last minute, those of unfinished shards included."""
        with self._lock:
            (then, before), latents = self._recent[0], self._latents
        return round((latents - before) / max(time.monotonic() - then, 1e-9), 2)

    def _line(self) -> str:
        rate, hours = self._rate(), self.gpu_hours
        with self._lock:
            self._spoke = time.monotonic()
            return self._line_of(self.tally, rate, hours)

    def _line_of(self, tally: Tally, rate: float, gpu_hours: float) -> str:
        finished = tally.done + len(self.failures)
        left = tally.seconds_left(self.shards - finished, rate)
        parts = [
            f"shard {finished}/{self.shards}",
            f"{tally.encoded} encoded, {tally.rejected.total()} rejected{_most(tally.rejected)}",
            f"{rate:.1f} latents/s" + (f" from {self._encoders} encoders" if self._most_encoders > 1 else ""),
            f"{clock_text(left)} left" if left is not None else f"{clock_text(self.elapsed)} so far",
        ]
        if gpu_hours and self._price:
            parts.append(cost_text(cost(gpu_hours, self._price, self._latents)))
        if share := tally.to_dict()["time_share"]:
            parts.append("time: " + ", ".join(f"{stage} {part:.0%}" for stage, part in list(share.items())[:3]))
        return "  ".join(parts)

    def _say(self, text: str | None, event: str, facts: Mapping[str, Any]) -> None:
        if text is not None:
            print(text, file=self._out, flush=True)
        if self._log is not None:
            self._log.write(event, facts)


def cost(gpu_hours: float, price: float, latents: int) -> dict[str, Any]:
    """What GPU-hours cost, in all and for a million latents; nobody knows the latter before there are any."""
    total = gpu_hours * price
    return {
        "gpu_hours": round(gpu_hours, 4),
        "price": price,
        "total": round(total, 4),
        "per_million_latents": round(total / latents * 1e6, 4) if latents else None,
    }


def cost_text(cost: Mapping[str, Any]) -> str:
    """A cost as people read it: $3.12 per million latents (4.20 GPU-hours at $2.49)."""
    each = cost["per_million_latents"]
    dollars = f"${cost['total']:.2f} so far" if each is None else f"${each:.2f} per million latents"
    return f"{dollars} ({cost['gpu_hours']:.2f} GPU-hours at ${cost['price']:g})"


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
