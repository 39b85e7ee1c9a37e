"""The pictures of a sealed latent store, shard by shard: those that became latents, and those that were refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from encode_pipeline.latents.cache import ShardCache
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.reader import LatentShard
from encode_pipeline.latents.spec import digest
from encode_pipeline.latents.store import Version
from encode_pipeline.latents.writer import Latent
from eval.class_names import ClassList, imagenet_classes, own_classes
from eval.feed import Damage, Item
from eval.picture_set import Part

CLASS_NAME = "class_name"
Label = tuple[str, int | None]
"""A class by its name, and by its number where the data say one."""


class StoredPictures:
    """One view of a store; the part of it that one shard holds has the shard's name."""

    def __init__(self, version: Version, view: int, cache: Path) -> None:
        self.version, self.view = version, view
        self.where = version.storage.url()
        if view >= version.spec.views:
            raise RequestError(f"view={view}: {self.where} has {version.spec.views} views, from 0")
        self._cache = ShardCache(version, cache)
        self._rows = {row["shard"]: row for row in version.manifest().to_pylist() if row["view"] == view}
        self._refused = {commit.shard: version.rejected(commit) for commit in version.commits(version.sealed_shards())}
        sizes = {shard: self._samples(shard) + len(refused) for shard, refused in self._refused.items()}
        self.parts = [Part(shard, size) for shard, size in sizes.items() if size]
        if not self.parts:
            raise RequestError(f"{self.where}: no samples to evaluate")
        self._label = CLASS_NAME
        self._numbers: dict[Label, int] = {}

    @property
    def identity(self) -> str:
        """What tells this view of this store from any other, by the content of its shards."""
        hashes = {shard: row["sha256"] for shard, row in self._rows.items()}
        return digest([[part.name, part.size, hashes.get(part.name)] for part in self.parts])

    @property
    def generated(self) -> dict[str, Any] | None:
        """How the latents were generated, if they were."""
        found: dict[str, Any] | None = self.version.spec.recipe.get("generated")
        return found

    def classify(self, label: str, listed: ClassList | None) -> ClassList:
        """The classes of the pictures, whose names stand under `label`: those listed, else those that occur.

        Where all that occur are ImageNet's, by name and number, the list is ImageNet's.
        """
        self._label = label
        found = self._labels()
        imagenet = imagenet_classes()
        if listed is None and all(number in _places(name, imagenet) for name, number in found):
            listed = imagenet
        classes = listed or own_classes(sorted({name for name, _ in found}))
        self._numbers = {pair: self._number(pair, classes) for pair in found}
        return classes

    def read(self, part: Part) -> Iterator[tuple[Item, Latent | Damage]]:
        """The pictures of a part, in the order of its shard; those that the encoder refused come last."""
        if part.name in self._rows:
            with self._cache.open(self._rows[part.name]) as shard:
                for index, key in enumerate(shard.keys):
                    metadata = shard.metadata(index).get("metadata", {})
                    several = metadata.get("captions")
                    captions = tuple(several) if isinstance(several, list) else (shard.caption(index),)
                    number = self._numbers.get(self._label_of(metadata)) if self._numbers else None
                    yield Item(key, number, captions), np.array(shard.latent(index))
        for refused in self._refused[part.name]:
            why = f"{refused['reason']}: {refused['detail']}" if refused["detail"] else refused["reason"]
            yield Item(refused["key"], None, ()), Damage(why)

    def _samples(self, shard: str) -> int:
        return int(self._rows[shard]["samples"]) if shard in self._rows else 0

    def _labels(self) -> set[Label]:
        """All that occur; a sample without one is an error."""
        found: set[Label] = set()
        for row in self._rows.values():
            with self._cache.open(row) as shard:
                for index, key in enumerate(shard.keys):
                    name, number = self._label_of(shard.metadata(index).get("metadata", {}))
                    if not name:
                        raise RequestError(f"{row['path']}: {key}: no {self._label} in its metadata")
                    found.add((name, number))
        return found

    def _label_of(self, metadata: Mapping[str, Any]) -> Label:
        name, number = metadata.get(self._label), metadata.get("label")
        numbered = self._label == CLASS_NAME and isinstance(number, int)
        return name if isinstance(name, str) else "", number if numbered else None

    def _number(self, label: Label, classes: ClassList) -> int:
        name, number = label
        places = _places(name, classes)
        if not places:
            raise RequestError(f"{self.where}: label {name!r} is not in {classes.where}")
        if number in places:
            return number
        if len(places) > 1:
            raise RequestError(f"{self.where}: {name!r} names two classes of {classes.where}, and no number says which")
        return places[0]


def _places(name: str, classes: ClassList) -> list[int]:
    return [number for number, known in enumerate(classes.names) if known == name]
