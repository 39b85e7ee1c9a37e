"""Our own scheduler over plain actors: one task is one source tar, and whoever is free takes the next."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from encode_pipeline.attempt import FailedAttempt, describe_error
from encode_pipeline.config import EncodeConfig
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
    missing: Sequence[SourceShard], version: Version, config: EncodeConfig
) -> Iterator[ShardReport | ShardFailure]:
    """What became of each shard, as soon as it is known. Joins the cluster at RAY_ADDRESS, or starts one here."""
    started_here = not ray.is_initialized()
    if started_here:
        # Without an address Ray would join, or wait for, whatever another program has left on this machine.
        where = {} if os.environ.get("RAY_ADDRESS") else {"address": "local", "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level="ERROR", **where)
    try:
        actors = _start_actors(version, config)
        try:
            yield from _schedule(deque(missing), actors, config)
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
    names = [f"vae-{version.fingerprint[:8]}-{number}" for number in range(count)]
    print(f"engine ray: {count} actors with {share:g} GPU and {cpus:g} CPU each", file=sys.stderr, flush=True)
    return [remote.options(name=name).remote(config, version.fingerprint) for name in names]


def _why_it_died(error: ActorDiedError) -> Exception:
    """An actor that cannot even start has met a fault of the request, not of a shard."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return RequestError(f"an encoder cannot run: {lines[-1] if lines else error}")


def _schedule(
    queue: deque[SourceShard], actors: Sequence[Any], config: EncodeConfig
) -> Iterator[ShardReport | ShardFailure]:
    """Gives shards to whichever actors answer. One that does not, yet or any more, holds nothing up."""
    calls: dict[Any, _Call] = {actor.ready.remote(): _Call(number) for number, actor in enumerate(actors)}
    attempts: Counter[str] = Counter()
    asleep: dict[int, float] = {}
    free: deque[int] = deque()
    shards_out = 0
    quiet_since = time.monotonic()

    def failed(source: SourceShard, error: str, hopeless: bool) -> ShardFailure | None:
        attempts[source.name] += 1
        if hopeless or attempts[source.name] >= config.max_attempts:
            return ShardFailure(source, error, attempts[source.name])
        queue.append(source)
        return None

    while queue or shards_out:
        while free and queue:
            number, source = free.popleft(), queue.popleft()
            call = actors[number].encode.options(name=f"encode {source.name}").remote(source)
            calls[call] = _Call(number, source)
            shards_out += 1
        for number in [number for number, until in asleep.items() if until <= time.monotonic()]:
            del asleep[number]
            calls[actors[number].ready.remote()] = _Call(number)
        if not calls:
            time.sleep(RESTART_PAUSE)
            continue
        answered, _ = ray.wait(list(calls), num_returns=1, timeout=RESTART_PAUSE)
        if not answered and not shards_out and time.monotonic() - quiet_since > QUIET:
            print(
                f"waiting: none of {len(actors)} actors has come up; is the cluster full?", file=sys.stderr, flush=True
            )
            quiet_since = time.monotonic()
        for reference in answered:
            call_done = calls.pop(reference)
            source_done = call_done.source
            shards_out -= source_done is not None
            outcome: ShardReport | ShardFailure | None = None
            try:
                result = ray.get(reference)
            except RayTaskError as error:
                raise error.cause or error from None
            except ActorDiedError as error:
                raise _why_it_died(error) from None
            except RayError as error:  # it went away, and Ray brings it back
                asleep[call_done.actor] = time.monotonic() + RESTART_PAUSE
                if source_done is not None:
                    outcome = failed(source_done, describe_error(error), hopeless=False)
            else:
                free.append(call_done.actor)
                outcome = result
                if isinstance(result, FailedAttempt) and source_done is not None:
                    outcome = failed(source_done, result.error, result.hopeless)
            if outcome is not None:
                yield outcome
