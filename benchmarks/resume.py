"""A run started again: until its first new shard is given out, and until `status` knows where it stands."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
from pydantic import Field

from benchmarks.figures import Figure, Measured, counted, under
from benchmarks.idle_commit import commit_of
from benchmarks.object_store import object_store
from benchmarks.paired import paired
from benchmarks.settings import BenchmarkConfig
from benchmarks.writer import spec_of
from encode_pipeline.config import EncodeConfig, PositiveInt
from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.latents.status import StatusReader
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.records import ShardReport
from encode_pipeline.run import do_shards
from encode_pipeline.work import RunEnded

EXISTS, AT_ONCE, OURS, LIST = (
    "exists() a shard",
    "exists() a shard, 16 at once",
    "this pipeline",
    "limit: an unchecked list",
)
ONE_BY_ONE, BYTES = "a JSON file a shard, one by one", "limit: the bytes of the commits"
THREADS = 16
Ways = dict[str, Callable[[], int]]


class ResumeConfig(BenchmarkConfig):
    shards: PositiveInt = Field(5_000, description="shards that are done, on disk")
    s3_shards: PositiveInt = Field(240, description="shards that are done, on S3; for status a quarter of them")
    scratch: Path | None = Field(None, description="folder for the commits; the system's by default")


def measure(config: ResumeConfig) -> Measured:
    """Shards a second that a resumed run, or `status`, finds to be done."""
    figures: list[Figure] = []
    requests: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory(dir=config.scratch) as folder:
        disk = Finished(str(Path(folder) / "store"), config.shards)
        for name, ways in {"status": disk.status(), **disk.starts()}.items():
            figures += under(f"disk, {name}", paired(ways, config.rounds, unit="shards"))
        with object_store() as store:
            few = Finished(store.bucket(), max(1, config.s3_shards // 4))  # to read a commit takes what it takes
            many = Finished(store.bucket(), config.s3_shards)
            for name, ways in {"status": few.status(), **many.starts()}.items():
                figures += under(f"S3 on loopback, {name}", paired(ways, config.rounds, unit="shards"))
                for way, ask in ways.items():
                    kinds = store.asked_by(ask)
                    requests[f"{name}: {way}"] = dict(kinds)
                    figures.append(counted(f"S3, {name}: {way}: requests", "requests", kinds.total(), "less"))
    shards = {"disk": config.shards, "S3": config.s3_shards, "S3, status": few.shards}
    server = "moto, in Python on this machine, slow at listing: its speed is not an object store's"
    return Measured(tuple(figures), {"shards": shards, "requests": requests, "server": server})


class Finished:
    """A store in which all shards of a run are done, and how a second run, or `status`, may find that out."""

    def __init__(self, address: str, shards: int) -> None:
        self._store = Store(address)
        self._version = self._store.create(spec_of(views=4))
        self._done = [tar_of(number) for number in range(shards)]
        self._version.record_plan(self._done)
        self._fs, root = fsspec.url_to_fs(self._version.storage.url(), use_listings_cache=False)
        self._commits, self._list = f"{root}/commits", f"{root}/done.txt"
        content = {self._place(source): commit_of(source, self._version.fingerprint).to_json() for source in self._done}
        if self._version.storage.is_local:  # without fsync: it would take minutes, and no reader can tell
            Path(self._commits).mkdir()
            for path, data in content.items():
                Path(path).write_bytes(data)
        else:
            self._fs.pipe(content)
        self._fs.pipe_file(self._list, "".join(f"{source.name}\n" for source in self._done).encode())

    @property
    def shards(self) -> int:
        return len(self._done)

    def starts(self) -> dict[str, Ways]:
        """The ways to the first shard that is to be done, of shards all or half of which are; each says of how many."""
        others = (tar_of(self.shards + number) for number in range(self.shards))
        half = [shard for pair in zip(self._done, others, strict=True) for shard in pair]
        return {"all done": self._start(self._done), "half done": self._start(half[: self.shards])}

    def _start(self, sources: Sequence[SourceShard]) -> Ways:
        done = {source.name for source in self._done}
        expected = next((source for source in sources if source.name not in done), None)
        places = [self._place(source) for source in sources]  # what others have no need to work out comes free

        def answered(missing: list[SourceShard]) -> int:
            if (missing[0] if missing else None) != expected:
                raise CheckFailed(f"the first shard given out was {missing[:1]}, and should have been {expected}")
            return len(sources)

        def by_exists() -> int:
            there = map(self._fs.exists, places)
            return answered([source for source, found in zip(sources, there, strict=True) if not found])

        def by_exists_at_once() -> int:
            with ThreadPoolExecutor(THREADS) as pool:
                there = pool.map(self._fs.exists, places)
                return answered([source for source, found in zip(sources, there, strict=True) if not found])

        def by_list() -> int:
            names = set(self._fs.cat_file(self._list).decode().splitlines())
            return answered([source for source in sources if source.name not in names])

        def by_ours() -> int:
            return answered(first_given_out(sources, self._version))

        asking: Ways = {EXISTS: by_exists} if self._version.storage.is_local else {AT_ONCE: by_exists_at_once}
        return {**asking, OURS: by_ours, LIST: by_list}

    def status(self) -> Ways:
        """The ways to count what all commits say."""
        expected = 10_000 * len(self._done)
        places = [self._place(source) for source in self._done]

        def one_by_one() -> int:
            read = sum(int(json.loads(self._fs.cat_file(place))["read"]) for place in self._fs.ls(self._commits, False))
            if read != expected:
                raise CheckFailed(f"{read} samples read, {expected} committed")
            return len(places)

        def bytes_alone() -> int:
            return len(self._fs.cat(places))

        def by_ours() -> int:
            status = StatusReader(self._store, self._version).look()
            if status.tally.read != expected or status.total != len(places):
                raise CheckFailed(f"{status.tally.read} samples read in {status.total} shards, {expected} committed")
            return status.tally.done

        return {ONE_BY_ONE: one_by_one, OURS: by_ours, BYTES: bytes_alone}

    def _place(self, source: SourceShard) -> str:
        return f"{self._commits}/{source.name}.json"


class FirstShard:
    """Work that ends the run as soon as it is given any."""

    device = "cpu"

    def __init__(self, version: Version) -> None:
        self.version = version
        self.given: list[SourceShard] = []

    def do(self, source: SourceShard, tell: Callable[[int], None]) -> ShardReport:
        self.given.append(source)
        raise RunEnded

    def close(self) -> None:
        pass


def first_given_out(sources: Sequence[SourceShard], version: Version) -> list[SourceShard]:
    """What a run of these shards begins with; nothing where all are done. The run is broken off there."""
    config = EncodeConfig(vae="pixels", source=("none.tar",), store=version.storage.url())
    work = FirstShard(version)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(RunEnded):
        do_shards(list(sources), version, config, lambda: work)
    order = {source.name: number for number, source in enumerate(sources)}
    return sorted(work.given, key=lambda source: order[source.name])  # a few are given out at once


def tar_of(number: int) -> SourceShard:
    return SourceShard(f"s3://pictures/laion/{number:08d}.tar", 300_000_000 + number, "0123456789abcdef")
