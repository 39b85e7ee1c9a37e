"""Commits of shards that nobody has made, for what only the control plane has to do with."""

from __future__ import annotations

import hashlib

from encode_pipeline.latents.commit import Payload, ShardCommit, SourceShard, attempt_folder

SECONDS = {"input": 1.234, "decode": 2.345, "vae": 98.765, "writer": 0.123, "between": 0.012, "check": 4.321}


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
