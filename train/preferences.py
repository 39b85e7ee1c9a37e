"""Preference pairs of a latent store: two latents, their caption, and which of them people liked better."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encode_pipeline.latents.cache import ShardCache
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.reader import LatentShard
from encode_pipeline.latents.store import Store, Version
from train.open_files import allow_open_files

Tokenizer = Callable[[list[str]], Tensor]


@dataclass(frozen=True)
class PairBatch:
    """Some pairs; of the two sides (s), the first is `_0` of the tars."""

    latents_bschw: Tensor
    tokens_bl: Tensor
    labels_bs: Tensor
    """How much of the preference went to each side: 1 and 0, or a half each for a tie."""
    examples_b: Tensor
    """How many pairs the data has of the same caption."""
    ids: list[str]


@dataclass(frozen=True, slots=True)
class _Side:
    shard: int
    index: int
    label: float
    examples: int


class PreferencePairs:
    """The complete pairs of a sealed version by number, in view 0 and without a copy.

    A pair that lacks a side, as when the encoder refused its picture, is left out and counted in `incomplete`.
    """

    def __init__(self, store: str, cache: Path, version: Version | None = None) -> None:
        self.version = version or Store(store).version()
        self.spec = self.version.spec
        rows = [row for row in self.version.manifest().to_pylist() if row["view"] == 0]
        allow_open_files(len(rows), store)
        opener = ShardCache(self.version, cache)
        self._shards = [opener.open(row) for row in sorted(rows, key=lambda row: str(row["shard"]))]
        sides: dict[str, dict[int, _Side]] = {}
        for number, shard in enumerate(self._shards):
            for index in range(len(shard)):
                pair, side, found = _side_of(shard, number, index)
                both = sides.setdefault(pair, {})
                if side in both:
                    first = both[side]
                    one, other = (self._where(place) for place in (first, found))
                    raise RequestError(f"{store}: side {side} of pair {pair} is there twice: {one} and {other}")
                both[side] = found
        self.incomplete = sum(len(both) < 2 for both in sides.values())
        self.names = sorted(pair for pair, both in sides.items() if len(both) == 2)
        self._sides = [(sides[pair][0], sides[pair][1]) for pair in self.names]
        if not self.names:
            raise RequestError(f"{store}: no pair has both of its sides")
        for pair, (first, second) in zip(self.names, self._sides, strict=True):
            self._check(pair, first, second)

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, numbers: list[int], tokenizer: Tokenizer) -> PairBatch:
        """The pairs of these numbers."""
        sides = [self._sides[number] for number in numbers]
        latents = [[self._shards[side.shard].latent(side.index) for side in both] for both in sides]
        return PairBatch(
            latents_bschw=torch.from_numpy(np.array(latents)),
            tokens_bl=tokenizer([self._caption(first) for first, _ in sides]),
            labels_bs=torch.tensor([[side.label for side in both] for both in sides], dtype=torch.float32),
            examples_b=torch.tensor([first.examples for first, _ in sides], dtype=torch.float32),
            ids=[self.names[number] for number in numbers],
        )

    def _check(self, pair: str, first: _Side, second: _Side) -> None:
        """Refuses a pair whose sides do not belong together."""
        labels = (first.label, second.label)
        if abs(sum(labels) - 1) > 1e-6 or min(labels) < 0:
            raise RequestError(f"{self._where(first)}: labels {labels} of pair {pair} do not add up to 1")
        if first.examples != second.examples or self._caption(first) != self._caption(second):
            raise RequestError(f"{self._where(first)}: pair {pair} has two captions, or two counts of them")

    def _caption(self, side: _Side) -> str:
        return self._shards[side.shard].caption(side.index)

    def _where(self, side: _Side) -> str:
        shard = self._shards[side.shard]
        return f"{shard.path}: {shard.keys[side.index]}"


def _side_of(shard: LatentShard, number: int, index: int) -> tuple[str, int, _Side]:
    """The pair that a sample belongs to, its side of it, and what is known of that."""
    about: Any = shard.metadata(index).get("metadata")
    try:
        pair, side = str(about["pair"]), int(about["side"])
        found = _Side(number, index, float(about["label"]), int(about["num_example_per_prompt"]))
    except (KeyError, TypeError, ValueError):
        raise RequestError(
            f"{shard.path}: {shard.keys[index]}: not half of a preference pair; "
            "make the tars with `python -m encode_pipeline pairs`"
        ) from None
    if side not in (0, 1) or found.examples < 1:
        raise RequestError(f"{shard.path}: {shard.keys[index]}: side {side}, one of {found.examples} pairs")
    return pair, side, found


def training_batches(
    pairs: PreferencePairs, tokenizer: Tokenizer, batch_size: int, seed: int, first: int, last: int
) -> Generator[PairBatch, None, None]:
    """Batches number `first` to `last`: the same ones whether or not those before were asked for.

    Epoch follows epoch, each in its own order, and a batch is a piece of that stream: every pair comes once an epoch.
    """
    orders: dict[int, list[int]] = {}

    def make(number: int) -> PairBatch:
        places = [divmod(place, len(pairs)) for place in range(number * batch_size, (number + 1) * batch_size)]
        for epoch in {epoch for epoch, _ in places} - set(orders):
            orders[epoch] = np.random.default_rng([seed, epoch]).permutation(len(pairs)).tolist()
        for old in [epoch for epoch in orders if epoch < places[0][0]]:
            del orders[old]
        return pairs.batch([orders[epoch][place] for epoch, place in places], tokenizer)

    return _one_ahead(make, range(first, last))


def all_batches(pairs: PreferencePairs, tokenizer: Tokenizer, batch_size: int) -> Generator[PairBatch, None, None]:
    """Every pair once, in order; the last batch may be smaller."""

    def make(start: int) -> PairBatch:
        return pairs.batch(list(range(start, min(start + batch_size, len(pairs)))), tokenizer)

    return _one_ahead(make, range(0, len(pairs), batch_size))


def _one_ahead(make: Callable[[int], PairBatch], numbers: range) -> Generator[PairBatch, None, None]:
    """Each batch is made while the one before is used."""
    with ThreadPoolExecutor(1) as pool:
        coming: Future[PairBatch] | None = None
        for number in numbers:
            made, coming = coming, pool.submit(make, number)
            if made is not None:
                yield made.result()
        if coming is not None:
            yield coming.result()
