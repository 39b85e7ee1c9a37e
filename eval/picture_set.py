"""Pictures with labels or captions, as every evaluation reads them, whatever layout they lie in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from encode_pipeline.latents.command import CheckFailed, RequestError

MOST_IN_A_PART = 1000
"""Pictures: what is lost of a broken-off evaluation, and what several processes share the work by."""

Layout = Literal["folder", "wds", "tars"]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as it is stored, still compressed."""

    key: str
    """Unlike that of any other picture of its part."""
    image: bytes
    label: int | None
    """The number of its class, in the set's `names`."""
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """Some neighbouring pictures of a set."""

    name: str
    """Its own within the set, and fit to be a file's."""
    size: int


@dataclass(frozen=True)
class PictureSet:
    """A data set: what it consists of is known before any picture is read, and nothing of it can get lost."""

    address: str
    layout: Layout
    names: list[str]
    """The classes in the order of their numbers. Two may have one name, as in ImageNet: labels are numbers."""
    templates: list[str]
    """Prompts with `{c}` in the place of a class name."""
    identity: str
    """A digest of what belongs to the set, wherever it lies: another one if anything is added, gone or changed."""
    parts: list[Part]
    """In a fixed order, each of `MOST_IN_A_PART` pictures at most."""
    no_label: str | None = field(repr=False)
    """Why the set cannot be classified, naming the first picture without a label; None if all have one."""
    no_caption: str | None = field(repr=False)
    """Why it cannot be searched by captions, naming the first picture without any; None if all have one."""
    reader: Callable[[Part], Iterator[Picture]] = field(repr=False)

    def __len__(self) -> int:
        return sum(part.size for part in self.parts)

    def read(self, part: Part) -> Iterator[Picture]:
        """The pictures of a part in their order, one in memory at a time: as many as the part says, or an error."""
        found = 0
        for found, picture in enumerate(self.reader(part), 1):  # noqa: B007  # counted for the check below
            yield picture
        if found != part.size:
            raise CheckFailed(f"{self.address}: {part.name} holds {found} pictures now, {part.size} when it was opened")

    def require_labels(self) -> None:
        """Refuses a set that cannot be classified."""
        if self.no_label is not None:
            raise RequestError(self.no_label)

    def require_captions(self) -> None:
        """Refuses a set that cannot be searched by captions."""
        if self.no_caption is not None:
            raise RequestError(self.no_caption)


def part_sizes(pictures: int) -> list[int]:
    """How many pictures each part of so many in a row has: all as many, but for the last."""
    full, rest = divmod(pictures, MOST_IN_A_PART)
    return [MOST_IN_A_PART] * full + [rest] * bool(rest)
