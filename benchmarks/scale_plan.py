"""What was measured, what is assumed, and what follows for billions of pictures. Arithmetic, and nothing else."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from benchmarks.record import read_record
from benchmarks.requests import ASKED, requests_of_a_shard
from benchmarks.storage_bytes import member
from demo.report_machine import ROOT
from encode_pipeline.config import PositiveInt
from encode_pipeline.estimate import SHA256_BYTES
from encode_pipeline.latents.command import RequestError, Settings
from encode_pipeline.latents.spec import LatentSpec, VaeIdentity
from encode_pipeline.latents.tables import MANIFEST_SCHEMA, to_parquet
from encode_pipeline.latents.version import READ_THREADS
from encode_pipeline.latents.writer import npy_header

RESULTS = ROOT / "benchmarks" / "results"
SHAPE = (4, 64, 64)
DTYPES = ("float16", "int8")
UNDER_WAY = 1.5
"""Tars' worth of a GPU's work that is lost with it: of its three one is half encoded, and one is being published."""
MODELS = ("latent-vit-b-8", "latent-vit-b-4-plus")


class ScaleConfig(Settings):
    """What no benchmark can tell."""

    images: float = Field(2.7e9, gt=0, description="pictures: LAION-2B-en and COYO-700M, as the paper has them")
    views: PositiveInt = Field(4, description="views of each")
    pictures_per_tar: PositiveInt = Field(10_000, description="pictures in a source tar, as img2dataset makes them")
    picture_bytes: float = Field(
        100_000, gt=0, description="bytes of a picture in its tar; your own tars say it better"
    )
    gpus: list[PositiveInt] = Field([64, 256, 1024], min_length=1, description="GPUs that encode")
    gpu_hour_price: float = Field(2.49, gt=0, description="dollars for an hour of a GPU like the measured one")
    terabyte_month_price: float = Field(23.0, gt=0, description="dollars for keeping a terabyte for a month")
    thousand_puts_price: float = Field(0.005, gt=0, description="dollars for a thousand PUT, POST or LIST requests")
    thousand_gets_price: float = Field(0.0004, gt=0, description="dollars for a thousand GET or HEAD requests")
    prices: str = Field("S3 Standard in us-east-1 as listed in 2025; the GPU: an example", description="whose they are")
    hours_between_losses: float = Field(8.0, gt=0, description="hours that a spot machine stays, on average")
    minutes_to_replace: float = Field(5.0, gt=0, description="minutes until another one encodes in its place")
    latency: float = Field(0.05, gt=0, description="seconds that an object store takes for a small request")
    training_gpus: PositiveInt = Field(128, description="GPUs that train, as the paper had")
    gpus_a_machine: PositiveInt = Field(8, description="GPUs of one machine, which share what it has copied")
    training_samples: float = Field(34e9, gt=0, description="samples seen, as the paper's models have")
    results: Path = Field(RESULTS, description="folder with the records of benchmarks")
    write: Path | None = Field(None, description="a Markdown file whose tables are written anew")


@dataclass(frozen=True)
class Source:
    """Where a number was measured: the record, and the way to it. In a list of figures the name leads on."""

    file: str
    path: tuple[str, ...]
    what: str

    def read(self, folder: Path) -> float:
        content: Any = read_record(folder / self.file)
        try:
            for key in self.path:
                if isinstance(content, list):
                    content = {figure["name"]: figure["median"] for figure in content}
                content = content[key]
            return float(content)
        except (KeyError, TypeError, ValueError):
            raise RequestError(f"{folder / self.file}: has no {' / '.join(self.path)}") from None


_GPU, _AGAIN, _DRIVER, _BENCH = "gpu-h200.json", "again-2-cores.json", "driver-2-cores.json", "bench-2-cores.json"


def _of(file: str, benchmark: str, *path: str, what: str) -> Source:
    return Source(file, ("benchmarks", benchmark, *path), what)


MEASURED = {
    "views": _of(
        _GPU, "gpu", "details", "pipeline", "views_per_second", what="views a second of one H200, tars to shards"
    ),
    "bytes": _of(_GPU, "gpu", "details", "pipeline", "last_run", "bytes", what="bytes of the shards that it made"),
    "encoded": _of(_GPU, "gpu", "details", "pipeline", "pictures", what="pictures in them, in four views each"),
    "decode": _of(
        _GPU, "gpu", "details", "decode", "4 threads", what="views a second decoded and augmented by 4 threads"
    ),
    **{
        model: _of(
            _GPU,
            "gpu",
            "figures",
            f"train {model}, batch 1024: a step in OpenCLIP's way",
            what=f"samples a second that one H200 trains {model} on, in OpenCLIP's way",
        )
        for model in MODELS
    },
    "tasks": _of(_DRIVER, "driver", "figures", "this driver", what="tars a second that the driver gives out"),
    "actors": _of(_DRIVER, "driver", "settings", "actors", what="actors that it was measured with"),
    "shards": _of(_AGAIN, "again", "settings", "shards", what="tars that the rest was measured with"),
    "driver": _of(_AGAIN, "again", "figures", "run: memory", what="MiB of the driver's memory, when all are done"),
    "resume": _of(
        _AGAIN, "again", "figures", "run: time", what="seconds until a finished run knows that it is, on disk"
    ),
    "read": _of(
        _BENCH,
        "reader",
        "figures",
        "batches, random order",
        what="samples a second in batches, from memory, one process",
    ),
    "tokenised": _of(
        _BENCH,
        "reader",
        "figures",
        "first epoch: check, index, tokenise",
        what="samples a second checked, indexed and tokenised, one process",
    ),
}


class Plan:
    """What follows."""

    def __init__(self, config: ScaleConfig) -> None:
        self.config = config
        self.measured = {name: source.read(config.results) for name, source in MEASURED.items()}

    # --- encoding --------------------------------------------------------------------------------

    @property
    def latents(self) -> float:
        return self.config.images * self.config.views

    @property
    def gpu_hours(self) -> float:
        return self.latents / self.measured["views"] / 3600

    @property
    def shards(self) -> float:
        return self.config.images / self.config.pictures_per_tar

    @property
    def shard_seconds(self) -> float:
        """Of one GPU."""
        return self.config.pictures_per_tar * self.config.views / self.measured["views"]

    @property
    def lost(self) -> float:
        """The share of a spot GPU's time that goes with losses nobody announced."""
        away = self.config.minutes_to_replace * 60 + UNDER_WAY * self.shard_seconds
        return away / (self.config.hours_between_losses * 3600)

    def hours(self, gpus: int) -> float:
        return self.gpu_hours / gpus / (1 - self.lost)

    def sample_bytes(self, dtype: str) -> float:
        """Of a latent with caption and record, in its tar."""
        float16 = self.measured["bytes"] / (4 * self.measured["encoded"])
        return float16 + _latent_member(dtype) - _latent_member("float16")

    def store_bytes(self, dtype: str) -> float:
        return self.latents * self.sample_bytes(dtype)

    def tar_bytes(self, dtype: str) -> float:
        return self.config.pictures_per_tar * self.sample_bytes(dtype)

    @property
    def source_bytes(self) -> float:
        """Of a source tar."""
        return self.config.pictures_per_tar * self.config.picture_bytes

    def requests(self, dtype: str) -> Counter[str]:
        """Of one shard."""
        return requests_of_a_shard(self.source_bytes, self.tar_bytes(dtype), self.config.views)

    def asked(self, dtype: str) -> tuple[float, float]:
        """Of one shard, those that are billed and limited as writes, and those as reads."""
        kinds = self.requests(dtype)
        return kinds["PUT"] + kinds["LIST"], kinds["GET"] + kinds["HEAD"]

    def requests_price(self, dtype: str) -> float:
        writes, reads = self.asked(dtype)
        return self.shards * (writes * self.config.thousand_puts_price + reads * self.config.thousand_gets_price) / 1000

    # --- afterwards ------------------------------------------------------------------------------

    @cached_property
    def manifest_bytes(self) -> float:
        return self.shards * self.config.views * manifest_row_bytes()

    @property
    def seal_seconds(self) -> float:
        """Every commit is read, each with a HEAD and a GET."""
        return 2 * self.shards * self.config.latency / READ_THREADS

    def verify_core_hours(self, dtype: str) -> float:
        return self.store_bytes(dtype) / SHA256_BYTES / 3600

    # --- training --------------------------------------------------------------------------------

    def samples_per_second(self, model: str) -> float:
        return self.measured[model] * self.config.training_gpus

    def training_days(self, model: str) -> float:
        return self.config.training_samples / self.samples_per_second(model) / 86400

    def read_bytes(self, model: str, dtype: str) -> float:
        """A second, of all GPUs together, each sample once."""
        return self.samples_per_second(model) * self.sample_bytes(dtype)

    @property
    def machines(self) -> float:
        return self.config.training_gpus / self.config.gpus_a_machine

    def copied_bytes(self, model: str, dtype: str) -> float:
        """A second, from an object store: each machine copies every shard, for every batch has samples of all."""
        return self.read_bytes(model, dtype) * self.machines

    def trains_from(self, model: str, dtype: str, reads: float) -> float:
        """GPUs whose machines ask for so many a second. More of them want more each, and more of them copy it."""
        by_one = self.measured[model] * self.sample_bytes(dtype) / ASKED
        return math.sqrt(reads * self.config.gpus_a_machine / by_one)

    def copying_gets(self, model: str, dtype: str) -> float:
        return self.copied_bytes(model, dtype) / ASKED


def _latent_member(dtype: str) -> int:
    spec = LatentSpec(
        vae=VaeIdentity(name="any", weights_sha256="0" * 64, config={}, scaling_factor=1.0),
        dtype=dtype,
        shape=SHAPE,
        image_size=512,
        views=1,
        recipe={},
        seed=0,
    )
    return member(len(npy_header(spec)) + spec.bytes_per_latent)


def manifest_row_bytes(rows: int = 20_000) -> float:
    """Of a sealed version's manifest, as Parquet; of shards named like LAION's."""
    import pyarrow as pa

    def mark(*about: object) -> str:
        return hashlib.sha256(repr(about).encode()).hexdigest()

    table = []
    for row in range(rows):
        number, view = divmod(row, 4)
        shard = f"{number:05d}-{mark(number)[:10]}"
        path = f"data/{shard}/{mark(number, 'attempt')[:32]}/view{view}.tar"
        about = {"shard": shard, "view": view, "path": path, "size": 358_420_000 + number % 4000, "sha256": mark(row)}
        table.append({**about, "samples": 9000 + number % 1000, "source": f"s3://my-bucket/laion/{number:05d}.tar"})
    return len(to_parquet(pa.Table.from_pylist(table, schema=MANIFEST_SCHEMA))) / rows
