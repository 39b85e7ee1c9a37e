"""Encoding: the bare VAE in diffusers' usual loop against the whole pipeline, tars to committed shards."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.figures import Measured
from benchmarks.paired import paired
from benchmarks.settings import BenchmarkConfig
from demo.run import VAE
from demo.world import WorldSpec, write_world
from encode_pipeline.config import EncodeConfig
from encode_pipeline.encode_shard import ShardEncoder
from encode_pipeline.latents.store import Store
from encode_pipeline.run import prepare
from encode_pipeline.run_local import run_local

PICTURES, VIEWS, BATCH = 16, 4, 8


def measure(config: BenchmarkConfig) -> Measured:
    """Latents a second at 512x512 with the demo's VAE on this machine's CPUs."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_world(root / "world", WorldSpec(train_pictures=PICTURES, test_pictures=0, pictures_per_tar=PICTURES))
        source = root / "world" / "train"
        encode_config = EncodeConfig(
            vae=str(VAE), source=(str(source),), store=str(root / "store"), views=VIEWS, batch_size=BATCH, threads=1
        )
        prepared = prepare(encode_config)
        pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (BATCH, 3, 512, 512), dtype=np.uint8))

        def bare() -> int:
            with torch.inference_mode():
                for _ in range(PICTURES * VIEWS // BATCH):
                    prepared.vae.model.encode(pixels.float() / 127.5 - 1).latent_dist.sample().half().numpy()
            return PICTURES * VIEWS

        count = 0

        def pipeline() -> int:
            nonlocal count
            count += 1
            version = Store(root / f"store{count}").create(prepared.spec)
            list(run_local(prepared.sources, ShardEncoder(prepared.vae, version, encode_config), encode_config))
            return PICTURES * VIEWS

        ways = {"bare diffusers loop": bare, "tars to committed shards": pipeline}
        return Measured(tuple(paired(ways, config.rounds, unit="latents")), {"weights": "the demo's small VAE"})
