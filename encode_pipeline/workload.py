"""Which shard is tried next, and when one is given up on: the same for every engine.

A try counts against a shard only where it may be the shard's fault. When nothing at all succeeds any more, it is not
the shards: until one does, a single one is tried now and then, and none of that counts.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count

from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.listener import Listener
from encode_pipeline.records import Blame, FailedAttempt, ShardFailure, ShardReport

SHARDS_IN_FLIGHT = 3
"""What an encoder has at once: one shard gets ready, one is encoded, one is published."""
LONGEST_PAUSE = 30.0
"""Seconds before a shard is tried again, at most; at first they are two."""
OUTAGE = 4
"""Shards that fail at their first try, with no success in between, from which on it is taken for an outage."""
PROBE = 15.0
"""Seconds between two tries during an outage."""
PATIENCE = 1800.0
"""Seconds after which an outage ends the run."""
ROOM_TRIES = 3
"""Times `max_attempts` that a shard may find no room before it is taken to be too large."""
ELSEWHERE = 0.618
"""How far on in its list a driver looks when it does not go on here: the golden section meets no place twice soon."""
LAST_PATIENCE = 120.0
"""Seconds that the last shards get, all of which have failed before, when nothing succeeds any more."""


@dataclass(slots=True)
class _History:
    attempts: int = 0
    last_error: str = ""
    refused_for_room: int = 0
    suspect: bool = False
    """It was under way when a process died, perhaps because of it: it is to be tried alone."""


class Workload:
    """The shards that are not done yet. The listener hears of outages and of tries that failed."""

    def __init__(
        self,
        missing: Iterable[SourceShard],
        max_attempts: int,
        listener: Listener,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_attempts, self._listener, self._clock = max_attempts, listener, clock
        self._fresh = deque(missing)
        self._later: list[tuple[float, int, SourceShard]] = []
        self._suspects: deque[SourceShard] = deque()
        self._serial = count()
        self._histories: dict[str, _History] = {}
        self._failing: set[str] = set()
        """What has failed since something last succeeded."""
        self._first_failures = 0
        self._failing_since = 0.0
        self._outage_since: float | None = None
        self._next_probe = 0.0
        self.under_way = 0

    @property
    def waiting(self) -> int:
        return len(self._fresh) + len(self._later) + len(self._suspects)

    @property
    def is_outage(self) -> bool:
        return self._outage_since is not None

    @property
    def finished(self) -> bool:
        return not (self.waiting or self.under_way)

    def take(self) -> SourceShard | None:
        """The next shard to try, if there is one now."""
        now = self._clock()
        source = None
        if self.is_outage and self._fresh:  # one that never failed tells most
            if now >= self._next_probe:
                self._next_probe = now + PROBE
                self._fresh.rotate(-int(ELSEWHERE * len(self._fresh)))  # the trouble may be of one part of the list
                source = self._fresh.popleft()
        elif self._later and self._later[0][0] <= now:
            source = heapq.heappop(self._later)[2]
        elif self._fresh:
            source = self._fresh.popleft()
        self.under_way += source is not None
        return source

    @property
    def has_suspects(self) -> bool:
        return bool(self._suspects)

    def take_suspect(self) -> SourceShard | None:
        """A shard that must have an encoder to itself, if there is one and it may be tried now."""
        now = self._clock()
        if not self._suspects or (self.is_outage and now < self._next_probe):
            return None
        if self.is_outage:
            self._next_probe = now + PROBE
        self.under_way += 1
        return self._suspects.popleft()

    def is_suspect(self, shard: str) -> bool:
        return shard in self._histories and self._histories[shard].suspect

    def pause(self) -> float | None:
        """Seconds until there may be a shard to take; None if only what is under way can bring one."""
        now = self._clock()
        if self._fresh:
            return max(0.0, self._next_probe - now) if self.is_outage else 0.0
        return max(0.0, self._later[0][0] - now) if self._later else None

    def settle(
        self, source: SourceShard, outcome: ShardReport | FailedAttempt, excused: bool = False
    ) -> ShardReport | ShardFailure | None:
        """What a try means for its shard: done, given up on, or to be tried again.

        One is `excused` that failed where everything fails, while elsewhere it does not.
        """
        if isinstance(outcome, ShardReport):
            return self._done(source, outcome)
        self._listener.event("retry", None, shard=source.name, blame=outcome.blame, error=outcome.error)
        if outcome.blame is Blame.CALLED_BACK:
            self.give_back(source)
            return None
        self.under_way -= 1
        first = source.name not in self._histories
        history = self._histories.setdefault(source.name, _History())
        repeated = history.last_error == outcome.error
        history.last_error = outcome.error
        if outcome.blame is Blame.TAR:
            return self._count(source, history, outcome.error, hopeless=repeated, pause=0.0)
        pause = min(LONGEST_PAUSE, 2.0 ** min(8, history.attempts + 1))
        if outcome.blame is Blame.NO_ROOM:
            history.refused_for_room += 1
            if history.refused_for_room > ROOM_TRIES * self._max_attempts:
                return self._count(source, history, outcome.error, hopeless=True, pause=0.0)
            self._put_back(source, history, pause)
            return None
        if excused or self._nothing_succeeds(source, outcome.error, first):
            self._put_back(source, history, pause)
            return None
        return self._count(source, history, outcome.error, hopeless=False, pause=pause)

    def lost(self, source: SourceShard, error: str, excused: bool = False) -> ShardFailure | None:
        """Its process died. Nobody knows whose fault that was, unless the shard was alone there."""
        self._listener.event("retry", None, shard=source.name, blame="lost", error=error)
        self.under_way -= 1
        history = self._histories.setdefault(source.name, _History())
        was_alone, history.suspect = history.suspect, True
        if not was_alone or excused or self._nothing_succeeds(source, error, first=True):
            self._put_back(source, history, 0.0)
            return None
        return self._count(source, history, error, hopeless=False, pause=0.0)

    def give_back(self, source: SourceShard) -> None:
        """It was not tried to the end, and not by its own fault: it is next."""
        self.under_way -= 1
        (self._suspects if self.is_suspect(source.name) else self._fresh).appendleft(source)

    def _done(self, source: SourceShard, report: ShardReport) -> ShardReport:
        self.under_way -= 1
        self._histories.pop(source.name, None)
        self._first_failures = 0
        self._failing.clear()
        if self._outage_since is not None:
            self._outage_since = None
            self._listener.event("outage", "the outage is over", over=True)
        if not report.won and self._fresh:  # others are at work on the same shards: go on elsewhere
            self._fresh.rotate(-int(ELSEWHERE * len(self._fresh)))
        return report

    def _count(
        self, source: SourceShard, history: _History, error: str, *, hopeless: bool, pause: float
    ) -> ShardFailure | None:
        """A try that counts: it may have been the last one."""
        history.attempts += 1
        if hopeless or history.attempts >= self._max_attempts:
            del self._histories[source.name]
            return ShardFailure(source, error, history.attempts)
        self._put_back(source, history, pause)
        return None

    def _put_back(self, source: SourceShard, history: _History, pause: float) -> None:
        if history.suspect:
            self._suspects.append(source)
        else:
            heapq.heappush(self._later, (self._clock() + pause, next(self._serial), source))

    def _nothing_succeeds(self, source: SourceShard, error: str, first: bool) -> bool:
        """Whether this failed try is part of an outage. Shards that have failed before say little of one."""
        now = self._clock()
        if not self._failing:
            self._failing_since = now
        self._failing.add(source.name)
        self._first_failures += first
        why = f"{source.uri}: {error}"
        if not self._fresh:
            self._outage_since = None
            return len(self._failing) >= OUTAGE and now - self._failing_since < LAST_PATIENCE
        if self._outage_since is None and self._first_failures >= OUTAGE:
            self._outage_since = self._next_probe = now
            text = f"nothing succeeds any more: one shard is tried every {PROBE:g} seconds until one does ({why})"
            self._listener.event("outage", text, over=False)
        if self._outage_since is not None and now - self._outage_since > PATIENCE:
            raise CheckFailed(f"nothing has succeeded for {PATIENCE / 60:g} minutes; the last error: {why}")
        return self.is_outage
