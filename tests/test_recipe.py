"""Recipes: what users write, what they are told when it is wrong, and what a version's name takes from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from encode_pipeline.config import EncodeConfig
from encode_pipeline.latents.command import RequestError, build, to_yaml
from encode_pipeline.recipe import ViewRecipe, read_recipe, recipe_names
from encode_pipeline.transforms import REFUSED, build_steps, check_recipe, seed_steps
from tests.conftest import Configure

CROP = {"RandomResizedCrop": {"scale": [0.66, 1.0]}}


def config(**changes: Any) -> EncodeConfig:
    return build(EncodeConfig, {"source": "x.tar", "store": "s", "vae": "v", **changes})


def recipe(*steps: Any, **more: Any) -> ViewRecipe:
    return build(ViewRecipe, {"steps": list(steps), **more})


def test_the_papers_recipe_is_what_comes_without_asking() -> None:
    assert config().recipe == config(recipe="paper").recipe == ViewRecipe() == read_recipe("paper")
    crop, jitter = ViewRecipe().steps
    assert crop["RandomResizedCrop"]["scale"] == [0.66, 1.0]
    assert jitter == {"ColorJitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.02, "p": 1.0}}


@pytest.mark.parametrize("name", recipe_names())
def test_packaged_recipes_hold_at_any_size(name: str) -> None:
    for size in (64, 512):
        check_recipe(read_recipe(name), size)


def test_a_recipe_of_ones_own_comes_from_a_file_or_in_place(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "min_side: 64\nsteps:\n  - RandomResizedCrop: {scale: [0.66, 1.0]}\n  - HorizontalFlip\n  - ToGray:\n"
    )
    mine = config(recipe=str(path)).recipe
    assert mine == config(recipe={"min_side": 64, "steps": [CROP, {"HorizontalFlip": {}}, {"ToGray": None}]}).recipe
    check_recipe(mine, 64)


def test_a_recipe_survives_being_printed_and_read_again(tmp_path: Path) -> None:
    whole = config(recipe={"steps": [CROP, "HorizontalFlip"]})
    assert build(EncodeConfig, yaml.safe_load(to_yaml(whole))) == whole
    dumped = whole.recipe.model_dump(mode="json")
    assert ViewRecipe(**dumped).model_dump(mode="json") == dumped
    assert dumped["steps"] == [CROP, {"HorizontalFlip": {}}]


def test_the_recipe_is_part_of_a_versions_name(spec: Any) -> None:
    def fingerprint(one: ViewRecipe) -> str:
        changed: str = spec.model_copy(update={"recipe": one.model_dump(mode="json")}).fingerprint
        return changed

    assert fingerprint(ViewRecipe()) == fingerprint(read_recipe("paper"))
    others = [recipe(CROP), recipe({"RandomResizedCrop": {"scale": [0.6, 1.0]}}), recipe(CROP, min_side=33)]
    assert len({fingerprint(one) for one in (ViewRecipe(), *others)}) == 4


WRONG_AT_BIRTH = [
    ({"steps": []}, "at least 1 item"),
    ({"steps": [{"RandomResizedCrop": {}, "ColorJitter": {}}]}, "a step is one name with its arguments"),
    ({"steps": [["RandomResizedCrop"]]}, "a step is one name with its arguments"),
    ({"steps": [{"RandomResizedCrop": [0.6, 1]}]}, "should be a valid dictionary"),
    ({"steps": [{"RandomResizedCrop": {"scale": float("nan")}}]}, "JSON"),
    ({"step": [CROP]}, "unknown key 'recipe.step'"),
    ({"min_side": 0}, "greater than 0"),
    ({"max_aspect": 0.5}, "greater than or equal to 1"),
    ({"max_pixels": 1 << 40}, "less than or equal to"),
    ("papr", "no such recipe; did you mean 'paper'?"),
    ("no.yaml", "no.yaml: no such config file"),
]


@pytest.mark.parametrize(("value", "says"), WRONG_AT_BIRTH)
def test_what_is_no_recipe_is_one_line(value: Any, says: str) -> None:
    with pytest.raises(RequestError) as refusal:
        config(recipe=value)
    assert says in str(refusal.value) and "\n" not in str(refusal.value)


WRONG_STEPS = [
    ([{"RandomResizeCrop": {}}], "recipe: step 1, RandomResizeCrop: no such transform; did you mean 'RandomResizedC"),
    ([CROP, {"ColorJitter": {"brightnes": 1}}], "step 2, ColorJitter: unknown argument 'brightnes'; did you mean 'b"),
    ([{"RandomResizedCrop": {"scale": [0.5, 9]}}], "step 1, RandomResizedCrop: scale=[0.5, 9]: "),
    ([{"RandomResizedCrop": {"scale": "all"}}], "step 1, RandomResizedCrop: scale='all': "),
    ([{"RandomResizedCrop": {"ratio": [0, 1]}}], "RandomResizedCrop: on a picture of "),
    ([CROP, {"ColorJitter": {"p": 2}}], "step 2, ColorJitter: p=2: "),
    ([CROP, "RandomSizedCrop"], "step 2, RandomSizedCrop: min_max_height: Field required"),
    (["SmallestMaxSize"], "step 1, SmallestMaxSize: Either max_size or max_size_hw must be specified"),
    ([CROP, {"MedianBlur": {"blur_limit": "much"}}], "step 2, MedianBlur: "),
    (["HorizontalFlip"], "on a picture of 128x128 its steps give 128x128x3 uint8, not 64x64x3 uint8"),
    ([{"RandomResizedCrop": {"size": [32, 32]}}], "its steps give 32x32x3 uint8, not 64x64x3 uint8"),
    ([CROP, "ToFloat"], "its steps give 64x64x3 float32, not 64x64x3 uint8"),
    ([{"Resize": {"p": 0.5}}], "its steps give 128x128x3 uint8"),
    (["RandomCrop"], "step 1, RandomCrop: on a picture of 32x32: "),
    ([CROP, {"RandomCrop": {"height": 99, "width": 99, "p": 0.0001}}], "step 2, RandomCrop: on a picture of 128x128: "),
    ([CROP, "MaskDropout"], "step 2, MaskDropout: "),
    ([CROP, "ToTensorV2"], "step 2, ToTensorV2: no such transform"),
    ([CROP, "RandomCrop3D"], "no such transform"),
    ([CROP, "OneOf"], "no such transform"),
    *[([CROP, name], "not in a recipe: it runs code, opens files or needs other pictures") for name in sorted(REFUSED)],
]  # fmt: skip


@pytest.mark.parametrize(("steps", "says"), WRONG_STEPS)
def test_wrong_steps_are_named_before_a_run(steps: list[Any], says: str) -> None:
    with pytest.raises(RequestError) as refusal:
        check_recipe(recipe(*steps), 64)
    assert says in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_run_refuses_a_wrong_recipe_before_it_writes(configure: Configure) -> None:
    from encode_pipeline.run import run

    wrong = configure(recipe={"steps": [{"ColourJitter": {}}]})
    with pytest.raises(RequestError, match="did you mean 'ColorJitter'"):
        run(wrong)
    assert not Path(wrong.store).exists()


@pytest.mark.parametrize("name", ["MedianBlur", "RandomRotate90", "ToSepia", "GaussNoise", "ImageCompression", "D4"])
def test_any_transform_of_one_picture_may_follow(name: str) -> None:
    check_recipe(recipe(CROP, name), 64)


def test_an_own_interpolation_is_kept() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
    nearest = build_steps(recipe({"RandomResizedCrop": {"scale": [0.9, 1.0], "interpolation": 0}}), 64)
    seed_steps(nearest, 1)
    shown = nearest(image=picture)["image"]
    assert {tuple(pixel) for pixel in shown.reshape(-1, 3)} <= {tuple(pixel) for pixel in picture.reshape(-1, 3)}
