"""Batches: the same ones for the same stores and seed, from any number on, on any number of machines and workers."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.latents.spec import digest
from encode_pipeline.latents.store import Version
from train.captions import CaptionTokens
from train.config import TrainConfig
from train.open_files import allow_open_files
from train.order import Numbers, Piece, Shares, Stream, Window
from train.prepare import ReadyStore, Submit, preparing
from train.quantised import dequantise_rows
from train.stores import LatentStore, open_stores
from train.window import OpenWindow

AHEAD = 2
"""Batches made before they are asked for."""
READERS = 4
"""Threads that copy rows: of files that are not in memory yet, several are waited for at a time."""


@dataclass(frozen=True)
class Batch:
    """What one rank has of a global batch."""

    latents_bchw: Tensor
    tokens_bl: Tensor
    ids: Numbers
    """Of each row: the store's number, the tar's number in it, and the sample's in the tar."""


class LatentData:
    """All samples of some stores, in batches."""

    def __init__(self, stores: Sequence[LatentStore], config: TrainConfig, tokenizer: Any) -> None:
        self.spec = stores[0].version.spec
        self.skipped = 0
        """Rows so far, on this rank, that others fill because their shard is damaged."""
        self._stores, self._config = stores, config
        folder, limit = config.cache or config.out / "cache", int(config.cache_gb * 1e9)
        tokens = CaptionTokens(tokenizer)  # one for all stores, with one memory
        self._ready = [ReadyStore(store.version, folder, limit, tokens) for store in stores]
        mixed = config.views == "mixed"
        self._streams = [
            Stream(store.sizes, store.version.spec.views, mixed, config.mix, [config.seed, number])
            for number, store in enumerate(stores)
        ]
        self.samples = sum(stream.samples for stream in self._streams)
        """In an epoch of every store."""
        self._shares = Shares([store.weight for store in stores], config.batch_size)
        self._context_length = int(tokenizer.context_length)
        self._named: set[tuple[int, int]] = set()
        self._check_room(folder, limit)

    @property
    def identity(self) -> str:
        """Equal for stores of the same tars, wherever they are, in the same proportions."""
        return digest([[store.tars.column("sha256").to_pylist(), str(store.weight)] for store in self._stores])

    def batch_ids(self, number: int) -> Numbers:
        """A whole batch by its numbers: store, tar, sample. No file is opened for it."""
        rows = range(self._config.batch_size)
        return np.concatenate([_ids(store, piece) for store, _, _, piece in self._pieces(number, rows)])

    def batches(self, first: int, last: int, rows: range) -> Generator[Batch]:
        """These rows of the batches from `first` to before `last`; the next ones are made while one is used."""
        # Memory that a GPU copies from belongs to a GPU, and a thread's is the first unless it is told.
        device = (torch.cuda.set_device, (torch.cuda.current_device(),)) if torch.cuda.is_available() else (None, ())
        with (
            preparing(self._ready, self._config.workers) as submit,
            ThreadPoolExecutor(READERS, "read") as readers,
            ThreadPoolExecutor(1, "batch", *device) as maker,
        ):
            reading = _Reading(self, submit, readers, first, last, rows)
            pending: deque[Future[tuple[Batch, int]]] = deque()
            try:
                for number in range(first, last):
                    while len(pending) <= AHEAD and number + len(pending) < last:
                        pending.append(maker.submit(reading.batch, number + len(pending)))
                    batch, skipped = pending.popleft().result()
                    self.skipped += skipped
                    yield batch
            finally:
                for future in pending:
                    future.cancel()
                reading.cancel()

    def names(self, ids: Numbers) -> list[str]:
        """Samples by the address of their tar and their key, for messages. Each tar is opened once."""
        keys: dict[tuple[int, int], list[str]] = {}
        for store, tar in np.unique(ids[:, :2], axis=0).tolist():
            with suppress(CheckFailed, RequestError, OSError):
                keys[store, tar] = self._ready[store].keys(self._stores[store].row(tar))
        return [
            f"{self._stores[store].url(tar)}: "
            + (keys[store, tar][sample] if (store, tar) in keys else f"sample {sample}")
            for store, tar, sample in ids.tolist()
        ]

    def _pieces(self, number: int, rows: range) -> Iterator[tuple[int, int, bool, Piece]]:
        """The store, the first row, whether it is the store's first in the batch, and the samples from there on."""
        row = 0
        starts, ends = self._shares.before(number), self._shares.before(number + 1)
        for store, (start, end) in enumerate(zip(starts, ends, strict=True)):
            first, last = max(rows.start, row), min(rows.stop, row + end - start)
            place = first
            for piece in self._streams[store].pieces(start + first - row, start + last - row):
                yield store, place - rows.start, place == row, piece
                place += len(piece.tars)
            row += end - start

    def _check_room(self, folder: Path, limit: int) -> None:
        """Two windows are needed at a time: one is read while the next is prepared."""
        mix = self._config.mix
        record = 8 + 4 * self._context_length
        wanted = 2 * sum(store.largest(mix, record) for store in self._stores)
        if wanted > limit:
            raise RequestError(
                f"cache_gb={self._config.cache_gb:g}: two windows of mix={mix} shards can take {wanted / 1e9:.3g} GB "
                f"in {folder}; say cache_gb={-(-wanted // 10**7) / 100:g}, or a smaller mix="
            )
        allow_open_files(2 * 3 * sum(min(mix, store.tars.num_rows) for store in self._stores), f"mix={mix}")


