"""Latents into a tar on disk, hashed and safe from a power cut, against webdataset's writer and the bare bytes."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from pydantic import Field

from benchmarks.figures import Measured
from benchmarks.paired import paired
from benchmarks.settings import BenchmarkConfig
from encode_pipeline.config import PositiveInt
from encode_pipeline.latents.disk import sync
from encode_pipeline.latents.spec import LatentSpec, VaeIdentity
from encode_pipeline.latents.writer import Latent, ShardWriter

SHAPE = (4, 64, 64)
DISTINCT = 200
"""Latents drawn; beyond these they come again, which no writer can tell."""


class WriterConfig(BenchmarkConfig):
    samples: PositiveInt = Field(2000, description="samples in the tar")


@dataclass(frozen=True)
class LatentSample:
    """What is to be written of one view of a picture."""

    key: str
    latent: Latent
    caption: str
    record: dict[str, Any]


def measure(config: WriterConfig) -> Measured:
    """Samples a second into one tar of one view."""
    samples = latent_samples(config.samples)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "view0.tar"
        data = ours(samples, path).read_bytes()

        def bare() -> int:
            with path.open("wb") as file:
                file.write(data)
            sync(path)
            return len(samples)

        def hashing() -> int:
            hashlib.sha256(data).digest()
            return len(samples)

        def by_webdataset() -> int:
            write_by_webdataset(samples, path)
            return len(samples)

        def by_webdataset_safely() -> int:
            write_by_webdataset(samples, path)
            sync(path)
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")
            return len(samples)

        def by_torch() -> int:
            write_by_torch(samples, path)
            return len(samples)

        def by_ours() -> int:
            path.unlink(missing_ok=True)
            ours(samples, path)
            return len(samples)

        ways = {
            "webdataset": by_webdataset,
            "webdataset, a torch.save a sample": by_torch,
            "webdataset, then fsync and sha256": by_webdataset_safely,
            "this pipeline, with fsync and sha256": by_ours,
            "limit: the bytes and fsync": bare,
            "limit: sha256": hashing,
        }
        return Measured(tuple(paired(ways, config.rounds)), {"tar_bytes": len(data)})


def ours(samples: Sequence[LatentSample], path: Path) -> Path:
    """One tar, as a shard in the making has it."""
    with ShardWriter(path, spec_of(views=1)) as writer:
        for sample in samples:
            writer.add(sample.key, sample.latent, sample.caption, sample.record)
    return path


def write_by_webdataset(samples: Sequence[LatentSample], path: Path) -> None:
    with wds.TarWriter(str(path)) as writer:
        for sample in samples:
            content = {"npy": sample.latent, "txt": sample.caption, "json": sample.record}
            writer.write({"__key__": sample.key, **content})


def write_by_torch(samples: Sequence[LatentSample], path: Path) -> None:
    """As the paper's authors store them."""
    with wds.TarWriter(str(path)) as writer:
        for sample in samples:
            buffer = io.BytesIO()
            torch.save(torch.from_numpy(sample.latent), buffer)
            content = {"latent.pt": buffer.getvalue(), "txt": sample.caption, "json": sample.record}
            writer.write({"__key__": sample.key, **content})


def latent_samples(count: int, view: int = 0) -> list[LatentSample]:
    """Noise with captions and records of the usual length."""
    rng = np.random.default_rng(view)
    latents = [rng.standard_normal(SHAPE, dtype=np.float32).astype(np.float16) for _ in range(min(count, DISTINCT))]
    samples = []
    for number in range(count):
        key = f"{number:09d}"
        about = {"url": f"https://pictures.example/{key}.jpg", "key": key, "width": 1024, "height": 768}
        drawn = {"recipe": "augmented", "seed": 2**63 + number, "crop": [12, 34, 956, 734], "brightness": 1.012345}
        record = {
            "source": "s3://pictures/laion/00000.tar",
            "original_size": [1024, 768],
            "metadata": {**about, "similarity": 0.312345, "status": "success"},
            "view": view,
            "augmentation": {**drawn, "contrast": 0.987654, "saturation": 1.1, "hue": -0.012345, "order": [2, 0, 3, 1]},
        }
        caption = f"a caption of about the usual length, which is a dozen words or so, {key}"
        samples.append(LatentSample(key, latents[number % DISTINCT], caption, record))
    return samples


def spec_of(views: int) -> LatentSpec:
    """The spec of a store of noise."""
    vae = VaeIdentity(name="none", weights_sha256="0" * 64, config={}, scaling_factor=1.0)
    return LatentSpec(vae=vae, shape=SHAPE, image_size=512, views=views, recipe={}, seed=0)
