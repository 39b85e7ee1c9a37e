"""A folder on any filesystem that fsspec knows, with the few operations that the store's protocol needs.

Two of them carry the promises: `create` makes an object only if none is there (of several writers exactly one
wins), and `publish` makes a file visible whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from encode_pipeline.latents.command import CheckFailed, RequestError

CHUNK = 1 << 20
_memory_lock = threading.Lock()


class StorageError(CheckFailed):
    """An object is not what it should be; the message names it and the fault."""


class Storage:
    """A folder: `s3://bucket/prefix`, `gs://…`, `memory://…` or a path on disk."""

    def __init__(self, url: str | Path) -> None:
        self.fs, self.root = open_filesystem(str(url))
        self.protocol = protocol_of(self.fs)
        self.is_local = self.protocol == "file"

    def __repr__(self) -> str:
        return f"Storage({self.url()!r})"

    def url(self, path: str = "") -> str:
        """The full address of an object: a plain absolute path on disk, else with its protocol."""
        full = self._full(path)
        return full if self.is_local else f"{self.protocol}://{full.lstrip('/')}"

    def local_path(self, path: str) -> Path | None:
        """The file itself where the storage is a local disk, for memory maps."""
        return Path(self._full(path)) if self.is_local else None

    def exists(self, path: str) -> bool:
        return bool(self.fs.exists(self._full(path)))

    def size(self, path: str) -> int:
        return int(self.fs.info(self._full(path))["size"])

    def files(self, path: str = "") -> dict[str, int]:
        """Every object under a folder, by its path relative to this storage, with its size."""
        prefix = self.root.rstrip("/") + "/"
        found = self.fs.find(self._full(path), detail=True)
        return {
            name.removeprefix(prefix): int(info["size"] or 0)
            for name, info in sorted(found.items())
            if not name.rsplit("/", 1)[-1].startswith(".publishing-")
        }

    def folders(self, path: str = "") -> list[str]:
        """The names of the folders directly under a folder."""
        full = self._full(path)
        try:
            entries = self.fs.ls(full, detail=True)
        except FileNotFoundError:
            return []
        return sorted(e["name"].rstrip("/").rsplit("/", 1)[-1] for e in entries if e["type"] == "directory")

    def read(self, path: str) -> bytes:
        """An object's bytes, refused if they are fewer or more than the storage says they are."""
        full = self._full(path)
        size = int(self.fs.info(full)["size"])
        data = bytes(self.fs.cat_file(full))
        if len(data) != size:
            raise StorageError(f"{self.url(path)}: {len(data)} bytes arrived of {size}")
        return data

    def create(self, path: str, data: bytes) -> bool:
        """Makes an object if none is there. False, and nothing changed, if one is."""
        full = self._full(path)
        if self.is_local:
            return _create_local(Path(full), data)
        try:
            if self.protocol == "memory":
                with _memory_lock:
                    self.fs.pipe_file(full, data, mode="create")
            else:
                self.fs.pipe_file(full, data, mode="create")
        except FileExistsError:
            return False
        return True

    def replace(self, path: str, data: bytes) -> None:
        """Swaps an object for another in one step; readers see the old or the new."""
        full = self._full(path)
        if self.is_local:
            target = Path(full)
            temporary = _write_beside(target, data)
            temporary.replace(target)
            sync(target.parent)
        else:
            self.fs.pipe_file(full, data)

    def publish(self, local: Path, path: str) -> None:
        """Copies a finished file to its place, where it appears whole or not at all."""
        full = self._full(path)
        size = local.stat().st_size
        if self.is_local:
            target = Path(full)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".publishing-{uuid.uuid4().hex}")
            try:
                shutil.copyfile(local, temporary)
                sync(temporary)
                temporary.replace(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            sync(target.parent)
        else:
            self.fs.put_file(str(local), full)
        arrived = self.size(path)
        if arrived != size:
            raise StorageError(f"{self.url(path)}: {arrived} bytes arrived of {size}")

    def delete(self, path: str) -> None:
        """Removes an object or a whole folder; what is already gone is fine."""
        full = self._full(path)
        try:
            self.fs.rm(full, recursive=True)
        except FileNotFoundError:
            return

    def chunks(self, path: str) -> Iterator[bytes]:
        """An object's bytes in pieces of bounded size; a body cut short is an error."""
        full = self._full(path)
        size = int(self.fs.info(full)["size"])
        seen = 0
        with self.fs.open(full, "rb") as stream:
            while piece := stream.read(CHUNK):
                seen += len(piece)
                yield piece
        if seen != size:
            raise StorageError(f"{self.url(path)}: {seen} bytes arrived of {size}")

    def sha256(self, path: str) -> str:
        hasher = hashlib.sha256()
        for piece in self.chunks(path):
            hasher.update(piece)
        return hasher.hexdigest()

    def fetch(self, path: str, local: Path) -> str:
        """Copies an object to a local file and returns its sha256."""
        hasher = hashlib.sha256()
        with local.open("wb") as out:
            for piece in self.chunks(path):
                hasher.update(piece)
                out.write(piece)
        return hasher.hexdigest()

    def _full(self, path: str) -> str:
        return f"{self.root.rstrip('/')}/{path}" if path else self.root


def open_filesystem(url: str) -> tuple[Any, str]:
    """The filesystem behind a URL, and the path within it. Never one that would run a command."""
    protocol = url.split("://", 1)[0] if "://" in url else "file"
    if url.startswith("pipe:") or "::" in url:
        raise RequestError(f"{url}: not a kind of address that is read here")
    # A listing cache would hide what other writers have just created.
    options = {"use_listings_cache": False} if protocol in ("s3", "s3a", "gs", "gcs") else {}
    try:
        fs, root = fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        extra = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}.get(protocol)
        hint = f"; install latent-clip-pipeline[{extra}]" if extra and isinstance(error, ImportError) else ""
        raise RequestError(f"{url}: {' '.join(str(error).split())}{hint}") from None
    return fs, str(root).rstrip("/") or "/"


def protocol_of(fs: Any) -> str:
    """The name that URLs of a filesystem begin with: file, s3, gs, memory, http."""
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    return {"local": "file", "s3a": "s3", "gcs": "gs"}.get(protocol, protocol)


def _create_local(target: Path, data: bytes) -> bool:
    if target.exists():
        return False
    temporary = _write_beside(target, data)
    try:
        os.link(temporary, target)  # atomic, and fails if the name is taken: rename would overwrite
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    sync(target.parent)
    return True


def _write_beside(target: Path, data: bytes) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".publishing-{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(data)
        sync(temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def sync(path: Path) -> None:
    """Has the disk hold a file's bytes, or a folder's names, before anything is built on them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
