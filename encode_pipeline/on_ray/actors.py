"""An encoder pinned to its share of a GPU, alive for as long as the cluster keeps it."""

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

from encode_pipeline.config import EncodeConfig
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.on_ray.messages import Answer, Post
from encode_pipeline.on_ray.metrics import ActorMetrics
from encode_pipeline.records import CalledBack, FailedAttempt, ShardReport

# What is heavy is imported where it is used: the driver imports this file too, and it stands on a small machine.
if TYPE_CHECKING:
    from encode_pipeline.encoder import LatentEncoder

GPU_DRIVER = Path("/dev/nvidiactl")
LAST_MOMENT = 0.1
"""Part of the time before a machine goes away that is left for giving shards back; at least a second."""


class VaeActor:
    """Loads the VAE once, refuses to work if it is not the version's, then encodes a few shards at a time."""

    def __init__(self, config: EncodeConfig, fingerprint: str) -> None:
        cpus = max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
        if config.gpus_per_actor == 0:  # the cores that Ray gave it; beside a GPU nothing else needs them
            config = config.model_copy(update={"threads": config.threads or cpus})
        self._cpus = cpus
        self._config, self._fingerprint = config, fingerprint
        self._loading, self._counting = threading.Lock(), threading.Lock()
        self._loaded: tuple[LatentEncoder, Version] | None = None
        self._metrics = ActorMetrics(fingerprint)
        self._latents = 0
        self._usual_seconds = 0.0
        self._last_moment = math.inf

    def ready(self) -> Post:
        """Answers once the VAE is loaded. What is wrong with it or the store is raised here, by its own name."""
        encoder, _ = self._load()
        return Post(ray.get_runtime_context().get_node_id(), os.getpid(), encoder.device.type)

    def encode(self, source: SourceShard) -> Answer:
        from encode_pipeline.attempt import attempt_shard

        encoder, version = self._load()
        # Not as the name of the task: Ray keeps 14 KB of every other name, in the driver and on every machine.
        print(f"{source.name}: begun", flush=True)
        began = time.monotonic()
        outcome = attempt_shard(source, version, encoder, self._config, partial(self._made, began))
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

    def wind_down(self, seconds: float) -> None:
        """The machine goes away: what cannot be finished by then is given back, at once where that can be told."""
        self._last_moment = time.monotonic() + seconds - max(1.0, LAST_MOMENT * seconds)

    def _load(self) -> tuple[LatentEncoder, Version]:
        import torch

        from encode_pipeline.allocator import settle_allocator
        from encode_pipeline.encoder import LatentEncoder
        from encode_pipeline.vae import load_vae

        with self._loading:
            if self._loaded is None:
                settle_allocator()
                torch.set_num_threads(self._cpus)
                config = self._config
                if config.gpus_per_actor and GPU_DRIVER.exists() and not torch.cuda.is_available():
                    raise RuntimeError(f"{socket.gethostname()}: this machine has a GPU that torch cannot use")
                version = Store(config.store).version(self._fingerprint)
                vae = load_vae(config.vae)
                self._loaded = LatentEncoder(vae, version.spec, config.batch_size, kernels=config.kernels), version
            return self._loaded

    def _made(self, began: float, latents: int) -> None:
        """Counts what is made, and stops a shard that would be too late."""
        with self._counting:
            self._latents += latents
        self._metrics.latents(latents)
        if max(time.monotonic(), began + self._usual_seconds) > self._last_moment:
            raise CalledBack("its machine is about to go away")
