"""A folder on any filesystem that fsspec knows, with the few operations that the store's protocol needs.

Two of them carry the promises: `create` makes an object only if none is there (of several writers exactly one
wins), and `publish` makes a file visible whole or not at all. Servers that lose answers, cut bodies short or store
other bytes than they were sent make an operation fail or be repeated, never end as if it were right.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import chain, pairwise
from pathlib import Path
from typing import BinaryIO, TypeVar

from encode_pipeline.latents import disk
from encode_pipeline.latents.command import REMOTE_LIBRARIES, CheckFailed, RequestError
from encode_pipeline.latents.filesystems import open_filesystem, protocol_of

CHUNK = 1 << 20
BLOCK_BYTES = 16 << 20
"""Of an object, asked for at once."""
REFUSAL_PAUSES = (0.1, 0.5, 2.0)
"""Seconds before an object is created once more that the server refused, as if it were there, though it is not."""
WRITES = 4
"""Of one object, until what is read back is what was written."""
LISTING_THREADS = 16
_memory_lock = threading.Lock()
Content = TypeVar("Content")


class StorageError(CheckFailed):
    """An object is not what it should be, or its store does not do its work; the message names it and the fault."""


class Storage:
    """A folder: `s3://bucket/prefix`, `gs://…`, `memory://…` or a path on disk.

    Short troubles (503, a connection that breaks off) are sat out by the libraries, for up to a minute.
    """

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
        with self._told_plainly(path):
            return bool(self.fs.exists(self._full(path)))

    def size(self, path: str) -> int:
        with self._told_plainly(path):
            return int(self.fs.info(self._full(path))["size"])

    def files(self, path: str = "", unfinished: bool = False) -> dict[str, int]:
        """Every object under a folder, by its path relative to this storage, with its size.

        `unfinished` adds what is being written at this moment, or was left by a writer that was killed.
        """
        prefix = self.root.rstrip("/") + "/"
        if self.is_local:
            found = sorted(disk.files_under(Path(self._full(path))))
        else:
            with self._told_plainly(path):
                infos = self.fs.find(self._full(path), detail=True)
            found = sorted((name, int(info["size"] or 0)) for name, info in infos.items())
        return {name.removeprefix(prefix): size for name, size in found if unfinished or not disk.is_unfinished(name)}

    def names(self, folder: str, cuts: Sequence[str] = ()) -> Iterator[str]:
        """The names of the objects directly in a folder, of which there may be very many.

        `cuts` are names, in order: what lies between two of them is listed beside what lies between others.
        """
        full = self._full(folder)
        if self.is_local:
            yield from disk.names_in(Path(full))
        elif self.protocol == "s3":
            with ThreadPoolExecutor(LISTING_THREADS) as pool:
                parts = pool.map(lambda ends: list(self._s3_names(folder, *ends)), pairwise(["", *cuts, None]))
                yield from chain.from_iterable(parts)
        else:
            with self._told_plainly(folder):
                found = self.fs.find(full, maxdepth=1)
            yield from (name.rpartition("/")[2] for name in found)

    def folders(self, path: str = "") -> list[str]:
        """The names of the folders directly under a folder."""
        try:
            with self._told_plainly(path):
                entries = self.fs.ls(self._full(path), detail=True)
        except FileNotFoundError:
            return []
        return sorted(e["name"].rstrip("/").rsplit("/", 1)[-1] for e in entries if e["type"] == "directory")

    def read(self, path: str) -> bytes:
        """An object's bytes, refused if they are fewer or more than the storage says they are."""
        return b"".join(self.chunks(path))

    def parsed(self, path: str, parse: Callable[[bytes], Content], data: bytes | None = None) -> Content:
        """What an object's bytes mean; those that mean nothing are read once more, for the damage may be of the way."""
        data = self.read(path) if data is None else data
        try:
            return parse(data)
        except (CheckFailed, RequestError):
            if self.is_local:
                raise
        return parse(self.read(path))

    def create(self, path: str, data: bytes) -> bool:
        """Makes an object if none is there. False if one is: another writer's, or this one's whose answer was lost."""
        if self.is_local:
            return disk.create(Path(self._full(path)), data)
        for pause in (*REFUSAL_PAUSES, None):
            if self._created(path, data):
                if self.read(path) != data:  # damaged on its way there: ours, so ours to mend
                    self.replace(path, data)
                return True
            if self.exists(path):
                return False
            if pause is not None:
                time.sleep(pause)
        raise StorageError(f"{self.url(path)}: the server refuses to create it, as if it were there, and it is not")

    def replace(self, path: str, data: bytes) -> None:
        """Swaps an object for another in one step; readers see the old or the new."""
        if self.is_local:
            disk.replace(Path(self._full(path)), data)
            return
        for _ in range(WRITES):
            with self._told_plainly(path):
                self.fs.pipe_file(self._full(path), data)
            if self.read(path) == data:
                return
        raise self._differs(path)

    def publish(self, local: Path, path: str, sha256: str) -> None:
        """Copies a finished file to its place, where it appears whole or not at all.

        What a server holds is read back and hashed. What a disk gives back at once comes from memory and proves
        nothing: there the size is looked at.
        """
        size = local.stat().st_size
        if not self.is_local:
            self._upload(local, path)
            if self.sha256(path) != sha256:
                raise self._differs(path)
            return
        disk.publish(local, Path(self._full(path)))
        if (arrived := self.size(path)) != size:
            raise StorageError(f"{self.url(path)}: {arrived} bytes arrived of {size}")

    def _differs(self, path: str) -> StorageError:
        return StorageError(f"{self.url(path)}: the server does not hold the bytes that it was sent")

    def delete(self, path: str) -> None:
        """Removes an object or a whole folder; what is already gone is fine."""
        try:
            with self._told_plainly(path):
                self.fs.rm(self._full(path), recursive=True)
        except FileNotFoundError:
            return

    def chunks(self, path: str) -> Iterator[bytes]:
        """An object's bytes in pieces of bounded size; a body cut short is asked for again, or else an error."""
        seen = 0
        with self._told_plainly(path), self._opened(path) as (stream, size):
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

    @contextmanager
    def _opened(self, path: str) -> Iterator[tuple[BinaryIO, int]]:
        """An object and its size. From a disk without fsspec, which takes longer than to read a small file."""
        if self.is_local:
            with io.FileIO(self._full(path)) as file:
                yield file, os.fstat(file.fileno()).st_size
        else:
            with self.fs.open(self._full(path), "rb", block_size=BLOCK_BYTES) as stream:
                yield stream, int(stream.size)

    def _created(self, path: str, data: bytes) -> bool:
        """Whether the server has made the object. If not, it says that one is there, or just being written."""
        with self._told_plainly(path), _memory_lock if self.protocol == "memory" else nullcontext():
            try:
                self.fs.pipe_file(self._full(path), data, mode="create")
            except Exception as error:
                if not _is_refusal(error):
                    raise
                return False
        return True

    def _upload(self, local: Path, path: str) -> None:
        try:
            with self._told_plainly(path):
                self.fs.put_file(str(local), self._full(path))
        except FileNotFoundError:
            # What a second try to end an upload in parts hears if the first was heard and its answer lost.
            if not self.exists(path):
                raise StorageError(f"{self.url(path)}: the server lost it on its way") from None

    def _s3_names(self, folder: str, after: str | None, last: str | None) -> Iterator[str]:
        """A page of a thousand at a time: fsspec would keep a kilobyte for each until the last has come."""
        bucket, key, _ = self.fs.split_path(self._full(folder))
        question = {"Bucket": bucket, "Prefix": f"{key}/", "Delimiter": "/", "StartAfter": f"{key}/{after}"}
        while True:
            with self._told_plainly(folder):
                page = self.fs.call_s3("list_objects_v2", **question)
            for item in page.get("Contents", ()):
                name = item["Key"].rpartition("/")[2]
                if last is not None and name > last:
                    return
                yield name
            if not page["IsTruncated"]:
                return
            question["ContinuationToken"] = page["NextContinuationToken"]

    @contextmanager
    def _told_plainly(self, path: str) -> Iterator[None]:
        """Turns what a remote store's library raises into errors that name the object and the cause."""
        try:
            yield
        except Exception as error:
            if self.is_local or isinstance(error, CheckFailed):
                raise
            if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in REMOTE_LIBRARIES:
                raise
            text = f"{self.url(path)}: {' '.join(str(error).split()) or type(error).__name__}"
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(f"{self.url(path)}: not there") from error
            if isinstance(error, PermissionError):
                raise PermissionError(text) from error
            raise StorageError(text) from error

    def _full(self, path: str) -> str:
        return f"{self.root.rstrip('/')}/{path}" if path else self.root


def _is_refusal(error: Exception) -> bool:
    """Whether a store will not create an object because one is there (412), or is just being written (409)."""
    answer = getattr(error.__cause__, "response", None) or {}
    return isinstance(error, FileExistsError) or answer.get("ResponseMetadata", {}).get("HTTPStatusCode") in (409, 412)
