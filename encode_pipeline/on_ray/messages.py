"""What encoders answer the driver: small, and made of nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from encode_pipeline.records import FailedAttempt, ShardReport


@dataclass(frozen=True, slots=True)
class Post:
    """Where an encoder has come up, and on what it computes."""

    node: str
    process: int
    device: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a try, and how many latents this process has made so far."""

    outcome: ShardReport | FailedAttempt
    latents: int
