"""Four views from one decode against a pass over the data for each of them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from benchmarks import straightforward
from benchmarks.figures import Measured
from benchmarks.paired import paired
from benchmarks.pictures import PictureSet, write_tars
from benchmarks.settings import BenchmarkConfig
from encode_pipeline.augment import ViewMaker
from encode_pipeline.config import PositiveInt
from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.read import read_samples
from encode_pipeline.recipe import ViewRecipe
from encode_pipeline.records import Rejected, Sample, View, ViewedSample

IMAGE_SIZE, SEED = 512, 0


class OneDecodeConfig(BenchmarkConfig):
    pictures: PositiveInt = Field(48, description="pictures in the tar")
    side: PositiveInt = Field(1024, description="side of the pictures, JPEGs")
    views: PositiveInt = Field(4, description="views a picture")


def measure(config: OneDecodeConfig) -> Measured:
    """Views a second of one core's time for reading, decoding and augmenting."""
    with tempfile.TemporaryDirectory() as folder:
        (tar,) = write_tars(Path(folder), PictureSet(1, config.pictures, config.side))
        make_views = ViewMaker(ViewRecipe(), config.views, IMAGE_SIZE, SEED, tar.stem)

        def one_decode() -> int:
            return sum(len(accepted(make_views(sample)).views) for sample in good_samples(tar))

        def four_passes() -> int:
            views = (one_view(make_views, sample, view) for view in range(config.views) for sample in good_samples(tar))
            return sum(1 for _ in views)

        def by_torchvision() -> int:
            with straightforward.torch_threads(1):  # as in a DataLoader's worker
                plain, augmented = straightforward.plain(IMAGE_SIZE), straightforward.augmented(IMAGE_SIZE)
                passes = [plain, *[augmented] * (config.views - 1)]
                return sum(1 for transform in passes for _ in straightforward.samples([tar], transform))

        ways = {
            f"{config.views} passes": four_passes,
            f"{config.views} passes, PIL and torchvision": by_torchvision,
            "one decode": one_decode,
        }
        return Measured(tuple(paired(ways, config.rounds, unit="views", by="cpu")))


def good_samples(tar: Path) -> Iterator[Sample]:
    with tar.open("rb") as file:
        for sample in read_samples(file, str(tar)):
            if isinstance(sample, Rejected):
                raise CheckFailed(f"{sample.key}: {sample.reason}")
            yield sample


def accepted(viewed: ViewedSample | Rejected) -> ViewedSample:
    if isinstance(viewed, Rejected):
        raise CheckFailed(f"{viewed.key}: {viewed.reason}")
    return viewed


def one_view(make_views: ViewMaker, sample: Sample, view: int) -> View:
    """A pass's share of a sample: the same decoder and the same view as in the one decode."""
    return accepted(make_views.some(sample, [view])).views[0]
