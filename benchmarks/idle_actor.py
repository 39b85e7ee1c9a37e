"""Actors with nothing to do: what is left is the cost of giving out work. Nothing heavy is imported here."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import ray

from benchmarks.idle_commit import commit_of
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.on_ray.messages import Answer, Post
from encode_pipeline.records import ShardReport


class IdleActor:
    """Answers as an encoder does, at once or after the time that a GPU would need, one shard after the other."""

    seconds_a_shard = 0.0

    def __init__(self, config: Any, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self._gpu = threading.Lock()
        self._latents = 0

    def ready(self) -> Post:
        return Post(ray.get_runtime_context().get_node_id(), os.getpid(), "none")

    def encode(self, source: SourceShard) -> Answer:
        if self.seconds_a_shard:
            with self._gpu:
                time.sleep(self.seconds_a_shard)
        commit = commit_of(source, self._fingerprint)
        self._latents += 4 * commit.encoded
        return Answer(ShardReport(commit, won=True), self._latents)

    def latents(self) -> int:
        return self._latents

    def wind_down(self, ends: float) -> None:
        pass
