"""The input tars: found by paths, folders, globs, ranges, lists and URLs; opened, checked and hashed on the way in."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby, islice

import braceexpand

from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.places import Entry, Place, Places
from encode_pipeline.tar import PIECE, Readable

SLOW_AFTER, SLOWEST = 300.0, 10_000
"""Once a tar was waited for so many seconds, fewer bytes a second than this are taken for a server that hangs."""
LIST_ENDINGS = (".txt", ".list")

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]*)=(.*)", re.DOTALL)


class SourceChanged(Exception):
    """A tar is not the one that was planned."""


def find_sources(patterns: Iterable[str], limit: int | None = None) -> list[SourceShard]:
    """Every tar that the patterns name, in order, each once; naming nothing is an error, and so is a missing tar.

    A pattern `NAME=ADDRESS` puts its tars into the collection NAME; no tar can be in two.
    """
    found: dict[str, SourceShard] = {}
    places = Places()
    for pattern in patterns:
        collection, address = split_name(pattern)
        empty = True
        for uri, entry in _tars(address, places, limit):
            empty = False
            if entry.size is None:
                raise RequestError(f"{uri}: the server does not say how large it is")
            source = SourceShard(uri=uri, size=entry.size, etag=entry.etag, collection=collection)
            known = found.setdefault(uri, source)
            if known.collection != collection:
                one, other = (name or "none" for name in (known.collection, collection))
                raise RequestError(f"{uri}: named by two collections, {one} and {other}")
            if len(found) == limit:
                return list(found.values())
        if empty:
            raise RequestError(f"{address}: no tar files found there")
    return list(found.values())


def split_name(pattern: str) -> tuple[str, str]:
    """The collection that a pattern names, or nothing, and its address. A path like a=b/ is written ./a=b/."""
    match = _NAMED.match(pattern)
    collection, address = (match[1], match[2]) if match else ("", pattern)
    if not address:
        raise RequestError(f"{pattern}: names no address")
    return collection, address


@contextmanager
def open_source(source: SourceShard) -> Iterator[HashedStream]:
    """The tar that was planned, to be read once from beginning to end. One that has changed since is refused."""
    place = Places().of(source.uri)
    with place.open(source.uri) as stream:
        # Asked after opening: object stores hold on to the object that was opened, whatever takes its place.
        (entry,) = place.look_up([source.uri])
        if entry is None or entry.is_folder:
            raise FileNotFoundError(f"{source.uri}: no such tar")
        if entry.size != source.size:
            raise SourceChanged(f"{source.uri}: {entry.size} bytes now, {source.size} when the run was planned")
        if source.etag and entry.etag != source.etag:
            raise SourceChanged(f"{source.uri}: etag {entry.etag} now, {source.etag} when the run was planned")
        yield HashedStream(stream, source, place)


class HashedStream:
    """A source tar on its way in: counted and hashed as it comes, and neither shorter nor longer than planned."""

    def __init__(self, stream: Readable, source: SourceShard, place: Place) -> None:
        self.source = source
        self.received = 0
        self._stream, self._place = stream, place
        self._hasher = hashlib.sha256()
        self._piece, self._used = b"", 0
        self._ended = False
        self._waited = 0.0

    def read(self, size: int, /) -> bytes:
        """The next `size` bytes; fewer only at the end."""
        pieces: list[bytes] = []
        while size > 0:
            if self._used == len(self._piece):
                self._piece, self._used = self._receive(), 0
                if not self._piece:
                    break
            part = self._piece[self._used : self._used + size]
            self._used += len(part)
            size -= len(part)
            pieces.append(part)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def sha256(self) -> str:
        """The hash of the whole tar, once all of it has been read."""
        if not self._ended:
            raise ValueError(f"{self.source.uri}: read to byte {self.received - len(self._piece) + self._used} only")
        return self._hasher.hexdigest()

    def _receive(self) -> bytes:
        """The next piece as the storage gives it."""
        uri, planned = self.source.uri, self.source.size
        began = time.monotonic()
        with self._place.told_plainly(uri):
            piece = bytes(self._stream.read(PIECE))
        self._waited += time.monotonic() - began
        if self._waited > SLOW_AFTER and self.received + len(piece) < self._waited * SLOWEST:
            raise OSError(f"{uri}: comes too slowly: {self.received} bytes in {self._waited:.0f} seconds of waiting")
        self.received += len(piece)
        self._hasher.update(piece)
        if self.received > planned:
            raise SourceChanged(f"{uri}: goes on after the {planned} bytes that it had when the run was planned")
        if not piece and self.received < planned:
            raise OSError(f"{uri}: only {self.received} bytes arrived of {planned}")
        self._ended = not piece
        return piece


def _tars(address: str, places: Places, limit: int | None) -> Iterator[tuple[str, Entry]]:
    """The tars at an address, in order; no more of them are asked for than the limit needs."""

    def kind(full: tuple[Place, str]) -> tuple[Place, bool]:
        place, name = full
        return place, any(letter in name for letter in place.wildcards)

    addresses = ((place := places.of(name), place.full(name)) for name in _expanded(address, places))
    for (place, is_glob), group in groupby(addresses, kind):
        names = (name for _, name in group)
        if is_glob:
            for name in names:
                yield from place.matching(name)
            continue
        while batch := list(islice(names, limit)):
            entries = place.look_up(batch)
            missing = [name for name, entry in zip(batch, entries, strict=True) if entry is None]
            if len(batch) == len(missing) == 1:
                raise RequestError(f"{missing[0]}: no such tar or folder")
            if missing:
                first = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
                raise RequestError(f"{address}: {len(missing)} of {len(batch)} tars are not there: {first}")
            for name, entry in zip(batch, entries, strict=True):
                assert entry is not None
                yield from place.tars_in(name) if entry.is_folder else [(name, entry)]


def _expanded(address: str, places: Places) -> Iterator[str]:
    """The addresses that an address stands for: ranges expanded, list files read."""
    for name in _ranges(address):
        if name.endswith(LIST_ENDINGS):
            for line in _lines(name, places):
                yield from _ranges(line)
        else:
            yield name


def _ranges(address: str) -> Iterable[str]:
    if "{" not in address:
        return (address,)
    try:
        return braceexpand.braceexpand(address)
    except ValueError as error:
        raise RequestError(f"{address}: {error}") from None


def _lines(address: str, places: Places) -> Iterator[str]:
    """The addresses in a list file, one a line; those that are relative are so to the list's own folder."""
    place = places.of(address)
    full = place.full(address)
    if place.look_up([full]) == [None]:
        raise RequestError(f"{address}: no such list file")
    with place.open(full) as stream, place.told_plainly(full):
        content = b"".join(iter(lambda: stream.read(PIECE), b""))
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise RequestError(f"{address}: not a list of addresses: not UTF-8 text") from None
    folder = full.rpartition("/")[0]
    for line in map(str.strip, lines):
        if line and not line.startswith("#"):
            yield line if "://" in line or line.startswith(("/", "~", "pipe:")) else f"{folder}/{line}"
