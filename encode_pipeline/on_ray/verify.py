"""The checks of `verify` spread over a cluster: a task is a few shards, and what comes back of it is small."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from encode_pipeline.latents.shard_check import Errand, Findings, Problem, check_shards, commit_url
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.latents.storage import Storage
from encode_pipeline.latents.store import Version
from encode_pipeline.on_ray.cluster import joined

SHARDS_A_TASK = 8
"""Ten gigabytes at full size: half a minute, which is what is lost with a worker."""
TASKS_A_CPU = 4
"""Given out at once: one at work, the others so that a slow one, whose turn it is, holds nobody up."""
READERS = 4
"""Shards that a task reads at once; a single stream of an object store does not fill a core."""
RETRIES = 10
"""Of a task whose worker or node went away; preemptions are many in a week, and ten of one task are no accident."""
PATIENCE = 300.0
"""Seconds without an answer after which a task is given out once more: Ray takes long to miss a machine that froze."""


@dataclass
class _Task:
    bunch: Sequence[Errand]
    copies: list[Any]
    """Its calls under way: one, but for a task that does not answer."""

    @property
    def name(self) -> str:
        return f"verify {self.bunch[0].shard}..{self.bunch[-1].shard}"


def check_on_ray(version: Version, errands: Sequence[Errand], deep: bool) -> Generator[Findings, None, None]:
    """The findings on each shard, in order, as `check_shards` gives them here."""
    with joined():
        check = ray.remote(num_cpus=1, max_retries=RETRIES, scheduling_strategy="SPREAD", name="verify")(check_bunch)
        waiting: deque[_Task] = deque()

        def call(task: _Task) -> None:
            task.copies.append(check.remote(version.storage.url(), version.spec, task.bunch, deep))

        size = min(SHARDS_A_TASK, max(1, len(errands) // (TASKS_A_CPU * _cpus())))
        try:
            for start in range(0, len(errands), size):
                waiting.append(_Task(errands[start : start + size], []))
                call(waiting[-1])
                while len(waiting) >= TASKS_A_CPU * _cpus():
                    yield from _findings(version, waiting[0], call)
                    waiting.popleft()
            while waiting:
                yield from _findings(version, waiting[0], call)
                waiting.popleft()
        finally:
            for copy in [copy for task in waiting for copy in task.copies]:
                ray.cancel(copy, force=True)


def check_bunch(url: str, spec: LatentSpec, bunch: Sequence[Errand], deep: bool) -> list[Findings]:
    """What a task does: a few shards of the version at an address."""
    return list(check_shards(Version(Storage(url), spec), bunch, deep, READERS))


def _findings(version: Version, task: _Task, call: Callable[[_Task], None]) -> list[Findings]:
    """What a task found; of one that took every worker with it, that nothing is known of its shards."""
    patience = PATIENCE
    while not (answered := ray.wait(task.copies, timeout=patience)[0]):
        print(f"{task.name}: no answer for {patience:g} s; asked again", file=sys.stderr, flush=True)
        call(task)
        patience *= 2
    # Its other copies end by themselves, or with their machine: to cancel one that just answers can end Ray, and us.
    try:
        findings: list[Findings] = ray.get(answered[0])
    except RayTaskError as error:
        raise error.cause or error from None
    except RayError as error:
        fault = f"not checked: {type(error).__name__}, again and again, in the task {task.name}"
        problems = [Problem(commit_url(version, errand.shard), fault) for errand in task.bunch]
        pairs = zip(task.bunch, problems, strict=True)
        return [Findings(errand.shard, files=0, problems=(problem,)) for errand, problem in pairs]
    return findings


def _cpus() -> int:
    """Those of the cluster now; it may grow and shrink."""
    return max(1, int(ray.cluster_resources().get("CPU", 0)))
