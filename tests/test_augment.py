"""Views: right way up, the right size, and a function of the sample alone."""

from __future__ import annotations

import colorsys
import io
import json
import math
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
from PIL import Image

from demo.warts import WartPlan
from encode_pipeline.augment import ViewMaker
from encode_pipeline.decode import decode
from encode_pipeline.jitter import Jitter, turn_hue
from encode_pipeline.read import read_samples
from encode_pipeline.recipe import ViewRecipe
from encode_pipeline.records import Rejected, Sample, ViewedSample
from encode_pipeline.transforms import build_steps, reduction_for, resize

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


@pytest.mark.parametrize("size", [(32, 100_000), (2000, 1100), (129, 128), (60, 900), (33, 40), (1, 1)])
def test_every_view_is_square_and_of_the_size(size: tuple[int, int]) -> None:
    anything = ViewRecipe(min_side=1, max_aspect=1e6)
    viewed = ViewMaker(anything, 4, 128, 0, "s")(sample(picture(*size)))
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


def test_a_view_is_the_same_whichever_others_are_made() -> None:
    one = sample(picture(300, 200))
    everything = ViewMaker(RECIPE, 4, 64, 0, "s")(one)
    assert isinstance(everything, ViewedSample)
    for view in range(4):
        alone = ViewMaker(RECIPE, 1, 64, 0, "s").some(one, [view])
        assert isinstance(alone, ViewedSample)
        assert np.array_equal(alone.views[0].pixels, everything.views[view].pixels)
        assert alone.views[0].parameters == everything.views[view].parameters


def test_steps_draw_independently() -> None:
    """How large a crop is says nothing about how bright it is."""
    maker = ViewMaker(RECIPE, 301, 16, 0, "s")
    viewed = maker(sample(picture(64, 64)))
    assert isinstance(viewed, ViewedSample)
    drawn = [view.parameters for view in viewed.views[1:]]
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (view["crop"] for view in drawn)]
    brightness = [view["brightness"] for view in drawn]
    assert abs(np.corrcoef(areas, brightness)[0, 1]) < 0.2


def test_a_resize_is_pillows_bicubic() -> None:
    pixels = np.asarray(picture(401, 301))
    for side in (64, 128, 512):
        expected = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(resize(pixels, side) - expected).max() <= 1


def test_fine_stripes_become_grey_and_no_pattern() -> None:
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[::2] = 255
    small = resize(stripes[:-1, :-1], 100).astype(int)
    assert np.abs(small[2:-2, 2:-2] - 127).max() <= 4


@pytest.mark.parametrize("turn", [-1 / 12, -0.02, 0.0001, 0.02, 0.07])
def test_hues_turn_exactly(turn: float) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    turned = turn_hue(colours, turn)
    for before, after in zip(colours.reshape(-1, 3), turned.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before / 255)
        exact = np.array(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)) * 255
        assert np.abs(after - exact).max() <= 0.51


def test_the_jitter_is_albumentations() -> None:
    """The same draws, and but for its rounding of hues the same colours."""
    colours = np.asarray(picture())
    for seed in range(20):
        images = []
        for kind in (A.ColorJitter, Jitter):
            step = kind(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=1)
            step.set_random_state(np.random.default_rng(seed), random.Random(seed))
            images.append(step(image=colours)["image"].astype(int))
        assert np.abs(images[0] - images[1]).mean() < 3
        step = Jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0, p=1)
        twin = A.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0, p=1)
        for one in (step, twin):
            one.set_random_state(np.random.default_rng(seed), random.Random(seed))
        assert np.abs(step(image=colours)["image"].astype(int) - twin(image=colours)["image"]).max() <= 3


