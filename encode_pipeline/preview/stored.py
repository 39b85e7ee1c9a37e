"""Which samples of a store are shown, and what it has of them: from commits alone, sealed or not."""

from __future__ import annotations

import difflib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from encode_pipeline.latents.cache import ShardCache
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.commit import Payload, ShardCommit, SourceShard
from encode_pipeline.latents.reader import LatentShard, ShardError
from encode_pipeline.latents.store import Version
from encode_pipeline.latents.writer import Latent

FETCHED_BYTES = 2 << 30
"""Remote tars come whole. Once so much is fetched, further shards are left alone if there is enough to show."""
MEASURED_LATENTS = 512
NEAREST_AMONG = 20_000


@dataclass(frozen=True)
class StoredSample:
    """A sample as the store has it, in the views that are shown."""

    shard: str
    source: SourceShard
    key: str
    caption: str
    latents: Latent
    """Views x channels x height x width, in the store's scale."""
    records: tuple[dict[str, Any], ...]
    """What the store says of each view."""


@dataclass(frozen=True)
class Place:
    """Some samples of one shard, by their places in its tars."""

    commit: ShardCommit
    indices: list[int]


def random_places(version: Version, count: int, views: Sequence[int], seed: int) -> list[Place]:
    """So many samples, or all there are, spread over as many shards as may be fetched for them."""
    chance = random.Random(seed)
    names = _committed(version)
    chance.shuffle(names)
    chosen: list[ShardCommit] = []
    room = spent = 0
    for name in names:
        commit = version.commit(name)
        if commit.encoded == 0:
            continue
        spent += _tar_bytes(version, commit, views) + _source_bytes(commit)
        if room >= count and (len(chosen) == count or spent > FETCHED_BYTES):
            break
        chosen.append(commit)
        room += commit.encoded
    if not chosen:
        raise RequestError(f"{version.storage.url()}: its {len(names)} committed shards hold no sample")
    chosen.sort(key=lambda commit: commit.shard)
    shares = _shares([commit.encoded for commit in chosen], count)
    return [
        Place(commit, sorted(chance.sample(range(commit.encoded), share)))
        for commit, share in zip(chosen, shares, strict=True)
        if share
    ]


def named_places(version: Version, keys: Sequence[str], view: int, cache: ShardCache) -> list[Place]:
    """The samples with these keys; of equal keys in several shards the first that is found."""
    names = _committed(version)
    # A key of img2dataset begins with the number of its tar, and a shard's name with the name of its tar.
    names.sort(key=lambda name: not any(key.startswith(name.rpartition("-")[0]) for key in keys))
    left = dict.fromkeys(keys)
    found: list[Place] = []
    seen: list[str] = []
    looked = spent = 0
    for name in names:
        commit = version.commit(name)
        spent += _tar_bytes(version, commit, [view])
        if not left or (looked and spent > FETCHED_BYTES):
            break
        looked += 1
        if commit.encoded == 0:
            continue
        with cache.open(_payload(commit, view).model_dump()) as shard:
            there = shard.keys
        seen += there[: NEAREST_AMONG - len(seen)]
        if indices := [index for index, key in enumerate(there) if key in left]:
            found.append(Place(commit, indices))
            for index in indices:
                del left[there[index]]
    if left:
        raise RequestError(_not_found(version, list(left), seen, looked, len(names)))
    return found


def read_places(places: Sequence[Place], views: Sequence[int], cache: ShardCache) -> list[StoredSample]:
    """The samples at these places."""
    samples = []
    for place in places:
        commit = place.commit
        shards = [cache.open(_payload(commit, view).model_dump()) for view in views]
        keys = shards[0].keys
        for index in place.indices:
            latents = np.stack([_latent(shard, index) for shard in shards])
            records = tuple(_record(shard, index) for shard in shards)
            caption = shards[0].caption(index)
            samples.append(StoredSample(commit.shard, commit.source, keys[index], caption, latents, records))
        for shard in shards:
            shard.close()
    return samples


def more_latents(places: Sequence[Place], views: Sequence[int], cache: ShardCache, seed: int) -> Iterator[Latent]:
    """Latents of the same tars besides those shown, a bounded number, to measure channels by."""
    chance = random.Random(seed)
    each = -(-MEASURED_LATENTS // (len(places) * len(views)))
    for place in places:
        others = sorted(set(range(place.commit.encoded)) - set(place.indices))
        for view in views:
            with cache.open(_payload(place.commit, view).model_dump()) as shard:
                for index in chance.sample(others, min(each, len(others))):
                    yield _latent(shard, index)


def _latent(shard: LatentShard, index: int) -> Latent:
    latent = shard.latent(index).copy()
    if not np.isfinite(latent).all():
        raise ShardError(f"{shard.path}: {shard.keys[index]}.npy: damaged: not finite; run verify")
    return latent


def _record(shard: LatentShard, index: int) -> dict[str, Any]:
    record = shard.metadata(index)
    if missing := [name for name in ("view", "original_size", "augmentation") if name not in record]:
        raise ShardError(f"{shard.path}: {shard.keys[index]}.json: does not say {', '.join(missing)}")
    return record


def _committed(version: Version) -> list[str]:
    names = sorted(version.done())
    if not names:
        raise RequestError(f"{version.storage.url()}: no shard is committed yet, so there is nothing to show")
    return names


def _payload(commit: ShardCommit, view: int) -> Payload:
    return next(payload for payload in commit.views if payload.view == view)


def _tar_bytes(version: Version, commit: ShardCommit, views: Sequence[int]) -> int:
    """What opening a shard brings over the network."""
    if version.storage.is_local or not commit.encoded:
        return 0
    return sum(_payload(commit, view).size for view in views)


def _source_bytes(commit: ShardCommit) -> int:
    """What reading a shard's source brings over the network."""
    return commit.source.size if "://" in commit.source.uri else 0


def _shares(room: Sequence[int], count: int) -> list[int]:
    """How many samples each shard gives, as evenly as its room allows."""
    shares = [0] * len(room)
    left = min(count, sum(room))
    while left:
        for number, there in enumerate(room):
            if left and shares[number] < there:
                shares[number] += 1
                left -= 1
    return shares


def _not_found(version: Version, keys: list[str], seen: list[str], looked: int, total: int) -> str:
    close = difflib.get_close_matches(keys[0], seen, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    where = f"the {total} committed shards" if looked == total else f"the {looked} of {total} shards looked through"
    return f"{version.storage.url()}: no sample {', '.join(map(repr, keys))} in {where}{hint}"
