"""Some samples as a version has them: their latents, what its VAE decodes them to, and how far that is off."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from encode_pipeline.latents.cache import ShardCache
from encode_pipeline.latents.spec import convert_scale
from encode_pipeline.latents.store import Version
from encode_pipeline.preview.channels import Channel, expectation, measure, warnings_of
from encode_pipeline.preview.decoder import decode
from encode_pipeline.preview.origins import Origin, find_origins
from encode_pipeline.preview.show import psnr
from encode_pipeline.preview.stored import Place, StoredSample, more_latents, read_places
from encode_pipeline.records import Pixels
from encode_pipeline.vae import LoadedVae

VIEWS = [0]
"""The plain view: the source's own picture at the size, with nothing done to it."""


Name = tuple[str, str]
"""A sample by its shard and its key."""


@dataclass(frozen=True)
class Decoded:
    """A sample of one version."""

    stored: StoredSample
    origin: Origin
    picture: Pixels | None
    """What its latent decodes to; None without the VAE, or for latents that have no decoder."""

    @property
    def name(self) -> Name:
        return self.stored.shard, self.stored.key

    @property
    def view(self) -> Pixels | None:
        return self.origin.views[0] if self.origin.views else None

    @property
    def psnr(self) -> float | None:
        return None if self.view is None or self.picture is None else psnr(self.view, self.picture)


@dataclass(frozen=True)
class Side:
    """One version, as far as it was looked at."""

    samples: Sequence[Decoded]
    channels: Sequence[Channel]
    latents: int
    """That the channels were measured over."""
    drift: Sequence[str]


def look_at(
    version: Version,
    places: Sequence[Place],
    cache: ShardCache,
    vae: LoadedVae | None,
    seed: int,
    origins: Mapping[Name, Origin] | None = None,
) -> Side:
    """The samples at these places, decoded, and how the channels of their tars are spread.

    With `origins`, that is where their pictures come from; else they are made again from the sources.
    """
    spec = version.spec
    stored = read_places(places, VIEWS, cache)
    more = list(more_latents(places, VIEWS, cache, seed))
    found = (
        find_origins(stored, VIEWS, spec)
        if origins is None
        else [origins[sample.shard, sample.key] for sample in stored]
    )
    samples = []
    for number, (sample, origin) in enumerate(zip(stored, found, strict=True), 1):
        samples.append(Decoded(sample, origin, None if vae is None else decode(sample.latents, spec, vae)[0]))
        if vae is not None:
            print(
                f"decoded {number}/{len(stored)} samples of version {version.fingerprint}", file=sys.stderr, flush=True
            )
    latents = np.concatenate([*(sample.latents for sample in stored), *(latent[None] for latent in more)])
    raw = convert_scale(latents.astype(np.float32), spec.vae, spec.scale, "raw")
    channels = measure(raw, expectation(spec.vae, spec.shape[0]))
    return Side(samples, channels, len(raw), warnings_of(channels, len(raw)))


def places_of(names: Collection[Name], version: Version, cache: ShardCache) -> list[Place]:
    """Where a version has these samples; those that it has."""
    wanted: dict[str, set[str]] = {}
    for shard, key in names:
        wanted.setdefault(shard, set()).add(key)
    places = []
    for shard, keys in sorted(wanted.items()):
        commit = version.commit(shard)
        for payload in commit.views:
            if payload.view == VIEWS[0]:
                with cache.open(payload.model_dump()) as latents:
                    indices = [index for index, key in enumerate(latents.keys) if key in keys]
                places += [Place(commit, indices)] if indices else []
    return places
