"""The stores that a run reads: opened, found to fit together, and weighed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.latents.store import Store, Version
from train.config import TrainConfig
from train.order import Numbers

COLUMNS = ["path", "size", "sha256", "samples"]


@dataclass(frozen=True)
class LatentStore:
    """A sealed version, its tars by number: `shard * views + view`, whatever the order in the manifest."""

    version: Version
    tars: pa.Table
    weight: Fraction

    @property
    def sizes(self) -> Numbers:
        """Samples of each shard."""
        return self.tar_samples[:: self.version.spec.views]

    @property
    def tar_samples(self) -> Numbers:
        return _numbers(self.tars, "samples")

    def row(self, tar: int) -> dict[str, Any]:
        """What the manifest says of a tar."""
        return {name: self.tars.column(name)[tar].as_py() for name in COLUMNS}

    def url(self, tar: int) -> str:
        return self.version.storage.url(self.row(tar)["path"])

    def largest(self, count: int, bytes_per_sample: int) -> int:
        """The most bytes that so many of its shards can take in the cache."""
        remote = not self.version.storage.is_local
        room = np.sort(_numbers(self.tars, "size") * remote + self.tar_samples * bytes_per_sample)
        return int(room[-count:].sum())


def addresses_of(config: TrainConfig) -> list[str]:
    """Where the stores of a run are."""
    addresses = [config.data] if isinstance(config.data, str) else list(config.data)
    if not addresses:
        raise RequestError("data: no store")
    if config.version is not None and len(addresses) > 1:
        raise RequestError(f"version={config.version}: of which of the {len(addresses)} stores?")
    return addresses


def open_stores(config: TrainConfig, versions: Mapping[str, Version] | None = None) -> list[LatentStore]:
    """The stores of a run, at these versions, or at those that a new run reads. What does not fit is refused."""
    stores = []
    for address in addresses_of(config):
        version = versions[address] if versions else Store(address).version(config.version)
        tars = _tars(version)
        samples = int(_numbers(tars, "samples").sum()) // version.spec.views
        if not samples:
            raise RequestError(f"{version.storage.url()}: holds no samples")
        weight = _weight(address, config.data[address]) if isinstance(config.data, dict) else Fraction(samples)
        stores.append(LatentStore(version, tars, weight))
    for store in stores[1:]:
        _check_fit(stores[0].version, store.version)
    return stores


def _tars(version: Version) -> pa.Table:
    """A manifest in the one order that does not depend on who wrote it."""
    tars = version.manifest().sort_by([("shard", "ascending"), ("view", "ascending")])
    views = version.spec.views
    if tars.num_rows % views == 0:
        shape = (-1, views)
        shards = pc.dictionary_encode(tars.column("shard").combine_chunks()).indices.to_numpy().reshape(shape)
        samples = _numbers(tars, "samples").reshape(shape)
        every_view = (_numbers(tars, "view").reshape(shape) == np.arange(views)).all()
        if every_view and (shards == shards[:, :1]).all() and (samples == samples[:, :1]).all():
            return tars.select(COLUMNS)
    raise RequestError(f"{version.storage.url()}: the views do not hold the same samples")


def _weight(address: str, weight: float) -> Fraction:
    if not (math.isfinite(weight) and weight > 0):
        raise RequestError(f"data: {address}: a weight of {weight}; it has to be above 0")
    return Fraction(str(weight))


def _check_fit(first: Version, other: Version) -> None:
    """Seeds and recipes may differ; not what a latent's numbers mean."""
    ours, theirs = first.spec, other.spec
    vae = ours.vae.model_copy(update={"name": theirs.vae.name, "weights_sha256": theirs.vae.weights_sha256})
    like_theirs: LatentSpec = ours.model_copy(update={"vae": vae, "scale": theirs.scale, "shape": theirs.shape})
    if (difference := ours.difference(like_theirs)) != "nothing":
        raise RequestError(f"{other.storage.url()}: other latents than in {first.storage.url()}: {difference}")


def _numbers(table: pa.Table, column: str) -> Numbers:
    return np.asarray(table.column(column).to_numpy(), np.int64)
