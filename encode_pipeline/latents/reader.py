"""A latent shard by memory map: one scan over its headers, then any sample in any order."""

from __future__ import annotations

import contextlib
import json
import mmap
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.spec import LatentSpec, SpecError
from encode_pipeline.latents.writer import BLOCK, END_OF_TAR, Latent, npy_header

PARTS = ("npy", "txt", "json")


class ShardError(CheckFailed):
    """A tar is not the latent shard it should be; the message names file, member and fault."""


@dataclass(frozen=True)
class _Entry:
    key: str
    npy: int
    txt: tuple[int, int]
    json: tuple[int, int]


class LatentShard:
    """One shard tar, opened for reading. Latents are views of the file's pages: nothing is copied."""

    def __init__(self, path: Path, spec: LatentSpec) -> None:
        self.path, self.spec = path, spec
        self._header = npy_header(spec)
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size == 0:
                raise ShardError(f"{path}: empty file")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self._entries = self._index()
            if self._entries and self.metadata(0).get("spec") != spec.fingerprint:
                owner = self.metadata(0).get("spec")
                raise SpecError(f"{path}: holds latents of version {owner}, not of {spec.fingerprint}")
        except BaseException:
            self._map.close()
            raise

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def keys(self) -> list[str]:
        return [entry.key for entry in self._entries]

    def latent(self, index: int) -> Latent:
        """The stored latent, read-only, channels x height x width."""
        offset = self._entries[index].npy
        count = int(np.prod(self.spec.shape))
        return np.frombuffer(self._map, dtype="<f2", count=count, offset=offset).reshape(self.spec.shape)

    def caption(self, index: int) -> str:
        start, size = self._entries[index].txt
        try:
            return self._map[start : start + size].decode("utf-8")
        except UnicodeDecodeError:
            raise ShardError(f"{self.path}: {self._entries[index].key}.txt: damaged: not UTF-8") from None

    def metadata(self, index: int) -> dict[str, Any]:
        """Source, original size, view and augmentation parameters of a sample."""
        start, size = self._entries[index].json
        try:
            record = json.loads(self._map[start : start + size])
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise ShardError(f"{self.path}: {self._entries[index].key}.json: damaged: not a JSON object")
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

    def _index(self) -> list[_Entry]:
        entries: list[_Entry] = []
        position = 0
        end = len(self._map)
        found: list[tuple[str, int, int]] = []
        while True:
            header = self._map[position : position + BLOCK]
            if header == END_OF_TAR[:BLOCK]:
                break
            name, size = self._member(header, position)
            data = position + BLOCK
            position = data + size + (-size % BLOCK)
            if position > end:
                raise ShardError(f"{self.path}: {name}: cut short at byte {end} of {position}")
            found.append((name, data, size))
            if len(found) == len(PARTS):
                entries.append(self._entry(found))
                found = []
        if found:
            raise ShardError(f"{self.path}: {found[0][0]}: sample without its other parts")
        if self._map[position:] != END_OF_TAR:
            raise ShardError(f"{self.path}: no end of tar at byte {position} of {end}")
        if len({entry.key for entry in entries}) != len(entries):
            raise ShardError(f"{self.path}: a key occurs twice")
        return entries

    def _member(self, header: bytes, position: int) -> tuple[str, int]:
        if len(header) < BLOCK:
            raise ShardError(f"{self.path}: cut short at byte {position + len(header)}: no end of tar")
        try:
            checksum = int(header[148:156].rstrip(b"\0 "), 8)
            size = int(header[124:136].rstrip(b"\0 "), 8)
            name = header[:100].rstrip(b"\0").decode("utf-8")
        except ValueError:
            raise ShardError(f"{self.path}: unreadable member header at byte {position}") from None
        if checksum != sum(header[:148]) + sum(header[156:]) + 8 * 32:
            raise ShardError(f"{self.path}: damaged member header at byte {position}")
        return name, size

    def _entry(self, found: list[tuple[str, int, int]]) -> _Entry:
        keys = {name.rsplit(".", 1)[0] for name, _, _ in found}
        parts = tuple(name.rsplit(".", 1)[-1] for name, _, _ in found)
        if len(keys) != 1 or parts != PARTS:
            names = ", ".join(name for name, _, _ in found)
            raise ShardError(
                f"{self.path}: not a latent shard: {names} stand where .npy, .txt, .json of one key should"
            )
        (npy_name, npy_start, npy_size), (_, *txt), (_, *meta) = found
        header_size = len(self._header)
        if (
            npy_size != header_size + self.spec.bytes_per_latent
            or self._map[npy_start : npy_start + header_size] != self._header
        ):
            raise SpecError(f"{self.path}: {npy_name}: not a float16 latent of shape {self.spec.shape}")
        return _Entry(keys.pop(), npy_start + header_size, (txt[0], txt[1]), (meta[0], meta[1]))
