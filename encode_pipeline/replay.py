"""One sample again, from what the store says of it: its views as pictures, and whether they give the stored latents."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from encode_pipeline.augment import ViewMaker
from encode_pipeline.config import ReplayRequest
from encode_pipeline.devices import Kernels
from encode_pipeline.encoder import LatentEncoder
from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.latents.commit import ShardCommit
from encode_pipeline.latents.quantised import as_read
from encode_pipeline.latents.reader import LatentShard
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.latents.writer import Latent
from encode_pipeline.preview.decoder import load_decoder
from encode_pipeline.randomness import posterior_noise, seed_of
from encode_pipeline.read import TarError, read_samples
from encode_pipeline.recipe import ViewRecipe
from encode_pipeline.records import Rejected, Sample, View
from encode_pipeline.sources import SourceChanged, SourceUnreadable, open_source


@dataclass(frozen=True)
class Stored:
    """What the store has of one view of a sample."""

    latent: Latent
    parameters: dict[str, Any]


def replay(request: ReplayRequest) -> dict[str, Any]:
    """Makes a sample's views again, writes them as pictures, and compares parameters and latents with the store's."""
    version = Store(request.store).version(request.version)
    spec = version.spec
    if spec.is_generated:
        raise RequestError(f"{version.storage.url()}: generated from other latents; replay makes views of pictures")
    numbers = range(spec.views) if request.view is None else [request.view]
    if request.view is not None and request.view >= spec.views:
        raise RequestError(f"view={request.view}: version {spec.fingerprint} has views 0 to {spec.views - 1}")
    commit, stored = _find(version, request.key, request.shard, numbers)
    sample = _source_sample(commit, request.key, spec.caption_field)
    maker = ViewMaker(ViewRecipe(**spec.recipe), spec.views, spec.image_size, spec.seed, commit.shard)
    viewed = maker.some(sample, numbers)
    where = f"{commit.source.uri}: {request.key}"
    if isinstance(viewed, Rejected):
        raise CheckFailed(f"{where}: {viewed.reason} now ({viewed.detail}), encoded before")
    for number, view in zip(numbers, viewed.views, strict=True):
        if difference := _difference(view.parameters, stored[number].parameters):
            raise CheckFailed(f"{where}: view {number} comes out otherwise: {difference}")
    steps, compared = _compare_latents(request, version, commit, dict(zip(numbers, viewed.views, strict=True)), stored)
    request.out.mkdir(parents=True, exist_ok=True)
    views = []
    for number, view in zip(numbers, viewed.views, strict=True):
        picture = request.out / f"view{number}.png"
        Image.fromarray(view.pixels).save(picture)
        views.append({"view": number, "picture": str(picture), "float16_steps": steps.get(number), **view.parameters})
    return {
        "fingerprint": spec.fingerprint,
        "shard": commit.shard,
        "source": commit.source.uri,
        "key": request.key,
        "caption": sample.caption,
        "original_size": list(viewed.original_size),
        "latents": compared,
        "views": views,
    }


def _find(
    version: Version, key: str, shard: str | None, numbers: Sequence[int]
) -> tuple[ShardCommit, dict[int, Stored]]:
    """The commit of the shard that has the sample, and what is stored of its views."""
    if shard is not None and shard not in version.done():
        raise RequestError(f"{version.storage.url()}: no shard {shard} is committed")
    rejected: str | None = None
    found: list[tuple[ShardCommit, dict[int, Stored]]] = []
    for commit in version.commits(None if shard is None else [shard]):
        stored = _stored(version, commit, key, numbers)
        if stored:
            found.append((commit, stored))
        else:
            rejected = rejected or _why_rejected(version, commit, key)
    if len(found) > 1:
        names = ", ".join(commit.shard for commit, _ in found)
        raise RequestError(f"{version.storage.url()}: {len(found)} samples {key}; say shard=, one of {names}")
    if found:
        return found[0]
    where = f"{version.storage.url()}: no sample {key}" + (f" in shard {shard}" if shard else "")
    raise RequestError(where + (f"; it was rejected: {rejected}" if rejected else ""))


def _stored(version: Version, commit: ShardCommit, key: str, numbers: Sequence[int]) -> dict[int, Stored]:
    """What a shard holds of the sample's views; nothing if it is not there."""
    stored = {}
    for payload in commit.views:
        if payload.view is not None and payload.view in numbers:
            with _opened(version, payload.path) as latents:
                if key not in latents.keys:
                    return {}
                index = latents.keys.index(key)
                said = latents.metadata(index)["augmentation"]
                stored[payload.view] = Stored(latents.latent(index).copy(), said)
    return stored


