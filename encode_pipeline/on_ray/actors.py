"""An actor pinned to its share of a GPU, alive for as long as the cluster keeps it."""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from encode_pipeline.config import EngineSettings
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.on_ray.messages import Answer, Post
from encode_pipeline.on_ray.metrics import ActorMetrics
from encode_pipeline.records import CalledBack, FailedAttempt, ShardReport

# What is heavy is imported where it is used: the driver imports this file too, and it stands on a small machine.
if TYPE_CHECKING:
    from encode_pipeline.work import ShardWork

GPU_DRIVER = Path("/dev/nvidiactl")
LAST_MOMENT = 0.1
"""Part of the time before a machine goes away that is left for giving shards back; at least a second."""


class ShardActor:
    """Loads its models once, refuses to work if they are not the version's, then does a few shards at a time."""

    def __init__(self, config: EngineSettings, fingerprint: str) -> None:
        self._cpus = max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
        self._config, self._fingerprint = config, fingerprint
        self._loading, self._counting = threading.Lock(), threading.Lock()
        self._loaded: ShardWork | None = None
        self._metrics = ActorMetrics(fingerprint)
        self._latents = 0
        self._usual_seconds = 0.0
        self._last_moment = math.inf

    def ready(self) -> Post:
        """Answers once its models are loaded. What is wrong with them or the store is raised here, by its own name."""
        return Post(ray.get_runtime_context().get_node_id(), os.getpid(), self._load().device)

    def encode(self, source: SourceShard) -> Answer:
        from encode_pipeline.attempt import attempt_shard

        work = self._load()
        # Not as the name of the task: Ray keeps 14 KB of every other name, in the driver and on every machine.
        print(f"{source.name}: begun", flush=True)
        began = time.monotonic()
        outcome = attempt_shard(source, work, partial(self._made, began))
        if isinstance(outcome, ShardReport):
            self._usual_seconds = time.monotonic() - began
            self._metrics.shard(outcome)
        else:
            self._metrics.failed(outcome.blame)
        print(f"{source.name}: {outcome.error if isinstance(outcome, FailedAttempt) else 'committed'}", flush=True)
        return Answer(outcome, self._latents)

    def latents(self) -> int:
        """How many latents this process has made."""
        return self._latents

    def wind_down(self, ends: float) -> None:
        """The machine goes away: what cannot be finished by then is given back, at once where that can be told.

        `ends` is by this machine's clock, which need not agree with the driver's: the notice was taken here.
        """
        seconds = ends - time.time()
        self._last_moment = time.monotonic() + seconds - max(1.0, LAST_MOMENT * seconds)

    def _load(self) -> ShardWork:
        import torch

        from encode_pipeline.allocator import settle_allocator

        with self._loading:
            if self._loaded is None:
                settle_allocator()
                torch.set_num_threads(self._cpus)
                config = self._config
                if config.gpus_per_actor and GPU_DRIVER.exists() and not torch.cuda.is_available():
                    raise RuntimeError(f"{socket.gethostname()}: this machine has a GPU that torch cannot use")
                # The cores that Ray gave it; beside a GPU nothing else needs them.
                self._loaded = config.open_work(self._fingerprint, None if config.gpus_per_actor else self._cpus)
            return self._loaded

    def _made(self, began: float, latents: int) -> None:
        """Counts what is made, and stops a shard that would be too late."""
        with self._counting:
            self._latents += latents
        self._metrics.latents(latents)
        if max(time.monotonic(), began + self._usual_seconds) > self._last_moment:
            raise CalledBack("its machine is about to go away")
