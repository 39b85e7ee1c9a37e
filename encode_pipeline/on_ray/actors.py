"""An encoder pinned to its share of a GPU, alive for as long as the cluster keeps it."""

from __future__ import annotations

import ray
import torch

from encode_pipeline.allocator import settle_allocator
from encode_pipeline.attempt import FailedAttempt, attempt_shard
from encode_pipeline.config import EncodeConfig
from encode_pipeline.encoder import LatentEncoder
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.latents.store import Store
from encode_pipeline.records import ShardReport
from encode_pipeline.vae import load_vae


class VaeActor:
    """Loads the VAE once, refuses to start if it is not the version's, then encodes a few shards at a time."""

    def __init__(self, config: EncodeConfig, fingerprint: str) -> None:
        settle_allocator()
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        torch.set_num_threads(max(1, int(cpus)))
        if config.gpus_per_actor == 0:  # the cores that Ray gave it; beside a GPU nothing else needs them
            config = config.model_copy(update={"threads": config.threads or max(1, int(cpus))})
        self.config = config
        self.version = Store(config.store).version(fingerprint)
        self.encoder = LatentEncoder(load_vae(config.vae), self.version.spec, config.batch_size, kernels=config.kernels)

    def ready(self) -> None:
        """Answers once the VAE is loaded."""

    def encode(self, source: SourceShard) -> ShardReport | FailedAttempt:
        return attempt_shard(source, self.version, self.encoder, self.config)
