"""A tar from a stream that only goes forward, strictly and in bounded memory.

Python's tarfile passes in silence over a damaged header and a missing end, and believes any size that an
extended header claims. Here every byte has to be accounted for, up to the two zero blocks that end a tar.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn, Protocol

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)
PIECE = 1 << 20
"""Bytes that are read at once, of members that are skipped and of padding."""
MAX_HEADER_BYTES = 1 << 20
"""Of an extended header: a long name or a block of pax records."""
MAX_NAME_BYTES = 4096
MAX_PADDING = 64 << 10
"""Zero bytes after the end. tar itself fills up to 10 KiB; a longer tail of zeros was never written."""

FILE_TYPES = tarfile.REGTYPE + tarfile.AREGTYPE + tarfile.CONTTYPE
PAX_TYPES = tarfile.XHDTYPE + tarfile.SOLARIS_XHDTYPE
WITHOUT_CONTENT = tarfile.LNKTYPE + tarfile.SYMTYPE + tarfile.CHRTYPE + tarfile.BLKTYPE + tarfile.FIFOTYPE
"""Links and devices: whatever size they claim, nothing of it is in the tar. So it is with folders."""

_PAX_KEYS = {b"path": "path", b"GNU.sparse.name": "path", b"size": "size"}
_CHECKSUM = re.compile(rb" *[0-7]+[ \0]*")
_FIRST_BYTES = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"7z\xbc\xaf", "7z"),
    (b"PK\x03\x04", "zip"),
    (b"PAR1", "parquet"),
    (b"version https://git-lfs", "a git LFS pointer"),
    (b"<?xml", "XML, as a server's error"),
    (b"<", "HTML, as a server's error"),
    (b"{", "JSON"),
)


class TarError(Exception):
    """A tar that cannot be trusted; the message names it and the fault."""


class Readable(Protocol):
    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none only at the end."""


@dataclass(frozen=True, slots=True)
class Member:
    """What a header says of a member."""

    name: str
    size: int
    is_file: bool
    """False for links, devices and whatever else is never opened."""


