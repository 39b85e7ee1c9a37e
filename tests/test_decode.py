"""Any picture that strangers send: the right pixels, or a counted reason."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms

from encode_pipeline import decode as decode_module
from encode_pipeline.colour import _transform
from encode_pipeline.decode import decode, decoded
from encode_pipeline.recipe import ViewRecipe
from encode_pipeline.records import Reason, Rejected, Sample
from tests import icc
from tests.strange_pictures import (
    BLACK,
    BLUE,
    COLOURS,
    GREEN,
    RED,
    SAND,
    SIZE,
    WHITE,
    Colour,
    bomb_bmp,
    bomb_gif,
    bomb_png,
    bomb_tiff,
    bomb_webp,
    chunk,
    file,
    grey,
    grey_tiff,
    interlaced_png,
    many_frames_gif,
    many_scans,
    pixels,
    png_16,
    png_with,
    quarters,
    turned_jpeg,
    ycck_jpeg,
)

ROOT = Path(__file__).parent.parent
RECIPE = ViewRecipe()
GREYS = [grey(colour) for colour in COLOURS]
REDS = [(colour[0],) * 3 for colour in COLOURS]
ON_WHITE = [tuple(round((level + 255) / 2) for level in colour) for colour in COLOURS]
P3 = icc.rgb_profile(icc.DISPLAY_P3, None)
INKS = [(140, 100, 90), (120, 200, 120), (230, 120, 220), (30, 128, 128)]
"""Cyan, magenta, yellow and black of a press, as 8-bit Lab."""
PRINTED = Image.fromarray(pixels([(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)]))
"""Each of three inks at full, and bare paper; the fourth plate is empty."""
TOLERANCE = {"lab tiff": 9, "cmyk with a press's profile": 4}
"""Steps of 255 that a colour may be off; 2 where nothing is said."""


def encoded(linear: npt.NDArray[np.float64]) -> list[Colour]:
    """Linear light of the sRGB primaries as 8-bit sRGB."""
    light = linear.clip(0, 1)
    levels = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return [tuple(row) for row in np.round(levels * 255).astype(int).tolist()]


def seen_through(primaries: Sequence[tuple[float, float, float]], gamma: float | None) -> list[Colour]:
    """What the colours of the quarters are in sRGB, by the formulas."""
    level = np.array(COLOURS) / 255
    srgb_light = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    light = srgb_light if gamma is None else level**gamma
    return encoded(light @ np.array(primaries) @ np.linalg.inv(np.array(icc.SRGB)))


def of_lab(code: Sequence[int]) -> Colour:
    """An 8-bit Lab colour in sRGB, by the formulas."""
    lightness, a, b = code[0] / 255 * 100, code[1] - 128, code[2] - 128
    y = (lightness + 16) / 116
    cubes = np.array([y + a / 500, y, y - b / 200])
    xyz = np.where(cubes > 6 / 29, cubes**3, 3 * (6 / 29) ** 2 * (cubes - 4 / 29)) * icc.WHITE_D50
    return encoded(xyz[None] @ np.linalg.inv(np.array(icc.SRGB)))[0]


FROM_P3 = seen_through(icc.DISPLAY_P3, None)


def half(image: Image.Image) -> Image.Image:
    """The picture at half its opacity."""
    see_through = image.convert("RGBA")
    see_through.putalpha(128)
    return see_through


def four_plates(inks: Image.Image) -> Image.Image:
    return Image.merge("CMYK", [*inks.split(), Image.new("L", SIZE, 0)])


def lying(kind: str, **options: object) -> bytes:
    """Quarters stored on their side, with the note that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return file(quarters().transpose(Image.Transpose.ROTATE_90), kind, exif=exif, **options)


def animated(kind: str, **options: object) -> bytes:
    return file(quarters(), kind, save_all=True, append_images=[quarters([BLUE] * 4)], **options)


def lab() -> Image.Image:
    srgb, space = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    converted = ImageCms.profileToProfile(quarters(), srgb, space, outputMode="LAB")
    assert converted is not None
    return converted


RED_16 = pixels()[:, :, 0].astype(np.uint16) * 257
PALETTE = quarters().quantize(16)

