"""The shards of a window, from being prepared to giving their samples."""

from __future__ import annotations

from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.reader import ShardError
from encode_pipeline.latents.spec import SpecError
from train.order import Numbers
from train.prepare import ReadyStore, ReadyTar, Submit
from train.stores import LatentStore

TRIES = 10
"""Of a shard that others remove from the cache as soon as it is ready."""


class OpenWindow:
    """Shards that are wanted together. Those not ready are asked for at once, in the order given."""

    def __init__(self, number: int, store: LatentStore, ready: ReadyStore, tars: Numbers, submit: Submit) -> None:
        self._number, self._store, self._ready, self._submit = number, store, ready, submit
        self._open: dict[int, ReadyTar] = {}
        self._coming: dict[int, Future[None]] = {}
        self._sound: Numbers = np.sort(tars[store.tar_samples[tars] > 0])
        self.damaged: dict[int, str] = {}
        """What is wrong with which tars."""
        for tar in tars.tolist():
            self._open_or_ask(tar)

    def wait(self) -> None:
        """Until every shard is open, or known to be damaged."""
        if not self._coming:
            return
        for _ in range(TRIES):
            for tar, future in list(self._coming.items()):
                try:
                    with suppress(FileNotFoundError):  # removed just when it was ready
                        future.result()
                except (ShardError, SpecError) as error:
                    self.damaged[tar] = self._ready.fault(self._store.row(tar), error)
                except BrokenProcessPool:
                    raise CheckFailed(
                        "a process that prepares shards was killed; if memory ran out, take fewer workers"
                    ) from None
                del self._coming[tar]  # not before it is here: until then it can be given up
                if tar not in self.damaged:
                    self._open_or_ask(tar)
            if not self._coming:
                break
        else:
            url = self._store.url(next(iter(self._coming)))
            raise CheckFailed(f"{url}: is removed from the cache before it can be read; say a larger cache_gb=")
        self._sound = self._sound[[tar not in self.damaged for tar in self._sound.tolist()]]

    def cancel(self) -> None:
        """Gives up on what has not begun."""
        for future in list(self._coming.values()):  # another thread may be waiting for them
            future.cancel()

    def instead(self, tars: Numbers, indices: Numbers) -> int:
        """Puts others in the place of samples that are damaged, chosen by their numbers alone; returns how many."""
        if not len(self._sound):
            fault = next(iter(self.damaged.values()))
            raise CheckFailed(f"{fault}; no other shard of its window is sound either: say a larger mix=")
        lost = np.flatnonzero([tar in self.damaged for tar in tars.tolist()])
        for row in lost.tolist():
            around, turn = divmod(int(indices[row]), len(self._sound))
            tars[row] = self._sound[turn]
            indices[row] = around % self._store.tar_samples[tars[row]]
        return len(lost)

    def copy(
        self,
        tars: Numbers,
        indices: Numbers,
        rows: Numbers,
        latents: npt.NDArray[np.uint8],
        tokens: npt.NDArray[np.int64],
    ) -> None:
        """Copies samples, sorted by tar, into rows of a batch: of their latents, the bytes as they are stored."""
        size = latents.shape[1]
        starts = np.flatnonzero(np.diff(tars, prepend=-1)).tolist()
        for start, end in zip(starts, [*starts[1:], len(tars)], strict=True):
            tar = self._open[int(tars[start])]
            records = tar.index[indices[start:end]]
            tokens[rows[start:end]] = records["tokens"]
            for row, first in zip(rows[start:end].tolist(), records["offset"].tolist(), strict=True):
                latents[row] = tar.file[first : first + size]

    def _open_or_ask(self, tar: int) -> None:
        row = self._store.row(tar)
        ready = self._ready.open(row)
        if ready is not None:
            self._open[tar] = ready
            return
        try:
            self._coming[tar] = self._submit(self._number, row)
        except BrokenProcessPool as error:  # told when this window is waited for
            self._coming[tar] = Future()
            self._coming[tar].set_exception(error)
