"""Small sealed stores made of numbers, without pictures or a VAE: real tars, commits and manifests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from encode_pipeline.latents.commit import ShardBuild, SourceShard
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.latents.store import Store, Version


def latent_store(
    address: str | Path, scratch: Path, spec: LatentSpec, sizes: Sequence[int], captions: Sequence[str] = ()
) -> Version:
    """A sealed store whose shards hold so many samples each; every latent is another one."""
    version = Store(address).create(spec)
    rng = np.random.default_rng(len(sizes))
    for shard, size in enumerate(sizes):
        source = SourceShard(f"{shard:05d}.tar", 1)
        with ShardBuild(scratch / f"{shard:05d}", spec, source) as build:
            for number in range(size):
                latents = [rng.standard_normal(spec.shape).astype(np.float16) for _ in range(spec.views)]
                caption = captions[number % len(captions)] if captions else f"picture {number} of shard {shard}"
                records = [{"source": source.uri, "view": view} for view in range(spec.views)]
                build.add(f"{shard:05d}{number:04d}", latents, caption, records)
            version.publish(*build.finish("0" * 64, {}))
    version.seal()
    return version
