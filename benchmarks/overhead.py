"""What the pipeline costs beyond the work: its time against decoding and encoding, each alone on the same cores."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from benchmarks.figures import Figure, Measured, compared
from benchmarks.one_decode import accepted, good_samples
from benchmarks.paired import Spent, in_turns
from benchmarks.pictures import PictureSet, write_tars
from benchmarks.pipeline import views_of
from benchmarks.settings import BenchmarkConfig
from demo.run import VAE
from encode_pipeline.augment import ViewMaker
from encode_pipeline.config import EncodeConfig, PositiveInt
from encode_pipeline.encode_shard import ShardEncoder
from encode_pipeline.encoder import LatentEncoder
from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.store import Store
from encode_pipeline.randomness import posterior_noise
from encode_pipeline.run import prepare
from encode_pipeline.run_local import run_local


class OverheadConfig(BenchmarkConfig):
    vae: str = Field(str(VAE), description="a diffusers VAE")
    pictures: PositiveInt = Field(48, description="pictures in the tar")
    side: PositiveInt = Field(1024, description="side of the pictures, JPEGs")
    views: PositiveInt = Field(4, description="views a picture")
    image_size: PositiveInt = Field(512, description="side of a view")
    batch_size: PositiveInt = Field(16, description="views encoded at once")


def measure(config: OverheadConfig) -> Measured:
    """Seconds of the pipeline over the sum of the two parts that cannot be saved."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (tar,) = write_tars(root / "tars", PictureSet(1, config.pictures, config.side))
        encode_config = EncodeConfig(
            vae=config.vae,
            source=(str(tar),),
            store=str(root / "store"),
            views=config.views,
            image_size=config.image_size,
            batch_size=config.batch_size,
            threads=cores,
        )
        prepared = prepare(encode_config)
        spec = prepared.spec
        encoder = LatentEncoder(prepared.vae, spec, config.batch_size)
        make_views = ViewMaker(encode_config.recipe, config.views, config.image_size, spec.seed, tar.stem)
        samples = list(good_samples(tar))

        def decode_and_augment() -> None:
            with ThreadPoolExecutor(cores) as pool:
                for viewed in pool.map(make_views, samples):
                    accepted(viewed)

        pictures = [view.pixels for sample in samples for view in accepted(make_views(sample)).views]
        noise = [posterior_noise(number, spec.shape) for number in range(config.batch_size)]

        def encode() -> None:
            for start in range(0, len(pictures), config.batch_size):
                batch = pictures[start : start + config.batch_size]
                encoder.encode(batch, noise[: len(batch)])

        encoded: list[int] = []

        def pipeline() -> None:
            with tempfile.TemporaryDirectory(dir=root) as out:
                version = Store(out).create(spec)
                outcomes = run_local(
                    prepared.sources, ShardEncoder(prepared.vae, version, encode_config), encode_config
                )
                encoded.append(sum(views_of(outcome, config.views) for outcome in outcomes))

        works = {"decode and augment": decode_and_augment, "VAE": encode, "pipeline": pipeline}
        turns = in_turns(works, config.rounds)
    if len(set(encoded)) != 1 or encoded[0] != len(pictures):
        raise CheckFailed(f"of {len(pictures)} views the pipeline encoded {encoded}")
    return Measured(tuple(against_the_sum(turns)), {"views": encoded[0], "cores": cores})


def against_the_sum(turns: Mapping[str, Sequence[Spent]]) -> list[Figure]:
    """Seconds of each part, of both one after the other, and of the pipeline against that."""
    *parts, whole = turns
    figures = [Figure(name, "seconds", tuple(turn.wall for turn in turns[name]), "less") for name in parts]
    sums = [
        Spent(sum(turn.wall for turn in round_), sum(turn.cpu for turn in round_))
        for round_ in zip(*(turns[name] for name in parts), strict=True)
    ]
    both = Figure(", then ".join(parts), "seconds", tuple(turn.wall for turn in sums), "less")
    pipeline = compared(whole, "seconds", [turn.wall for turn in turns[whole]], both, "less")
    by_cpu = tuple(turn.cpu / parts_.cpu for turn, parts_ in zip(turns[whole], sums, strict=True))
    return [*figures, both, replace(pipeline, cpu_ratios=by_cpu)]
