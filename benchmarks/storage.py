"""Latents on disk as float16, as int8, and as float16 made smaller without loss: bytes, speed, and what is lost."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field

from benchmarks.figures import Figure, Measured, under
from benchmarks.lossless import LAYOUTS, Packing, Places, Sample, write_packed
from benchmarks.paired import paired
from benchmarks.reader import NoTokens
from benchmarks.reconstruction import loss_of_int8, there_and_back
from benchmarks.settings import BenchmarkConfig
from benchmarks.storage_bytes import Sizes, information
from benchmarks.world_latents import Encoded, encode_world, made_up, spec_for
from demo.run import VAE
from encode_pipeline.config import PositiveInt
from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.commit import ShardBuild, SourceShard
from encode_pipeline.latents.reader import LatentShard
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.latents.store import Store
from encode_pipeline.latents.writer import Latent, ShardWriter
from encode_pipeline.vae import load_vae
from train.config import TrainConfig
from train.data import LatentData, open_data

PACKINGS = {f"bytes apart, zstd {level}": Packing(LAYOUTS["bytes apart"], level) for level in (1, 3)}
"""Lossless ways whose speed is measured too."""
SPREAD_OF_SDXL = 1 / 0.13025
"""Of raw latents of SDXL's VAE, as its scaling factor has it."""
NOISE = {"white noise": 0.0, "noise as smooth as pictures": 1.0}
"""Made up, by how its amplitude falls with frequency."""
Ways = dict[str, Callable[[], int]]
Specs = Mapping[str, LatentSpec]


class StorageConfig(BenchmarkConfig):
    vae: str = Field(str(VAE), description="a diffusers VAE")
    image_size: PositiveInt = Field(512, description="side of a view")
    pictures: PositiveInt = Field(16, description="pictures of the demo's world, in two views each")
    samples: PositiveInt = Field(
        768, description="samples in a tar that is written and read: the latents over and over"
    )
    batch_size: PositiveInt = Field(128, description="samples in a batch of the trainer's")
    levels: list[int] = Field([1, 3, 19], min_length=1, description="of zstd")


def measure(config: StorageConfig) -> Measured:
    """Bytes a sample, samples a second written and read, and what the VAE's decoder makes of what is left."""
    vae = load_vae(config.vae)
    specs = {"float16": spec_for(vae, config.image_size)}
    specs["int8"] = specs["float16"].model_copy(update={"dtype": "int8"})
    pictures = list(encode_world(vae, specs["float16"], config.pictures))
    latents = [latent for picture in pictures for latent in picture.latents]
    samples = repeated(pictures, config.samples)
    figures = [*_bytes(pictures, specs["float16"], samples[: len(latents)], config.levels)]
    with tempfile.TemporaryDirectory() as folder:
        for part, ways_of in (("written", _writing), ("read", _reading), ("in batches", _batches)):
            place = Path(folder) / part
            place.mkdir()
            figures += under(part, paired(ways_of(place, specs, samples, config.batch_size), config.rounds))
    figures += loss_of_int8(vae, pictures)
    spread = np.stack(latents).astype(np.float32).std(axis=(0, 2, 3))
    details = {
        "weights": f"{config.vae}, on the demo's world: the latents of another VAE are other numbers",
        "spread_of_channels": [round(float(value), 3) for value in spread],
        "noise": f"no latents: made up, with the spread of SDXL's, {SPREAD_OF_SDXL:.2f}, in every channel",
        "bytes": "of a sample in a tar, with headers, caption and record",
    }
    return Measured(tuple(figures), details)


def repeated(pictures: Sequence[Encoded], number: int) -> list[Sample]:
    """So many samples under keys of their own: every view of every picture, over and over."""
    views = [
        (latent, picture.sample.caption, record)
        for picture in pictures
        for latent, record in zip(picture.latents, picture.records, strict=True)
    ]
    return [(f"{at:09d}", *views[at % len(views)]) for at in range(number)]


