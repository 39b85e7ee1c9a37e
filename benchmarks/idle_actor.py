"""Actors with nothing to do: what is left is the cost of giving out work. Nothing heavy is imported here."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from typing import Any

import ray

from encode_pipeline.latents.commit import Payload, ShardCommit, SourceShard, attempt_folder
from encode_pipeline.on_ray.messages import Answer, Post
from encode_pipeline.records import ShardReport

SECONDS = {"input": 1.234, "decode": 2.345, "vae": 98.765, "writer": 0.123, "between": 0.012, "check": 4.321}


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


def commit_of(source: SourceShard, fingerprint: str) -> ShardCommit:
    """A commit as large as a real one: four views and some rejected samples."""
    mark = hashlib.sha256(source.uri.encode()).hexdigest()
    folder = attempt_folder(source.name, mark[:32])
    tars = tuple(
        Payload(path=f"{folder}/view{view}.tar", size=350_000_000, sha256=mark, samples=9_900, view=view)
        for view in range(4)
    )
    rejected = Payload(path=f"{folder}/rejected.jsonl", size=8_000, sha256=mark, samples=100, view=None)
    return ShardCommit(
        fingerprint=fingerprint,
        shard=source.name,
        attempt=mark[:32],
        source=source,
        source_sha256=mark,
        read=10_000,
        encoded=9_900,
        rejected={"too_small": 60, "undecodable_image": 40},
        payloads=(*tars, rejected),
        made_by={"device": "none", "batch_size": 16, "seconds": SECONDS},
    )
