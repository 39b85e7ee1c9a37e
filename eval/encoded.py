"""A picture set as a latent store, made once for each VAE by the project's own encoder and found again afterwards.

CACHE/NAME-IDENTITY/latents/<fingerprint>/   a version for each VAE, picture size, posterior and scale
                    tars-<fingerprint>/      the pictures on their way there; gone once the version is sealed
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from encode_pipeline.config import EncodeConfig
from encode_pipeline.latents.command import CheckFailed, RequestError, build
from encode_pipeline.latents.commit import REJECTED_LIST
from encode_pipeline.latents.spec import LatentSpec, SpecError, canonical_json
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.latents.writer import BLOCK, END_OF_TAR, key_problem, member_header
from encode_pipeline.recipe import MOST_PIXELS, ViewRecipe
from encode_pipeline.run import run, spec_of
from eval.picture_set import Part, Picture, PictureSet
from train.distributed import Ranks

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
    folder = cache.absolute() / f"{name}-{pictures.identity[:16]}"
    config = _config(spec, vae or spec.vae.name, folder, how or {})
    store = Store(config.store)
    for fingerprint in _fingerprints(config, spec, vae):
        tars, done = folder / f"tars-{fingerprint}", _sealed(store, fingerprint)
        if not ranks.any(done is None) and done is not None:
            shutil.rmtree(tars, ignore_errors=True)  # a command that was killed after sealing leaves them
            return done
    if ranks.is_first:
        print(f"{pictures.address}: {len(pictures)} pictures to latents of {config.vae}", file=sys.stderr, flush=True)
    try:
        mine = pictures.parts[ranks.rank :: ranks.world]
        _encode(config, [_written(pictures, part, tars) for part in mine])
        ranks.wait()
        version = store.version(fingerprint)
        if ranks.is_first:
            _seal(version, pictures)
            shutil.rmtree(tars, ignore_errors=True)
        ranks.wait()
    except (RequestError, CheckFailed, OSError):
        # Another command may have sealed it meanwhile, and freed the tars that this one was reading.
        if (done := _sealed(store, fingerprint)) is None:
            raise
        return done
    return version


def damaged(version: Version, pictures: PictureSet) -> list[Damaged]:
    """The pictures that could not be encoded, in the order of the set. With the samples of the version they are all."""
    parts = {part.name: part for part in pictures.parts}
    found = []
    for commit in version.commits():
        reasons: dict[str, str] = {}
        for payload in commit.payloads:
            if payload.path.endswith(REJECTED_LIST):
                refusals = map(json.loads, version.storage.read(payload.path).splitlines())
                reasons = {refusal["key"]: f"{refusal['reason']}: {refusal['detail']}" for refusal in refusals}
        if reasons:
            part = parts[Path(commit.source.uri).stem]
            for number, picture in enumerate(pictures.read(part)):
                if reason := reasons.get(_stored_key(part, number, picture)):
                    found.append(Damaged(commit.shard, picture.key, picture.label, picture.captions, reason))
    return found


def _config(spec: LatentSpec, vae: str, folder: Path, how: Mapping[str, Any]) -> EncodeConfig:
    return build(
        EncodeConfig,
        {
            **how,
            "source": str(folder),  # in its place come the tars, once there are any
            "store": str(folder / "latents"),
            "vae": vae,
            "views": 1,
            "recipe": ANY_PICTURE,
            "image_size": spec.image_size,
            "scale": spec.scale,
            "posterior": spec.posterior,
            "dtype": spec.compute_dtype,
        },
    )


def _sealed(store: Store, fingerprint: str) -> Version | None:
    if fingerprint not in store.versions():
        return None
    version = store.version(fingerprint)
    return version if version.sealed else None


def _fingerprints(config: EncodeConfig, spec: LatentSpec, vae: str | None) -> Iterator[str]:
    """What the version may be called: by what the model says of its VAE, then by the VAE itself, which must be it."""
    yield config.spec(spec.vae, spec.shape, spec.posterior).fingerprint
    from encode_pipeline.vae import load_vae  # seconds of imports

    try:
        loaded = load_vae(config.vae)
    except RequestError as error:
        if vae is not None:
            raise
        raise RequestError(f"{error}; say with vae= where the VAE of the model is now") from None
    found, wanted = loaded.identity.weights_sha256, spec.vae.weights_sha256
    if found != wanted:
        name = spec.vae.name
        raise SpecError(f"vae: {config.vae}: other weights ({found[:12]}) than the model's VAE {name} ({wanted[:12]})")
    yield spec_of(config, loaded).fingerprint


def _encode(config: EncodeConfig, tars: list[Path]) -> None:
    if not tars:
        return
    result = run(config.model_copy(update={"source": tuple(map(str, tars))}))
    if not result["ok"]:
        first = result["failures"][0]
        raise CheckFailed(f"{first['source']}: not encoded: {first['error']}")


def _seal(version: Version, pictures: PictureSet) -> None:
    read = sum(commit.read for commit in version.commits())
    if read != len(pictures):
        raise CheckFailed(f"{version.storage.url()}: holds what became of {read} pictures, of {len(pictures)}")
    version.seal()


def _written(pictures: PictureSet, part: Part, folder: Path) -> Path:
    """A part as a tar that the encoder reads; the same pictures give the same bytes."""
    path = folder / f"{part.name}.tar"
    if path.exists():  # it appeared whole
        return path
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{part.name}-{uuid.uuid4().hex}"
    try:
        with unfinished.open("xb") as tar:
            for number, picture in enumerate(pictures.read(part)):
                key = _stored_key(part, number, picture)
                about: dict[str, Any] = {"key": picture.key, "captions": picture.captions}
                text = picture.captions[0] if picture.captions else ""
                if picture.label is not None:
                    text = pictures.names[picture.label]
                    about |= {"label": picture.label, "class_name": text}
                # By its ending a JPEG, whatever it is: the encoder looks at what is in it.
                for ending, data in (("jpg", picture.image), ("txt", text.encode()), ("json", canonical_json(about))):
                    tar.write(member_header(f"{key}.{ending}", len(data)) + data + bytes(-len(data) % BLOCK))
            tar.write(END_OF_TAR)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _stored_key(part: Part, number: int, picture: Picture) -> str:
    """The picture's own key, or its place where a tar cannot have that."""
    return f"{part.name}/{number:06d}" if key_problem(picture.key) else picture.key