def detailed(width: int, height: int) -> Image.Image:
    """Noise with the spectrum of photographs, 1/f, and some edges that are as sharp as pixels allow."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1 / max(width, height)
    field = np.stack(
        [np.fft.ifft2(np.fft.fft2(rng.standard_normal((height, width))) / frequency).real for _ in "rgb"], 2
    )
    levels = 128 + 40 * field / field.std()
    for place in range(0, width, 160):
        levels[:, place : place + 40] = 255 - levels[:, place : place + 40]
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("size", "orientation", "reduced"),
    [
        ((851, 643), 1, 4),
        ((848, 640), 6, 4),
        ((851, 643), 6, 1),  # what is left over at an edge would come to the front
        ((505, 499), 1, 2),
        ((1704, 1280), 3, 8),
        ((330, 300), 1, 1),
    ],
)
def test_a_reduced_jpeg_shows_the_same(size: tuple[int, int], orientation: int, reduced: int) -> None:
    """40 dB or more to what the whole picture gives for the recorded crop."""
    side = 64
    crops = ViewRecipe(steps=[{"RandomResizedCrop": {"scale": [0.66, 1.0]}}])
    exif = Image.Exif()
    exif[0x0112] = orientation
    one = sample(detailed(*size), "JPEG", quality=90, exif=exif)
    viewed = ViewMaker(crops, 6, side, 0, "s")(one)
    whole = decode(one, crops)
    assert isinstance(viewed, ViewedSample) and not isinstance(whole, Rejected)
    height, width = whole.shape[:2]
    assert viewed.original_size == (width, height)
    for view in viewed.views:
        assert view.parameters.get("reduced", 1) == reduced
        across, down = width // reduced, height // reduced
        short = min(across, down)
        place = ((across - short) // 2, (down - short) // 2)
        central = [edge * reduced for edge in (*place, place[0] + short, place[1] + short)]
        left, top, right, bottom = view.parameters.get("crop", central)
        error = np.square(resize(whole[top:bottom, left:right], side).astype(float) - view.pixels).mean()
        assert error == 0 if reduced == 1 else 10 * np.log10(255**2 / error) >= 40


def test_reduction_leaves_twice_what_the_smallest_crop_needs() -> None:
    steps = build_steps(RECIPE, 512)
    smallest = math.sqrt(0.66 * 0.75)  # of a square's side
    side = math.ceil(2 * 2 * 512 / smallest)
    assert [reduction_for(steps, 512, side + more, side + more) for more in (-1, 0)] == [1, 2]
    assert reduction_for(steps, 512, 9_999, 1_000) == 1
    assert reduction_for(steps, 64, 4_000, 3_000) == 8
    flips = ViewRecipe(steps=["HorizontalFlip", {"RandomResizedCrop": {}}])
    assert reduction_for(build_steps(flips, 64), 64, 4_000, 3_000) == 1


def test_a_first_step_that_works_in_place_leaves_the_picture_to_the_next_view() -> None:
    recipe = ViewRecipe(steps=[{"Erasing": {"p": 1.0}}, {"PixelDropout": {"p": 1.0}}, {"Resize": {}}])
    one = sample(picture(64, 64))
    together = ViewMaker(recipe, 4, 64, 0, "s")(one)
    alone = ViewMaker(recipe, 4, 64, 0, "s").some(one, [3])
    assert isinstance(together, ViewedSample) and isinstance(alone, ViewedSample)
    assert np.array_equal(together.views[3].pixels, alone.views[0].pixels)


def test_what_steps_drew_is_recorded_by_name() -> None:
    steps = [
        {"RandomResizedCrop": {}},
        {"HorizontalFlip": {"p": 1.0}},
        {"ColorJitter": {"p": 1.0}},
        {"GaussNoise": {"p": 1.0}},
        {"RandomCrop": {"height": 48, "width": 48}},
        {"ColorJitter": {"p": 0.0}},
        {"ColorJitter": {"p": 1.0}},
        "Resize",
    ]
    viewed = ViewMaker(ViewRecipe(steps=steps), 2, 64, 0, "s")(sample(picture()))
    assert isinstance(viewed, ViewedSample)
    drawn = viewed.views[1].parameters
    assert json.loads(json.dumps(drawn)) == drawn
    assert {"recipe", "seed", "crop", "crop.5", "HorizontalFlip", "hue", "hue.6", "order", "Resize"} <= set(drawn)
    assert "noise_map" not in drawn and len(json.dumps(drawn)) < 600


def test_warts_come_out_as_planned(warty_tar: tuple[Path, WartPlan]) -> None:
    path, plan = warty_tar
    maker = ViewMaker(RECIPE, 2, 64, 0, "s")
    with path.open("rb") as file:
        outcomes = [item if isinstance(item, Rejected) else maker(item) for item in read_samples(file, str(path))]
    accepted = {item.sample.key: item for item in outcomes if isinstance(item, ViewedSample)}
    assert set(accepted) == set(plan.expected_accepted)
    for key, size in plan.upright_sizes.items():
        assert accepted[key].original_size == tuple(size)
