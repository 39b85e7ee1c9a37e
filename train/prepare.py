"""A shard made ready: fetched, checked, indexed and its captions tokenised, once for all processes of a machine."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip

from encode_pipeline.latents.cache import ShardCache
from encode_pipeline.latents.reader import ShardError, map_bytes
from encode_pipeline.latents.spec import digest
from encode_pipeline.latents.store import Version
from train.captions import CaptionTokens

Row = Mapping[str, Any]
Submit = Callable[[int, Row], Future[None]]
"""Has a shard of a store, by its number, prepared."""
CAPTIONS_AT_ONCE = 256
PROBE = ["", "A photo of a caf\u00e9 &amp; 2 D\u00d6GS", "\U0001f389 don't_stop ", "word " * 500]
"""Captions that tokenizers with the same words, but other rules, turn into other tokens."""


@dataclass(frozen=True)
class ReadyTar:
    """A tar by memory map: nothing left to do but copy."""

    file: npt.NDArray[np.uint8]
    index: npt.NDArray[np.void]
    """Of each sample, at which byte its latent is: its `offset`, and its `tokens`."""


class ReadyStore:
    """The shards of a store, each with a file beside it in the cache that holds places and tokens."""

    def __init__(self, version: Version, folder: Path, limit: int, tokens: CaptionTokens) -> None:
        self._cache = ShardCache(version, folder, limit)
        self._tokens, self._mark = tokens, tokenizer_mark(tokens.tokenizer)
        self.record = np.dtype([("offset", "<i8"), ("tokens", "<i4", (tokens.tokenizer.context_length,))])

    def prepare(self, row: Row) -> None:
        """Makes the shard of a manifest row ready, unless somebody has; a damaged one is a ShardError or SpecError."""
        if self.open(row) is not None:
            return
        with self._cache.open(row) as shard:
            name = self._index_name(row)
            with self._cache.files.locked(name):
                if self._index(name, row) is not None:
                    return
                own = self._cache.version.storage.local_path(row["path"])
                if own and (sha256 := self._cache.version.storage.sha256(row["path"])) != row["sha256"]:
                    raise ShardError(f"{own}: sha256 {sha256[:12]}…, {row['sha256'][:12]}… in the manifest")
                index = np.empty(len(shard), self.record)
                index["offset"] = shard.offsets
                for start in range(0, len(shard), CAPTIONS_AT_ONCE):
                    some = range(start, min(start + CAPTIONS_AT_ONCE, len(shard)))
                    index["tokens"][start : some.stop] = self._tokens([shard.caption(number) for number in some])
                data = _as_npy(index)
                self._cache.files.add(name, len(data), lambda path: path.write_bytes(data))

    def open(self, row: Row) -> ReadyTar | None:
        """The shard of a manifest row, if it is ready."""
        own = self._cache.version.storage.local_path(row["path"])
        copy = self._cache.place(row)
        try:
            if own is None and not self._cache.files.touch(copy, row["size"]):
                return None
            index = self._index(self._index_name(row), row)
            if index is None:
                return None
            file = map_bytes(own or self._cache.files.folder / copy, row["size"])
        except (FileNotFoundError, ValueError):  # gone, or cut, in between
            return None
        return ReadyTar(file, index)

    def keys(self, row: Row) -> list[str]:
        """The keys of a shard's samples."""
        with self._cache.open(row) as shard:
            return shard.keys

    def fault(self, row: Row, error: Exception) -> str:
        """What is wrong with a shard, beginning with its address in the store."""
        url, text = self._cache.version.storage.url(row["path"]), " ".join(str(error).split())
        return f"{url}: " + text.removeprefix(f"{self._cache.files.folder / self._cache.place(row)}: ").removeprefix(
            f"{url}: "
        )

    def _index_name(self, row: Row) -> str:
        """Another one as soon as the store's own file is touched, which then is checked again."""
        own = self._cache.version.storage.local_path(row["path"])
        state = (own.stat().st_size, own.stat().st_mtime_ns, own.stat().st_ino) if own else None
        return self._cache.place(row, f"{digest([self._mark, state])[:16]}.npy")

    def _index(self, name: str, row: Row) -> npt.NDArray[np.void] | None:
        if not self._cache.files.touch(name):
            return None
        try:
            index = np.load(self._cache.files.folder / name, mmap_mode="r")
        except (FileNotFoundError, ValueError, EOFError):  # gone in between, or cut by a crash of the machine
            return None
        fits = index.dtype == self.record and index.shape == (row["samples"],)
        return np.asarray(index) if fits else None


def tokenizer_mark(tokenizer: Any) -> str:
    """Equal only for tokenizers that turn captions into the same tokens."""
    words = tokenizer.encoder if hasattr(tokenizer, "encoder") else tokenizer.tokenizer.get_vocab()
    about = [type(tokenizer).__qualname__, open_clip.__version__, tokenizer.context_length]
    return digest([*about, digest(words), tokenizer(PROBE).tolist()])


@contextmanager
def preparing(stores: Sequence[ReadyStore], workers: int) -> Iterator[Submit]:
    """Prepares shards by so many processes, or by a thread of this one.

    Processes, because tokenising holds the lock that the thread needs which keeps the GPU busy.
    """
    pool: Executor
    if workers == 0:
        pool = ThreadPoolExecutor(1, "prepare")
    else:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["train.own_group", __name__])
        begin_with = (dict(os.environ), pickle.dumps(list(stores)))
        pool = ProcessPoolExecutor(workers, context, _begin, begin_with)

    def submit(store: int, row: Row) -> Future[None]:
        return pool.submit(_prepare, store, row) if workers else pool.submit(stores[store].prepare, row)

    try:
        yield submit
    finally:
        pool.shutdown(cancel_futures=True)


_stores: list[ReadyStore] = []
"""In a worker process, those of its trainer."""


def _begin(environment: dict[str, str], stores: bytes) -> None:
    """Makes this process a worker that hears no Ctrl-C and ends with its trainer, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(environment)  # the server that workers are forked from may have begun with another
    _stores.extend(pickle.loads(stores))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _prepare(store: int, row: Row) -> None:
    _stores[store].prepare(row)


def _as_npy(index: npt.NDArray[np.void]) -> bytes:
    file = io.BytesIO()
    np.save(file, index)
    return file.getvalue()