class TarReader:
    """Iterates over the members of a tar; `content` reads the one it stands at, else it is skipped in pieces.

    Damage raises a TarError that names the tar, the member and the fault, at the latest at the tar's end.
    """

    def __init__(self, stream: Readable, name: str, size: int | None = None) -> None:
        self.name, self.size = name, size
        self._stream = stream
        self._start = b""
        self._position = 0
        self._left = 0
        """Bytes of the current member that are still to come."""
        self._where = ""
        self._for_all: dict[str, str] = {}

    def __iter__(self) -> Iterator[Member]:
        while (member := self._next()) is not None:
            self._left = member.size
            yield member
            self._skip(self._left)
            self._skip(-member.size % BLOCK)
            self._where = f"after {shown(member.name)}"
        self._expect_padding_alone()

    @property
    def position(self) -> int:
        """How many bytes have been read: at a member, where its content begins."""
        return self._position

    def content(self) -> bytes:
        """The content of the member that the iteration stands at; to be asked for once."""
        size, self._left = self._left, 0
        return self._take(size)

    # --- headers ----------------------------------------------------------------------------------

    def _next(self) -> Member | None:
        """The next member, its content still ahead; None after the two zero blocks of the end."""
        extended: dict[str, str] | None = None
        while True:
            start = self._position
            block = self._take(BLOCK)
            if block == ZERO_BLOCK:
                if extended is not None:
                    self._fail("an extended header without the member that it belongs to")
                if self._take(BLOCK) != ZERO_BLOCK:
                    self._fail(f"one zero block at byte {start}, where two end a tar, and more behind it")
                return None
            header = self._header(block, start)
            if header.type == tarfile.XGLTYPE:
                self._for_all |= self._pax_records(header.size)
            elif header.type in PAX_TYPES:
                extended = (extended or {}) | self._pax_records(header.size)
            elif header.type == tarfile.GNUTYPE_LONGNAME:
                name = self._extension(header.size).partition(b"\0")[0]
                extended = {"path": name.decode("utf-8", "surrogateescape")} | (extended or {})
            elif header.type == tarfile.GNUTYPE_LONGLINK:
                self._extension(header.size)
                extended = extended or {}
            elif header.isdir():
                extended = None
            else:
                return self._member(header, self._for_all | (extended or {}), block)

    def _header(self, block: bytes, start: int) -> tarfile.TarInfo:
        try:
            if not _CHECKSUM.fullmatch(block[148:156]):
                raise tarfile.HeaderError("no checksum")
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError):
            if start == 0 and (kind := _looks_like(block)):
                self._fail(f"not a tar: looks like {kind}")
            self._fail(f"damaged member header at byte {start}")

    def _member(self, header: tarfile.TarInfo, extended: dict[str, str], block: bytes) -> Member:
        """The member that a header and the extended ones before it describe."""
        name = extended.get("path") or header.name
        if len(name.encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES:
            self._fail(f"{shown(name)}: a name of more than {MAX_NAME_BYTES} bytes")
        self._where = f"in {shown(name)}"
        if header.type in WITHOUT_CONTENT:
            return Member(name, 0, is_file=False)
        claimed = extended.get("size") or str(header.size)
        if not (claimed.isascii() and claimed.isdigit() and len(claimed) < 20):
            self._fail(f"claims a size of {shown(claimed)} bytes")
        size = int(claimed)
        if header.type == tarfile.GNUTYPE_SPARSE:
            more_blocks = block[482]
            while more_blocks:
                more_blocks = self._take(BLOCK)[504]
        self._check_room(size)
        return Member(name, size, header.type in FILE_TYPES and "sparse" not in extended)

    def _pax_records(self, size: int) -> dict[str, str]:
        """Those of an extended header's records that matter here."""
        data = self._extension(size)
        records: dict[str, str] = {}
        position = 0
        while position < len(data) and data[position]:
            space = data.find(b" ", position, position + 8)
            digits = data[position:space] if space > 0 else b""
            end = position + int(digits) if digits.isdigit() else 0
            key, equals, value = data[space + 1 : end - 1].partition(b"=")
            if end > len(data) or data[end - 1 : end] != b"\n" or not (key and equals):
                self._fail("damaged pax header")
            if key in _PAX_KEYS:
                records[_PAX_KEYS[key]] = value.decode("utf-8", "surrogateescape")
            if key.startswith(b"GNU.sparse."):
                records["sparse"] = "yes"
            position = end
        return records

    def _extension(self, size: int) -> bytes:
        """The content of an extended header."""
        if not 0 <= size <= MAX_HEADER_BYTES:
            self._fail(f"an extended header claims {size} bytes; at most {MAX_HEADER_BYTES} are read")
        self._check_room(size)
        data = self._take(size)
        self._skip(-size % BLOCK)
        return data

    def _check_room(self, size: int) -> None:
        if self.size is not None and size > (left := self.size - self._position):
            self._fail(f"cut short: {size} bytes are claimed and {max(left, 0)} are left of the tar")

    # --- bytes ------------------------------------------------------------------------------------

    def _take(self, size: int) -> bytes:
        """Exactly so many bytes. A claimed size is not believed: memory grows with what arrives."""
        if size <= PIECE:
            piece = self._read(size)
            if len(piece) == size:
                return piece
            gathered = io.BytesIO()
            gathered.write(piece)
        else:
            gathered = io.BytesIO()
        while (missing := size - gathered.tell()) > 0:
            piece = self._read(min(PIECE, missing))
            if not piece:
                self._fail_short()
            gathered.write(piece)
        return gathered.getvalue()

    def _skip(self, size: int) -> None:
        while size > 0:
            piece = self._read(min(PIECE, size))
            if not piece:
                self._fail_short()
            size -= len(piece)

    def _read(self, size: int) -> bytes:
        piece = self._stream.read(size) if size else b""
        if self._position == 0:
            self._start = piece[:BLOCK]
        self._position += len(piece)
        return piece

    def _expect_padding_alone(self) -> None:
        end = self._position
        while piece := self._read(PIECE):
            if rest := piece.lstrip(b"\0"):
                start = self._position - len(rest)
                what = "another tar follows" if rest[257:262] == b"ustar" else "bytes follow"
                self._fail(f"{what} the end of the tar, at byte {start}")
            if self._position - end > MAX_PADDING:
                self._fail(f"more than {MAX_PADDING} zero bytes follow its end at byte {end}: never written?")
        if self.size is not None and self._position != self.size:
            self._fail(f"{self._position} bytes, {self.size} were expected")

    def _fail_short(self) -> NoReturn:
        if self._position == 0:
            self._fail("empty file")
        if self._position < BLOCK and (kind := _looks_like(self._start)):
            self._fail(f"not a tar: looks like {kind}")
        self._fail(f"cut short at byte {self._position}")

    def _fail(self, reason: str) -> NoReturn:
        raise TarError(f"{self.name}: {reason}" + (f", {self._where}" if self._where else ""))


def shown(name: str) -> str:
    """A name from a tar as it may stand in a line of text."""
    text = name if name.isprintable() else ascii(name)[1:-1]
    return text if len(text) <= 200 else f"{text[:200]}…"


def _looks_like(block: bytes) -> str | None:
    start = block.lstrip()
    return next((kind for mark, kind in _FIRST_BYTES if start.startswith(mark)), None)
