"""The steps of a recipe as albumentations transforms, and the one resize that crops and plain views go through."""

from __future__ import annotations

import math
import os
import random
from functools import cache
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from encode_pipeline.decode import REDUCTIONS
from encode_pipeline.jitter import Jitter
from encode_pipeline.latents.command import RequestError, nearest
from encode_pipeline.recipe import ViewRecipe
from encode_pipeline.records import Pixels

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or it asks the network for its newest version
import albumentations as A
import cv2

cv2.setNumThreads(1)  # parallel over pictures, not within one

REFUSED = {
    *("Lambda", "TextImage", "FDA", "HistogramMatching", "PixelDistributionAdaptation"),
    *("Mosaic", "OverlayElements", "TemplateTransform", "MixUp"),
}
"""Transforms that run code, open files or need other pictures: a recipe is data, and a view shows its own sample."""
SIZES = ("height", "width", "min_height", "min_width")
"""Arguments that are `image_size` unless a recipe says otherwise, as is `size`."""
RESIZING = ("interpolation", "mask_interpolation", "area_for_downscale")
KEPT_DETAIL = 2
"""A reduced JPEG still has so many times the pixels that a view needs, along a side. See `reduction_for`."""
PROBES = 8
"""Seeds that a recipe is tried with on each probe picture."""


