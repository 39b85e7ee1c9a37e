"""Unit features of pictures, part by part, whatever the model and the data are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor

from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.writer import Latent
from eval.class_names import ClassList
from eval.picture_set import Part


@dataclass(frozen=True, slots=True)
class Item:
    """What is known of a picture without a look at it."""

    key: str
    label: int | None
    """The number of its class, where the data have labels."""
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Damage:
    """Stands where the content of a picture would, and says why there is none."""

    reason: str


@dataclass(frozen=True)
class FeatureBatch:
    """Neighbouring pictures of a part."""

    items: list[tuple[Item, Damage | None]]
    features: Tensor
    """A unit row for each picture that is not damaged, in their order."""


Content = Any
"""Of a picture, as its source has it: a compressed file, or a latent."""
Prepare = Callable[[Sequence[Item], Sequence[Content], Part], Sequence[Tensor | Damage]]
Embed = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Feed:
    """A source of pictures and the way from them to features.

    A part is cut into batches from its own start, so that features do not depend on which parts were done before.
    """

    read: Callable[[Part], Iterator[tuple[Item, Content | Damage]]]
    prepare: Prepare
    """What the model reads of some pictures, or why there is nothing for it to read."""
    embed: Embed
    batch_size: int

    def batches(self, part: Part) -> Iterator[FeatureBatch]:
        """All pictures of a part."""
        pictures = self.read(part)
        while batch := list(islice(pictures, self.batch_size)):
            whole = [(item, content) for item, content in batch if not isinstance(content, Damage)]
            contents = iter(self.prepare([item for item, _ in whole], [content for _, content in whole], part))
            ready = [content if isinstance(content, Damage) else next(contents) for _, content in batch]
            readable = [content for content in ready if not isinstance(content, Damage)]
            features = self.embed(torch.stack(readable)) if readable else torch.empty(0)
            if not torch.isfinite(features).all():
                raise CheckFailed(f"{part.name}: the model gives features that are not finite")
            damages = [content if isinstance(content, Damage) else None for content in ready]
            yield FeatureBatch([(item, damage) for (item, _), damage in zip(batch, damages, strict=True)], features)


def as_they_are(items: Sequence[Item], latents: Sequence[Latent], part: Part) -> list[Tensor]:
    """Latents for a model that reads them."""
    return [torch.from_numpy(latent).float() for latent in latents]


Way = Literal["pixels", "encoded", "direct", "decoded"]


@dataclass(frozen=True)
class Subject:
    """The data of an evaluation as its model sees them."""

    way: Way
    feed: Feed
    parts: list[Part]
    classes: ClassList | None
    """None where nobody asked for labels."""
    about: dict[str, Any]
    """What a result says of its data."""
    identity: str
    """Of all that the model reads."""
    not_comparable: list[str]
