"""What the benchmarks are told."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field

from encode_pipeline.config import PositiveInt
from encode_pipeline.latents.command import Settings


class BenchmarkConfig(Settings):
    """Any benchmark."""

    rounds: PositiveInt = Field(5, description="rounds, in each of which every way has its turn")
    out: Path | None = Field(None, description="also write the numbers to this JSON file")


class Pictures(Settings):
    """A benchmark that reads pictures."""

    side: PositiveInt = Field(1024, description="side of the source pictures, JPEGs")
    tars: PositiveInt = Field(2 * len(os.sched_getaffinity(0)), description="tars, by default two for every core")
    pictures_per_tar: PositiveInt = Field(48, description="pictures a tar")
