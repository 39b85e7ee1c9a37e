"""Which classes a data set has, and the prompts to put their names in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import open_clip
from timm.data.imagenet_info import ImageNetInfo

from encode_pipeline.latents.storage import Storage
from train.zero_shot import CLASSES_FILE, read_classes


@dataclass(frozen=True)
class ClassList:
    """Class names in the order of their numbers, and prompts with `{c}` in the place of a name."""

    names: list[str]
    templates: list[str]
    where: str
    """The file that says so, for messages."""


def listed_classes(classes: Path | None, folder: str | Path) -> ClassList | None:
    """The list that was asked for, else the one in the data set's folder, if it has one."""
    if classes is None and not Storage(folder).exists(CLASSES_FILE):
        return None
    return ClassList(*read_classes(classes or folder), f"{classes or folder}/{CLASSES_FILE}")


def imagenet_classes() -> ClassList:
    """ImageNet's 1000 names and the 80 prompts that CLIP was measured with."""
    prompts = [template("{c}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    return ClassList(list(open_clip.IMAGENET_CLASSNAMES), prompts, "ImageNet's 1000 names")


def imagenet_numbers() -> dict[str, int]:
    """The number of each of ImageNet's classes by its WordNet id."""
    return {wnid: number for number, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names())}


def own_classes(names: Sequence[str]) -> ClassList:
    """The names that occur in the data, with OpenCLIP's seven short prompts."""
    prompts = [template("{c}") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES]
    return ClassList(list(names), prompts, "the labels in the data")
