"""Memory: the most that one large tar takes above the imported libraries, and what is left after each of many."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from pydantic import Field

from benchmarks.figures import Measured, measured_once
from benchmarks.pictures import PictureSet, write_tars
from benchmarks.pipeline import posterior_of
from benchmarks.process import MEBIBYTE, answer_of
from encode_pipeline.config import EncodeConfig, PositiveInt
from encode_pipeline.latents.command import CheckFailed, Settings, to_yaml

UNIT = "MiB above the imported libraries"


class MemoryConfig(Settings):
    out: Path | None = Field(None, description="also write the numbers to this JSON file")
    tar_bytes: PositiveInt = Field(2_000_000_000, description="size of the large tar, about")
    shards: PositiveInt = Field(10, description="smaller tars, one after the other")
    pictures_per_shard: PositiveInt = Field(64, description="pictures in each of those")
    side: PositiveInt = Field(1024, description="side of the pictures, JPEGs")
    vae: str = Field("pixels", description="`pixels`, or a diffusers VAE")
    views: PositiveInt = Field(4, description="views a picture")
    image_size: PositiveInt = Field(512, description="side of a view")
    threads: PositiveInt = Field(len(os.sched_getaffinity(0)), description="threads that decode and augment")
    scratch: Path | None = Field(None, description="folder for the tars and the store; the system's by default")


def measure(config: MemoryConfig) -> Measured:
    """Mebibytes above the imported libraries, each of the two in a process of its own."""
    with tempfile.TemporaryDirectory(dir=config.scratch) as folder:
        root = Path(folder)
        (sample,) = write_tars(root / "sample", PictureSet(1, 48, config.side))
        pictures = max(1, round(48 * config.tar_bytes / sample.stat().st_size))
        (large,) = write_tars(root / "large", PictureSet(1, pictures, config.side))
        size = large.stat().st_size
        one = _encode(config, root, "large", pictures)
        large.unlink()
        write_tars(root / "shards", PictureSet(config.shards, config.pictures_per_shard, config.side))
        many = _encode(config, root, "shards", config.shards * config.pictures_per_shard)
    left = [value / MEBIBYTE for value in many["after_each_shard"]]
    gigabytes = f"a tar of {size / 1e9:.3g} GB"
    figures = (
        measured_once(f"{gigabytes}, at most", UNIT, one["peak_above"] / MEBIBYTE),
        measured_once(f"{config.shards} tars, at most", UNIT, many["peak_above"] / MEBIBYTE),
        measured_once("after the second tar", UNIT, left[min(1, len(left) - 1)]),
        measured_once("after the last tar", UNIT, left[-1]),
    )
    details = {
        "libraries_mib": round(one["libraries"] / MEBIBYTE, 1),
        "pictures": {"large tar": pictures, "each of the others": config.pictures_per_shard},
        "after_each_mib": [round(value, 1) for value in left],
    }
    return Measured(figures, details)


def _encode(config: MemoryConfig, root: Path, source: str, pictures: int) -> dict[str, Any]:
    encode_config = EncodeConfig(
        vae=config.vae,
        posterior=posterior_of(config.vae),
        source=(str(root / source),),
        store=str(root / f"{source}-store"),
        views=config.views,
        image_size=config.image_size,
        threads=config.threads,
        scratch=root,
    )
    path = root / f"{source}.yaml"
    path.write_text(to_yaml(encode_config), encoding="utf-8")
    result = answer_of("benchmarks.resident", path)
    if result["encoded"] != pictures:
        raise CheckFailed(f"{source}: {result['encoded']} of {pictures} pictures encoded")
    return result
