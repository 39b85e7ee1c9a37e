"""Which tars an address stands for: ranges expanded, list files read, hashes taken along."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import braceexpand

from encode_pipeline.latents.command import RequestError
from encode_pipeline.places import Places
from encode_pipeline.tar import PIECE

HASHES_ENDING = ".sha256"
LIST_ENDINGS = (".txt", ".list")

_HASH_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


def expanded(address: str, places: Places) -> Iterator[tuple[str, str]]:
    """The addresses that an address stands for, with hashes where a list has them."""
    for name in _ranges(address):
        if name.endswith(HASHES_ENDING):
            yield from _hashed_lines(name, places)
        elif name.endswith(LIST_ENDINGS):
            for line in _lines(name, places):
                yield from ((each, "") for each in _ranges(line))
        else:
            yield name, ""


def _ranges(address: str) -> Iterable[str]:
    if "{" not in address:
        return (address,)
    try:
        return braceexpand.braceexpand(address)
    except ValueError as error:
        raise RequestError(f"{address}: {error}") from None


def _hashed_lines(address: str, places: Places) -> Iterator[tuple[str, str]]:
    """The addresses and hashes in a list as `sha256sum *.tar` writes it."""
    folder = _folder(address, places)
    for line in _content(address, places):
        if not (match := _HASH_LINE.fullmatch(line)):
            raise RequestError(f"{address}: not a line of a hash and a name, as sha256sum writes them: {line[:100]!r}")
        yield _beside(folder, match[2]), match[1].lower()


def _lines(address: str, places: Places) -> Iterator[str]:
    """The addresses in a list file, one a line."""
    folder = _folder(address, places)
    for line in _content(address, places):
        yield line if line.startswith("pipe:") else _beside(folder, line)


def _folder(address: str, places: Places) -> str:
    return places.of(address).full(address).rpartition("/")[0]


def _beside(folder: str, name: str) -> str:
    """The address that a name in a list means: those that are relative are so to the list's own folder."""
    return name if "://" in name or name.startswith(("/", "~")) else f"{folder}/{name}"


def _content(address: str, places: Places) -> Iterator[str]:
    """The lines of a list file that say something."""
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
    return (line for line in map(str.strip, lines) if line and not line.startswith("#"))
