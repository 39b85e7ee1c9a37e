"""A compressed picture into upright RGB pixels, or the reason why not. What strangers send is read by its content."""

from __future__ import annotations

import io
import re
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import AvifImagePlugin, Image, UnidentifiedImageError

from encode_pipeline.colour import to_srgb
from encode_pipeline.recipe import MOST_PIXELS, ViewRecipe
from encode_pipeline.records import Pixels, Reason, Rejected, Sample

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
LARGE_PIXELS = 16_000_000
"""Pictures above this are decoded one at a time in a process: many threads must not mean many times the memory."""
MAX_SCANS = 100
"""A progressive JPEG has about ten; each costs the time of a whole picture and next to no bytes."""
REDUCTIONS = (8, 4, 2)
"""The scales that a JPEG can be decoded at, and by what they divide."""

Image.MAX_IMAGE_PIXELS = (
    MOST_PIXELS // 2
)  # Pillow refuses beyond twice this, also inside a file and before a recipe can
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # parallel over pictures, not within one
# Odd metadata in a picture that decodes is nobody's news. Not `catch_warnings`: threads would undo each other's.
warnings.filterwarnings("ignore", module=r"PIL\.")

_large_one = threading.Lock()

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture upright, by its EXIF orientation."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture, upright."""

    pixels: Pixels
    size: tuple[int, int]
    """Width and height before any reduction."""
    reduced: int
    """How many of its pixels, along a side, one of `pixels` stands for: 1, or 2, 4 or 8 where less was decoded."""


class _Refused(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason, self.detail = reason, detail


def decode(sample: Sample, recipe: ViewRecipe) -> Pixels | Rejected:
    """The whole upright picture in sRGB; transparency lies on white."""
    with decoded(sample, recipe) as picture:
        return picture if isinstance(picture, Rejected) else picture.pixels


@contextmanager
def decoded(
    sample: Sample, recipe: ViewRecipe, reduction: Callable[[int, int], int] = lambda width, height: 1
) -> Iterator[Picture | Rejected]:
    """The picture of a sample for the time of the block. Of large ones there is one at a time in a process.

    `reduction` is given the upright width and height and says by how much less detail would do; only a JPEG
    can be decoded so. An animation gives its first frame. A truncated picture is refused, and so is a PNG that
    fails its checksums; bits that flipped within the data of other formats cannot be told from a picture.
    """
    with ExitStack() as turn:
        yield _decoded(sample, recipe, reduction, turn)


def _decoded(
    sample: Sample, recipe: ViewRecipe, reduction: Callable[[int, int], int], turn: ExitStack
) -> Picture | Rejected:
    try:
        return _picture(sample.image, recipe, reduction, turn)
    except MemoryError:
        raise  # it says something about this machine, not about the picture
    except _Refused as refused:
        return Rejected(sample.key, refused.reason, refused.detail)
    except Image.DecompressionBombError:
        return Rejected(sample.key, Reason.TOO_LARGE, f"more than {MOST_PIXELS} pixels")
    except UnidentifiedImageError:
        return Rejected(sample.key, Reason.UNDECODABLE_IMAGE, f"not one of {', '.join(FORMATS)}")
    except Exception as error:  # a decoder may raise anything on hostile bytes; all of it means the same
        text = re.sub(r"\b0x[0-9a-fA-F]{6,}", "…", f"{type(error).__name__}: {error}")  # records hold no addresses
        return Rejected(sample.key, Reason.UNDECODABLE_IMAGE, " ".join(text.split())[:200])


def _picture(data: bytes, recipe: ViewRecipe, reduction: Callable[[int, int], int], turn: ExitStack) -> Picture:
    if not data:
        raise _Refused(Reason.UNDECODABLE_IMAGE, "zero bytes")
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_size(image.size, recipe)
        if image.width * image.height > LARGE_PIXELS:
            turn.enter_context(_large_one)
        if image.format == "PNG":
            _check_png(data)
        size, reduced = image.size, 1
        if image.format in ("JPEG", "MPO"):
            if data.count(b"\xff\xda") > MAX_SCANS:
                raise _Refused(Reason.UNDECODABLE_IMAGE, f"more than {MAX_SCANS} scans")
            reduced = _reduce(image, reduction)
        image.load()
        orientation = _orientation(image)
        rgb = to_srgb(image)
        if reduced > 1:  # what is left of a last, partly covered column or row would shift the rest by a fraction
            rgb = rgb.crop((0, 0, size[0] // reduced, size[1] // reduced))
        if orientation in TURNS:
            rgb = rgb.transpose(TURNS[orientation])
    if reduced == 1:
        size = rgb.size
    elif orientation >= 5:
        size = (size[1], size[0])
    return Picture(np.asarray(rgb), size, reduced)


def _check_size(size: tuple[int, int], recipe: ViewRecipe) -> None:
    width, height = size
    if width * height > recipe.max_pixels:
        raise _Refused(Reason.TOO_LARGE, f"{width}x{height}")
    if min(size) < recipe.min_side:
        raise _Refused(Reason.TOO_SMALL, f"{width}x{height}")
    if max(size) > recipe.max_aspect * min(size):
        raise _Refused(Reason.EXTREME_ASPECT, f"{width}x{height}")


def _reduce(image: Image.Image, reduction: Callable[[int, int], int]) -> int:
    """Sets a JPEG up to be decoded at a part of its size, and says which."""
    width, height = image.size
    orientation = _orientation(image)
    factor = reduction(height, width) if orientation >= 5 else reduction(width, height)
    if factor not in REDUCTIONS or (orientation > 1 and (width % factor or height % factor)):
        return 1  # a partly covered column must be the last one, and turning would bring it to the front
    image.draft(None, (width // factor, height // factor))
    return factor


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(0x0112)
    except Exception:  # damaged metadata is no damage to the picture
        return 1
    return value if isinstance(value, int) and value in TURNS else 1


def _check_png(data: bytes) -> None:
    """Refuses a PNG whose pixels fail their checksum; Pillow does not look at these."""
    position = 8
    while position + 12 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        kind, end = data[position + 4 : position + 8], position + 8 + size
        whole = kind in (b"IHDR", b"PLTE", b"IDAT") and end + 4 <= len(data)
        if whole and zlib.crc32(data[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise _Refused(Reason.UNDECODABLE_IMAGE, f"PNG chunk {kind.decode()} fails its checksum")
        position = end + 4
