"""Views of a decoded picture on one core: this pipeline against the libraries' own ways of the same recipe."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or it asks the network for its newest version
import albumentations as A
import cv2
import numpy as np
import open_clip
import torch
from PIL import Image
from pydantic import Field
from torchvision.transforms.v2 import functional

from benchmarks import straightforward
from benchmarks.figures import Measured, under
from benchmarks.paired import paired
from benchmarks.pictures import draw
from benchmarks.settings import BenchmarkConfig
from encode_pipeline.augment import ViewMaker
from encode_pipeline.config import PositiveInt
from encode_pipeline.decode import Picture
from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.recipe import ViewRecipe
from encode_pipeline.records import Pixels

SCALE, RATIO, JITTER = (0.66, 1.0), (3 / 4, 4 / 3), (0.2, 0.2, 0.2, 0.02)
SEED = 0
Look = Callable[[int], Any]
"""What makes the view of the picture of this number."""


class AugmentConfig(BenchmarkConfig):
    pictures: PositiveInt = Field(48, description="pictures, each seen once in a turn")
    width: PositiveInt = Field(1024, description="of a picture")
    height: PositiveInt = Field(768, description="of a picture")
    image_size: PositiveInt = Field(512, description="side of a view")


def measure(config: AugmentConfig) -> Measured:
    """Views a second of one core's time; every way is given the decoded picture as it likes it best."""
    pictures = Pictures(config)
    with straightforward.torch_threads(1):  # as in a DataLoader's worker; parallel over pictures, not within one
        figures = [
            figure
            for kind, looks in {"plain": pictures.plain(), "augmented": pictures.augmented()}.items()
            for figure in under(kind, paired(turns(looks, config), config.rounds, unit="views", by="cpu"))
        ]
    details = {
        "picture": [config.width, config.height],
        "recipe": {"crop": SCALE, "jitter": JITTER},
        "interpolation": "bicubic; albumentations' and OpenCV's leave pixels out where a picture shrinks",
    }
    return Measured(tuple(figures), details)


def turns(looks: dict[str, Look], config: AugmentConfig) -> dict[str, Callable[[], int]]:
    """A turn of each way: a view of every picture."""

    def turn(look: Look) -> int:
        torch.manual_seed(SEED)  # what torchvision draws from: the same crops in every round
        for number in range(config.pictures):
            view = look(number)
            if sorted(view.shape) != [3, config.image_size, config.image_size] or str(view.dtype)[-5:] != "uint8":
                raise CheckFailed(f"a view of shape {tuple(view.shape)}, {view.dtype}")
        return config.pictures

    return {name: lambda look=look: turn(look) for name, look in looks.items()}  # type: ignore[misc]


class Pictures:
    """The same pictures as arrays, tensors and PIL's, and the ways to look at them."""

    def __init__(self, config: AugmentConfig) -> None:
        drawn = draw(config.pictures, max(config.width, config.height), seed=1)
        self.size = config.image_size
        self.arrays = [np.ascontiguousarray(array[: config.height, : config.width]) for array in drawn]
        self.tensors = [torch.from_numpy(array).permute(2, 0, 1).contiguous() for array in self.arrays]
        self.pil = [Image.fromarray(array) for array in self.arrays]

    def plain(self) -> dict[str, Look]:
        """Short side to the size, centre square."""
        on_tensor = without_pil(straightforward.plain(self.size))
        on_array = A.Compose(
            [A.SmallestMaxSize(self.size, interpolation=cv2.INTER_CUBIC), A.CenterCrop(self.size, self.size)]
        )
        on_pil = pixels_alone(open_clip.image_transform(self.size, is_train=False))
        short = min(self.arrays[0].shape[:2])
        return {
            "torchvision v2, uint8 tensors": lambda number: on_tensor(self.tensors[number]),
            "albumentations": lambda number: on_array(image=self.arrays[number])["image"],
            "open_clip's image_transform, PIL": lambda number: on_pil(self.pil[number]),
            "this pipeline": self._ours(view=0),
            "limit: OpenCV's bilinear resize alone": self._resize(short, short),
        }

    def augmented(self) -> dict[str, Look]:
        """The paper's: a crop of two thirds and more, and mild colour changes."""
        on_tensor = without_pil(straightforward.augmented(self.size))
        on_array = by_albumentations(self.size)
        given = open_clip.AugmentationCfg(scale=SCALE, color_jitter=JITTER, color_jitter_prob=1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that the jitter is not used, and uses it
            on_pil = pixels_alone(open_clip.image_transform(self.size, is_train=True, aug_cfg=given))
        share = (sum(SCALE) / 2) ** 0.5  # of each side, on average
        height, width = (int(side * share) for side in self.arrays[0].shape[:2])
        return {
            "torchvision v2, uint8 tensors": lambda number: on_tensor(self.tensors[number]),
            "albumentations": lambda number: on_array(image=self.arrays[number])["image"],
            "open_clip's image_transform, PIL": lambda number: on_pil(self.pil[number]),
            "this pipeline": self._ours(view=1),
            "limit: OpenCV's bilinear resize alone": self._resize(width, height),
        }

    def _ours(self, view: int) -> Look:
        """As in a shard: from a decoded picture to pixels, with a record of what was drawn."""
        maker = ViewMaker(ViewRecipe(), view + 1, self.size, SEED, "shard")
        pictures = [Picture(array, (array.shape[1], array.shape[0]), 1) for array in self.arrays]
        return lambda number: maker.view(pictures[number], f"{number:09d}", view).pixels

    def _resize(self, width: int, height: int) -> Look:
        crops: Sequence[Pixels] = [array[:height, :width] for array in self.arrays]
        return lambda number: cv2.resize(crops[number], (self.size, self.size), interpolation=cv2.INTER_LINEAR)


def without_pil(transform: Any) -> Any:
    """A transform of PIL's pictures as one of tensors."""
    return type(transform)(transform.transforms[1:])


def by_albumentations(image_size: int) -> A.Compose:
    """Its own crop and jitter, as its documentation has them."""
    crop = A.RandomResizedCrop((image_size, image_size), scale=SCALE, ratio=RATIO, interpolation=cv2.INTER_CUBIC)
    brightness, contrast, saturation, hue = JITTER
    jitter = A.ColorJitter(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue, p=1.0)
    return A.Compose([crop, jitter])


def pixels_alone(transform: Any) -> Callable[[Any], Any]:
    """OpenCLIP's transform without its last two steps, which make floats: a VAE's pipeline moves bytes."""
    steps = type(transform)(transform.transforms[:-2])
    return lambda image: functional.pil_to_tensor(steps(image))
