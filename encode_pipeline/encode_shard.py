"""THE loop: one source tar in, one committed shard of latents out. Every engine calls it, as `ShardEncoder`.

    read ─▶ decode + augment ─▶ encode ─▶ write ─▶ check ─▶ publish ─▶ commit
    a thread   threads          this one   a thread  └── while the next shard is encoded ──┘

Engines have a few shards under way at once: one gets ready, one is encoded, one is published. The
encoder's turn decides which is which, so the device goes from one shard to the next without a pause, and a shard whose
bytes do not come holds nobody up.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch

from encode_pipeline.augment import ViewMaker
from encode_pipeline.config import EncodeConfig
from encode_pipeline.devices import Noise
from encode_pipeline.encoder import LatentEncoder, StartedBatch, Turn
from encode_pipeline.latents.commit import ShardBuild, SourceShard
from encode_pipeline.latents.failpoints import failpoint
from encode_pipeline.latents.status import moment
from encode_pipeline.latents.store import Version
from encode_pipeline.latents.writer import Latent
from encode_pipeline.randomness import posterior_noise, seed_of
from encode_pipeline.read import read_samples
from encode_pipeline.records import Reason, Rejected, Sample, ShardReport, ViewedSample
from encode_pipeline.scratch import scratch_folder
from encode_pipeline.sources import open_source
from encode_pipeline.stages import Behind, Stopwatch, WorkAhead
from encode_pipeline.vae import LoadedVae

BATCHES_IN_FLIGHT = 2
COMPRESSED_BYTES = 256 << 20
"""Of samples read ahead and not yet decoded."""


@dataclass(frozen=True, slots=True)
class NoisedSample:
    """A sample's views, and the noise that makes each latent a draw from its posterior."""

    viewed: ViewedSample
    noise: tuple[Noise, ...]


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """A sample whose views are all latents, or the first thing wrong with one of them."""

    viewed: ViewedSample
    latents: list[Latent]
    broken_view: int | None


class ShardEncoder:
    """The encoder's work, as engines are handed it."""

    def __init__(self, vae: LoadedVae, version: Version, config: EncodeConfig) -> None:
        self.version, self._config = version, config
        self.encoder = LatentEncoder(vae, version.spec, config.batch_size, kernels=config.kernels)
        self.device = self.encoder.device.type

    def do(self, source: SourceShard, tell: Callable[[int], None]) -> ShardReport:
        return encode_shard(source, self.version, self.encoder, self._config, tell)

    def close(self) -> None:
        self.encoder.close()


def encode_shard(
    source: SourceShard,
    version: Version,
    encoder: LatentEncoder,
    config: EncodeConfig,
    tell: Callable[[int], None] = lambda views: None,
) -> ShardReport:
    """Reads, augments, encodes, writes, publishes and commits one source tar.

    Raises without a trace in the commits if the tar is bad or a machine fails; a bad sample is counted instead.
    `tell` hears how many views have just been encoded, and of none in a lull; what it raises ends the shard.
    """
    clock, began = Stopwatch(), time.time()
    spec = version.spec
    failpoint("before-read", source.name)
    rescued = 0
    make_views = ViewMaker(config.recipe, spec.views, spec.image_size, spec.seed, source.name)

    def prepare(sample: Sample | Rejected) -> NoisedSample | Rejected:
        viewed = sample if isinstance(sample, Rejected) else make_views(sample)
        if isinstance(viewed, Rejected):
            return viewed
        seeds = (seed_of(spec.seed, source.name, viewed.sample.key, view, "posterior") for view in range(spec.views))
        noise = tuple(posterior_noise(seed, spec.shape) for seed in seeds)
        # The compressed picture has served its turn; its bytes are what bounds how much is read ahead.
        return NoisedSample(replace(viewed, sample=replace(viewed.sample, image=b"")), noise)

    with (
        scratch_folder(config.scratch) as scratch,
        ShardBuild(scratch, spec, source) as build,
    ):
        ahead = 2 * config.decode_threads + BATCHES_IN_FLIGHT * encoder.batch_size // spec.views
        with open_source(source, within=version.storage.url()) as tar:
            samples = read_samples(tar, source.uri, source.size, config.caption_field)
            with (
                WorkAhead(samples, prepare, _weight, config.decode_threads, ahead, COMPRESSED_BYTES, clock) as prepared,
                Behind[EncodedSample | Rejected](lambda item: _store(build, source, item), ahead, clock) as writer,
                encoder.turn(clock) as turn,
            ):
                for item, newly_rescued in encode_views(prepared, encoder, turn, clock, tell):
                    rescued += newly_rescued
                    writer.put(item)
                    failpoint("mid-shard", source.name)
        with clock("check"):
            commit, files = build.finish(tar.sha256(), made_by(encoder, clock, began), rescued)
        failpoint("after-build", source.name)
        return ShardReport(commit, won=version.publish(commit, files))


