"""The figures that README.md and docs/performance.md show, out of the records; `highlights` writes them there anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from benchmarks.documents import table_of, with_tables
from benchmarks.record import read_record
from benchmarks.table import between, machine_in_words, number
from demo.report_machine import ROOT
from encode_pipeline.latents.command import RequestError, Settings

GPU, BENCH, DRIVER = "gpu-h200", "bench-2-cores", "driver-2-cores"
CONTRAST, LATENTS = "contrast-2-cores", "storage-accuracy-2-cores"
README, PERFORMANCE = ROOT / "README.md", ROOT / "docs" / "performance.md"


class HighlightsConfig(Settings):
    results: Path = Field(ROOT / "benchmarks" / "results", description="folder with the records")
    write: bool = Field(False, description="write the tables into README.md and docs/performance.md")


@dataclass(frozen=True)
class Row:
    """What a figure is to a reader, and where it stands."""

    what: str
    benchmark: str
    figure: str
    against: str = ""
    """The way that its ratio is to, in words."""
    record: str = BENCH
    short: bool = False
    """Whether it stands in README.md too."""


LOOP, FASTEST = "diffusers' usual loop", "encoder float16, batch 16: ours, fused"
ON_GPU = (
    Row("SDXL-sized encoder, `kernels=fused` (the default)", "gpu", FASTEST, LOOP, GPU),
    Row("the same, `kernels=compiled`", "gpu", "encoder float16, batch 16: ours, compiled", LOOP, GPU),
    Row("JPEG tars to committed shards, once under way", "gpu", "pipeline: this pipeline, once under way", "", GPU),
)
STRAIGHTFORWARD = "webdataset → PIL → torchvision → DataLoader → `torch.save`"
UNCHECKED, UNHASHED = "a JSON file a shard, one by one, unchecked", "webdataset, neither"
EXISTS, EXISTS_AT_ONCE = "`exists()` a shard, one by one", "`exists()` a shard, 16 at once"
TORCHVISION = "torchvision v2 on uint8 tensors"
LOSS, TORCHS_LOSS = "open_clip's ClipLoss", "torch's linear_cross_entropy"
PROFILE = "JPEG with a profile and turned, 1024 pixels: this pipeline, with every check"
ON_CPU = (
    Row("tars to committed shards, `vae=pixels`", "pipeline", "this pipeline", STRAIGHTFORWARD, short=True),
    Row("the same, demo VAE", "encode", "tars to committed shards", "the bare diffusers loop"),
    Row("four views from one decode", "one-decode", "one decode", "four passes of the same code", short=True),
    Row("augmented views", "augment", "augmented: this pipeline", TORCHVISION, short=True),
    Row("– by albumentations", "augment", "augmented: albumentations", TORCHVISION, short=True),
    Row("plain views", "augment", "plain: this pipeline", TORCHVISION),
    Row("– by albumentations", "augment", "plain: albumentations", TORCHVISION),
    Row("JPEGs, with every check", "decode", "JPEG, 1024 pixels: this pipeline, with every check", "PIL"),
    Row("– by torchvision, no checks", "decode", "JPEG, 1024 pixels: torchvision", "PIL"),
    Row("JPEGs with a profile and a turn", "decode", PROFILE, "PIL, its colours and turn"),
    Row("samples out of a tar, with every check", "decode", "tar: this pipeline, with every check", "webdataset"),
    Row("samples written, hashed and synced", "writer", "this pipeline, with fsync and sha256", UNHASHED, short=True),
    Row("shards committed on a disk", "commit", "disk: this pipeline", "webdataset, then put"),
    Row("shards committed on S3", "commit", "S3 on loopback: this pipeline", "webdataset, then put"),
    Row("shards given out over 64 actors", "driver", "this driver", "Ray's ActorPool", DRIVER, short=True),
    Row("finished shards found, S3", "resume", "S3 on loopback, all done: this pipeline", EXISTS_AT_ONCE, short=True),
    Row("finished shards found, disk", "resume", "disk, all done: this pipeline", EXISTS),
    Row("`status`, S3", "resume", "S3 on loopback, status: this pipeline", UNCHECKED),
    Row("`status`, disk", "resume", "disk, status: this pipeline", UNCHECKED),
    Row("latents read in random order", "reader", "batches, random order", "webdataset, in order", short=True),
    Row(
        "the same with tokens",
        "reader",
        "batches with tokens, random order",
        "webdataset, OpenCLIP's tokenizer",
        short=True,
    ),
    Row(
        "first epoch: hashed, indexed, tokenised",
        "reader",
        "first epoch: check, index, tokenise",
        "webdataset, OpenCLIP's tokenizer",
        short=True,
    ),
    Row("a training step, small tower", "training", "in one piece", "open_clip's own loop"),
    Row("a training step in four pieces", "training", "in 4 pieces", "open_clip's own loop"),
    Row("loss of 16,384 pairs: memory", "contrast", "blocks of rows, memory", LOSS, CONTRAST, short=True),
    Row("loss of 16,384 pairs: time", "contrast", "blocks of rows, time", LOSS, CONTRAST, short=True),
    Row("– torch's `linear_cross_entropy`: memory", "contrast", f"{TORCHS_LOSS}, memory", LOSS, CONTRAST),
    Row("– torch's `linear_cross_entropy`: time", "contrast", f"{TORCHS_LOSS}, time", LOSS, CONTRAST),
    Row("steering, eight pictures at a time, tiny models", "steering", "8 at a time", "one at a time", short=True),
    Row("int8: bytes of a sample", "storage", "bytes: int8", "float16", short=True),
)
ACCURACY, RIGHT = "storage-accuracy", "trained on float16, reads float16"
STORAGE = (
    Row("bytes: int8", "storage", "bytes: int8", "float16"),
    Row("bytes: float16, its bytes apart, zstd 1", "storage", "bytes: bytes apart, zstd 1", "float16"),
    Row("bytes: the same, zstd 19", "storage", "bytes: bytes apart, zstd 19", "float16"),
    Row("bytes: zstd 1 of white noise", "storage", "bytes of white noise: bytes apart, zstd 1", "float16 of it"),
    Row("bytes: int8, zstd 1", "storage", "bytes: int8, zstd 1", "float16"),
    Row("written: int8", "storage", "written: int8", "float16"),
    Row("written: bytes apart, zstd 1", "storage", "written: bytes apart, zstd 1", "float16"),
    Row("read one by one: int8", "storage", "read: int8", "float16"),
    Row("read one by one: bytes apart, zstd 1", "storage", "read: bytes apart, zstd 1", "float16"),
    Row("read in batches: int8", "storage", "in batches: int8", "float16"),
    Row("PSNR to the picture: float16", "storage", "PSNR to the picture: float16"),
    Row("PSNR to the picture: int8", "storage", "PSNR to the picture: int8"),
    Row("PSNR between the two", "storage", "PSNR between the two"),
    Row(f"right: {RIGHT}", ACCURACY, RIGHT, record=LATENTS),
    Row("right: trained on int8, reads int8", ACCURACY, "trained on int8, reads int8", "float16", LATENTS),
    Row("right: demo/latent-clip's, reads float16", ACCURACY, "of `make table1-demo`, reads float16", record=LATENTS),
    Row("right: demo/latent-clip's, reads int8", ACCURACY, "of `make table1-demo`, reads int8", "float16", LATENTS),
)
TABLES = {
    README: {"gpu": ON_GPU, "cpu": tuple(row for row in ON_CPU if row.short)},
    PERFORMANCE: {"gpu": ON_GPU, "cpu": ON_CPU, "storage": STORAGE},
}


def run(config: HighlightsConfig) -> Mapping[str, Any]:
    records = {name: read_record(config.results / f"{name}.json") for name in (GPU, BENCH, DRIVER, CONTRAST, LATENTS)}
    found = {document: {name: table(rows, records) for name, rows in of.items()} for document, of in TABLES.items()}
    if config.write:
        for document, tables in found.items():
            document.write_text(with_tables(document.read_text(encoding="utf-8"), tables), encoding="utf-8")
    return {str(document.relative_to(ROOT)): tables for document, tables in found.items()}


def show(result: Mapping[str, Mapping[str, str]]) -> str:
    return "\n\n".join(
        f"{document}, {name}\n\n{table}" for document, of in result.items() for name, table in of.items()
    )


def table(rows: tuple[Row, ...], records: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each figure, and above them the machine that they are of."""
    cells = [_cells(row, records[row.record]) for row in rows]
    machine = machine_in_words(records[rows[0].record]["machine"])
    return table_of((f"on {machine}", "", "times", "against"), cells)


def _cells(row: Row, record: Mapping[str, Any]) -> tuple[str, str, str, str]:
    try:
        figures = record["benchmarks"][row.benchmark]["figures"]
        figure = next(figure for figure in figures if figure["name"] == row.figure)
        ratio = figure["ratio"] if row.against else None
        times = f"**{number(ratio['median'])}** {between(ratio)}".strip() if ratio else ""
        return row.what, f"{number(figure['median'])} {figure['unit']}", times, row.against
    except (KeyError, TypeError, ValueError, StopIteration):
        raise RequestError(f"{row.record}.json: has no {row.benchmark} / {row.figure}") from None
