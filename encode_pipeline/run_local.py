"""Missing shards one after the other in this process: the engine for a single machine, without any other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from encode_pipeline.attempt import attempt_shard
from encode_pipeline.config import EncodeConfig
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.latents.store import Version
from encode_pipeline.records import ShardFailure, ShardReport
from encode_pipeline.vae import LatentEncoder, LoadedVae


def run_local(
    missing: Sequence[SourceShard], version: Version, vae: LoadedVae, config: EncodeConfig
) -> Iterator[ShardReport | ShardFailure]:
    """What became of each shard, as soon as it is known."""
    encoder = LatentEncoder(vae, version.spec, config.batch_size)
    for source in missing:
        for attempt in range(1, config.max_attempts + 1):
            outcome = attempt_shard(source, version, encoder, config)
            if isinstance(outcome, ShardReport):
                yield outcome
                break
            if outcome.hopeless or attempt == config.max_attempts:
                yield ShardFailure(source, outcome.error, attempt)
                break
            time.sleep(min(30.0, 2.0**attempt))
