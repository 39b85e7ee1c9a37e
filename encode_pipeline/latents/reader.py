"""A latent shard by memory map: one scan over its headers, then any sample in any order."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.quantised import Quantised, dequantise, record_type, scales_fault, values_fault
from encode_pipeline.latents.spec import LatentSpec, SpecError
from encode_pipeline.latents.writer import BLOCK, END_OF_TAR, MAX_NAME_BYTES, Latent, is_finite, npy_header

PARTS = (".npy", ".txt", ".json")
HEADERS_AT_ONCE = 1536
"""Of whole samples, gathered and summed up together: more would not stay in a core's cache."""
SUM_MASK = np.uint64(0x00FF00FF00FF00FF)
PIECE = 4096
"""Bytes read at once, at least: mostly the caption, the record and the next latent's header."""
OCTAL = 8 ** np.arange(5, -1, -1)


class ShardError(CheckFailed):
    """A tar is not the latent shard it should be; the message names file, member and fault."""


def map_bytes(path: Path, size: int) -> npt.NDArray[np.uint8]:
    """A shard's file, without a look at what is in it, for those who know the places of its latents."""
    return np.asarray(np.memmap(path, np.uint8, "r", shape=(size,)))


class LatentShard:
    """One shard tar, opened for reading. Float16 latents are views of the file's pages: nothing is copied."""

    def __init__(self, path: Path, spec: LatentSpec) -> None:
        self.path, self.spec = path, spec
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size == 0:
                raise ShardError(f"{path}: empty file")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            try:
                self._index(file.fileno())
                if self.keys and self.metadata(0).get("spec") != spec.fingerprint:
                    owner = self.metadata(0).get("spec")
                    raise SpecError(f"{path}: holds latents of version {owner}, not of {spec.fingerprint}")
            except BaseException:
                self.close()
                raise

    def __len__(self) -> int:
        return len(self.keys)

    def latent(self, index: int) -> Latent:
        """The latent, not to be written to, channels x height x width."""
        if self.spec.dtype == "int8":
            stored = self.quantised(index)
            return dequantise(stored.values, stored.zero, stored.step)
        count = int(np.prod(self.spec.shape))
        return np.frombuffer(self._map, "<f2", count, int(self.offsets[index])).reshape(self.spec.shape)

    def quantised(self, index: int) -> Quantised:
        """The latent as an int8 store has it."""
        record = np.ndarray((), record_type(self.spec.shape), self._map, int(self.offsets[index]))
        return Quantised(record["values"], record["zero"], record["step"])

    def fault(self, index: int) -> str | None:
        """What is wrong with the numbers of a latent, or None."""
        if self.spec.dtype == "int8":
            return values_fault(self.quantised(index))
        return None if is_finite(self.latent(index)) else "not finite"

    def caption(self, index: int) -> str:
        start, size = self._members[index, 1].tolist()
        try:
            return self._map[start : start + size].decode("utf-8")
        except UnicodeDecodeError:
            raise ShardError(f"{self.path}: {self.keys[index]}.txt: damaged: not UTF-8") from None

    def metadata(self, index: int) -> dict[str, Any]:
        """Source, original size, view and augmentation parameters of a sample."""
        start, size = self._members[index, 2].tolist()
        try:
            record = json.loads(self._map[start : start + size])
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise ShardError(f"{self.path}: {self.keys[index]}.json: damaged: not a JSON object")
        return record

    def close(self) -> None:
        with contextlib.suppress(BufferError):  # latents handed out still point into it; it goes when they do
            self._map.close()

    def __enter__(self) -> LatentShard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _index(self, file: int) -> None:
        """Follows the sizes from header to header; what the headers say is checked as it passes, many at a time."""
        found = _Headers(self.path, self.spec)
        end = self._chain(file, found)
        whole = len(found.names) // 3 * 3
        keys = [name[: -len(PARTS[0])] for name in found.names[:whole:3]]
        for number, part in enumerate(PARTS):
            wanted = [key + part.encode() for key in keys]
            if found.names[number:whole:3] != wanted:
                at = 3 * next(at for at, name in enumerate(wanted) if found.names[3 * at + number] != name)
                names = b", ".join(found.names[at : at + 3]).decode()
                raise ShardError(
                    f"{self.path}: not a latent shard: {names} stand where .npy, .txt, .json of one key should"
                )
        self.keys = [key.decode() for key in keys]
        """Of the samples, in their order."""
        if whole < len(found.names):
            raise ShardError(f"{self.path}: {found.names[whole].decode()}: sample without its other parts")
        self._members = np.array([found.starts, found.sizes], np.int64).T.reshape(-1, 3, 2)
        """Of each sample, where its three parts begin, and how long they are."""
        starts, sizes = self._members[:, 0].T
        header = len(npy_header(self.spec))
        fit = np.array(found.is_latent[::3], bool) & (sizes == header + self.spec.bytes_per_latent)
        if not fit.all():
            name = self.keys[int(fit.argmin())]
            kind = "a float16" if self.spec.dtype == "float16" else "an int8"
            raise SpecError(f"{self.path}: {name}.npy: not {kind} latent of shape {self.spec.shape}")
        for key, fault in zip(self.keys, found.scale_faults, strict=False):
            if fault is not None:
                raise ShardError(f"{self.path}: {key}.npy: damaged: {fault}")
        self.offsets = starts + header
        """Where in the file each latent begins, in bytes."""
        if self._map[end:] != END_OF_TAR:
            raise ShardError(f"{self.path}: no end of tar at byte {end} of {len(self._map)}")
        if len(set(keys)) != len(keys):
            raise ShardError(f"{self.path}: a key occurs twice")

    def _chain(self, file: int, found: _Headers) -> int:
        """Where the end of the tar begins, behind the headers found.

        By reads: through the map, each new page would cost more than all else here.
        """
        total, position, wanted = len(self._map), 0, BLOCK + found.width
        piece, at = b"", 0
        while position + BLOCK <= total:
            if len(piece) < at + wanted:
                piece, at = os.pread(file, max(PIECE, wanted), position), 0
            try:
                size = int(piece[at + 124 : at + 136].rstrip(b"\0 "), 8)
            except ValueError:
                break
            if size < 0:
                break
            found.add(piece[at : at + wanted], position, size)
            step = BLOCK + size + (-size % BLOCK)
            position, at = position + step, at + step
            if position > total:
                found.check()
                name = found.names[-1].decode()
                raise ShardError(f"{self.path}: {name}: cut short at byte {total} of {position}")
        found.check()
        header = piece[at : at + BLOCK]
        if position + BLOCK > total:
            raise ShardError(f"{self.path}: cut short at byte {total}: no end of tar")
        if header != END_OF_TAR[:BLOCK]:
            raise ShardError(f"{self.path}: unreadable member header at byte {position}")
        return position


