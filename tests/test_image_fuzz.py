"""Hostile bytes in place of a picture: always views or a reason, in bounded memory."""

from __future__ import annotations

import io
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from encode_pipeline.augment import ViewMaker
from encode_pipeline.recipe import ViewRecipe
from encode_pipeline.records import Rejected, Sample, ViewedSample
from tests import icc
from tests.strange_pictures import file, grey_tiff, many_scans, png_16, quarters, turned_jpeg

LIMIT = 1 << 20
"""Pixels. What a hostile header may ask for is bounded by the recipe, and here that is little."""
SPARE_MEMORY = 1 << 30
P3 = icc.rgb_profile(icc.DISPLAY_P3, None)
SOUND = [
    file(quarters(), "JPEG", quality=90),
    file(quarters(), "JPEG", progressive=True, icc_profile=P3),
    file(quarters().convert("CMYK"), "JPEG"),
    turned_jpeg(6),
    many_scans(5),
    file(quarters()),
    file(quarters().quantize(16), transparency=bytes(16), icc_profile=P3),
    png_16(1),
    file(quarters(), "PNG", save_all=True, append_images=[quarters()]),
    file(quarters(), "WEBP"),
    file(quarters().convert("RGBA"), "WEBP", lossless=True),
    file(quarters(), "WEBP", save_all=True, append_images=[quarters().rotate(90)]),
    file(quarters(), "GIF"),
    file(quarters(), "GIF", save_all=True, append_images=[quarters().rotate(90)]),
    file(quarters(), "BMP"),
    file(quarters(), "TIFF", compression="tiff_lzw"),
    grey_tiff(8, np.zeros((64, 64), np.uint8)),
    file(quarters(), "AVIF"),
]
MAKER = ViewMaker(ViewRecipe(max_pixels=LIMIT, min_side=1, max_aspect=1e6), 2, 32, 0, "s")


@pytest.fixture(autouse=True, scope="module")
def little_memory() -> Iterator[None]:
    """A decoder that asks for gigabytes gets none, and the MemoryError fails the test."""
    MAKER(Sample("k", SOUND[0], "c", {}))  # whatever is loaded on first use is not what is measured
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@st.composite
def hostile(draw: st.DrawFn) -> bytes:
    """A sound file with bytes overwritten, cut out or put in, cut short, or gone on with as another."""
    data = bytearray(draw(st.sampled_from(SOUND)))
    for _ in range(draw(st.integers(0, 6))):
        # Near the beginning more often: that is where sizes and kinds stand.
        place = draw(st.one_of(st.integers(0, 64), st.integers(0, max(0, len(data) - 1))))
        change = draw(st.sampled_from(["set", "flip", "drop", "add"]))
        if change == "set":
            data[place : place + 4] = draw(st.binary(min_size=1, max_size=4))
        elif change == "flip" and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif change == "drop":
            del data[place : place + draw(st.integers(1, 64))]
        else:
            data[place:place] = draw(st.binary(min_size=1, max_size=16))
    ending = draw(st.sampled_from(["as it is", "short", "another"]))
    if ending == "short":
        del data[draw(st.integers(0, len(data))) :]
    elif ending == "another":
        other = draw(st.sampled_from(SOUND))
        data[draw(st.integers(0, len(data))) :] = other[draw(st.integers(0, len(other))) :]
    return bytes(data)


def outcome(data: bytes) -> ViewedSample | Rejected:
    result = MAKER(Sample("k", data, "c", {}))
    if isinstance(result, Rejected):
        assert result.key == "k" and result.detail and "\n" not in result.detail
    else:
        assert [view.pixels.shape for view in result.views] == [(32, 32, 3)] * 2
        assert result.original_size[0] * result.original_size[1] <= LIMIT
    return result


@settings(max_examples=800, deadline=None, derandomize=True, database=None)
@given(hostile())
def test_damaged_files_give_views_or_a_reason(data: bytes) -> None:
    first, again = outcome(data), outcome(data)
    if isinstance(first, Rejected):
        assert first == again
    else:
        assert isinstance(again, ViewedSample)
        for one, other in zip(first.views, again.views, strict=True):
            assert np.array_equal(one.pixels, other.pixels) and one.parameters == other.parameters


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.sampled_from([data[:12] for data in SOUND]), st.binary(max_size=400))
def test_noise_after_a_promising_beginning(head: bytes, noise: bytes) -> None:
    outcome(head + noise)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.binary(max_size=600))
def test_profiles_of_noise_are_ignored(noise: bytes) -> None:
    """A profile may be damaged anywhere: the picture is shown, with it or without."""
    profile = P3[:128] + noise if noise[:1] < b"\x80" else P3[: len(noise)] + noise
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (90, 120, 30)).save(buffer, "PNG", icc_profile=profile)
    assert isinstance(outcome(buffer.getvalue()), ViewedSample)
