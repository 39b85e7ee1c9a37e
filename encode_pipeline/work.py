"""What engines give out: work that takes a source shard and commits a shard of latents, whatever makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.latents.store import Version
from encode_pipeline.records import ShardReport


class RunEnded(Exception):
    """The run has ended, and with it whatever was still under way."""


class ShardWork(Protocol):
    """Work on the shards of one version, its models loaded. Engines have a few shards under way at once."""

    version: Version
    device: str
    """`cpu` or `cuda`."""

    def do(self, source: SourceShard, tell: Callable[[int], None]) -> ShardReport:
        """Makes and commits one shard, as `encode_shard` does."""

    def close(self) -> None:
        """Whatever is under way ends soon, with `RunEnded`."""