def _why_rejected(version: Version, commit: ShardCommit, key: str) -> str | None:
    for payload in commit.payloads:
        if payload.view is None:
            for line in version.storage.read(payload.path).splitlines():
                refusal = json.loads(line)
                if refusal["key"] == key:
                    return f"{refusal['reason']} ({refusal['detail']})"
    return None


@contextmanager
def _opened(version: Version, path: str) -> Iterator[LatentShard]:
    with tempfile.TemporaryDirectory(prefix="replay-") as scratch:
        local = version.storage.local_path(path)
        if local is None:
            local = Path(scratch) / "view.tar"
            version.storage.fetch(path, local)
        with LatentShard(local, version.spec) as shard:
            yield shard


def _source_sample(commit: ShardCommit, key: str, caption_field: str | None) -> Sample:
    """The sample as it stands in its source tar, which must be the tar that was encoded."""
    source = commit.source
    found: Sample | None = None
    try:
        with open_source(source) as tar:
            for item in read_samples(tar, source.uri, source.size, caption_field):
                if isinstance(item, Sample) and item.key == key:
                    found = item  # the only one: later ones of the same key are refused as duplicates
        changed = tar.sha256() != commit.source_sha256
    except SourceUnreadable as error:
        raise RequestError(f"{error}, and {key} came from it") from None
    except (SourceChanged, TarError) as error:
        raise CheckFailed(str(error)) from None
    if changed:
        raise CheckFailed(f"{source.uri}: changed since it was encoded: its sha256 is another")
    if found is None:
        raise CheckFailed(f"{source.uri}: {key}: no such sample")
    return found


def _difference(now: dict[str, Any], then: dict[str, Any]) -> str | None:
    """The first parameter that differs, or None."""
    for name in (*then, *now):
        if now.get(name) != then.get(name):
            return f"{name} {now.get(name)} now, {then.get(name)} recorded"
    return None


def _compare_latents(
    request: ReplayRequest, version: Version, commit: ShardCommit, made: dict[int, View], stored: dict[int, Stored]
) -> tuple[dict[int, int], str]:
    """By how many float16 steps each view's latent now differs from the stored one, and a word on it."""
    spec = version.spec
    try:
        vae = load_decoder(spec, request.vae)
    except RequestError as error:
        if request.vae is not None:
            raise
        return {}, f"not compared: {error}"
    made_by = commit.made_by  # the same kernels on batches of the same shape, where there is a device for them
    kernels: Kernels = made_by.get("kernels", "auto") if torch.cuda.is_available() else "auto"
    encoder = LatentEncoder(vae, spec, int(made_by.get("batch_size", 1)), kernels=kernels)
    steps = {}
    for number, view in made.items():
        noise = posterior_noise(seed_of(spec.seed, commit.shard, request.key, number, "posterior"), spec.shape)
        latent = encoder.encode([view.pixels], [noise]).latents[0]
        steps[number] = float16_steps(as_read(latent, spec), stored[number].latent)
    where = encoder.device.type
    return steps, "identical" if not any(
        steps.values()
    ) else f"differ by up to {max(steps.values())} float16 steps on this {where}"


def float16_steps(one: Latent, other: Latent) -> int:
    """The largest difference between two latents, counted in neighbouring float16 numbers."""

    def places(latent: Latent) -> npt.NDArray[np.int32]:
        bits = latent.view(np.int16).astype(np.int32)
        return np.where(bits < 0, -(bits & 0x7FFF), bits)

    return int(np.abs(places(one) - places(other)).max())
