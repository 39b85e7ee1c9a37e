"""Samples ready to be shown: small pictures of every state, and what was done to get them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from encode_pipeline.preview.origins import Origin
from encode_pipeline.preview.rgb import RgbMap, latents_to_rgb
from encode_pipeline.preview.stored import StoredSample
from encode_pipeline.records import Pixels

SHOWN_SIDE = 224
FACTORS = ("brightness", "contrast", "saturation")
FIRST_SAID = ("crop", *FACTORS, "hue")
UNSAID = ("recipe", "seed", "order")
"""Needed to make a view again, and nothing to look at."""


@dataclass(frozen=True)
class ShownView:
    """One view of a sample on its way: as it was encoded, as it is stored, as it decodes."""

    number: int
    picture: Pixels | None
    latent: Pixels
    decoded: Pixels | None
    psnr: float | None
    """Of the decoded picture against the view, in dB."""
    parameters: list[str]
    box: tuple[int, int, int, int]
    """Left, top, width and height of the piece of the source that the view shows."""


@dataclass(frozen=True)
class ShownSample:
    """A sample of the store beside the picture that it came from."""

    shard: str
    key: str
    tar: str
    """The source's name."""
    caption: str
    size: tuple[int, int]
    source: Pixels | None
    missing: str | None
    """Why the source or its views are not shown."""
    views: list[ShownView]


def show(
    sample: StoredSample,
    origin: Origin,
    latents_nchw: npt.NDArray[np.floating],
    decoded: Pixels | None,
    rgb_map: RgbMap,
) -> ShownSample:
    """A sample with all that is known of it. The latents are those of the map's scale."""
    size = (int(sample.records[0]["original_size"][0]), int(sample.records[0]["original_size"][1]))
    views = []
    for place, record in enumerate(sample.records):
        picture = origin.views[place] if origin.views else None
        result = None if decoded is None else decoded[place]
        views.append(
            ShownView(
                number=int(record["view"]),
                picture=None if picture is None else thumbnail(picture, SHOWN_SIDE),
                latent=latents_to_rgb(latents_nchw[place], rgb_map),
                decoded=None if result is None else thumbnail(result, SHOWN_SIDE),
                psnr=None if picture is None or result is None else psnr(picture, result),
                parameters=parameters_text(record["augmentation"]),
                box=box_of(record["augmentation"], size),
            )
        )
    source = None if origin.picture is None else thumbnail(origin.picture, 2 * SHOWN_SIDE)
    tar = sample.source.uri.rsplit("/", 1)[-1]
    return ShownSample(sample.shard, sample.key, tar, sample.caption, size, source, origin.missing, views)


def thumbnail(pixels: Pixels, short_side: int) -> Pixels:
    """The picture with its short side scaled down to at most so many pixels, and its long side to ten times that."""
    image = Image.fromarray(pixels)
    factor = min(1.0, short_side / min(image.size), 10 * short_side / max(image.size))
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


def psnr(one: Pixels, other: Pixels) -> float:
    """How close two pictures are, in dB."""
    error = float(np.square(one.astype(np.float64) - other).mean())
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def parameters_text(parameters: Mapping[str, Any]) -> list[str]:
    """The parameters of a view as a person reads them."""
    if parameters.get("recipe") == "plain":
        return ["centre square"]
    order = sorted(parameters, key=lambda name: FIRST_SAID.index(name) if name in FIRST_SAID else len(FIRST_SAID))
    lines = []
    for name, value in ((name, parameters[name]) for name in order if name not in UNSAID):
        if name == "crop":
            left, top, right, bottom = value
            lines += [f"crop {right - left}×{bottom - top}", f"at {left}, {top}"]
        elif name == "hue":
            lines.append(f"hue {value:+.3f}")
        else:
            number = f"{'×' if name in FACTORS else ''}{value:.2f}" if isinstance(value, float) else str(value)
            lines.append(f"{name} {number}")
    return lines


def box_of(parameters: Mapping[str, Any], size: Sequence[int]) -> tuple[int, int, int, int]:
    """Left, top, width and height of what a view shows of its source; all of it where the view does not say."""
    width, height = size
    if "crop" in parameters:
        left, top, right, bottom = parameters["crop"]
        return left, top, right - left, bottom - top
    if parameters.get("recipe") == "plain":
        side = min(width, height)
        return (width - side) // 2, (height - side) // 2, side, side
    return 0, 0, width, height
