"""Missing shards in this process: the engine for a single machine, without any other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from encode_pipeline.allocator import settle_allocator
from encode_pipeline.attempt import attempt_shard
from encode_pipeline.config import EncodeConfig
from encode_pipeline.encode_shard import SHARDS_IN_FLIGHT
from encode_pipeline.encoder import EncoderClosed, LatentEncoder
from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.latents.store import Version
from encode_pipeline.records import ShardFailure, ShardReport
from encode_pipeline.vae import LoadedVae


def run_local(
    missing: Sequence[SourceShard],
    version: Version,
    vae: LoadedVae,
    config: EncodeConfig,
    tell: Callable[[int], None] = lambda views: None,
) -> Iterator[ShardReport | ShardFailure]:
    """What became of each shard, as soon as it is known. `tell` hears of every batch of views."""
    settle_allocator()
    encoder = LatentEncoder(vae, version.spec, config.batch_size, kernels=config.kernels)

    def until_done(source: SourceShard) -> ShardReport | ShardFailure:
        attempt = 1
        while True:
            outcome = attempt_shard(source, version, encoder, config, tell)
            if isinstance(outcome, ShardReport):
                return outcome
            if outcome.no_room:
                raise CheckFailed(f"{outcome.error}; make room, and run the same command again")
            if outcome.hopeless or attempt == config.max_attempts:
                return ShardFailure(source, outcome.error, attempt)
            if encoder.closed.wait(min(30.0, 2.0**attempt)):
                raise EncoderClosed
            attempt += 1

    sources = iter(missing)
    running: set[Future[ShardReport | ShardFailure]] = set()
    with ThreadPoolExecutor(SHARDS_IN_FLIGHT, thread_name_prefix="shard") as pool:
        try:
            while True:
                while len(running) < SHARDS_IN_FLIGHT and (source := next(sources, None)) is not None:
                    running.add(pool.submit(until_done, source))
                if not running:
                    return
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
        finally:
            encoder.close()  # on an interrupt, whatever is under way ends with its present batch
