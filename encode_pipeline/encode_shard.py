"""THE loop: one source tar in, one committed shard of latents out. Every engine calls it."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from encode_pipeline.augment import ViewMaker
from encode_pipeline.config import EncodeConfig
from encode_pipeline.latents.commit import ShardBuild, SourceShard
from encode_pipeline.latents.store import Version
from encode_pipeline.latents.writer import Latent
from encode_pipeline.randomness import posterior_noise, seed_of
from encode_pipeline.read import read_samples
from encode_pipeline.records import Reason, Rejected, Sample, ShardReport, ViewedSample
from encode_pipeline.sources import open_source
from encode_pipeline.vae import LatentEncoder


@dataclass(frozen=True)
class EncodedSample:
    """A sample whose views are all latents, or the first thing wrong with one of them."""

    viewed: ViewedSample
    latents: list[Latent]
    broken_view: int | None


def encode_shard(source: SourceShard, version: Version, encoder: LatentEncoder, config: EncodeConfig) -> ShardReport:
    """Reads, augments, encodes, writes, publishes and commits one source tar.

    Raises without a trace in the commits if the tar is bad or a machine fails; a bad sample is counted instead.
    """
    clock = Stopwatch()
    spec = version.spec
    rescued = 0
    with tempfile.TemporaryDirectory(prefix="latents-", dir=config.scratch) as scratch, open_source(source) as tar:
        make_views = ViewMaker(config.recipe, spec.views, spec.image_size, spec.seed, source.name)

        def prepare(sample: Sample | Rejected) -> ViewedSample | Rejected:
            return sample if isinstance(sample, Rejected) else make_views(sample)

        with ThreadPoolExecutor(config.threads) as pool, ShardBuild(Path(scratch) / "build", spec, source) as build:
            samples = read_samples(tar, source.uri, source.size, config.caption_field)
            ready = ordered_map(pool, prepare, samples, ahead=2 * config.threads)
            for item, newly_rescued in encode_views(clock.timed("decode", ready), encoder, source.name, clock):
                rescued += newly_rescued
                with clock("write"):
                    _store(build, source, item)
            with clock("check"):
                commit, files = build.finish(tar.sha256(), made_by(encoder, clock))
        with clock("publish"):
            won = version.publish(commit, files)
    size = sum(payload.size for payload in commit.payloads)
    return ShardReport(
        commit.shard, commit.read, commit.encoded, commit.rejected, rescued, size, dict(clock.seconds), won
    )


def encode_views(
    samples: Iterable[ViewedSample | Rejected], encoder: LatentEncoder, shard: str, clock: Stopwatch
) -> Iterator[tuple[EncodedSample | Rejected, int]]:
    """Samples with their latents, and how many views had to be rescued on the way.

    Views fill batches of a fixed size regardless of whose they are; a sample leaves when its last one is done.
    """
    waiting: deque[tuple[ViewedSample, int]] = deque()
    latents: list[Latent] = []
    broken: int | None = None
    rescued = 0
    spec = encoder.spec

    def noise_of(viewed: ViewedSample, view: int) -> npt.NDArray[np.float32]:
        return posterior_noise(seed_of(spec.seed, shard, viewed.sample.key, view, "posterior"), spec.shape)

    def encode_some(count: int) -> Iterator[tuple[EncodedSample | Rejected, int]]:
        nonlocal latents, broken, rescued
        batch = [waiting.popleft() for _ in range(count)]
        with clock("noise"):
            noise = [noise_of(viewed, view) for viewed, view in batch]
        with clock("vae"):
            encoded = encoder.encode([viewed.views[view].pixels for viewed, view in batch], noise)
        rescued += encoded.rescued
        for (viewed, view), latent, finite in zip(batch, encoded.latents, encoded.finite, strict=True):
            latents.append(latent)
            if not finite and broken is None:
                broken = view
            if len(latents) == len(viewed.views):
                yield EncodedSample(viewed, latents, broken), rescued
                latents, broken, rescued = [], None, 0

    for sample in samples:
        if isinstance(sample, Rejected):
            yield sample, 0
            continue
        waiting.extend((sample, view) for view in range(len(sample.views)))
        while len(waiting) >= encoder.batch_size:
            yield from encode_some(encoder.batch_size)
    while waiting:
        yield from encode_some(min(len(waiting), encoder.batch_size))


In = TypeVar("In")
Out = TypeVar("Out")


def ordered_map(pool: ThreadPoolExecutor, work: Callable[[In], Out], items: Iterable[In], ahead: int) -> Iterator[Out]:
    """Results in the order of the items, with at most `ahead` of them under way."""
    pending: deque[Future[Out]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


@dataclass
class Stopwatch:
    """Seconds that the loop spent in, or waiting for, each stage."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - started

    def timed(self, stage: str, items: Iterable[Out]) -> Iterator[Out]:
        """The items, with the wait for each of them counted."""
        iterator = iter(items)
        while True:
            with self(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item


def made_by(encoder: LatentEncoder, clock: Stopwatch) -> dict[str, Any]:
    """Which software and device made a shard, for people who wonder later."""
    versions = {name: version(name) for name in ("torch", "diffusers", "albumentations", "pillow")}
    device = torch.cuda.get_device_name(encoder.device) if encoder.device.type == "cuda" else "cpu"
    return {
        "versions": versions,
        "device": device,
        "compute_dtype": encoder.dtype_name,
        "batch_size": encoder.batch_size,
        "seconds": {stage: round(seconds, 3) for stage, seconds in clock.seconds.items()},
    }


def _store(build: ShardBuild, source: SourceShard, item: EncodedSample | Rejected) -> None:
    if isinstance(item, Rejected):
        build.reject(item.key, item.reason, item.detail)
        return
    sample = item.viewed.sample
    if item.broken_view is not None:
        build.reject(sample.key, Reason.NON_FINITE_LATENT, f"view {item.broken_view}, in float32 too")
        return
    common = {"source": source.uri, "original_size": item.viewed.original_size, "metadata": sample.metadata}
    if source.collection:
        common["collection"] = source.collection
    records = [
        {**common, "view": number, "augmentation": view.parameters} for number, view in enumerate(item.viewed.views)
    ]
    build.add(sample.key, item.latents, sample.caption, records)
