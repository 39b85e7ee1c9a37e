"""A shard of latents brought to the store: the whole commit protocol against writing tars and uploading them."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import fsspec
from pydantic import Field

from benchmarks.figures import Figure, Measured, counted, under
from benchmarks.object_store import ObjectStore, object_store
from benchmarks.paired import paired
from benchmarks.settings import BenchmarkConfig
from benchmarks.writer import LatentSample, latent_samples, spec_of, write_by_webdataset
from encode_pipeline.config import PositiveInt
from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.commit import ShardBuild, SourceShard
from encode_pipeline.latents.disk import sync
from encode_pipeline.latents.store import Store

PUT, CAREFUL, ALONE = "webdataset, put", "webdataset, fsync, put, read back, sha256", "limit: put alone"
OURS = "this pipeline"


class CommitConfig(BenchmarkConfig):
    samples: PositiveInt = Field(200, description="samples in the shard; LAION's have ten thousand")
    views: PositiveInt = Field(4, description="views, each a tar")


def measure(config: CommitConfig) -> Measured:
    """Megabytes a second from latents in memory to a shard that readers may trust, on disk and on S3."""
    views = [latent_samples(config.samples, view) for view in range(config.views)]
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        disk = Shards(Path(folder) / "disk", str(Path(folder) / "store"), views)
        figures += under("disk", paired(disk.ways(), config.rounds, unit="MB"))
        with object_store() as store:
            shards = Shards(Path(folder) / "s3", store.bucket(), views)
            figures += under("S3 on loopback", paired(shards.ways(), config.rounds, unit="MB"))
            requests = shards.requests(store)
    for name, kinds in requests.items():
        figures.append(counted(f"S3: {name}: requests", "requests a shard", kinds.total(), "less"))
    details = {
        "shard_bytes": disk.size,
        "tars": config.views,
        "requests": {name: dict(sorted(kinds.items())) for name, kinds in requests.items()},
        "server": "moto, in Python on this machine: its speed is not an object store's",
    }
    return Measured(tuple(figures), details)


class Shards:
    """The same shard, brought to one place in different ways."""

    def __init__(self, scratch: Path, address: str, views: Sequence[Sequence[LatentSample]]) -> None:
        self._scratch, self._address, self._views = scratch, address, views
        self._fs, self._root = fsspec.url_to_fs(address)
        self._version = Store(f"{address}/store").create(spec_of(len(views)))
        self._numbers = count()
        self._fs.makedirs(f"{self._root}/tars", exist_ok=True)
        self._ready = self._tars(scratch / "ready")
        self.size = sum(path.stat().st_size for path in self._ready)

    def ways(self) -> dict[str, Callable[[], int]]:
        """Each gives the megabytes of latents, captions and records that are there then."""
        return {PUT: self._by_put, CAREFUL: self._carefully, OURS: self._by_commit, ALONE: self._put_alone}

    def requests(self, store: ObjectStore) -> dict[str, Counter[str]]:
        """What each way asks the server for one shard."""
        return {name: store.asked_by(way) for name, way in self.ways().items()}

    def _by_put(self) -> int:
        folder = self._scratch / "put"
        for path in self._tars(folder):
            self._put(path)
        shutil.rmtree(folder)
        return self._megabytes()

    def _carefully(self) -> int:
        folder = self._scratch / "careful"
        for path in self._tars(folder):
            sync(path)
            with path.open("rb") as file:
                written = hashlib.file_digest(file, "sha256").digest()
            with self._fs.open(self._put(path), "rb") as stream:
                if hashlib.file_digest(stream, "sha256").digest() != written:
                    raise CheckFailed(f"{path.name}: did not arrive as it was sent")
        shutil.rmtree(folder)
        return self._megabytes()

    def _by_commit(self) -> int:
        source = SourceShard(f"s3://pictures/laion/{next(self._numbers):05d}.tar", 1)
        folder = self._scratch / "build"
        with ShardBuild(folder, self._version.spec, source) as build:
            for seen in zip(*self._views, strict=True):
                latents, records = [sample.latent for sample in seen], [sample.record for sample in seen]
                build.add(seen[0].key, latents, seen[0].caption, records)
            if not self._version.publish(*build.finish("0" * 64, {})):
                raise CheckFailed(f"{source.name}: had a commit already")
        shutil.rmtree(folder)
        return self._megabytes()

    def _put_alone(self) -> int:
        for path in self._ready:
            self._put(path)
        return self._megabytes()

    def _tars(self, folder: Path) -> list[Path]:
        folder.mkdir(parents=True)
        paths = [folder / f"view{number}.tar" for number in range(len(self._views))]
        for path, samples in zip(paths, self._views, strict=True):
            write_by_webdataset(samples, path)
        return paths

    def _put(self, path: Path) -> str:
        place = f"{self._root}/tars/{path.name}"
        self._fs.put_file(str(path), place)
        return place

    def _megabytes(self) -> int:
        return max(1, round(self.size / 1e6))
