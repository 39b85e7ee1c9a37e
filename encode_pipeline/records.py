"""What is handed from step to step: small, frozen, one name for each state of a picture."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from encode_pipeline.latents.commit import ShardCommit, SourceShard

Pixels = npt.NDArray[np.uint8]
"""Height x width x RGB."""


class Reason(StrEnum):
    """Why a sample was refused. The names are what reports and scripts see."""

    UNSAFE_KEY = "unsafe_key"
    UNSAFE_MEMBER = "unsafe_member"
    DUPLICATE_KEY = "duplicate_key"
    MISSING_IMAGE = "missing_image"
    MISSING_CAPTION = "missing_caption"
    CAPTION_NOT_UTF8 = "caption_not_utf8"
    BAD_METADATA = "bad_metadata"
    UNDECODABLE_IMAGE = "undecodable_image"
    TOO_SMALL = "too_small"
    TOO_LARGE = "too_large"
    EXTREME_ASPECT = "extreme_aspect"
    NON_FINITE_LATENT = "non_finite_latent"


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture as it stands in a source tar, still compressed."""

    key: str
    image: bytes
    caption: str
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class View:
    """One way of looking at a sample: its pixels, and what was done to get them."""

    pixels: Pixels
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ViewedSample:
    """A sample decoded once and seen in every view."""

    sample: Sample
    original_size: tuple[int, int]
    """Width and height of the upright picture."""
    views: tuple[View, ...]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A sample that goes no further, and why."""

    key: str
    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What became of one source shard; small enough to travel."""

    commit: ShardCommit
    won: bool
    """False if another attempt had committed this shard before."""


@dataclass(frozen=True, slots=True)
class ShardFailure:
    """A source shard that was given up on, after how many attempts, and the last error."""

    source: SourceShard
    error: str
    attempts: int
