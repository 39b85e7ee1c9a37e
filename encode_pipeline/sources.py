"""The input tars: found by paths, folders, globs, ranges, lists and URLs; opened, checked and hashed on the way in."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import groupby, islice

from encode_pipeline.addresses import expanded
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.places import Entry, Place, Places
from encode_pipeline.tar import PIECE, Readable, TarError

SLOW_AFTER, SLOWEST = 300.0, 10_000
"""Once a tar was waited for so many seconds, fewer bytes a second than this are taken for a server that hangs."""

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]*)=(.*)", re.DOTALL)
_MD5 = re.compile(r"[0-9a-f]{32}")
_other_etags: set[str] = set()
"""Buckets in which etags look like MD5s and are not, as with encryption by a key service."""


class SourceChanged(Exception):
    """A tar is not the one that was planned."""


class SourceUnreadable(OSError):
    """A tar is not there any more, or may not be read."""


def find_sources(patterns: Iterable[str], limit: int | None = None) -> list[SourceShard]:
    """Every tar that the patterns name, in order, each once; naming nothing is an error, and so is a missing tar.

    A pattern `NAME=ADDRESS` puts its tars into the collection NAME; no tar can be in two.
    """
    found: dict[str, SourceShard] = {}
    places = Places()
    for pattern in patterns:
        collection, address = split_name(pattern)
        empty = True
        for uri, entry, sha256 in _tars(address, places, limit):
            empty = False
            if entry.size is None:
                raise RequestError(f"{uri}: the server does not say how large it is")
            source = SourceShard(uri=uri, size=entry.size, etag=entry.etag, collection=collection, sha256=sha256)
            known = found.setdefault(uri, source)
            if known.collection != collection:
                one, other = (name or "none" for name in (known.collection, collection))
                raise RequestError(f"{uri}: named by two collections, {one} and {other}")
            if sha256 and known.sha256 != sha256:
                if known.sha256:
                    raise RequestError(f"{uri}: named with two hashes, {known.sha256} and {sha256}")
                found[uri] = source
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
def open_source(source: SourceShard, within: str = "") -> Iterator[HashedStream]:
    """The tar that was planned, to be read once from beginning to end. One that has changed since is refused.

    An address that is relative is one `within` a folder: what is made from such a tar, its name included, does not
    depend on where that folder lies.

    A tar that turns out to be bad, or to have another hash than it should, is streamed once more, only to be hashed:
    if it comes otherwise than before, it was damaged on its way, and another attempt may get it whole.
    """
    if within and "://" not in source.uri and not source.uri.startswith("/"):
        source = replace(source, uri=f"{within}/{source.uri}")
    place = Places().of(source.uri)
    with ExitStack() as opened:
        with _must_be_readable(source.uri):
            stream = opened.enter_context(place.open(source.uri))
            # Asked after opening: object stores hold on to the object that was opened, whatever takes its place.
            (entry,) = place.look_up([source.uri])
        if entry is None or entry.is_folder:
            raise SourceUnreadable(f"{source.uri}: no such tar")
        if entry.size != source.size:
            raise SourceChanged(f"{source.uri}: {entry.size} bytes now, {source.size} when the run was planned")
        if source.etag and entry.etag != source.etag:
            raise SourceChanged(f"{source.uri}: etag {entry.etag} now, {source.etag} when the run was planned")
        known = _known_hashes(source, entry, place)
        tar = HashedStream(stream, source, place, [*known])
        try:
            yield tar
        except TarError as error:
            if place.protocol != "file" and (fault := _other_the_second_time(tar, "sha256")):
                raise OSError(f"{fault} ({error})") from error
            raise
        for kind, expected in known.items() if tar.ended else ():
            if (found := tar.hash(kind)) == expected:
                continue
            if fault := _other_the_second_time(tar, kind):
                raise OSError(fault)
            if kind == "md5":
                _other_etags.add(_bucket(source.uri))
            else:
                raise SourceChanged(f"{source.uri}: its {kind} is {found}, not {expected} as its list says")


def _known_hashes(source: SourceShard, entry: Entry, place: Place) -> dict[str, str]:
    """What the whole tar must give, by kind of hash. On S3 the etag of an object written in one piece is its MD5."""
    if source.sha256:
        return {"sha256": source.sha256}
    if place.protocol == "s3" and _MD5.fullmatch(entry.etag) and _bucket(source.uri) not in _other_etags:
        return {"md5": entry.etag}
    return {}


def _other_the_second_time(tar: HashedStream, kind: str) -> str | None:
    """How a tar differs from itself when it is streamed again; None if it does not."""
    uri = tar.source.uri
    tar.drain()
    with tar.place.open(uri) as stream:
        again = HashedStream(stream, tar.source, tar.place, [kind])
        again.drain()
    if again.hash(kind) == tar.hash(kind):
        return None
    return f"{uri}: damaged on its way: its {kind} is {tar.hash(kind)}, and {again.hash(kind)} when streamed again"


def _bucket(uri: str) -> str:
    return uri.partition("://")[2].partition("/")[0]


@contextmanager
def _must_be_readable(uri: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise SourceUnreadable(f"{uri}: no such tar") from None
    except PermissionError as error:
        text = " ".join(str(error).split()).removeprefix(f"{uri}: ")
        raise SourceUnreadable(f"{uri}: may not be read: {text}") from None


class HashedStream:
    """A source tar on its way in: counted and hashed as it comes, and neither shorter nor longer than planned."""

    def __init__(self, stream: Readable, source: SourceShard, place: Place, hashes: Iterable[str] = ()) -> None:
        self.source, self.place = source, place
        self.received = 0
        self.ended = False
        self._stream = stream
        self._hashers = {kind: hashlib.new(kind, usedforsecurity=False) for kind in {"sha256", *hashes}}
        self._piece, self._used = b"", 0
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

    def drain(self) -> None:
        """Reads what is left, only to hash it."""
        while self.read(PIECE):
            pass

    def sha256(self) -> str:
        """The hash of the whole tar, once all of it has been read."""
        return self.hash("sha256")

    def hash(self, kind: str) -> str:
        if not self.ended:
            raise ValueError(f"{self.source.uri}: read to byte {self.received - len(self._piece) + self._used} only")
        return self._hashers[kind].hexdigest()

    def _receive(self) -> bytes:
        """The next piece as the storage gives it."""
        uri, planned = self.source.uri, self.source.size
        began = time.monotonic()
        with _must_be_readable(uri), self.place.told_plainly(uri):
            piece = bytes(self._stream.read(PIECE))
        self._waited += time.monotonic() - began
        if self._waited > SLOW_AFTER and self.received + len(piece) < self._waited * SLOWEST:
            raise OSError(f"{uri}: comes too slowly: {self.received} bytes in {self._waited:.0f} seconds of waiting")
        self.received += len(piece)
        for hasher in self._hashers.values():
            hasher.update(piece)
        if self.received > planned:
            raise SourceChanged(f"{uri}: goes on after the {planned} bytes that it had when the run was planned")
        if not piece and self.received < planned:
            raise OSError(f"{uri}: only {self.received} bytes arrived of {planned}")
        self.ended = not piece
        return piece


def _tars(address: str, places: Places, limit: int | None) -> Iterator[tuple[str, Entry, str]]:
    """The tars at an address, in order, with their hashes where they are known; no more are asked for than needed."""

    def kind(listed: tuple[Place, str, str]) -> tuple[Place, bool]:
        place, name, sha256 = listed
        return place, not sha256 and any(letter in name for letter in place.wildcards)

    addresses = ((place := places.of(name), place.full(name), sha256) for name, sha256 in expanded(address, places))
    for (place, is_glob), group in groupby(addresses, kind):
        listed = ((name, sha256) for _, name, sha256 in group)
        if is_glob:
            for name, _ in listed:
                yield from ((found, entry, "") for found, entry in place.matching(name))
            continue
        while batch := list(islice(listed, limit)):
            entries = place.look_up([name for name, _ in batch])
            missing = [name for (name, _), entry in zip(batch, entries, strict=True) if entry is None]
            if len(batch) == len(missing) == 1:
                raise RequestError(f"{missing[0]}: no such tar or folder")
            if missing:
                first = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
                raise RequestError(f"{address}: {len(missing)} of {len(batch)} tars are not there: {first}")
            for (name, sha256), entry in zip(batch, entries, strict=True):
                assert entry is not None
                if not entry.is_folder:
                    yield name, entry, sha256
                elif sha256:
                    raise RequestError(f"{name}: a folder, and {address} has a hash for it")
                else:
                    yield from ((found, entry, "") for found, entry in place.tars_in(name))