class _Headers:
    """The member headers of a tar. A damaged one leads astray, so nothing is believed until its checksum is right."""

    def __init__(self, path: Path, spec: LatentSpec) -> None:
        self._path, self._npy, self._channels = path, npy_header(spec), spec.shape[0] * (spec.dtype == "int8")
        self.width = len(self._npy) + 2 * 4 * self._channels
        """Bytes that are wanted of what follows each header."""
        self.starts: list[int] = []
        """Where the content of each member begins."""
        self.sizes: list[int] = []
        self.names: list[bytes] = []
        self.is_latent: list[bool] = []
        """Whether a member begins as a latent of the right shape does."""
        self.scale_faults: list[str | None] = []
        """Of every third member, what is wrong with the scales that an int8 latent begins with."""
        self._blocks: list[bytes] = []

    def add(self, block: bytes, position: int, size: int) -> None:
        """A header, with the first bytes of what follows it."""
        self.starts.append(position + BLOCK)
        self.sizes.append(size)
        self._blocks.append(block)
        if len(self._blocks) == HEADERS_AT_ONCE:
            self.check()

    def check(self) -> None:
        """Believes the headers since the last time, or says which is damaged."""
        width = BLOCK + self.width
        data = bytearray().join(block.ljust(width, b"\0") for block in self._blocks)
        blocks = np.frombuffer(data, np.uint8).reshape(-1, width)
        self._blocks = []
        digits = blocks[:, 148:154].astype(np.int64) - ord("0")
        written = ((digits >= 0) & (digits < 8)).all(axis=1) & (blocks[:, 154:156] == (0, ord(" "))).all(axis=1)
        blocks[:, 148:156] = ord(" ")
        words = blocks[:, :BLOCK].view(np.uint64)
        # Four sums of 128 bytes at once, each in 16 bits of its own.
        sums = ((words & SUM_MASK) + (words >> np.uint64(8) & SUM_MASK)).sum(axis=1)
        right = written & (digits @ OCTAL == sums.view(np.uint16).reshape(-1, 4).sum(axis=1))
        names = np.ascontiguousarray(blocks[:, :MAX_NAME_BYTES]).view(f"S{MAX_NAME_BYTES}")[:, 0].tolist()
        known = len(self.names)
        if not right.all():
            where = self.starts[known + int(right.argmin())] - BLOCK
            raise ShardError(f"{self._path}: damaged member header at byte {where}")
        for number, name in enumerate(names):
            try:
                name.decode()
            except UnicodeDecodeError:
                where = self.starts[known + number] - BLOCK
                raise ShardError(f"{self._path}: unreadable member header at byte {where}") from None
        self.names += names
        begins = blocks[:, BLOCK : BLOCK + len(self._npy)]
        self.is_latent += (begins == np.frombuffer(self._npy, np.uint8)).all(axis=1).tolist()
        if self._channels:
            scales = np.ascontiguousarray(blocks[::3, BLOCK + len(self._npy) :]).view("<f4")
            self.scale_faults += scales_fault(scales[:, : self._channels], scales[:, self._channels :]).tolist()
