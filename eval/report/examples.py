"""Pictures to look at: those of a data set, or what the latents of a store look like and decode to."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from encode_pipeline.latents.cache import ShardCache
from encode_pipeline.latents.command import REMOTE_LIBRARIES, CheckFailed, RequestError, one_line
from encode_pipeline.latents.spec import LatentSpec, convert_scale
from encode_pipeline.latents.store import Store
from encode_pipeline.latents.writer import Latent
from encode_pipeline.preview.decoder import decode, load_decoder
from encode_pipeline.preview.rgb import PIXEL_MAP, RgbMap, false_colour_map, fit_rgb_map, latents_to_rgb
from encode_pipeline.preview.show import thumbnail
from encode_pipeline.records import Pixels
from eval.report.evaluations import Evaluation

SIDE = 144
FETCHED_BYTES = 2 << 30
"""Remote tars come whole; those beyond this are left alone."""

Place = tuple[str, str]
"""Shard and key."""


@dataclass(frozen=True)
class Look:
    """What there is to see of a sample."""

    picture: Pixels | None = None
    latent: Pixels | None = None


@dataclass(frozen=True)
class Gallery:
    """What there is to see of some samples of one data set, and what is missing and why."""

    looks: Mapping[Place, Look]
    note: str


def gallery(run: Evaluation, places: Iterable[Place]) -> Gallery:
    """The samples at these places, from where the run had them; where they are gone, the note says so."""
    wanted = list(dict.fromkeys(places))
    address = str(run.config.get("data", run.result.dataset))
    try:
        if run.result.data.kind == "store":
            return _of_store(run, address, wanted)
        return _of_pictures(run, address, wanted)
    except Exception as error:
        known = (OSError, RequestError, CheckFailed)
        if not isinstance(error, known) and type(error).__module__.split(".")[0] not in REMOTE_LIBRARIES:
            raise
        said = one_line(error) if isinstance(error, OSError) else " ".join(str(error).split())
        return Gallery({}, f"No pictures are shown, because the data cannot be read now: {said}.")


def _of_store(run: Evaluation, address: str, places: Sequence[Place]) -> Gallery:
    version = Store(address).version(run.result.data.fingerprint)
    view = int(run.config.get("view", 0))
    rows = {row["shard"]: row for row in version.manifest().to_pylist() if row["view"] == view}
    latents: dict[Place, Latent] = {}
    spent = 0
    with tempfile.TemporaryDirectory(prefix="report-") as scratch:
        cache = ShardCache(version, Path(scratch))
        for shard in dict.fromkeys(shard for shard, _ in places):
            if shard not in rows:
                continue
            spent += 0 if version.storage.is_local else rows[shard]["size"]
            if spent > FETCHED_BYTES:
                continue
            with cache.open(rows[shard]) as opened:
                index = {key: at for at, key in enumerate(opened.keys)}
                latents |= {
                    (shard, key): opened.latent(index[key]).copy()
                    for name, key in places
                    if name == shard and key in index
                }
    if not latents:
        return Gallery({}, f"No pictures are shown: {version.storage.url()} holds none of these samples now.")
    looks, note = _look_at(latents, version.spec, run.config.get("vae"))
    missing = len(places) - len(latents)
    return Gallery(looks, note + (f" {missing} samples are not there or too far away." if missing else ""))


def _look_at(latents: Mapping[Place, Latent], spec: LatentSpec, vae_name: str | None) -> tuple[dict[Place, Look], str]:
    """Latents in colours, and decoded where their VAE is to be had; with a sentence that says how."""
    stacked = np.stack(list(latents.values()))
    raw = convert_scale(stacked.astype(np.float32), spec.vae, spec.scale, "raw")
    decoded: Pixels | None = None
    rgb_map: RgbMap = PIXEL_MAP
    if spec.vae.config.get("class") == "pixels":
        note = "The pictures are shown as the model reads them: averaged down to the grid of the latents."
    else:
        try:
            decoded = decode(stacked, spec, load_decoder(spec, vae_name))
            rgb_map = fit_rgb_map(raw, decoded)
            note = "Beside each picture, which is what the latent decodes to, is the latent itself in fitted colours."
        except RequestError as error:
            rgb_map = false_colour_map(raw)
            note = f"Latents are shown in false colours, because the VAE is not to be had: {error}."
    looks = {place: Look(latent=latents_to_rgb(latent, rgb_map)) for place, latent in zip(latents, raw, strict=True)}
    if decoded is not None:
        for place, picture in zip(latents, decoded, strict=True):
            looks[place] = replace(looks[place], picture=thumbnail(picture, SIDE))
    return looks, note


def _of_pictures(run: Evaluation, address: str, places: Sequence[Place]) -> Gallery:
    from eval.pictures import open_pictures

    classes = run.config.get("classes")
    pictures = open_pictures(address, None if classes is None else Path(classes))
    wanted = set(places)
    looks: dict[Place, Look] = {}
    for part in pictures.parts:
        if part.name not in {shard for shard, _ in wanted}:
            continue
        for picture in pictures.read(part):
            place = (part.name, picture.key)
            if place in wanted:
                looks[place] = Look(picture=_thumbnail(picture.image))
    missing = len(places) - len(looks)
    return Gallery(looks, f"{missing} pictures are not in {address} now." if missing else "")


def _thumbnail(file: bytes) -> Pixels | None:
    try:
        with Image.open(io.BytesIO(file)) as image:
            image.draft("RGB", (2 * SIDE, 2 * SIDE))
            pixels: Any = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError):
        return None
    return thumbnail(pixels, SIDE)
