"""A sample into its views: one decode, then a plain view and as many augmented ones as asked for."""

from __future__ import annotations

import io
import os
import threading
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from encode_pipeline.config import ViewRecipe
from encode_pipeline.randomness import seed_of
from encode_pipeline.records import Pixels, Reason, Rejected, Sample, View, ViewedSample

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or it asks the network for its newest version
import albumentations as A
import cv2

cv2.setNumThreads(1)  # parallel over pictures, not within one

FORMATS = ("JPEG", "PNG", "WEBP")
Image.MAX_IMAGE_PIXELS = None  # the recipe's own limit is checked before anything is decoded


class ViewMaker:
    """Makes the views of samples of one source shard. Safe to share between threads."""

    def __init__(self, recipe: ViewRecipe, views: int, image_size: int, seed: int, shard: str) -> None:
        self.recipe, self.views, self.image_size = recipe, views, image_size
        self.seed, self.shard = seed, shard
        self._transforms = threading.local()  # a transform carries its generator, so each thread has its own

    def __call__(self, sample: Sample) -> ViewedSample | Rejected:
        """All views of a sample; what cannot be decoded is refused with the reason."""
        picture = decode(sample, self.recipe)
        if isinstance(picture, Rejected):
            return picture
        views = [self._plain(picture)]
        for view in range(1, self.views):
            views.append(self._augmented(picture, seed_of(self.seed, self.shard, sample.key, view, "augment")))
        height, width = picture.shape[:2]
        return ViewedSample(sample, (width, height), tuple(views))

    def _plain(self, picture: Pixels) -> View:
        """The centre square, at the size."""
        height, width = picture.shape[:2]
        short, side = min(height, width), self.image_size
        left, top = (width - short) // 2, (height - short) // 2
        # Cut first: a picture of 32 by 3,000,000 pixels is small, but not with its short side at 512.
        square = picture[top : top + short, left : left + short]
        interpolation = cv2.INTER_AREA if short > side else cv2.INTER_CUBIC
        pixels = np.asarray(cv2.resize(square, (side, side), interpolation=interpolation), dtype=np.uint8)
        return View(pixels, {"recipe": "plain"})

    def _augmented(self, picture: Pixels, seed: int) -> View:
        transform = self._transform()
        transform.set_random_seed(seed)
        result = transform(image=picture)
        parameters: dict[str, Any] = {"recipe": "augmented", "seed": seed}
        for _, applied in result["applied_transforms"]:
            if "crop_coords" in applied:
                parameters["crop"] = [int(edge) for edge in applied["crop_coords"]]
            else:
                names = ("brightness", "contrast", "saturation", "hue")
                parameters |= {name: round(float(applied[name]), 6) for name in names}
                parameters["order"] = [int(place) for place in applied["order"]]
        return View(np.ascontiguousarray(result["image"]), parameters)

    def _transform(self) -> A.Compose:
        if not hasattr(self._transforms, "compose"):
            recipe, side = self.recipe, self.image_size
            steps: list[A.BasicTransform] = [
                A.RandomResizedCrop(
                    size=(side, side),
                    scale=recipe.crop_scale,
                    ratio=recipe.crop_ratio,
                    interpolation=cv2.INTER_CUBIC,
                    area_for_downscale="image",
                ),
                A.ColorJitter(
                    brightness=recipe.brightness,
                    contrast=recipe.contrast,
                    saturation=recipe.saturation,
                    hue=recipe.hue,
                    p=1,
                ),
            ]
            self._transforms.compose = A.Compose(steps, save_applied_params=True)
        compose: A.Compose = self._transforms.compose
        return compose


def decode(sample: Sample, recipe: ViewRecipe) -> Pixels | Rejected:
    """The upright RGB picture; transparency lies on white."""
    if not sample.image:
        return Rejected(sample.key, Reason.UNDECODABLE_IMAGE, "zero bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata in a picture that decodes is nobody's news
            with Image.open(io.BytesIO(sample.image), formats=FORMATS) as image:
                width, height = image.size
                if width * height > recipe.max_pixels:
                    return Rejected(sample.key, Reason.TOO_LARGE, f"{width}x{height}")
                if min(width, height) < recipe.min_side:
                    return Rejected(sample.key, Reason.TOO_SMALL, f"{width}x{height}")
                return np.asarray(_rgb(ImageOps.exif_transpose(image)))
    except MemoryError:
        raise
    except UnidentifiedImageError:  # its text holds a memory address, and records are to be the same every time
        return Rejected(sample.key, Reason.UNDECODABLE_IMAGE, f"not one of {', '.join(FORMATS)}")
    except Exception as error:  # a decoder may raise anything on hostile bytes; all of it means the same
        return Rejected(
            sample.key, Reason.UNDECODABLE_IMAGE, " ".join(f"{type(error).__name__}: {error}".split())[:200]
        )


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
