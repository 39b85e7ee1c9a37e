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


class CalledBack(Exception):
    """The engine wants the shard back, unfinished: its machine is about to go away."""


class Blame(StrEnum):
    """What a failed try is laid at the door of, and so whether it counts."""

    TAR = "tar"
    """What was read is bad. The same twice is no accident of the way here."""
    CHANCE = "chance"
    """A server, a network, a machine: another try may be luckier."""
    NO_ROOM = "no_room"
    """Nothing can be written here any more: no fault of the shard's."""
    CALLED_BACK = "called_back"


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """A try that ended without a commit."""

    error: str
    blame: Blame


@dataclass(frozen=True, slots=True)
class ShardFailure:
    """A source shard that was given up on, after how many attempts, and the last error."""

    source: SourceShard
    error: str
    attempts: int


def describe_error(error: BaseException) -> str:
    """An error as the one line that reports keep."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
