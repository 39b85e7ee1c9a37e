"""Tars for tests, whole and broken, as bytes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator

from encode_pipeline.read import read_samples
from encode_pipeline.records import Rejected, Sample
from encode_pipeline.tar import BLOCK, ZERO_BLOCK

END = 2 * ZERO_BLOCK


def tar_of(members: list[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar as Python's tarfile writes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if format == tarfile.PAX_FORMAT:
                info.mtime = 1700000000.5  # as webdataset writes it: an extended header for every member
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, **fields: bytes) -> bytes:
    """A member header with a right checksum, whatever else is wrong with it."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")[-BLOCK:])
    if size >= 0:
        block[124:136] = f"{size:011o}\0".encode() if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    else:
        block[124:136] = b"%-11s\0" % f"-{-size:o}".encode()
    for field, value in fields.items():
        at = {"size_field": 124, "magic": 257, "prefix": 345, "extended": 482}[field]
        block[at : at + len(value)] = value
    return resealed(bytes(block))


def resealed(block: bytes) -> bytes:
    """A header block with the checksum that its content asks for."""
    total = sum(block[:148]) + sum(block[156:]) + 8 * 32
    return block[:148] + f"{total:06o}\0 ".encode() + block[156:]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def member(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header and content, as they stand in a tar."""
    return header(name, len(data), kind) + padded(data)


def pax(*records: tuple[str, str], kind: bytes = tarfile.XHDTYPE) -> bytes:
    """An extended header."""
    data = b""
    for key, value in records:
        rest = f" {key}={value}\n".encode("utf-8", "surrogateescape")
        length = len(rest)
        while len(str(length)) + len(rest) != length:
            length = len(str(length)) + len(rest)
        data += str(length).encode() + rest
    return member("pax", data, kind)


def good(key: str = "a", image: bytes = b"i" * 700) -> bytes:
    """The members of a sound sample."""
    return member(f"{key}.jpg", image) + member(f"{key}.txt", b"t")


def read(data: bytes, caption_field: str | None = None) -> list[Sample | Rejected]:
    return list(read_samples(io.BytesIO(data), "a.tar", len(data), caption_field))


def outcomes(data: bytes, caption_field: str | None = None) -> list[tuple[str, str]]:
    """Every sample's key, and why it was refused if it was."""
    return [(item.key, "" if isinstance(item, Sample) else item.reason) for item in read(data, caption_field)]


class Generated:
    """A stream that is made as it is read, so that a tar of any size costs no memory."""

    def __init__(self, pieces: Iterator[bytes], at_once: Callable[[int], int] = lambda size: size) -> None:
        self._pieces, self._left, self._at_once = pieces, b"", at_once

    def read(self, size: int, /) -> bytes:
        self._left = self._left or next(self._pieces, b"")
        size = self._at_once(size)
        piece, self._left = self._left[:size], self._left[size:]
        return piece