def _bytes(
    pictures: Sequence[Encoded], spec: LatentSpec, samples: Sequence[Sample], levels: Sequence[int]
) -> list[Figure]:
    sizes = Sizes(spec, samples)
    latents = [latent for _, latent, _, _ in samples]
    of_views = [*sizes.of(latents, levels)]
    found = [*under("bytes", [*of_views, sizes.of_steps_between_views(pictures, levels[0]), *information(latents)])]
    for name, fall in NOISE.items():
        noise = [made_up(spec.shape, SPREAD_OF_SDXL, fall, seed) for seed in range(len(pictures))]
        found += under(f"bytes of {name}", [*sizes.of(noise, levels[:1])])
    return found


def _writing(folder: Path, specs: Specs, samples: Sequence[Sample], _: int) -> Ways:
    """A tar, hashed on the way and held by the disk."""
    numbers = count()

    def plain(spec: LatentSpec) -> int:
        with _new_file(folder, next(numbers)) as path, ShardWriter(path, spec) as writer:
            for sample in samples:
                writer.add(*sample)
        return len(samples)

    def packed(packing: Packing) -> int:
        with _new_file(folder, next(numbers)) as path:
            write_packed(path, samples, packing)
        return len(samples)

    ways: Ways = {kind: partial(plain, spec) for kind, spec in specs.items()}
    return ways | {name: partial(packed, packing) for name, packing in PACKINGS.items()}


@contextmanager
def _new_file(folder: Path, number: int) -> Iterator[Path]:
    """The place for a file that nobody needs any more once it is written."""
    path = folder / f"{number}.tar"
    yield path
    path.unlink()


def _reading(folder: Path, specs: Specs, samples: Sequence[Sample], batch_size: int) -> Ways:
    """Every latent of a tar in the page cache, into the rows of batches; where they are in it is known."""
    shape = specs["float16"].shape
    rows = np.empty((batch_size, *shape), np.float16)
    shards = {}
    for kind, spec in specs.items():
        with ShardWriter(folder / f"{kind}.tar", spec) as writer:
            for sample in samples:
                writer.add(*sample)
        shards[kind] = LatentShard(folder / f"{kind}.tar", spec)

    def plain(shard: LatentShard) -> int:
        for number in range(len(shard)):
            rows[number % batch_size] = shard.latent(number)
        return len(shard)

    ways: Ways = {kind: partial(plain, shard) for kind, shard in shards.items()}
    for name, packing in PACKINGS.items():
        path = folder / f"{name}.tar"
        places = write_packed(path, samples, packing)
        ways[name] = partial(_unpack, np.memmap(path, np.uint8, "r"), places, packing, rows)
    expected = [samples[at][1] for at in range(len(samples) - batch_size, len(samples))]
    for name, way in ways.items():
        way()
        wanted = [there_and_back(latent) for latent in expected] if name == "int8" else expected
        if not np.array_equal(np.roll(rows, -(len(samples) % batch_size), axis=0), np.stack(wanted)):
            raise CheckFailed(f"{name}: read otherwise than written")
    return ways


def _unpack(file: npt.NDArray[np.uint8], places: Places, packing: Packing, rows: Latent) -> int:
    for number, (start, size) in enumerate(places):
        rows[number % len(rows)] = packing.unpack(file[start : start + size].tobytes(), rows.shape[1:])
    return len(places)


def _batches(folder: Path, specs: Specs, samples: Sequence[Sample], batch_size: int) -> Ways:
    """An epoch as the training loop reads it, in random order, indices made before; without tokens."""

    def read(data: LatentData) -> int:
        batches = len(samples) // batch_size
        return sum(len(batch.latents_bchw) for batch in data.batches(0, batches, range(batch_size)))

    ways: Ways = {}
    for kind, spec in specs.items():
        one_view = spec.model_copy(update={"views": 1})
        version = Store(folder / kind).create(one_view)
        with ShardBuild(folder / f"{kind}-scratch", one_view, SourceShard("00000.tar", 1)) as build:
            for key, latent, caption, record in samples:
                build.add(key, [latent], caption, [record])
        version.publish(*build.finish("0" * 64, {}))
        version.seal()
        values = {"model": "latent-vit-demo", "data": str(folder / kind), "out": folder / f"{kind}-run"}
        ways[kind] = partial(read, open_data(TrainConfig(**values, batch_size=batch_size, steps=1), NoTokens()))
    return ways
