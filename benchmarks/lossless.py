"""Float16 latents made smaller without losing a bit: their bytes put in another order, then zstd."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from encode_pipeline.latents.disk import sync
from encode_pipeline.latents.spec import canonical_json
from encode_pipeline.latents.writer import BLOCK, END_OF_TAR, Latent, member_header

Words = npt.NDArray[np.uint16]
SIGN, MANTISSA = 0x8000, 0x03FF


@dataclass(frozen=True)
class Layout:
    """An order of a latent's bits in which like stands beside like, and the way back."""

    apart: Callable[[Latent], bytes]
    together: Callable[[bytes, tuple[int, ...]], Latent]
    bytes_a_number: int = 2
    """Before zstd."""


def whole(latent: Latent) -> bytes:
    return latent.tobytes()


def from_whole(data: bytes, shape: tuple[int, ...]) -> Latent:
    return np.frombuffer(data, np.float16).reshape(shape)


def bytes_apart(latent: Latent) -> bytes:
    """All high bytes, which hold sign, exponent and two bits of mantissa; then all low ones."""
    return _bytes_apart(latent.view(np.uint16))


def from_bytes_apart(data: bytes, shape: tuple[int, ...]) -> Latent:
    return _from_bytes_apart(data).view(np.float16).reshape(shape)


def fields_apart(latent: Latent) -> bytes:
    """All exponents, then signs with the highest two bits of the mantissas, then their lower bytes."""
    words = latent.view(np.uint16).reshape(-1)
    exponents, mantissas = (words & ~np.uint16(SIGN)) >> 10, words & MANTISSA
    return b"".join(part.astype(np.uint8).tobytes() for part in (exponents, words >> 15 << 2 | mantissas >> 8, words))


def from_fields_apart(data: bytes, shape: tuple[int, ...]) -> Latent:
    exponents, tops, lows = np.frombuffer(data, np.uint8).reshape(3, -1).astype(np.uint16)
    words = tops >> 2 << 15 | exponents << 10 | (tops & 3) << 8 | lows
    return words.view(np.float16).reshape(shape)


def steps_apart(latent: Latent) -> bytes:
    """How many float16 numbers lie between neighbours of a row, high bytes before low ones."""
    return _bytes_apart(_folded(np.diff(_ranks(latent), axis=-1, prepend=np.uint16(0))))


def from_steps_apart(data: bytes, shape: tuple[int, ...]) -> Latent:
    steps = _unfolded(_from_bytes_apart(data)).reshape(shape)
    return _from_ranks(np.add.accumulate(steps, axis=-1, dtype=np.uint16))


def less_another(latent: Latent, other: Latent) -> bytes:
    """The same from the other view's number in the same place, for whoever has that one."""
    return _bytes_apart(_folded(_ranks(latent) - _ranks(other)))


LAYOUTS = {
    "as they are": Layout(whole, from_whole),
    "bytes apart": Layout(bytes_apart, from_bytes_apart),
    "exponents apart": Layout(fields_apart, from_fields_apart, bytes_a_number=3),
    "steps to neighbours": Layout(steps_apart, from_steps_apart),
}


class Packing:
    """A layout with zstd of some level behind it."""

    def __init__(self, layout: Layout, level: int) -> None:
        self._layout, self._zstd = layout, pa.Codec("zstd", compression_level=level)

    def pack(self, latent: Latent) -> bytes:
        return bytes(self._zstd.compress(self._layout.apart(latent), asbytes=True))

    def unpack(self, data: bytes, shape: tuple[int, ...]) -> Latent:
        size = self._layout.bytes_a_number * int(np.prod(shape))
        return self._layout.together(self._zstd.decompress(data, size, asbytes=True), shape)


Sample = tuple[str, Latent, str, dict[str, object]]
"""Key, latent, caption and record."""
Places = list[tuple[int, int]]
"""Of each packed latent, where it begins in the file and how long it is."""


def write_packed(path: Path, samples: Iterable[Sample], packing: Packing) -> Places:
    """A tar like a latent shard, whose latents are `KEY.zst`: hashed and held by the disk as those are."""
    hasher, places = hashlib.sha256(), []
    with path.open("xb") as file:

        def write(data: bytes) -> None:
            file.write(data)
            hasher.update(data)

        for key, latent, caption, record in samples:
            packed = packing.pack(latent)
            places.append((file.tell() + BLOCK, len(packed)))
            for part, data in (("zst", packed), ("txt", caption.encode()), ("json", canonical_json(record))):
                write(member_header(f"{key}.{part}", len(data)) + data + bytes(-len(data) % BLOCK))
        write(END_OF_TAR)
    sync(path)
    return places


def _bytes_apart(words: Words) -> bytes:
    pairs = np.ascontiguousarray(words, "<u2").reshape(-1).view(np.uint8).reshape(-1, 2)
    return pairs[:, 1].tobytes() + pairs[:, 0].tobytes()


def _from_bytes_apart(data: bytes) -> Words:
    high, low = np.frombuffer(data, np.uint8).reshape(2, -1)
    pairs = np.empty((len(low), 2), np.uint8)
    pairs[:, 0], pairs[:, 1] = low, high
    return pairs.view("<u2")[:, 0]


def _ranks(latent: Latent) -> Words:
    """The place of each number among all of float16, so that close numbers have close ranks."""
    words = latent.view(np.uint16)
    return np.where(words & SIGN, ~words, words | SIGN).astype(np.uint16)


def _from_ranks(ranks: Words) -> Latent:
    return np.where(ranks & SIGN, ranks & ~np.uint16(SIGN), ~ranks).astype(np.uint16).view(np.float16)


def _folded(steps: Words) -> Words:
    """0, -1, 1, -2, … as 0, 1, 2, 3, …, so that small steps have a high byte of zeros whichever way they go."""
    signed = steps.view(np.int16)
    return (signed << 1 ^ signed >> 15).view(np.uint16)


def _unfolded(folded: Words) -> Words:
    return np.asarray(folded >> 1 ^ -(folded & 1), np.uint16)