def encode_views(
    samples: Iterable[NoisedSample | Rejected | None],
    encoder: LatentEncoder,
    turn: Turn,
    clock: Stopwatch,
    tell: Callable[[int], None],
) -> Iterator[tuple[EncodedSample | Rejected, int]]:
    """Samples with their latents, and how many views had to be rescued on the way.

    Views fill batches of a fixed size regardless of whose they are; a sample leaves when its last one is done.
    In a lull of the samples, a None, another shard has the encoder.
    """
    waiting: deque[tuple[NoisedSample, int]] = deque()
    started: deque[tuple[list[ViewedSample], StartedBatch]] = deque()
    latents: list[Latent] = []
    broken: int | None = None
    rescued = 0

    def start() -> None:
        batch = [waiting.popleft() for _ in range(min(len(waiting), encoder.batch_size))]
        pictures = [sample.viewed.views[view].pixels for sample, view in batch]
        turn.take()
        with clock("vae"):
            on_its_way = encoder.start(pictures, [sample.noise[view] for sample, view in batch])
        started.append(([sample.viewed for sample, _ in batch], on_its_way))

    def finish() -> Iterator[tuple[EncodedSample | Rejected, int]]:
        nonlocal latents, broken, rescued
        batch, on_its_way = started.popleft()
        with clock("vae"):
            encoded = encoder.finish(on_its_way)
        tell(len(batch))
        rescued += encoded.rescued
        for viewed, latent, finite in zip(batch, encoded.latents, encoded.finite, strict=True):
            if not finite and broken is None:
                broken = len(latents)
            latents.append(latent)
            if len(latents) == len(viewed.views):
                yield EncodedSample(viewed, latents, broken), rescued
                latents, broken, rescued = [], None, 0

    for sample in samples:
        encoder.check_open()
        if sample is None:
            while started:
                yield from finish()
            turn.give()
            tell(0)
            continue
        if isinstance(sample, Rejected):
            yield sample, 0
            continue
        waiting.extend((sample, view) for view in range(len(sample.viewed.views)))
        while len(waiting) >= encoder.batch_size:
            if len(started) == BATCHES_IN_FLIGHT:
                yield from finish()
            start()
    while waiting:
        start()
    while started:
        yield from finish()


def made_by(encoder: LatentEncoder, clock: Stopwatch, began: float) -> dict[str, Any]:
    """Which software and device made a shard, when and in what time, for people who wonder later."""
    decide = ("torch", "diffusers", "albumentations", "opencv-python-headless", "pillow", "numpy")
    versions = {name: version(name) for name in decide}
    device = torch.cuda.get_device_name(encoder.device) if encoder.device.type == "cuda" else "cpu"
    return {
        "versions": versions,
        "device": device,
        "compute_dtype": encoder.dtype_name,
        "kernels": encoder.kernels,
        "batch_size": encoder.batch_size,
        "began": moment(began),
        "ended": moment(time.time()),
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


def _weight(sample: Sample | Rejected) -> int:
    return len(sample.image) + len(sample.caption) + 1024 if isinstance(sample, Sample) else 0
