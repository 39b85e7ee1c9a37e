"""Pictures of any mode and colour profile as a screen shows them: sRGB, transparency on white."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

SRGB = ImageCms.createProfile("sRGB")
NO_DIFFERENCE = 3
"""A profile that moves no colour by more than so many of 255 steps is taken for sRGB, as most are."""
MAX_PROFILES = 16
"""Ready transforms kept, with the profiles they are of; the same few come again and again."""
MAX_PROFILE_BYTES = 4 << 20
"""A press's profile has two megabytes; what is larger is taken for broken."""


class UnclearColours(Exception):
    """The file does not say which brightness its numbers mean."""


def to_srgb(image: Image.Image) -> Image.Image:
    """An RGB picture, its colour profile applied where that makes a difference and is not broken."""
    profile = image.info.get("icc_profile")
    base, alpha = _without_alpha(_eight_bits(image))
    usable = isinstance(profile, bytes) and 0 < len(profile) <= MAX_PROFILE_BYTES
    transform = _transform(profile, base.mode) if usable else None
    if transform is None and base.mode == "LAB":
        transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), SRGB, "LAB", "RGB")
    if transform is not None:
        base = _apply(base, transform)
    elif base.mode != "RGB":
        base = base.convert("RGB")
    if alpha is None:
        return base
    white = Image.new("RGB", base.size, "white")
    white.paste(base, mask=alpha)
    return white


def _eight_bits(image: Image.Image) -> Image.Image:
    """The picture in a mode of 8 bits a channel."""
    if image.mode in ("I", "F") or (image.format == "TIFF" and image.mode.startswith("I;16") and not _plain_16(image)):
        raise UnclearColours(f"mode {image.mode}: no telling which number is white")
    if not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    grey = (values >> 8).astype(np.uint8)
    if isinstance(image.info.get("transparency"), int):
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def _plain_16(image: Any) -> bool:
    """Whether a TIFF's grey uses all of its 16 bits and has black at 0; Pillow hands others over as they are."""
    bits, photometric = image.tag_v2.get(258), image.tag_v2.get(262)
    return bool(bits == (16,) and photometric == 1)


def _without_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours and, if there is any, the opacity."""
    if image.mode in ("LA", "La"):
        grey = image.convert("LA")
        return grey.getchannel("L"), grey.getchannel("A")
    if image.mode in ("RGBA", "RGBa", "PA") or "transparency" in image.info:
        coloured = image.convert("RGBA")
        return coloured.convert("RGB"), coloured.getchannel("A")
    if image.mode == "1":
        return image.convert("L"), None
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image, None
    return image.convert("RGB"), None


@lru_cache(MAX_PROFILES)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What brings colours of a profile to sRGB; None where it is broken, of another mode, or changes nothing."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(
            source,
            SRGB,
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode not in ("L", "RGB"):
            return transform
        colours = _every_so_many(mode)
        shown = np.asarray(_apply(colours, transform)).astype(int)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return transform if np.abs(shown - np.asarray(colours.convert("RGB"))).max() > NO_DIFFERENCE else None


def _apply(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # it is only when working in place
    return converted


def _every_so_many(mode: str) -> Image.Image:
    """Colours all over the range, to see what a profile does to them."""
    steps = np.linspace(0, 255, 17).astype(np.uint8)
    if mode == "L":
        return Image.fromarray(steps[None])
    return Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(17, -1, 3))
