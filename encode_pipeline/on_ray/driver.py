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
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from encode_pipeline.attempt import FailedAttempt, describe_error
from encode_pipeline.config import EncodeConfig
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.latents.store import Version
from encode_pipeline.on_ray.actors import VaeActor
from encode_pipeline.records import ShardFailure, ShardReport

RESTART_PAUSE = 2.0
"""Seconds until an actor that went away is asked again."""


@dataclass(frozen=True)
class _Task:
    source: SourceShard
    actor: int


def run_on_ray(
    missing: Sequence[SourceShard], version: Version, config: EncodeConfig
) -> Iterator[ShardReport | ShardFailure]:
    """What became of each shard, as soon as it is known. Joins a cluster if there is one, else starts one here."""
    started_here = not ray.is_initialized()
    if started_here:
        address = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
        ray.init(log_to_driver=False, logging_level="ERROR", **address)
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
    cpus = 1 if share else max(1, int(resources.get("CPU", 1)) // count)
    remote = ray.remote(num_gpus=share, num_cpus=cpus, max_restarts=-1, max_task_retries=0)(VaeActor)
    names = [f"vae-{version.fingerprint[:8]}-{number}" for number in range(count)]
    print(f"engine ray: {count} actors with {share:g} GPU and {cpus} CPU each", file=sys.stderr, flush=True)
    return [remote.options(name=name).remote(config, version.fingerprint) for name in names]


def _why_it_died(error: ActorDiedError) -> Exception:
    """An actor that cannot even start has met a fault of the request, not of a shard."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return RequestError(f"an encoder cannot run: {lines[-1] if lines else error}")


def _schedule(
    queue: deque[SourceShard], actors: Sequence[Any], config: EncodeConfig
) -> Iterator[ShardReport | ShardFailure]:
    running: dict[Any, _Task] = {}
    attempts: Counter[str] = Counter()
    free_at = dict.fromkeys(range(len(actors)), 0.0)

    def failed(source: SourceShard, error: str, hopeless: bool) -> ShardFailure | None:
        attempts[source.name] += 1
        if hopeless or attempts[source.name] >= config.max_attempts:
            return ShardFailure(source, error, attempts[source.name])
        queue.append(source)
        return None

    while queue or running:
        now = time.monotonic()
        for number in [n for n, at in free_at.items() if at <= now]:
            if not queue:
                break
            source = queue.popleft()
            task = actors[number].encode.options(name=f"encode {source.name}").remote(source)
            running[task] = _Task(source, number)
            del free_at[number]
        if not running:
            time.sleep(max(0.0, min(free_at.values()) - time.monotonic()))
            continue
        finished, _ = ray.wait(list(running), num_returns=1, timeout=RESTART_PAUSE)
        for reference in finished:
            task_done = running.pop(reference)
            pause = 0.0
            outcome: ShardReport | ShardFailure | None
            try:
                result = ray.get(reference)
            except RayTaskError as error:
                raise error.cause or error from None
            except ActorDiedError as error:
                raise _why_it_died(error) from None
            except RayActorError as error:
                pause = RESTART_PAUSE
                outcome = failed(task_done.source, describe_error(error), hopeless=False)
            else:
                outcome = result
                if isinstance(result, FailedAttempt):
                    outcome = failed(task_done.source, result.error, result.hopeless)
            free_at[task_done.actor] = time.monotonic() + pause
            if outcome is not None:
                yield outcome
