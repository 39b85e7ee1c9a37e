"""Our own scheduler over plain actors: one task is one source tar, and whoever is free takes the next."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from encode_pipeline.attempt import FailedAttempt, describe_error
from encode_pipeline.config import EncodeConfig
from encode_pipeline.encode_shard import SHARDS_IN_FLIGHT
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.latents.store import Version
from encode_pipeline.on_ray.actors import VaeActor
from encode_pipeline.records import ShardFailure, ShardReport

RESTART_PAUSE = 2.0
"""Seconds until an actor that went away is asked again."""
QUIET = 30.0
"""Seconds without any actor after which a person is told."""


@dataclass(frozen=True)
class _Call:
    actor: int
    source: SourceShard | None = None
    """None where the actor is only asked whether it is there."""


def run_on_ray(
    missing: Sequence[SourceShard], version: Version, config: EncodeConfig, tell: Callable[[int], None]
) -> Iterator[ShardReport | ShardFailure]:
    """What became of each shard, as soon as it is known. Joins the cluster at RAY_ADDRESS, or starts one here.

    `tell` hears of latents by the shard: actors report no sooner.
    """
    started_here = not ray.is_initialized()
    if started_here:
        # Without an address Ray would join, or wait for, whatever another program has left on this machine.
        where = {} if os.environ.get("RAY_ADDRESS") else {"address": "local", "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level="ERROR", **where)
    try:
        actors = _start_actors(version, config)
        try:
            for outcome in _Schedule(actors, config).run(missing):
                if isinstance(outcome, ShardReport):
                    tell(outcome.commit.encoded * version.spec.views)
                yield outcome
        finally:
            for actor in actors:
                ray.kill(actor)
    finally:
        if started_here:
            ray.shutdown()


def _start_actors(version: Version, config: EncodeConfig) -> list[Any]:
    resources = ray.cluster_resources()
    share = config.gpus_per_actor
    count = config.actors or (int(resources.get("GPU", 0) / share) if share else int(resources.get("CPU", 1)))
    if (share and share * count > resources.get("GPU", 0)) or count == 0:
        gpus = resources.get("GPU", 0)
        raise RequestError(
            f"engine=ray: {count or 'any'} actors of {share} GPU need more than the cluster's {gpus:g}; "
            "set actors and gpus_per_actor (0 encodes on CPUs)"
        )
    cpus = resources.get("CPU", 0) / count
    cpus = min(1.0, cpus) if share else float(int(cpus)) if cpus >= 1 else cpus
    remote = ray.remote(num_gpus=share, num_cpus=cpus, max_restarts=-1, max_task_retries=0)(VaeActor)
    # One call more than it has shards, so that it can always be asked whether it is there.
    names = [f"vae-{version.fingerprint[:8]}-{number}" for number in range(count)]
    print(f"engine ray: {count} actors with {share:g} GPU and {cpus:g} CPU each", file=sys.stderr, flush=True)
    options = {"max_concurrency": SHARDS_IN_FLIGHT + 1}
    return [remote.options(name=name, **options).remote(config, version.fingerprint) for name in names]


def _why_it_died(error: ActorDiedError) -> Exception:
    """An actor that cannot even start has met a fault of the request, not of a shard."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return RequestError(f"an encoder cannot run: {lines[-1] if lines else error}")


class _Schedule:
    """Gives shards to whichever actors answer. One that does not, yet or any more, holds nothing up.

    An actor has a few shards at once. When it dies nobody knows which of them did it, so each is suspected: it goes
    on an actor of its own, and only a death met alone counts as one of its attempts.
    """

    def __init__(self, actors: Sequence[Any], config: EncodeConfig) -> None:
        self._actors, self._max_attempts = actors, config.max_attempts
        self._calls: dict[Any, _Call] = {}
        self._up: set[int] = set()
        self._asleep: dict[int, float] = {}
        self._shards: list[set[str]] = [set() for _ in actors]
        self._attempts: Counter[str] = Counter()
        self._suspects: set[str] = set()
        for number in range(len(actors)):
            self._ask(number)

    def run(self, missing: Sequence[SourceShard]) -> Iterator[ShardReport | ShardFailure]:
        queue = deque(missing)
        quiet_since = time.monotonic()
        while queue or any(self._shards):
            self._give(queue)
            for number in [number for number, until in self._asleep.items() if until <= time.monotonic()]:
                del self._asleep[number]
                self._ask(number)
            if not self._calls:
                time.sleep(RESTART_PAUSE)
                continue
            answered, _ = ray.wait(list(self._calls), num_returns=1, timeout=RESTART_PAUSE)
            if not answered and not any(self._shards) and time.monotonic() - quiet_since > QUIET:
                count = len(self._actors)
                print(f"waiting: none of {count} actors has come up; is the cluster full?", file=sys.stderr, flush=True)
                quiet_since = time.monotonic()
            for reference in answered:
                outcome = self._settle(reference, self._calls.pop(reference), queue)
                if outcome is not None:
                    yield outcome

    def _ask(self, number: int) -> None:
        self._calls[self._actors[number].ready.remote()] = _Call(number)

    def _give(self, queue: deque[SourceShard]) -> None:
        """Hands out shards, a suspect only to an actor that has nothing else; the others need not wait for it."""
        for _ in range(len(queue)):
            source = queue.popleft()
            number = self._room_for(source.name)
            if number is None:
                queue.append(source)
                if source.name in self._suspects:
                    continue
                queue.rotate(1)  # back to the front: there is no room for anybody
                return
            self._shards[number].add(source.name)
            call = self._actors[number].encode.options(name=f"encode {source.name}").remote(source)
            self._calls[call] = _Call(number, source)

    def _room_for(self, shard: str) -> int | None:
        """The actor with the fewest shards that can take this one."""
        most = 0 if shard in self._suspects else SHARDS_IN_FLIGHT - 1
        free = [n for n in self._up if len(self._shards[n]) <= most and not self._shards[n] & self._suspects]
        return min(free, key=lambda number: len(self._shards[number]), default=None)

    def _settle(self, reference: Any, call: _Call, queue: deque[SourceShard]) -> ShardReport | ShardFailure | None:
        try:
            result = ray.get(reference)
        except RayTaskError as error:
            raise error.cause or error from None
        except ActorDiedError as error:
            raise _why_it_died(error) from None
        except RayError as error:  # it went away, and Ray brings it back
            self._up.discard(call.actor)
            self._asleep[call.actor] = time.monotonic() + RESTART_PAUSE
            if call.source is None:
                return None
            suspected = call.source.name in self._suspects
            self._suspects.add(call.source.name)
            failed = FailedAttempt(describe_error(error), hopeless=False)
            return self._failed(call, failed, queue, counts=suspected)
        if call.source is None:
            self._up.add(call.actor)
            return None
        if isinstance(result, FailedAttempt):
            return self._failed(call, result, queue, counts=True)
        self._shards[call.actor].discard(call.source.name)
        self._suspects.discard(call.source.name)
        report: ShardReport = result
        return report

    def _failed(
        self, call: _Call, failed: FailedAttempt, queue: deque[SourceShard], counts: bool
    ) -> ShardFailure | None:
        source = call.source
        assert source is not None
        self._shards[call.actor].discard(source.name)
        self._attempts[source.name] += counts
        if failed.hopeless or self._attempts[source.name] >= self._max_attempts:
            return ShardFailure(source, failed.error, self._attempts[source.name])
        queue.append(source)
        return None
