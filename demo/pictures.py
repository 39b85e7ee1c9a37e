"""Pictures for the page: what went in, what was stored, and what the stored latents stand for."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from demo.report_run import StoreFacts
from encode_pipeline.augment import ViewMaker
from encode_pipeline.augment import decode as decode_picture
from encode_pipeline.config import ViewRecipe
from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.writer import Latent
from encode_pipeline.preview import decode, fit_rgb_map, latents_to_rgb
from encode_pipeline.read import read_samples
from encode_pipeline.records import Pixels, Rejected, Sample, ViewedSample
from encode_pipeline.vae import LoadedVae

KINDS = (("one object", 4), ("two objects", 1), ("planted oddity", 1))
"""Which samples are shown, and how many of each kind."""
SHOWN_SIDE = 224
JPEG_QUALITY = 84


@dataclass(frozen=True)
class ShownView:
    """One view of a sample on its way: as it was encoded, as it is stored, as it decodes."""

    picture: str
    latent: str
    decoded: str
    psnr: float
    parameters: list[str]
    box: tuple[int, int, int, int]
    """Left, top, width and height of the piece of the source that the view shows."""


@dataclass(frozen=True)
class ShownSample:
    """A sample of the store beside the picture that it came from."""

    kind: str
    key: str
    tar: str
    caption: str
    size: tuple[int, int]
    source: str
    views: list[ShownView]


@dataclass(frozen=True)
class _Chosen:
    kind: str
    shard: str
    tar: str
    key: str
    index: int
    caption: str
    metadata: dict[str, Any]


def show_samples(facts: StoreFacts, tars: Path, vae: LoadedVae) -> list[ShownSample]:
    """Some samples of a store, always the same and unlike each other, with all of their views.

    `tars` is the folder that was encoded. The views are made again from it, as the store's spec says.
    """
    spec = facts.version.spec
    chosen = choose(list(_candidates(facts)))
    stored = [_stored(facts, sample) for sample in chosen]
    made = [
        _views_again(facts, tars / sample.tar, sample, said) for sample, (_, said) in zip(chosen, stored, strict=True)
    ]
    latents = [latents_nchw for latents_nchw, _ in stored]
    shown = [np.stack([view.pixels for view in viewed.views]) for viewed in made]
    rgb_map = fit_rgb_map(np.concatenate(latents), np.concatenate(shown))
    sheets = []
    for sample, viewed, pictures, latents_nchw in zip(chosen, made, shown, latents, strict=True):
        decoded = decode(latents_nchw, spec, vae)
        views = [
            ShownView(
                picture=jpeg(pictures[number], SHOWN_SIDE),
                latent=png(latents_to_rgb(latents_nchw[number], rgb_map)),
                decoded=jpeg(decoded[number], SHOWN_SIDE),
                psnr=psnr(pictures[number], decoded[number]),
                parameters=_said(view.parameters),
                box=_box(view.parameters, viewed.original_size),
            )
            for number, view in enumerate(viewed.views)
        ]
        upright = decode_picture(viewed.sample, ViewRecipe(**spec.recipe))
        assert not isinstance(upright, Rejected)  # its views have just been made from it
        source = jpeg(upright, 2 * SHOWN_SIDE)
        size = viewed.original_size
        sheets.append(ShownSample(sample.kind, sample.key, sample.tar, sample.caption, size, source, views))
    return sheets


def show_decoded(facts: StoreFacts, places: Sequence[tuple[str, str]], vae: LoadedVae) -> list[str]:
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
    return [jpeg(picture, SHOWN_SIDE) for picture in decoded]


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


def jpeg(pixels: Pixels, short_side: int) -> str:
    """A picture as a data URI, its short side scaled down to at most so many pixels."""
    image = Image.fromarray(pixels)
    factor = min(1.0, short_side / min(image.size))
    size = (round(image.width * factor), round(image.height * factor))
    return _uri(image.resize(size, Image.Resampling.LANCZOS), "JPEG", quality=JPEG_QUALITY)


def png(pixels: Pixels) -> str:
    """A small picture as a data URI, every pixel kept."""
    return _uri(Image.fromarray(pixels), "PNG", optimize=True)


def psnr(one: Pixels, other: Pixels) -> float:
    """How close two pictures are, in dB."""
    error = float(np.square(one.astype(np.float64) - other).mean())
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


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


def _views_again(facts: StoreFacts, tar: Path, chosen: _Chosen, said: list[dict[str, Any]]) -> ViewedSample:
    """The views as the encoder saw them: what is random in them hangs on the sample's name alone."""
    spec = facts.version.spec
    if not tar.is_file():
        raise CheckFailed(f"{tar}: no such tar, and sample {chosen.key} came from it")
    with tar.open("rb") as file:
        samples = (sample for sample in read_samples(file, str(tar)) if isinstance(sample, Sample))
        sample = next((sample for sample in samples if sample.key == chosen.key), None)
    if sample is None:
        raise CheckFailed(f"{tar}: no sample {chosen.key}, which the store has from it")
    maker = ViewMaker(ViewRecipe(**spec.recipe), spec.views, spec.image_size, spec.seed, chosen.shard)
    viewed = maker(sample)
    if isinstance(viewed, Rejected):
        raise CheckFailed(f"{tar}: {chosen.key}: {viewed.reason} now, encoded before")
    if [view.parameters for view in viewed.views] != said:
        raise CheckFailed(f"{tar}: {chosen.key}: its views made again are not those in the store")
    return viewed


def _stored(facts: StoreFacts, chosen: _Chosen) -> tuple[Latent, list[dict[str, Any]]]:
    """All views of a sample in order: the latents, and how each view says it was made."""
    latents, made = [], []
    for view in range(facts.version.spec.views):
        row = next(row for row in facts.rows(view) if row["shard"] == chosen.shard)
        with facts.open(row) as shard:
            latents.append(shard.latent(chosen.index).copy())
            made.append(shard.metadata(chosen.index)["augmentation"])
    return np.stack(latents), made


def _said(parameters: dict[str, Any]) -> list[str]:
    """The parameters of a view as a person reads them."""
    if "crop" not in parameters:
        return ["short side to size, centre square"]
    left, top, right, bottom = parameters["crop"]
    factors = [f"{name} ×{parameters[name]:.2f}" for name in ("brightness", "contrast", "saturation")]
    return [f"crop {right - left}×{bottom - top} at {left}, {top}", *factors, f"hue {parameters['hue']:+.3f}"]


def _box(parameters: dict[str, Any], size: tuple[int, int]) -> tuple[int, int, int, int]:
    if "crop" in parameters:
        left, top, right, bottom = parameters["crop"]
        return left, top, right - left, bottom - top
    width, height = size
    side = min(size)
    return (width - side) // 2, (height - side) // 2, side, side
