"""Reading latents: webdataset's decoding pipeline against the memory-mapped reader, in order and at random."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds

from benchmarks.paired import paired
from benchmarks.settings import BenchmarkConfig
from encode_pipeline.latents.reader import LatentShard
from encode_pipeline.latents.spec import LatentSpec, VaeIdentity
from encode_pipeline.latents.writer import ShardWriter

SAMPLES = 2000


def measure(config: BenchmarkConfig) -> dict[str, Any]:
    """Samples a second from the page cache, one process; each latent is copied into a batch buffer."""
    vae = VaeIdentity(name="none", weights_sha256="0" * 64, config={}, scaling_factor=1.0)
    spec = LatentSpec(vae=vae, shape=(4, 64, 64), image_size=512, views=1, recipe={}, seed=0)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.tar"
        with ShardWriter(path, spec) as writer:
            for number in range(SAMPLES):
                latent = rng.standard_normal(spec.shape, dtype=np.float32).astype(np.float16)
                writer.add(f"{number:09d}", latent, "a caption of about the usual length for a picture", {"view": 0})
        batch = np.empty((256, *spec.shape), np.float16)

        def by_webdataset() -> int:
            dataset = wds.WebDataset(str(path), shardshuffle=False).decode().to_tuple("npy", "txt")
            for number, (latent, _) in enumerate(dataset):
                batch[number % 256] = latent
            return SAMPLES

        def by_map(order: Any) -> int:
            with LatentShard(path, spec) as shard:  # the header scan is part of the time
                for number, index in enumerate(order):
                    batch[number % 256] = shard.latent(index)
                    shard.caption(index)
            return SAMPLES

        shuffled = rng.permutation(SAMPLES).tolist()
        return paired(
            {
                "webdataset decode": by_webdataset,
                "memory map, in order": lambda: by_map(range(SAMPLES)),
                "memory map, random order": lambda: by_map(shuffled),
            },
            config.rounds,
            unit="latents",
        )
