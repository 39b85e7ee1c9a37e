"""A sample into its views: one decode, then a plain view and as many augmented ones as asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from encode_pipeline.decode import Picture, decoded
from encode_pipeline.randomness import seed_of
from encode_pipeline.recipe import ViewRecipe
from encode_pipeline.records import Rejected, Sample, View, ViewedSample
from encode_pipeline.transforms import ResizedCrop, build_steps, reduction_for, resize, seed_steps

if TYPE_CHECKING:
    import albumentations as A

SAME_EVERY_TIME = {"shape", "interpolation", "fill", "fill_mask", "mask_interpolation"}
"""What albumentations keeps beside the draws of a step."""
MAX_RECORDED = 16
"""Numbers in a parameter; longer ones, as the noise of a noisy view, come again from the seed."""


class ViewMaker:
    """Makes the views of samples of one source shard. Safe to share between threads."""

    def __init__(self, recipe: ViewRecipe, views: int, image_size: int, seed: int, shard: str) -> None:
        self.recipe, self.views, self.image_size = recipe, views, image_size
        self.seed, self.shard = seed, shard
        self._steps = threading.local()  # transforms carry their generator, so each thread has its own

    def __call__(self, sample: Sample) -> ViewedSample | Rejected:
        """All views of a sample; what cannot be decoded is refused with the reason."""
        return self.some(sample, range(self.views))

    def some(self, sample: Sample, views: Iterable[int]) -> ViewedSample | Rejected:
        """Some views of a sample: each is the same, whichever others are made."""
        with decoded(sample, self.recipe, self._reduction) as picture:
            if isinstance(picture, Rejected):
                return picture
            made = tuple(self.view(picture, sample.key, number) for number in views)
            return ViewedSample(sample, picture.size, made)

    def view(self, picture: Picture, key: str, number: int) -> View:
        """One view of a decoded picture."""
        return self._augmented(picture, key, number) if number else self._plain(picture)

    def _reduction(self, width: int, height: int) -> int:
        return reduction_for(self._compose(), self.image_size, width, height)

    def _plain(self, picture: Picture) -> View:
        """The centre square, at the size."""
        height, width = picture.pixels.shape[:2]
        short = min(height, width)
        left, top = (width - short) // 2, (height - short) // 2
        # Cut first: a picture of 32 by 3,000,000 pixels is small, but not with its short side at 512.
        pixels = resize(picture.pixels[top : top + short, left : left + short], self.image_size)
        return View(pixels, {"recipe": "plain", **_reduced(picture)})

    def _augmented(self, picture: Picture, key: str, view: int) -> View:
        seed = seed_of(self.seed, self.shard, key, view, "augment")
        compose = self._compose()
        seed_steps(compose, seed)
        # A crop leaves the picture as it is; another first step may work in place, and the next view needs it too.
        untouched = isinstance(compose.transforms[0], ResizedCrop)
        result = compose(image=picture.pixels if untouched else picture.pixels.copy())
        drawn = recorded(result["applied_transforms"], picture.reduced)
        return View(
            np.ascontiguousarray(result["image"]), {"recipe": "augmented", "seed": seed, **_reduced(picture), **drawn}
        )

    def _compose(self) -> A.Compose:
        if not hasattr(self._steps, "compose"):
            self._steps.compose = build_steps(self.recipe, self.image_size)
        return self._steps.compose


def recorded(applied: list[tuple[str, dict[str, Any]]], reduced: int = 1) -> dict[str, Any]:
    """What the steps of a view drew, as small JSON: the parameters of each by their names.

    `crop` is left, top, right and bottom; that of the first step in pixels of the whole upright picture. A name
    that an earlier step has taken gets the step's place, as in `crop.3`. A step that drew nothing leaves its own name.
    """
    parameters: dict[str, Any] = {}
    for place, (step, drawn) in enumerate(applied, 1):
        small = {name: _small(value) for name, value in drawn.items() if name not in SAME_EVERY_TIME}
        kept = {name.removesuffix("_coords"): value for name, value in small.items() if value is not None}
        if place == 1 and "crop" in kept:
            kept["crop"] = [edge * reduced for edge in kept["crop"]]
        for name, value in (kept or {step: True}).items():
            parameters[f"{name}.{place}" if name in parameters else name] = value
    return parameters


def _small(value: Any) -> Any:
    """A parameter as it is recorded, or None if it is too long."""
    if isinstance(value, (list, tuple, np.ndarray)):
        values = np.asarray(value)
        if values.dtype.kind not in "biufU" or values.size > MAX_RECORDED:
            return None
        return [_small(item) for item in values.tolist()]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return round(value, 6)
    return value if isinstance(value, (bool, int, str)) else None


def _reduced(picture: Picture) -> dict[str, int]:
    return {"reduced": picture.reduced} if picture.reduced > 1 else {}
