"""Where a version stands and how it gets on, counted from plans, commits and failures alone."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from encode_pipeline.latents.commit import ShardCommit
from encode_pipeline.latents.store import Failure, Store, Version

RECENT = 600.0
"""Seconds of finished shards that the rate is taken from."""


@dataclass
class Tally:
    """The sum of some commits. Times are for people: they come from the writers' clocks and decide nothing."""

    views: int
    done: int = 0
    read: int = 0
    encoded: int = 0
    rescued: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    size: int = 0
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    _spans: deque[tuple[float, float, int]] = field(default_factory=deque)
    """When shards were begun and ended, and with how many latents; of those that a rate may still be taken from."""

    def add(self, commit: ShardCommit) -> None:
        self.done += 1
        self.read += commit.read
        self.encoded += commit.encoded
        self.rescued += commit.rescued
        self.rejected.update(commit.rejected)
        self.size += sum(payload.size for payload in commit.payloads)
        for stage, spent in _times(commit).items():
            self.seconds[stage] += spent
        began, ended = (_moment_of(commit.made_by.get(name)) for name in ("began", "ended"))
        if began is not None and ended is not None:
            self._spans.append((began, ended, commit.encoded * self.views))

    def rate(self, now: float) -> float | None:
        """Latents a second over the last minutes, or the last shards if those take longer; None if all is long ago.

        A shard's latents are taken as made evenly from its beginning to its end; what is unfinished is not known.
        """
        if not self._spans:
            return None
        latest = max(ended for _, ended, _ in self._spans)
        longest = max(ended - began for began, ended, _ in self._spans)
        if now - latest > max(RECENT, 2 * longest):
            return None
        since = latest - max(RECENT, 2 * longest)
        self._spans = deque(span for span in self._spans if span[1] >= since)
        made = sum(
            latents * (ended - max(began, since)) / max(ended - began, 1e-3) for began, ended, latents in self._spans
        )
        return made / max(latest - max(since, min(began for began, _, _ in self._spans)), 1e-3)

    def seconds_left(self, shards: int, rate: float | None) -> int | None:
        """How long so many more shards take, if they are like those before."""
        if not (rate and self.done):
            return None
        return round(shards * self.encoded * self.views / self.done / rate)

    def to_dict(self) -> dict[str, Any]:
        return {
            "samples": {"read": self.read, "encoded": self.encoded, "rejected": self.rejected.total()},
            "rejected": dict(self.rejected.most_common()),
            "rescued_latents": self.rescued,
            "bytes": self.size,
            "time_share": time_share(self.seconds),
        }


@dataclass
class Status:
    """Where a version stands."""

    fingerprint: str
    tally: Tally
    total: int
    failures: list[Failure]
    sealed: bool
    promoted: bool

    def to_dict(self) -> dict[str, Any]:
        rate = self.tally.rate(datetime.now(UTC).timestamp())
        left = self.total - self.tally.done - len(self.failures)
        return {
            "fingerprint": self.fingerprint,
            "shards": {"total": self.total, "done": self.tally.done, "failed": len(self.failures)},
            **self.tally.to_dict(),
            "latents_per_second": None if rate is None else round(rate, 2),
            "seconds_left": self.tally.seconds_left(left, rate),
            "sealed": self.sealed,
            "promoted": self.promoted,
            "failures": [vars(failure) for failure in self.failures],
        }


class StatusReader:
    """Looks at a version again and again, reading each commit once; safe beside any number of writers."""

    def __init__(self, store: Store, version: Version) -> None:
        self._store, self._version = store, version
        self._tally = Tally(version.spec.views)
        self._seen: set[str] = set()
        self._plans: set[str] = set()
        self._planned: set[str] = set()

    def look(self) -> Status:
        version = self._version
        given_up = version.failures()
        for path in version.plans() - self._plans:
            self._planned.update(source.name for source in version.plan(path))
            self._plans.add(path)
        done = version.done()
        for commit in version.commits(done - self._seen):
            self._tally.add(commit)
        self._seen |= done
        return Status(
            version.fingerprint,
            self._tally,
            total=len(done | self._planned),
            failures=[failure for failure in given_up if failure.shard not in done],
            sealed=version.sealed,
            promoted=self._store.current() == version.fingerprint,
        )


STAGES = ("input", "decode", "vae", "denoise", "writer", "between")
"""What an encoder waits for: bytes, decoded views, its model, the writer, and between two shards the next one."""


def time_share(seconds: Mapping[str, float]) -> dict[str, float]:
    """Which part of the encoders' time each stage took, the largest first. Work beside the encoder counts nothing."""
    spent = {stage: seconds[stage] for stage in STAGES if seconds.get(stage)}
    total = sum(spent.values()) or 1.0
    return {stage: round(share / total, 3) for stage, share in sorted(spent.items(), key=lambda item: -item[1])}


def moment(timestamp: float) -> str:
    """A point in time as records keep it."""
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="milliseconds")


def _moment_of(text: Any) -> float | None:
    """The point in time in a record, if there is one."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError):
        return None


def _times(commit: ShardCommit) -> dict[str, float]:
    seconds = commit.made_by.get("seconds")
    return seconds if isinstance(seconds, dict) else {}
