"""A picture set as a latent store, made once for each VAE by the project's own encoder and found again afterwards.

CACHE/NAME-IDENTITY/<fingerprint>/          a version for each VAE, picture size, posterior and scale
                                  source/   the pictures on their way there; gone once the version is sealed
"""

from __future__ import annotations

import re
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from encode_pipeline.config import EncodeConfig
from encode_pipeline.encode_shard import ShardEncoder
from encode_pipeline.latents.command import CheckFailed, RequestError, build
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.latents.spec import LatentSpec, SpecError, canonical_json
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.latents.writer import BLOCK, END_OF_TAR, key_problem, member_header
from encode_pipeline.recipe import MOST_PIXELS, ViewRecipe
from encode_pipeline.run import do_shards, spec_of
from encode_pipeline.vae import LoadedVae, load_vae
from eval.picture_set import Part, Picture, PictureSet
from train.distributed import Ranks

SOURCE = "source"
"""The folder of the pictures, within the version's: what is made of them does not depend on where the cache lies."""
ANY_PICTURE = ViewRecipe(min_side=1, max_pixels=MOST_PIXELS, max_aspect=MOST_PIXELS)
"""What training leaves out for its shape, an evaluation takes. It sees the plain view alone."""


@dataclass(frozen=True)
class Damaged:
    """A picture of a set that has no latent, and why."""

    shard: str
    key: str
    label: int | None
    captions: tuple[str, ...]
    reason: str


def encoded(
    pictures: PictureSet,
    spec: LatentSpec,
    vae: str | None,
    cache: Path,
    ranks: Ranks | None = None,
    how: Mapping[str, Any] | None = None,
) -> Version:
    """The sealed version that holds the plain view of every picture as `spec` says; what is missing of it is made.

    The VAE must be the one of `spec` by content, wherever it lies now. Models of one VAE get one version, whatever
    views and seed they were trained on. A record's `metadata` has the picture's `key`, its `label` (a number) and
    `class_name`, and its `captions`. Several processes share the work. `how` holds keys of `encode_pipeline run` that
    say how fast, as engine, actors and batch_size.
    """
    if pictures.no_label is not None:
        pictures.require_captions()
    ranks = ranks or Ranks(0, 1, torch.device("cpu"))
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", pictures.address.rstrip("/").rpartition("/")[2]).strip("-")[:60]
    config = _config(spec, vae or spec.vae.name, cache.absolute() / f"{name}-{pictures.identity[:16]}", how or {})
    store = Store(config.store)
    wanted = config.spec(spec.vae, spec.shape, spec.posterior).fingerprint
    if ranks.any(wanted not in store.versions() or not store.version(wanted).sealed):
        loaded = _vae_of_model(config.vae, spec, is_said=vae is not None)
        version = store.create(spec_of(config, loaded))  # under `wanted`, unless its config is told in other words now
        _fill(version, pictures, config, loaded, ranks)
    else:
        version = store.version(wanted)
    if ranks.is_first:
        version.storage.delete(SOURCE)
    return version


def damaged(version: Version, pictures: PictureSet) -> list[Damaged]:
    """The pictures that could not be encoded, in the order of the set. With the samples of the version they are all."""
    parts = {part.name: part for part in pictures.parts}
    found = []
    for commit in version.commits():
        reasons = {refused["key"]: f"{refused['reason']}: {refused['detail']}" for refused in version.rejected(commit)}
        if reasons:
            part = parts[Path(commit.source.uri).stem]
            for number, picture in enumerate(pictures.read(part)):
                if reason := reasons.get(_stored_key(part, number, picture)):
                    found.append(Damaged(commit.shard, picture.key, picture.label, picture.captions, reason))
    return found


def _config(spec: LatentSpec, vae: str, store: Path, how: Mapping[str, Any]) -> EncodeConfig:
    return build(
        EncodeConfig,
        {
            **how,
            "vae": vae,
            "views": 1,
            "recipe": ANY_PICTURE,
            "image_size": spec.image_size,
            "scale": spec.scale,
            "posterior": spec.posterior,
            "dtype": spec.compute_dtype,
            "source": SOURCE,
            "store": str(store),
        },
    )


def _vae_of_model(name: str, spec: LatentSpec, is_said: bool) -> LoadedVae:
    """The VAE, which must be the one whose latents the model reads."""
    try:
        vae = load_vae(name)
    except RequestError as error:
        if is_said:
            raise
        raise RequestError(f"{error}; say with vae= where the VAE of the model is now") from None
    found, wanted = vae.identity.weights_sha256, spec.vae.weights_sha256
    if found != wanted:
        known = spec.vae.name
        raise SpecError(f"vae: {name}: other weights ({found[:12]}) than the VAE of the model, {known} ({wanted[:12]})")
    return vae


def _fill(version: Version, pictures: PictureSet, config: EncodeConfig, vae: LoadedVae, ranks: Ranks) -> None:
    """Encodes what the version lacks, each process its share of the parts, and seals it."""
    if not ranks.any(not version.sealed):
        return
    if ranks.is_first:
        print(f"{pictures.address}: {len(pictures)} pictures to latents of {config.vae}", file=sys.stderr, flush=True)
    try:
        if sources := [_written(pictures, part, version) for part in pictures.parts[ranks.rank :: ranks.world]]:
            result = do_shards(sources, version, config, lambda: ShardEncoder(vae, version, config))
            for failure in result["failures"]:
                raise CheckFailed(f"{version.storage.url(failure['source'])}: not encoded: {failure['error']}")
    except (RequestError, CheckFailed, OSError):
        if not version.sealed:  # else another command has done it meanwhile, and freed the tars that this one read
            raise
    ranks.wait()
    if ranks.is_first:
        read = sum(commit.read for commit in version.commits())
        if read != len(pictures):
            raise CheckFailed(f"{version.storage.url()}: has read {read} pictures of {len(pictures)}")
        version.seal()
    ranks.wait()


def _written(pictures: PictureSet, part: Part, version: Version) -> SourceShard:
    """A part as a tar that the encoder reads; the same pictures give the same bytes."""
    address = f"{SOURCE}/{part.name}.tar"
    path = Path(version.storage.url(address))
    if not path.exists():  # else it has appeared whole
        path.parent.mkdir(exist_ok=True)
        unfinished = path.with_name(f".{part.name}-{uuid.uuid4().hex}")
        try:
            with unfinished.open("xb") as tar:
                for number, picture in enumerate(pictures.read(part)):
                    for name, data in _members(pictures, picture, _stored_key(part, number, picture)):
                        tar.write(member_header(name, len(data)) + data + bytes(-len(data) % BLOCK))
                tar.write(END_OF_TAR)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    return SourceShard(address, path.stat().st_size)


def _members(pictures: PictureSet, picture: Picture, key: str) -> Iterator[tuple[str, bytes]]:
    about: dict[str, Any] = {"key": picture.key, "captions": picture.captions}
    text = picture.captions[0] if picture.captions else ""
    if picture.label is not None:
        text = pictures.names[picture.label]
        about |= {"label": picture.label, "class_name": text}
    yield f"{key}.jpg", picture.image  # whatever it is: the encoder looks at what is in it
    yield f"{key}.txt", text.encode()
    yield f"{key}.json", canonical_json(about)


def _stored_key(part: Part, number: int, picture: Picture) -> str:
    """The picture's own key, or its place where a tar cannot have that."""
    return f"{part.name}/{number:06d}" if key_problem(picture.key) else picture.key
