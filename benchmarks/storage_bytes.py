"""Bytes of a sample in its tar, by what its latent is stored as."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from benchmarks.figures import Figure, compared, counted
from benchmarks.lossless import LAYOUTS, Packing, Sample, less_another
from benchmarks.world_latents import Encoded
from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.quantised import quantise
from encode_pipeline.latents.spec import LatentSpec, canonical_json
from encode_pipeline.latents.writer import BLOCK, Latent, npy_header

UNIT = "bytes a sample"


class Sizes:
    """Figures of latents that all have the same beside them: caption, record, headers."""

    def __init__(self, spec: LatentSpec, samples: Sequence[Sample]) -> None:
        self._header = len(npy_header(spec))
        self._int8_header = len(npy_header(spec.model_copy(update={"dtype": "int8"})))
        self._beside = float(np.mean([_beside(sample, spec) for sample in samples]))
        size = member(self._header + spec.bytes_per_latent) + self._beside
        self.plain = counted("float16", UNIT, size, "less")

    def of(self, latents: Sequence[Latent], levels: Sequence[int]) -> Iterator[Figure]:
        """In every form; what is lossless is found to come back to the bit."""
        yield self.plain
        stored = [quantise(latent).to_bytes() for latent in latents]
        yield self._figure("int8", [self._int8_header + len(data) for data in stored])
        for level in levels:
            yield self._figure(f"int8, zstd {level}", _zstd(stored, level))
        for name, layout in LAYOUTS.items():
            for level in levels:
                packing = Packing(layout, level)
                yield self._figure(f"{name}, zstd {level}", [_size_of_packed(packing, latent) for latent in latents])

    def of_steps_between_views(self, pictures: Sequence[Encoded], level: int) -> Figure:
        """Of a view for whoever has view 0 at hand."""
        steps = [less_another(picture.latents[1], picture.latents[0]) for picture in pictures]
        return self._figure(f"steps from view 0, zstd {level}", _zstd(steps, level))

    def _figure(self, name: str, sizes: Sequence[int]) -> Figure:
        mean = float(np.mean([member(size) for size in sizes])) + self._beside
        return replace(compared(name, UNIT, [mean], self.plain, "less"), exact=True)


def information(latents: Sequence[Latent]) -> Iterator[Figure]:
    """How many of its eight bits each byte of a float16 is worth, by how often its values come: what no zstd gets below
    that looks at bytes alone."""
    both = np.stack(latents).astype("<f2").view(np.uint8).reshape(-1, 2)
    for name, values in (("low", both[:, 0]), ("high", both[:, 1])):
        shares = np.bincount(values, minlength=256) / len(values)
        bits = -float((shares * np.log2(np.where(shares > 0, shares, 1))).sum())
        yield counted(f"information in {name} bytes of float16", "bits of 8", bits)


def member(size: int) -> int:
    """What a member of so many bytes takes in a tar."""
    return BLOCK + size + -size % BLOCK


def _beside(sample: Sample, spec: LatentSpec) -> int:
    _, _, caption, record = sample
    return member(len(caption.encode())) + member(len(canonical_json({**record, "spec": spec.fingerprint})))


def _zstd(contents: Sequence[bytes], level: int) -> list[int]:
    zstd = pa.Codec("zstd", compression_level=level)
    return [zstd.compress(data).size for data in contents]


def _size_of_packed(packing: Packing, latent: Latent) -> int:
    packed = packing.pack(latent)
    if packing.unpack(packed, latent.shape).tobytes() != latent.tobytes():
        raise CheckFailed("a latent came back otherwise than it was packed")
    return len(packed)
