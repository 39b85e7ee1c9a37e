"""Views: right way up, the right size, and a function of the sample alone."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.warts import WartPlan
from encode_pipeline.augment import ViewMaker, decode
from encode_pipeline.config import ViewRecipe
from encode_pipeline.read import read_samples
from encode_pipeline.records import Pixels, Reason, Rejected, Sample, ViewedSample

RECIPE = ViewRecipe()


def sample(image: Image.Image, format: str = "PNG", key: str = "k", **options: object) -> Sample:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return Sample(key, buffer.getvalue(), "caption", {})


def picture(width: int = 200, height: int = 150) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=2).astype(np.uint8))


def test_plain_view_is_the_centre_square() -> None:
    viewed = ViewMaker(RECIPE, 1, 128, 0, "s")(sample(picture(256, 128)))
    assert isinstance(viewed, ViewedSample) and viewed.original_size == (256, 128)
    assert np.array_equal(viewed.views[0].pixels, np.asarray(picture(256, 128))[:, 64:192])


@pytest.mark.parametrize("size", [(32, 1_000_000), (2000, 1100), (129, 128), (60, 900), (33, 40)])
def test_every_view_is_square_and_of_the_size(size: tuple[int, int]) -> None:
    viewed = ViewMaker(RECIPE, 4, 128, 0, "s")(sample(picture(*size)))
    assert isinstance(viewed, ViewedSample)
    assert [view.pixels.shape for view in viewed.views] == [(128, 128, 3)] * 4
    assert all(view.pixels.dtype == np.uint8 for view in viewed.views)


def test_views_depend_on_seed_shard_key_and_view_alone() -> None:
    def views(seed: int = 0, shard: str = "s", key: str = "k", before: int = 0) -> list[bytes]:
        maker = ViewMaker(RECIPE, 4, 64, seed, shard)
        for number in range(before):  # other samples that happened to come first
            maker(sample(picture(), key=f"other{number}"))
        viewed = maker(sample(picture(), key=key))
        assert isinstance(viewed, ViewedSample)
        return [view.pixels.tobytes() for view in viewed.views]

    assert views() == views() == views(before=3)
    assert len(set(views())) == 4
    for changed in (views(seed=1), views(shard="t"), views(key="l")):
        assert changed[0] == views()[0] and not set(changed[1:]) & set(views()[1:])


def test_threads_do_not_change_views() -> None:
    maker = ViewMaker(RECIPE, 3, 64, 0, "s")
    samples = [sample(picture(), key=str(number)) for number in range(24)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(maker, samples))
    alone = [ViewMaker(RECIPE, 3, 64, 0, "s")(one) for one in samples]
    for a, b in zip(together, alone, strict=True):
        assert isinstance(a, ViewedSample) and isinstance(b, ViewedSample)
        assert [v.parameters for v in a.views] == [v.parameters for v in b.views]
        assert all(np.array_equal(v.pixels, w.pixels) for v, w in zip(a.views, b.views, strict=True))


def test_parameters_are_recorded_and_within_the_recipe() -> None:
    viewed = ViewMaker(RECIPE, 30, 64, 0, "s")(sample(picture(400, 300)))
    assert isinstance(viewed, ViewedSample)
    assert viewed.views[0].parameters == {"recipe": "plain"}
    for view in viewed.views[1:]:
        left, top, right, bottom = view.parameters["crop"]
        assert 0.64 <= (right - left) * (bottom - top) / (400 * 300) <= 1
        assert 0.8 <= view.parameters["brightness"] <= 1.2 and abs(view.parameters["hue"]) <= 0.02


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA", "LA", "1", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    grey = Image.new("L", (64, 64), 200)
    if mode == "I;16":
        image = Image.fromarray(np.full((64, 64), 200 << 8, np.uint16))
    elif mode == "1":
        image = Image.new("1", (64, 64), 1)
    else:
        image = grey.convert(mode)
    decoded = decode(sample(image, "JPEG" if mode == "CMYK" else "PNG"), RECIPE)
    assert not isinstance(decoded, Rejected)
    assert decoded.shape == (64, 64, 3)
    assert np.abs(decoded.astype(int) - (255 if mode == "1" else 200)).max() <= 3


def test_transparency_lies_on_white() -> None:
    decoded = decode(sample(Image.new("RGBA", (64, 64), (0, 0, 0, 0))), RECIPE)
    assert not isinstance(decoded, Rejected) and (decoded == 255).all()


def test_exif_rotation_is_applied() -> None:
    image = picture(200, 100)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    decoded = decode(sample(image, "JPEG", exif=exif, quality=95), RECIPE)
    assert not isinstance(decoded, Rejected)
    upright: Pixels = np.rot90(np.asarray(image), -1)
    assert decoded.shape == (200, 100, 3)
    assert np.abs(decoded.astype(int) - upright).mean() < 6


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.UNDECODABLE_IMAGE),
        (b"<html>404</html>", Reason.UNDECODABLE_IMAGE),
        (sample(picture(), "JPEG").image[:900], Reason.UNDECODABLE_IMAGE),
        (sample(picture(), "PNG").image[:-200], Reason.UNDECODABLE_IMAGE),
        (sample(picture(), "GIF").image, Reason.UNDECODABLE_IMAGE),
        (sample(picture(16, 400)).image, Reason.TOO_SMALL),
        (sample(Image.new("1", (20_000, 6_000))).image, Reason.TOO_LARGE),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_reason(data: bytes, reason: Reason) -> None:
    refused = decode(Sample("k", data, "c", {}), RECIPE)
    assert isinstance(refused, Rejected) and refused.reason == reason and refused.detail


def test_warts_come_out_as_planned(warty_tar: tuple[Path, WartPlan]) -> None:
    path, plan = warty_tar
    maker = ViewMaker(RECIPE, 2, 64, 0, "s")
    with path.open("rb") as file:
        outcomes = [item if isinstance(item, Rejected) else maker(item) for item in read_samples(file, str(path))]
    accepted = {item.sample.key: item for item in outcomes if isinstance(item, ViewedSample)}
    assert set(accepted) == set(plan.expected_accepted)
    for key, size in plan.upright_sizes.items():
        assert accepted[key].original_size == tuple(size)
