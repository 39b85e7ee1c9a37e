"""Missing shards in this process: the engine for a single machine, without any other."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from encode_pipeline.allocator import settle_allocator
from encode_pipeline.attempt import attempt_shard
from encode_pipeline.config import EngineSettings
from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.listener import NOBODY, Listener
from encode_pipeline.records import Blame, FailedAttempt, ShardFailure, ShardReport
from encode_pipeline.work import ShardWork
from encode_pipeline.workload import SHARDS_IN_FLIGHT, Workload


def run_local(
    missing: Iterable[SourceShard],
    work: ShardWork,
    config: EngineSettings,
    listener: Listener = NOBODY,
) -> Generator[ShardReport | ShardFailure, None, None]:
    """What became of each shard, as soon as it is known."""
    settle_allocator()
    workload = Workload(missing, config.max_attempts, listener)
    listener.live(1)
    running: dict[Future[ShardReport | FailedAttempt], SourceShard] = {}
    with ThreadPoolExecutor(SHARDS_IN_FLIGHT, thread_name_prefix="shard") as pool:
        try:
            while not workload.finished:
                while len(running) < SHARDS_IN_FLIGHT and (source := workload.take()) is not None:
                    future = pool.submit(attempt_shard, source, work, listener.tell)
                    running[future] = source
                if not running:
                    time.sleep(workload.pause() or 0)
                    continue
                finished, _ = wait(
                    running, workload.pause() if len(running) < SHARDS_IN_FLIGHT else None, FIRST_COMPLETED
                )
                for future in finished:
                    source, outcome = running.pop(future), future.result()
                    if isinstance(outcome, FailedAttempt) and outcome.blame is Blame.NO_ROOM:
                        raise CheckFailed(f"{outcome.error}; make room, and run the same command again")
                    settled = workload.settle(source, outcome)
                    if settled is not None:
                        yield settled
        finally:
            work.close()  # on an interrupt, whatever is under way ends with its present batch
