"""`verify` with the engine that was asked for, saying how far it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.shard_check import check_shards
from encode_pipeline.latents.store import Version
from encode_pipeline.latents.verify import Engine, Verdict, verify
from encode_pipeline.progress import clock_text


def verified(version: Version, deep: bool, sample: int | None, seed: int, engine: str) -> Verdict:
    """What `verify` finds, here or on a Ray cluster."""
    return verify(version, deep, sample, seed, _engine(engine), telling_verdicts())


def telling_verdicts() -> Callable[[Verdict, int], None]:
    """Says how far a check is after 1, 2, 4, … shards and then every hundredth part, however many there are."""
    started = time.monotonic()

    def tell(verdict: Verdict, shards: int) -> None:
        done, step = verdict.shards, -(-shards // 100)
        if done == shards or done % step == 0 or (done < step and done & (done - 1) == 0):
            seconds = max(time.monotonic() - started, 1e-3)
            rate = f"{verdict.bytes / 1e9:.2f} GB read, {verdict.bytes / 1e6 / seconds:.0f} MB/s"
            left = f"{clock_text(seconds * (shards - done) / done)} left, {len(verdict.problems)} problem(s)"
            print(f"verified {done}/{shards} shards, {rate}, {left}", file=sys.stderr, flush=True)

    return tell


def _engine(name: str) -> Engine:
    if name == "local":
        return check_shards
    try:
        from encode_pipeline.on_ray.verify import check_on_ray
    except ImportError as error:
        raise RequestError(f"engine=ray: {error}; install latent-clip-pipeline[ray], or use engine=local") from None
    return check_on_ray