def resize(pixels: Pixels, side: int) -> Pixels:
    """A piece of a picture as a square of the size, by bicubic interpolation that averages when it shrinks.

    What Pillow's BICUBIC gives, to one step in 0.5 % of the values (57 dB to exact arithmetic, the limit of
    8 bits), in an eighth of its time: 1.0 ms for 900x870 to 512x512 against 8.2; OpenCV's INTER_AREA takes 4.4 ms
    for 46 dB, its INTER_CUBIC 0.6 for 47 and aliases. Integer arithmetic: the same bits on any number of threads,
    with and without AVX.
    """
    # Contiguous both as it goes in and as it comes out; else torch rearranges it, with a pool of threads.
    piece = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
    chw = piece[None].permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(chw, (side, side), mode="bicubic", antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


class ResizedCrop(A.RandomResizedCrop):
    """albumentations' random resized crop, resized as the plain view is."""

    def apply(self, img: Pixels, crop_coords: tuple[int, int, int, int], **params: Any) -> Pixels:
        left, top, right, bottom = crop_coords
        return resize(img[top:bottom, left:right], self.size[0])


def build_steps(recipe: ViewRecipe, image_size: int) -> A.Compose:
    """The recipe as one transform. What is wrong with a step is a one-line error."""
    steps = []
    for number, step in enumerate(recipe.steps, 1):
        ((name, arguments),) = step.items()
        steps.append(_build(f"recipe: step {number}, {name}", name, dict(arguments), image_size))
    return A.Compose(steps, save_applied_params=True)


def check_recipe(recipe: ViewRecipe, image_size: int) -> None:
    """Refuses a recipe that would fail on a picture it takes, or give views of another size, before a run begins."""
    compose = build_steps(recipe, image_size)
    short, long = recipe.min_side, max(recipe.min_side, 2 * image_size)
    for width, height in ((long, long), (short, short), (short, int(short * min(recipe.max_aspect, 100)))):
        where = f"on a picture of {width}x{height}"
        picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        _run_every_step(recipe, compose, picture, where)
        views = [_view(compose, seed, picture, image_size, where) for seed in (*range(PROBES), *range(PROBES))]
        if any(not np.array_equal(views[seed], views[seed + PROBES]) for seed in range(PROBES)):
            raise RequestError(f"recipe: {where}: the same seed does not give the same view twice")


def seed_steps(compose: A.Compose, seed: int) -> None:
    """Sets what the steps draw from: one sequence for all of them.

    With `set_random_seed` each step would begin the same sequence anew, and small crops would always be dark ones.
    """
    compose.set_random_state(np.random.Generator(np.random.Philox(key=seed)), random.Random(seed))


def reduction_for(compose: A.Compose, image_size: int, width: int, height: int) -> int:
    """By how much a JPEG of this size may be decoded smaller for these views: 8, 4, 2 or 1.

    The plain view and the smallest crop that can be drawn keep twice the pixels that they are resized to. A view
    then differs from the one that the whole picture gives by 40 dB PSNR at least: photographs of fine detail
    have 41 to 46, noise with a 1/f spectrum 45, smooth pictures 50 and more. (With just the pixels needed: 33 to 36.)
    """
    crop = compose.transforms[0]
    if not isinstance(crop, ResizedCrop) or crop.p < 1:
        return 1  # only of such a crop is it known beforehand how much of a picture it takes
    area, (low, high) = width * height * crop.scale[0], crop.ratio
    drawn = (math.sqrt(area * low), math.sqrt(area / high))
    central = (height * high, width / low)  # where nothing that is drawn fits
    fewest = min(width, height, *drawn, *central) / (KEPT_DETAIL * image_size)
    return next((factor for factor in REDUCTIONS if fewest >= factor), 1)


def _build(where: str, name: str, arguments: dict[str, Any], image_size: int) -> A.BasicTransform:
    known = _known_transforms()
    if name in REFUSED:
        raise RequestError(f"{where}: not in a recipe: it runs code, opens files or needs other pictures")
    if name not in known:
        raise RequestError(f"{where}: no such transform{nearest(name, known)}")
    kind = known[name]
    takes = set(kind.InitSchema.model_fields) - {"strict"}
    for argument in arguments:
        if argument not in takes:
            raise RequestError(f"{where}: unknown argument {argument!r}{nearest(argument, takes)}")
    side: dict[str, Any] = {key: image_size for key in SIZES if key in takes}
    if "size" in takes:
        side["size"] = (image_size, image_size)
    if kind is A.ColorJitter:
        kind = Jitter
    elif kind is A.RandomResizedCrop and not set(RESIZING) & set(arguments):
        kind = ResizedCrop
    values = {**side, **arguments}
    made_by = next(base for base in kind.__mro__ if "__init__" in vars(base))
    if "InitSchema" in vars(made_by):
        values["strict"] = True  # or of some wrong values albumentations would warn, and take its defaults for all
    try:
        return kind(**values)
    except (ValueError, TypeError) as error:
        if isinstance(cause := error.__cause__, ValidationError):
            first = cause.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else ""
            given = f"{name}={arguments[name]!r}: " if name in arguments else f"{name}: " if name else ""
            raise RequestError(f"{where}: {given}{first['msg'].removeprefix('Value error, ')}") from None
        raise RequestError(f"{where}: {_one_line(error)}") from None


@cache
def _known_transforms() -> dict[str, Any]:
    """The transforms of pictures that a recipe may name."""
    bases = (A.ImageOnlyTransform, A.DualTransform)
    classes = {name: kind for name, kind in vars(A).items() if isinstance(kind, type) and issubclass(kind, bases)}
    return {
        name: kind
        for name, kind in classes.items()
        if kind not in bases and name not in REFUSED and not issubclass(kind, A.Transform3D)
    }


def _run_every_step(recipe: ViewRecipe, compose: A.Compose, picture: Pixels, where: str) -> None:
    """Runs also the steps that chance would leave out nearly always."""
    seed_steps(compose, 0)
    image = picture.copy()
    for number, (step, transform) in enumerate(zip(recipe.steps, compose.transforms, strict=True), 1):
        try:
            image = transform(image=image, force_apply=True)["image"]
        except Exception as error:  # whatever a transform does not like, the recipe is at fault
            (name,) = step
            raise RequestError(f"recipe: step {number}, {name}: {where}: {_one_line(error)}") from None


def _view(compose: A.Compose, seed: int, picture: Pixels, side: int, where: str) -> Any:
    seed_steps(compose, seed)
    try:
        view = compose(image=picture.copy())["image"]
    except Exception as error:
        raise RequestError(f"recipe: {where}: {_one_line(error)}") from None
    if view.shape != (side, side, 3) or view.dtype != np.uint8:
        found = f"{'x'.join(map(str, view.shape))} {view.dtype}"
        raise RequestError(f"recipe: {where} its steps give {found}, not {side}x{side}x3 uint8")
    return view


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
