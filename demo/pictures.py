"""Pictures for the page: what went in, what was stored, and what the stored latents stand for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from demo.report_run import StoreFacts
from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.latents.writer import Latent
from encode_pipeline.preview.decoder import decode
from encode_pipeline.preview.origins import find_origins
from encode_pipeline.preview.rgb import fit_rgb_map
from encode_pipeline.preview.show import SHOWN_SIDE, ShownSample, show, thumbnail
from encode_pipeline.preview.stored import StoredSample
from encode_pipeline.records import Pixels
from encode_pipeline.vae import LoadedVae

KINDS = (("one object", 4), ("two objects", 1), ("planted oddity", 1))
"""Which samples are shown, and how many of each kind."""


@dataclass(frozen=True)
class _Chosen:
    kind: str
    shard: str
    tar: str
    key: str
    index: int
    caption: str
    metadata: dict[str, Any]


def show_samples(facts: StoreFacts, tars: Path, vae: LoadedVae) -> list[tuple[str, ShownSample]]:
    """Some samples of a store with their kinds, always the same and unlike each other, with all of their views.

    `tars` is the folder that was encoded. The views are made again from it, as the store's spec says.
    """
    spec = facts.version.spec
    chosen = choose(list(_candidates(facts)))
    stored = [_stored(facts, sample, tars) for sample in chosen]
    origins = find_origins(stored, range(spec.views), spec)
    for sample, origin in zip(stored, origins, strict=True):
        if origin.missing:
            raise CheckFailed(f"{sample.source.uri}: {sample.key}: {origin.missing}")
    decoded = [decode(sample.latents, spec, vae) for sample in stored]
    rgb_map = fit_rgb_map(np.concatenate([sample.latents for sample in stored]), np.concatenate(decoded))
    return [
        (sample.kind, show(kept, origin, kept.latents, pictures, rgb_map))
        for sample, kept, origin, pictures in zip(chosen, stored, origins, decoded, strict=True)
    ]


def show_decoded(facts: StoreFacts, places: Sequence[tuple[str, str]], vae: LoadedVae) -> list[Pixels]:
    """The pictures that the latents of some (shard, key) decode to, in their order."""
    latents: dict[tuple[str, str], Latent] = {}
    for row in facts.rows(view=0):
        with facts.open(row) as shard:
            for index, key in enumerate(shard.keys):
                if (row["shard"], key) in places:
                    latents[row["shard"], key] = shard.latent(index).copy()
    if strange := [place for place in places if place not in latents]:
        raise CheckFailed(f"{facts.version.storage.url()}: no sample {strange[0][1]} in shard {strange[0][0]}")
    if not places:
        return []
    decoded = decode(np.stack([latents[place] for place in places]), facts.version.spec, vae)
    return [thumbnail(picture, SHOWN_SIDE) for picture in decoded]


def choose(candidates: Sequence[_Chosen]) -> list[_Chosen]:
    """Of each kind as many as `KINDS` says, each time the first that brings most that is new."""
    chosen: list[_Chosen] = []
    seen: set[str] = set()
    for kind, count in KINDS:
        left = [candidate for candidate in candidates if candidate.kind == kind]
        for _ in range(min(count, len(left))):
            best = max(left, key=lambda candidate: len(_traits(candidate) - seen))
            chosen.append(best)
            seen |= _traits(best)
            left.remove(best)
    return chosen


def _candidates(facts: StoreFacts) -> Iterator[_Chosen]:
    for row in facts.rows(view=0):
        with facts.open(row) as shard:
            for index, key in enumerate(shard.keys):
                record = shard.metadata(index)
                tar = str(record["source"]).rsplit("/", 1)[-1]
                truth = record["metadata"]["truth"]
                kind = "two objects" if truth["relation"] else "one object"
                if "/warts/" in record["metadata"]["url"]:
                    kind = "planted oddity"
                yield _Chosen(kind, row["shard"], tar, key, index, shard.caption(index), record)


def _traits(candidate: _Chosen) -> set[str]:
    """What makes a sample look as it does."""
    truth = candidate.metadata["metadata"]["truth"]
    width, height = candidate.metadata["original_size"]
    objects = {name for thing in truth["objects"] for name in (thing["color"], thing["shape"])}
    return objects | {truth["background"], "wide" if width > height else "tall" if height > width else "even"}


def _stored(facts: StoreFacts, chosen: _Chosen, tars: Path) -> StoredSample:
    """All views of a sample in order, from the tar where it is now."""
    latents, records = [], []
    for view in range(facts.version.spec.views):
        row = next(row for row in facts.rows(view) if row["shard"] == chosen.shard)
        with facts.open(row) as shard:
            latents.append(shard.latent(chosen.index).copy())
            records.append(shard.metadata(chosen.index))
    source = next(commit.source for commit in facts.commits if commit.shard == chosen.shard)
    here = SourceShard(uri=str(tars / chosen.tar), size=source.size)
    return StoredSample(chosen.shard, here, chosen.key, chosen.caption, np.stack(latents), tuple(records))