def open_data(config: TrainConfig, tokenizer: Any, versions: Mapping[str, Version] | None = None) -> LatentData:
    """The stores of a run, ready to be read; those that do not fit together are refused."""
    return LatentData(open_stores(config, versions), config, tokenizer)


class _Reading:
    """Makes some rows of one batch after the other, and has the shards of the next window prepared meanwhile."""

    def __init__(
        self, data: LatentData, submit: Submit, readers: ThreadPoolExecutor, first: int, last: int, rows: range
    ) -> None:
        self._data, self._submit, self._readers, self._first, self._rows = data, submit, readers, first, rows
        self._ends = data._shares.before(last)
        self._windows: list[dict[Window, OpenWindow]] = [{} for _ in data._stores]
        self._cancelled = threading.Event()
        self._pinned = torch.cuda.is_available()

    def batch(self, number: int) -> tuple[Batch, int]:
        """The rows of a batch, and how many of them fill in for damaged ones."""
        data, count = self._data, len(self._rows)
        latents = torch.empty((count, *data.spec.shape), dtype=torch.float16, pin_memory=self._pinned)
        tokens = torch.empty((count, data._context_length), dtype=torch.int64, pin_memory=self._pinned)
        flat, lines = latents.view(count, -1).numpy().view(np.uint8), tokens.numpy()
        ids, skipped, copies = [], 0, []
        quantised: list[tuple[npt.NDArray[np.uint8], Tensor]] = []
        for store, place, is_first, piece in data._pieces(number, self._rows):
            window = self._window(store, piece.window)
            if window.damaged:
                # Of all ranks one says it: that which begins the window, or after a resume the store's share.
                tells = piece.place == 0 or (number == self._first and is_first)
                self._tell(store, window, tells)
                skipped += window.instead(piece.tars, piece.indices)
            ids.append(_ids(store, piece))
            rows, spec = slice(place, place + len(piece.tars)), data._stores[store].version.spec
            stored = flat[rows]
            if spec.dtype == "int8":
                stored = np.empty((len(piece.tars), spec.bytes_per_latent), np.uint8)
                parts = min(READERS, len(stored))
                quantised += zip(np.array_split(stored, parts), latents[rows].tensor_split(parts), strict=True)
            order = np.lexsort((piece.indices, piece.tars))
            for part in np.array_split(order, min(READERS, len(order))):
                taken = (piece.tars[part], piece.indices[part], part)
                copies.append(self._readers.submit(window.copy, *taken, stored, lines[rows]))
        for copy in copies:
            copy.result()
        for read in [self._readers.submit(dequantise_rows, *part) for part in quantised]:
            read.result()
        return Batch(latents, tokens, np.concatenate(ids)), skipped

    def cancel(self) -> None:
        """Nobody wants more batches: what has not begun never will."""
        self._cancelled.set()
        for windows in self._windows:
            for window in list(windows.values()):
                window.cancel()

    def _window(self, store: int, window: Window) -> OpenWindow:
        """A window that can be read. Those before it are let go, and the next one is begun."""
        windows, stream = self._windows[store], self._data._streams[store]
        if window not in windows:
            windows[window] = self._opened(store, window)
        if self._cancelled.is_set():  # also one that came while the window was opened
            raise CancelledError
        windows[window].wait()
        for old in [old for old in windows if old < window]:
            del windows[old]
        start, following = stream.after(window)
        if following not in windows and start < self._ends[store]:
            windows[following] = self._opened(store, following)
        return windows[window]

    def _opened(self, store: int, window: Window) -> OpenWindow:
        data = self._data
        tars = data._streams[store].tars(window)
        # The ranks of a machine share the work: each begins elsewhere, and finds done what others did.
        turned = np.roll(tars, -(self._rows.start * len(tars) // data._config.batch_size))
        return OpenWindow(store, data._stores[store], data._ready[store], turned, self._submit)

    def _tell(self, store: int, window: OpenWindow, tells: bool) -> None:
        for tar, fault in window.damaged.items():
            if self._data._config.damaged == "stop":
                raise CheckFailed(fault)
            if tells and (store, tar) not in self._data._named:
                self._data._named.add((store, tar))
                print(f"damaged, and left out: {fault}", file=sys.stderr, flush=True)


def _ids(store: int, piece: Piece) -> npt.NDArray[np.int64]:
    return np.stack([np.full(len(piece.tars), store), piece.tars, piece.indices], axis=1)
