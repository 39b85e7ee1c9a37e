"""How a run is going: counts, rate and time left, on standard error."""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from typing import Any, TextIO

from encode_pipeline.records import ShardFailure, ShardReport


class Progress:
    """Collects what engines report and tells a person about it, a line at a time."""

    def __init__(self, shards: int, views: int, out: TextIO = sys.stderr) -> None:
        self.shards, self.views, self._out = shards, views, out
        self.done = self.lost_races = 0
        self.read = self.encoded = self.rescued = self.size = 0
        self.rejected: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.failures: list[ShardFailure] = []
        self._started = time.monotonic()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def add(self, outcome: ShardReport | ShardFailure) -> None:
        """Counts a finished shard and says where the run stands."""
        if isinstance(outcome, ShardFailure):
            self.failures.append(outcome)
            self._say(f"given up on after {outcome.attempts} attempt(s): {outcome.error}")
            return
        self.done += 1
        self.lost_races += not outcome.won
        self.read += outcome.read
        self.encoded += outcome.encoded
        self.rescued += outcome.rescued
        self.size += outcome.size
        self.rejected.update(outcome.rejected)
        for stage, spent in outcome.seconds.items():
            self.seconds[stage] += spent
        self._say(self._line())

    def summary(self) -> dict[str, Any]:
        return {
            "shards": {"done": self.done, "failed": len(self.failures), "done_by_others": self.lost_races},
            "samples": {"read": self.read, "encoded": self.encoded, "rejected": self.rejected.total()},
            "rejected": dict(self.rejected.most_common()),
            "rescued_latents": self.rescued,
            "bytes": self.size,
            "seconds": round(self.elapsed, 2),
            "latents_per_second": round(self.encoded * self.views / max(self.elapsed, 1e-9), 2),
            "time_share": self.time_share(),
            "failures": [{"source": f.source.uri, "error": f.error, "attempts": f.attempts} for f in self.failures],
        }

    def time_share(self) -> dict[str, float]:
        """Which part of the loops' time each stage took, the largest first."""
        total = sum(self.seconds.values()) or 1.0
        largest_first = sorted(self.seconds.items(), key=lambda item: -item[1])
        return {stage: round(spent / total, 3) for stage, spent in largest_first}

    def _line(self) -> str:
        finished = self.done + len(self.failures)
        left = self.elapsed / finished * (self.shards - finished)
        busiest = ", ".join(f"{stage} {share:.0%}" for stage, share in list(self.time_share().items())[:3])
        rate = self.encoded * self.views / max(self.elapsed, 1e-9)
        return (
            f"shard {finished}/{self.shards}  {self.encoded} encoded, {self.rejected.total()} rejected"
            f"  {rate:.1f} latents/s  {_clock(left)} left  time: {busiest}"
        )

    def _say(self, text: str) -> None:
        print(text, file=self._out, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