RIGHT: dict[str, tuple[bytes, Sequence[Colour]]] = {
    "jpeg": (file(quarters(), "JPEG", quality=95), COLOURS),
    "progressive jpeg": (file(quarters(), "JPEG", quality=95, progressive=True), COLOURS),
    "grey jpeg": (file(quarters().convert("L"), "JPEG", quality=95), GREYS),
    "cmyk jpeg, inverted as Adobe has it": (file(quarters().convert("CMYK"), "JPEG", quality=95), COLOURS),
    "ycck jpeg": (ycck_jpeg(), COLOURS),
    "jpeg of many scans": (many_scans(12), COLOURS),
    "jpeg with bytes after its end": (file(quarters(), "JPEG", quality=95) + b"<html>" * 99, COLOURS),
    "jpeg with broken EXIF": (file(quarters(), "JPEG", quality=95, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" * 3), COLOURS),
    "jpeg that lies in no known way": (turned_jpeg(99), COLOURS),
    "several pictures in a jpeg (MPO)": (animated("MPO", quality=95), COLOURS),
    **{f"jpeg, EXIF orientation {number}": (turned_jpeg(number), COLOURS) for number in range(1, 9)},
    "png": (file(quarters()), COLOURS),
    "interlaced png": (interlaced_png(), COLOURS),
    "grey png": (file(quarters().convert("L")), GREYS),
    "png of 1 bit": (file(quarters([WHITE, BLACK, BLACK, WHITE]).convert("1")), [WHITE, BLACK, BLACK, WHITE]),
    "png of 16 bits grey": (png_16(1), REDS),
    "png of 16 bits RGB": (png_16(3), COLOURS),
    "png of 16 bits RGBA": (png_16(3, alpha=32768), ON_WHITE),
    "png of 16 bits grey, one level clear": (
        png_16(1, chunk(b"tRNS", (200 * 257).to_bytes(2, "big"))),
        [WHITE, *REDS[1:]],
    ),
    "png of 16 bits RGB, one colour clear": (
        png_16(3, chunk(b"tRNS", b"".join((level * 257).to_bytes(2, "big") for level in RED))),
        [WHITE, GREEN, BLUE, SAND],
    ),
    "png with alpha": (file(half(quarters())), ON_WHITE),
    "grey png with alpha": (file(half(quarters()).convert("LA")), [((level + 255) // 2,) * 3 for level, *_ in GREYS]),
    "palette png": (file(PALETTE), COLOURS),
    "palette png, half clear": (file(PALETTE, transparency=bytes([128] * 16)), ON_WHITE),
    "png with one colour clear": (file(quarters(), transparency=GREEN), [RED, WHITE, BLUE, SAND]),
    "grey png with one level clear": (
        file(quarters().convert("L"), transparency=GREYS[2][0]),
        [*GREYS[:2], WHITE, GREYS[3]],
    ),
    "animated png": (animated("PNG"), COLOURS),
    "png with EXIF orientation": (lying("PNG"), COLOURS),
    "webp": (file(quarters(), "WEBP", quality=95), COLOURS),
    "webp with alpha": (file(half(quarters()), "WEBP", lossless=True, exact=True), ON_WHITE),
    "animated webp": (animated("WEBP", lossless=True), COLOURS),
    "webp with EXIF orientation": (lying("WEBP", lossless=True), COLOURS),
    "gif": (file(quarters(), "GIF"), COLOURS),
    "animated gif": (animated("GIF"), COLOURS),
    "gif of 100,000 frames": (many_frames_gif(100_000), COLOURS),
    "gif, see-through": (file(PALETTE, "GIF", transparency=PALETTE.getpixel((0, 0))), [WHITE, GREEN, BLUE, SAND]),
    "bmp": (file(quarters(), "BMP"), COLOURS),
    "tiff": (file(quarters(), "TIFF", compression="tiff_lzw"), COLOURS),
    "cmyk tiff": (file(quarters().convert("CMYK"), "TIFF"), COLOURS),
    "lab tiff": (file(lab(), "TIFF"), COLOURS),
    "tiff of 16 bits grey": (grey_tiff(16, RED_16), REDS),
    "tiff with white at 0": (grey_tiff(8, 255 - pixels()[:, :, 0], photometric=0), REDS),
    "tiff that lies on its side": (lying("TIFF"), COLOURS),
    "avif": (file(quarters(), "AVIF", quality=95), COLOURS),
    "avif that lies on its side": (lying("AVIF", quality=95), COLOURS),
    "Display P3 png": (file(quarters(), icc_profile=P3), FROM_P3),
    "Display P3 jpeg": (file(quarters(), "JPEG", quality=98, icc_profile=P3, subsampling=0), FROM_P3),
    "Display P3 with alpha": (
        file(half(quarters()), icc_profile=P3),
        [tuple((level + 255) // 2 for level in colour) for colour in FROM_P3],
    ),
    "Display P3 palette": (file(PALETTE, icc_profile=P3), FROM_P3),
    "Adobe RGB": (file(quarters(), icc_profile=icc.rgb_profile(icc.ADOBE_RGB, 2.2)), seen_through(icc.ADOBE_RGB, 2.2)),
    "sRGB said with a profile": (file(quarters(), icc_profile=icc.rgb_profile(icc.SRGB, None)), COLOURS),
    "broken profile": (file(quarters(), icc_profile=P3[:200] + b"x" * 200), COLOURS),
    "profile of bytes": (file(quarters(), icc_profile=b"no profile"), COLOURS),
    "profile of another mode": (file(quarters().convert("L"), icc_profile=P3), GREYS),
    "linear grey": (
        file(quarters().convert("L"), icc_profile=icc.grey_profile(1.0)),
        encoded(np.array(GREYS) / 255),
    ),
    "cmyk with a press's profile": (
        file(four_plates(PRINTED), "JPEG", quality=98, icc_profile=icc.cmyk_profile(INKS), subsampling=0),
        [*map(of_lab, INKS[:3]), WHITE],
    ),
}  # fmt: skip

BIG = quarters(size=(200, 160))


def cut(kind: str, part: float = 0.5, **options: object) -> bytes:
    data = file(BIG, kind, **options)
    return data[: int(len(data) * part)]


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


WRONG: dict[str, tuple[bytes, Reason]] = {
    "zero bytes": (b"", Reason.UNDECODABLE_IMAGE),
    "one byte": (b"\xff", Reason.UNDECODABLE_IMAGE),
    "a page": (b"<!doctype html><title>403 Forbidden</title>" * 9, Reason.UNDECODABLE_IMAGE),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg' width='99' height='99'/>", Reason.UNDECODABLE_IMAGE),
    "pdf": (file(quarters(), "PDF"), Reason.UNDECODABLE_IMAGE),
    "ico": (file(quarters(), "ICO"), Reason.UNDECODABLE_IMAGE),
    "a header and no more": (file(quarters(), "JPEG")[:20], Reason.UNDECODABLE_IMAGE),
    "half a jpeg": (cut("JPEG"), Reason.UNDECODABLE_IMAGE),
    "jpeg short of its last hundredth": (cut("JPEG", 0.99), Reason.UNDECODABLE_IMAGE),
    "half a progressive jpeg": (cut("JPEG", progressive=True), Reason.UNDECODABLE_IMAGE),
    "half a png": (cut("PNG"), Reason.UNDECODABLE_IMAGE),
    "half a webp": (cut("WEBP"), Reason.UNDECODABLE_IMAGE),
    "half a gif": (cut("GIF"), Reason.UNDECODABLE_IMAGE),
    "half a bmp": (cut("BMP"), Reason.UNDECODABLE_IMAGE),
    "half a tiff": (cut("TIFF"), Reason.UNDECODABLE_IMAGE),
    "half an avif": (cut("AVIF"), Reason.UNDECODABLE_IMAGE),
    "png with a flipped bit": (flipped(file(BIG), file(BIG).index(b"IDAT") + 20), Reason.UNDECODABLE_IMAGE),
    "png with a flipped bit in its palette": (
        flipped(file(PALETTE), file(PALETTE).index(b"PLTE") + 5),
        Reason.UNDECODABLE_IMAGE,
    ),
    "jpeg of 200 scans": (many_scans(200), Reason.UNDECODABLE_IMAGE),
    "png whose text unpacks to 16 MB": (png_with(b"zTXt", 16 << 20), Reason.UNDECODABLE_IMAGE),
    "png whose profile unpacks to 16 MB": (png_with(b"iCCP", 16 << 20), Reason.UNDECODABLE_IMAGE),
    "tiff of floating point": (grey_tiff(32, RED_16.astype(np.float32), _339=(3, 1, 3)), Reason.UNDECODABLE_IMAGE),
    "tiff of 32 bits": (grey_tiff(32, RED_16.astype(np.uint32)), Reason.UNDECODABLE_IMAGE),
    "tiff of 16 bits with white at 0": (grey_tiff(16, RED_16, photometric=0), Reason.UNDECODABLE_IMAGE),
    "png bomb": (bomb_png(50_000, 50_000), Reason.TOO_LARGE),
    "png bomb of 2^62 pixels": (bomb_png(2**31 - 1, 2**31 - 1), Reason.TOO_LARGE),
    "png just above the limit": (bomb_png(10_001, 10_000), Reason.TOO_LARGE),
    "gif bomb": (bomb_gif(65_535, 65_535), Reason.TOO_LARGE),
    "gif bomb below Pillow's own limit": (bomb_gif(16_000, 16_000), Reason.TOO_LARGE),
    "webp bomb": (bomb_webp(16_383, 16_383), Reason.TOO_LARGE),
    "bmp bomb": (bomb_bmp(60_000, 60_000), Reason.TOO_LARGE),
    "tiff bomb": (bomb_tiff(100_000, 100_000), Reason.TOO_LARGE),
    "tiff of huge tiles": (bomb_tiff(64, 64, tile=60_000), Reason.UNDECODABLE_IMAGE),
    "narrow": (file(quarters(size=(31, 100))), Reason.TOO_SMALL),
    "flat": (file(quarters(size=(100, 31)), "JPEG"), Reason.TOO_SMALL),
    "banner": (file(quarters(size=(400, 39))), Reason.EXTREME_ASPECT),
    "tower": (file(quarters(size=(39, 400))), Reason.EXTREME_ASPECT),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_the_right_picture(kind: str) -> None:
    data, colours = RIGHT[kind]
    picture = decode(Sample("k", data, "c", {}), RECIPE)
    assert not isinstance(picture, Rejected), picture
    assert (picture.shape[1], picture.shape[0]) == SIZE and picture.dtype == np.uint8
    seen = picture[[16, 16, 48, 48], [24, 72, 24, 72]].astype(int)
    assert np.abs(seen - np.array(colours)).max() <= TOLERANCE.get(kind, 2), (seen.tolist(), colours)


@pytest.mark.parametrize("kind", WRONG)
def test_the_exact_reason(kind: str) -> None:
    data, reason = WRONG[kind]
    first, again = (decode(Sample("k", bytes(bytearray(data)), "c", {}), RECIPE) for _ in range(2))
    assert isinstance(first, Rejected) and first.reason == reason and first.detail
    assert first == again and not re.search("0x[0-9a-f]{6}", first.detail)  # records are hashed


def test_bombs_are_refused_before_anything_is_allocated() -> None:
    """All of them in a process of its own, which stays as small as it was."""
    code = """
import resource
from tests.test_decode import RECIPE, WRONG, Rejected, Sample, decode
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
bombs = [kind for kind in WRONG if "bomb" in kind or "huge" in kind or "unpacks" in kind]
assert len(bombs) == 10, bombs
for kind in bombs:
    assert isinstance(decode(Sample("k", WRONG[kind][0], "c", {}), RECIPE), Rejected)
    assert peak() - before < 48 << 10, (kind, peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_large_pictures_take_turns_and_small_ones_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "LARGE_PIXELS", 200 * 160 - 1)
    large, small = Sample("l", file(BIG), "c", {}), Sample("s", file(quarters()), "c", {})
    under_way, most, passed = 0, 0, threading.Event()
    counting = threading.Lock()

    def hold(sample: Sample) -> None:
        nonlocal under_way, most
        with decoded(sample, RECIPE) as picture:
            assert not isinstance(picture, Rejected)
            if sample is small:
                passed.set()
                return
            with counting:
                under_way += 1
                most = max(most, under_way)
            assert passed.wait(60)  # a small one comes by while a large one is held
            with counting:
                under_way -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hold, [large, large, large, small]))
    assert most == 1


def test_a_refused_large_picture_gives_its_turn_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "LARGE_PIXELS", 1)
    for data in (cut("JPEG"), file(BIG), flipped(file(BIG), file(BIG).index(b"IDAT") + 20), file(BIG)):
        with decoded(Sample("k", data, "c", {}), RECIPE) as picture:
            refused = isinstance(picture, Rejected)
            assert decode_module._large_one.locked()
        assert refused == (data != file(BIG)) and not decode_module._large_one.locked()


def test_a_profile_costs_nothing_the_second_time() -> None:
    """Pictures with the same profile share one transform, and sRGB-like ones have none."""
    profile = icc.rgb_profile(icc.ADOBE_RGB, 1.9)
    _transform.cache_clear()
    for _ in range(3):
        decode(Sample("k", file(quarters(), icc_profile=profile), "c", {}), RECIPE)
    assert _transform.cache_info().misses == 1 and _transform.cache_info().hits == 2
    assert _transform(icc.rgb_profile(icc.SRGB, None), "RGB") is None


def test_threads_decode_the_same() -> None:
    samples = [Sample(kind, data, "c", {}) for kind, (data, _) in RIGHT.items()] * 4
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda sample: decode(sample, RECIPE), samples))
    alone = {sample.key: decode(sample, RECIPE) for sample in samples}
    for sample, picture in zip(samples, together, strict=True):
        assert np.array_equal(picture, alone[sample.key]), sample.key  # type: ignore[arg-type]
