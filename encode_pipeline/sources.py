"""Where the input tars are: paths, folders, globs, ranges and URLs into a list of source shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import braceexpand

from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.latents.storage import CHUNK, Storage, open_filesystem, protocol_of


class SourceChanged(Exception):
    """A tar is not the one that was planned."""


def find_sources(patterns: Iterable[str], limit: int | None = None) -> list[SourceShard]:
    """Every tar that the patterns name, in order, each once; naming nothing is an error."""
    found: dict[str, SourceShard] = {}
    for pattern in patterns:
        before = len(found)
        for source in _expand(pattern):
            found.setdefault(source.uri, source)
            if limit is not None and len(found) == limit:
                return list(found.values())
        if len(found) == before:
            raise RequestError(f"{pattern}: no tar files found there")
    return list(found.values())


def fetch_source(source: SourceShard, scratch: Path) -> tuple[Path, str]:
    """The tar as a local file, and its sha256. A tar of another size than planned is refused."""
    storage, name = _locate(source.uri)
    if (size := storage.size(name)) != source.size:
        raise SourceChanged(f"{source.uri}: {size} bytes now, {source.size} when the run was planned")
    local = storage.local_path(name)
    if local is None:
        local = scratch / "source.tar"
        return local, storage.fetch(name, local)
    hasher = hashlib.sha256()
    with local.open("rb") as file:
        while piece := file.read(CHUNK):
            hasher.update(piece)
    return local, hasher.hexdigest()


def _expand(pattern: str) -> Iterator[SourceShard]:
    fs, root = open_filesystem(pattern)
    try:
        paths = list(braceexpand.braceexpand(root))
    except ValueError as error:
        raise RequestError(f"{pattern}: {error}") from None
    for path in paths:
        if any(letter in path for letter in "*?["):
            entries = fs.glob(path, detail=True)
            for name in sorted(entries):
                if entries[name]["type"] == "file":
                    yield _source(fs, entries[name])
            continue
        try:
            info = fs.info(path)
        except FileNotFoundError:
            raise RequestError(f"{_address(fs, path)}: no such tar or folder") from None
        if info["type"] == "directory":
            entries = fs.find(path, maxdepth=1, detail=True)
            for name in sorted(entries):
                if name.endswith(".tar"):
                    yield _source(fs, entries[name])
        else:
            yield _source(fs, info)


def _source(fs: Any, info: dict[str, Any]) -> SourceShard:
    etag = str(info.get("ETag") or info.get("etag") or "").strip('"')
    if info.get("size") is None:
        raise RequestError(f"{_address(fs, info['name'])}: the server does not say how large it is")
    return SourceShard(uri=_address(fs, info["name"]), size=int(info["size"]), etag=etag)


def _address(fs: Any, path: str) -> str:
    protocol = protocol_of(fs)
    return path if protocol == "file" or "://" in path else f"{protocol}://{path.lstrip('/')}"


def _locate(uri: str) -> tuple[Storage, str]:
    folder, _, name = uri.rpartition("/")
    return Storage(folder or "/"), name
