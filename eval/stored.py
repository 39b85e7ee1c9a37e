"""The pictures of a sealed latent store, shard by shard: those that became latents, and those that were refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from encode_pipeline.latents.cache import ShardCache
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.spec import digest
from encode_pipeline.latents.store import Version
from encode_pipeline.latents.writer import Latent
from eval.class_names import ClassList, imagenet_classes, own_classes
from eval.feed import Damage, Item
from eval.picture_set import Part

if TYPE_CHECKING:
    from eval.encoded import Damaged

CLASS_NAME = "class_name"
LACKING = "not-in-data.json"
"""In a generated version's folder: the pictures that had no latent to start from, and why."""
Label = tuple[str, int | None]
"""A class by its name, and by its number where the data say one."""


@dataclass(frozen=True)
class StoredSample:
    """A sample of a shard, read."""

    key: str
    latent: Latent
    caption: str
    about: Mapping[str, Any]
    """What its source said of it."""

    @property
    def captions(self) -> tuple[str, ...]:
        """Those in its record where there are several."""
        several = self.about.get("captions")
        return tuple(map(str, several)) if isinstance(several, list) and several else (self.caption,)


class StoredPictures:
    """One view of a store; the part of it that one shard holds has the shard's name."""

    def __init__(self, version: Version, view: int, cache: Path) -> None:
        self.version, self.view = version, view
        self.where = version.storage.url()
        if view >= version.spec.views:
            raise RequestError(f"view={view}: {self.where} has {version.spec.views} views, from 0")
        self._cache = ShardCache(version, cache)
        self.rows = {row["shard"]: row for row in version.manifest().to_pylist() if row["view"] == view}
        self._refused = {commit.shard: version.rejected(commit) for commit in version.commits(version.sealed_shards())}
        taken = {shard: int(row["samples"]) for shard, row in self.rows.items()}
        sizes = {shard: taken.get(shard, 0) + len(refused) for shard, refused in self._refused.items()}
        self.parts = [Part(shard, size) for shard, size in sizes.items() if size]
        if not self.parts:
            raise RequestError(f"{self.where}: no samples to evaluate")
        self._label = CLASS_NAME
        self._numbers: dict[Label, int] = {}

    @property
    def identity(self) -> str:
        """What tells this view of this store from any other, by the content of its shards."""
        hashes = {shard: row["sha256"] for shard, row in self.rows.items()}
        return digest([[part.name, part.size, hashes.get(part.name)] for part in self.parts])

    @property
    def generated(self) -> dict[str, Any] | None:
        """How the latents were generated, if they were."""
        found: dict[str, Any] | None = self.version.spec.recipe.get("generated")
        return found

    @property
    def lacking(self) -> list[str]:
        """What the data had that the latents were generated from, and could not be gone over."""
        storage = self.version.storage
        return list(json.loads(storage.read(LACKING))) if storage.exists(LACKING) else []

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
        for sample in self.samples(part.name):
            number = self._numbers[self._label_of(sample.about)] if self._numbers else None
            yield Item(sample.key, number, sample.captions), sample.latent
        for refused in self._refused[part.name]:
            yield Item(refused["key"], None, ()), Damage(f"{refused['reason']}: {refused['detail']}".strip(": "))

    def samples(self, shard: str) -> Iterator[StoredSample]:
        """What a shard holds, in its order; nothing if none of its samples was usable."""
        if shard in self.rows:
            with self._cache.open(self.rows[shard]) as tar:
                for index, key in enumerate(tar.keys):
                    about = tar.metadata(index).get("metadata", {})
                    yield StoredSample(key, np.array(tar.latent(index)), tar.caption(index), about)

    def _labels(self) -> set[Label]:
        """All that occur; a sample without one is an error."""
        found: set[Label] = set()
        for shard, row in self.rows.items():
            for sample in self.samples(shard):
                if not (label := self._label_of(sample.about))[0]:
                    raise RequestError(f"{row['path']}: {sample.key}: no {self._label} in its metadata")
                found.add(label)
        return found

    def _label_of(self, about: Mapping[str, Any]) -> Label:
        name, number = about.get(self._label), about.get("label")
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


class EncodedPictures:
    """A picture set in the latents that were made of it; parts, keys and labels are those of the set."""

    def __init__(self, version: Version, cache: Path, lost: Sequence[Damaged]) -> None:
        self.stored, self._lost = StoredPictures(version, 0, cache), lost
        self._shards = {Path(commit.source.uri).stem: commit.shard for commit in version.commits()}

    def read(self, part: Part) -> Iterator[tuple[Item, Latent | Damage]]:
        """The pictures of a part; those that the encoder refused come last."""
        shard = self._shards[part.name]
        for sample in self.stored.samples(shard):
            captions = tuple(sample.about["captions"])
            yield Item(sample.about["key"], sample.about.get("label"), captions), sample.latent
        for lost in self._lost:
            if lost.shard == shard:
                yield Item(lost.key, lost.label, lost.captions), Damage(lost.reason)


def _places(name: str, classes: ClassList) -> list[int]:
    return [number for number, known in enumerate(classes.names) if known == name]
