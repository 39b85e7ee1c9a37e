"""From the manifest of a sealed version to batches: every sample once an epoch, in an order set by the seed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from torch import Tensor

from encode_pipeline.latents.cache import ShardCache
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.reader import LatentShard
from encode_pipeline.latents.store import Store, Version


@dataclass(frozen=True)
class Batch:
    latents_bchw: Tensor
    tokens_bl: Tensor
    ids: list[tuple[int, int]]
    """View and sample number of each row."""


class LatentDataset:
    """All samples of a sealed version in all views, by number and without a copy."""

    def __init__(self, version: Version, cache: Path) -> None:
        self.version, self.spec = version, version.spec
        opener = ShardCache(version, cache)
        rows = version.manifest().to_pylist()
        by_view: list[list[LatentShard]] = [[] for _ in range(self.spec.views)]
        for row in sorted(rows, key=lambda row: (row["view"], row["shard"])):
            by_view[row["view"]].append(opener.open(row))
        self._shards = by_view
        sizes = [len(shard) for shard in by_view[0]]
        if any([len(shard) for shard in shards] != sizes for shards in by_view):
            raise RequestError(f"{version.storage.url()}: the views do not hold the same samples")
        self._ends = np.cumsum(sizes).tolist()

    def __len__(self) -> int:
        """Samples, each counted once whatever its views."""
        return int(self._ends[-1])

    def latent(self, view: int, sample: int) -> npt.NDArray[np.float16]:
        shard, index = self._place(view, sample)
        return shard.latent(index)

    def caption(self, sample: int) -> str:
        shard, index = self._place(0, sample)
        return shard.caption(index)

    def _place(self, view: int, sample: int) -> tuple[LatentShard, int]:
        number = bisect_right(self._ends, sample)
        return self._shards[view][number], sample - (self._ends[number - 1] if number else 0)


def open_dataset(store: str, version: str | None, cache: Path) -> LatentDataset:
    """The sealed version of a store, ready to read."""
    return LatentDataset(Store(store).version(version), cache)


def batches(
    dataset: LatentDataset,
    tokenizer: open_clip.SimpleTokenizer,
    batch_size: int,
    seed: int,
    first: int,
    last: int,
    ahead: int,
) -> Iterator[Batch]:
    """Batches number `first` to `last`: the same ones whether or not those before were asked for.

    Samples form one endless stream, epoch after epoch, each epoch in its own order and its own view, and a
    batch is a piece of that stream: none is left out and none comes twice within an epoch.
    """
    order = _EpochOrder(len(dataset), seed)

    def make(number: int) -> Batch:
        ids = []
        for position in range(number * batch_size, (number + 1) * batch_size):
            epoch, place = divmod(position, len(dataset))
            ids.append((epoch % dataset.spec.views, order.sample(epoch, place)))
        latents = np.stack([dataset.latent(view, sample) for view, sample in ids])
        tokens = tokenizer([dataset.caption(sample) for _, sample in ids])
        return Batch(torch.from_numpy(latents), tokens, ids)

    with ThreadPoolExecutor(1) as pool:  # one thread: batches are cheap to make, and come in order
        pending = [pool.submit(make, number) for number in range(first, min(first + ahead, last))]
        for number in range(first, last):
            batch = pending.pop(0).result()
            if number + ahead < last:
                pending.append(pool.submit(make, number + ahead))
            yield batch


class _EpochOrder:
    """The order of the samples in each epoch; the two epochs that a batch can touch are kept."""

    def __init__(self, samples: int, seed: int) -> None:
        self._samples, self._seed = samples, seed
        self._kept: dict[int, npt.NDArray[np.int64]] = {}

    def sample(self, epoch: int, place: int) -> int:
        if epoch not in self._kept:
            self._kept = {kept: order for kept, order in self._kept.items() if kept >= epoch - 1}
            self._kept[epoch] = np.random.default_rng([self._seed, epoch]).permutation(self._samples)
        return int(self._kept[epoch][place])
