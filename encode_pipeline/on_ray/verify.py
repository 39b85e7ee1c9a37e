"""The checks of `verify` spread over a cluster: a task is a few shards, and what comes back of it is small."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

from encode_pipeline.latents.shard_check import Errand, Findings, Problem, check_shards, commit_url
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.latents.storage import Storage
from encode_pipeline.latents.store import Version
from encode_pipeline.on_ray.cluster import joined  # before ray, which it settles

import ray  # isort: skip
from ray.exceptions import RayError, RayTaskError  # isort: skip

SHARDS_A_TASK = 8
"""Ten gigabytes at full size: half a minute, which is what is lost with a worker."""
TASKS_A_CPU = 4
"""Given out at once: one at work, the others so that a slow one, whose turn it is, holds nobody up."""
READERS = 4
"""Shards that a task reads at once; a single stream of an object store does not fill a core."""
RETRIES = 10
"""Of a task whose worker or node went away; preemptions are many in a week, and ten of one task are no accident."""
QUIET = 300.0
"""Seconds without an answer after which a person is told."""


def check_on_ray(version: Version, errands: Sequence[Errand], deep: bool) -> Generator[Findings, None, None]:
    """The findings on each shard, in order, as `check_shards` gives them here."""
    with joined():
        size = min(SHARDS_A_TASK, max(1, len(errands) // (TASKS_A_CPU * _cpus())))
        check = ray.remote(num_cpus=1, max_retries=RETRIES, scheduling_strategy="SPREAD")(check_bunch)
        waiting: deque[tuple[Sequence[Errand], Any]] = deque()
        try:
            for start in range(0, len(errands), size):
                bunch = errands[start : start + size]
                named = check.options(name=_name(bunch))
                waiting.append((bunch, named.remote(version.storage.url(), version.spec, bunch, deep)))
                while len(waiting) >= TASKS_A_CPU * _cpus():
                    yield from _findings(version, *waiting.popleft())
            while waiting:
                yield from _findings(version, *waiting.popleft())
        finally:
            for _, reference in waiting:
                ray.cancel(reference, force=True)


def check_bunch(url: str, spec: LatentSpec, bunch: Sequence[Errand], deep: bool) -> list[Findings]:
    """The task: a few shards of the version at an address."""
    return list(check_shards(Version(Storage(url), spec), bunch, deep, READERS))


def _findings(version: Version, bunch: Sequence[Errand], reference: Any) -> list[Findings]:
    """What a task found; of one that took every worker with it, that nothing is known of its shards."""
    if not ray.wait([reference], timeout=QUIET)[0]:
        print(f"waiting for {_name(bunch)}; is the cluster full?", file=sys.stderr, flush=True)
    try:
        findings: list[Findings] = ray.get(reference)
    except RayTaskError as error:
        raise error.cause or error from None
    except RayError as error:
        fault = f"not checked: {type(error).__name__}, again and again, in the task {_name(bunch)}"
        problems = [(errand.shard, Problem(commit_url(version, errand.shard), fault)) for errand in bunch]
        return [Findings(shard, files=0, problems=(problem,)) for shard, problem in problems]
    return findings


def _name(bunch: Sequence[Errand]) -> str:
    return f"verify {bunch[0].shard}..{bunch[-1].shard}"


def _cpus() -> int:
    """Those of the cluster now; it may grow and shrink."""
    return max(1, int(ray.cluster_resources().get("CPU", 0)))
