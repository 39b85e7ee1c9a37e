"""The whole way, tars to latents: the straightforward pipeline against this one, on the same cores."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import Field

from benchmarks import straightforward
from benchmarks.figures import Measured
from benchmarks.paired import paired
from benchmarks.pictures import PictureSet, write_tars
from benchmarks.settings import BenchmarkConfig, Pictures
from encode_pipeline.config import EncodeConfig, PositiveInt
from encode_pipeline.encode_shard import ShardEncoder
from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.store import Store
from encode_pipeline.records import ShardReport
from encode_pipeline.run import prepare
from encode_pipeline.run_local import run_local


class PipelineConfig(BenchmarkConfig, Pictures):
    vae: str = Field("pixels", description="`pixels`, so that only the pipeline counts, or a diffusers VAE")
    views: PositiveInt = Field(4, description="views a picture: passes of the straightforward way, one decode of this")
    image_size: PositiveInt = Field(512, description="side of a view")
    batch_size: PositiveInt = Field(16, description="views encoded at once, by both")


def measure(config: PipelineConfig) -> Measured:
    """Views a second from tars on disk to latents on disk."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tars = write_tars(root / "tars", PictureSet(config.tars, config.pictures_per_tar, config.side))
        encode_config = EncodeConfig(
            vae=config.vae,
            posterior=posterior_of(config.vae),
            source=(str(root / "tars"),),
            store=str(root / "store"),
            views=config.views,
            image_size=config.image_size,
            batch_size=config.batch_size,
            threads=cores,
        )
        prepared = prepare(encode_config)
        by_pixels = config.vae == "pixels"
        encode = straightforward.pixels if by_pixels else straightforward.by_vae(prepared.vae.model)

        def afternoon() -> int:
            threads = 1 if by_pixels else cores  # averaging is nothing; its threads would be in the workers' way
            with tempfile.TemporaryDirectory(dir=root) as out, straightforward.torch_threads(threads):
                return straightforward.encode_tars(
                    tars, Path(out), encode, config.views, config.image_size, config.batch_size, workers=cores
                )

        def ours() -> int:
            with tempfile.TemporaryDirectory(dir=root) as out:
                version = Store(out).create(prepared.spec)
                outcomes = list(
                    run_local(prepared.sources, ShardEncoder(prepared.vae, version, encode_config), encode_config)
                )
                return sum(views_of(outcome, config.views) for outcome in outcomes)

        ways = {"straightforward": afternoon, "this pipeline": ours}
        return Measured(tuple(paired(ways, config.rounds, unit="views")))


def posterior_of(vae: str) -> Literal["sample", "mean"]:
    """Pixels have no spread to draw from."""
    return "mean" if vae == "pixels" else "sample"


def views_of(outcome: object, views: int) -> int:
    """Latents that a shard gave; a shard that failed would only make the pipeline look fast."""
    if not isinstance(outcome, ShardReport):
        raise CheckFailed(f"a shard failed: {outcome}")
    return outcome.commit.encoded * views
