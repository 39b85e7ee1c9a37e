"""The whole way from tars on disk to published shards: against the bare encoder, and against what others would write.

All ways have the same pictures, the same VAE in the same precision and the same batch size.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, compared
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.busy import Busy, covered, share_between_ends
from benchmarks.gpu.encoder import encode_batches, open_diffusers, own_model, pictures
from benchmarks.gpu.notes import Clock, Notes
from benchmarks.gpu.ways import Way, Work, opened, rate_figures, rates_of, share_figure
from benchmarks.pictures import PictureSet, write_tars
from encode_pipeline.config import usable_cores
from encode_pipeline.encode_shard import ShardEncoder
from encode_pipeline.encoder import DTYPES
from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.status import Tally
from encode_pipeline.latents.store import Store
from encode_pipeline.listener import Listener
from encode_pipeline.randomness import posterior_noise
from encode_pipeline.records import ShardReport
from encode_pipeline.run_local import run_local
from encode_pipeline.sources import find_sources

PART = "pipeline"
STRAIGHTFORWARD, LOOP, BARE, OURS = (
    "straightforward pipeline",
    "plain diffusers loop, nothing decoded",
    "bare encoder",
    "this pipeline",
)
TarWork = Callable[[Sequence[Path]], float]
"""From tars to latents on disk, and how many those were."""
UNDER_WAY = f"{OURS}, once under way"
SETTLED = 8
"""An eighth of the batches fills the queues; from then on the pipeline is under way."""
HOW_BUSY = (
    "by CUDA events round each replay of the encoder's graph, on its stream; copies are not counted. On a CPU: spans "
    "in which a picture is encoded"
)


@dataclass(frozen=True)
class Run:
    """How one run of the pipeline went."""

    latents: int
    under_way: float
    """Views a second after the first fill of the queues."""
    busy: float
    busy_under_way: float
    tally: Tally


class Moments(Listener):
    """When how many views had been encoded."""

    def __init__(self) -> None:
        self._moments: list[tuple[float, int]] = []

    def tell(self, latents: int) -> None:
        if latents:
            before = self._moments[-1][1] if self._moments else 0
            self._moments.append((time.perf_counter(), before + latents))

    def rate(self) -> float:
        """Views a second from the batch after an eighth of all to the last."""
        steady = self._moments[len(self._moments) // SETTLED :]
        if len(steady) < 2:
            raise CheckFailed("too few batches to tell how fast they come")
        (begun, first), (ended, last) = steady[0], steady[-1]
        return (last - first) / (ended - begun)


class Pipeline:
    """This project's, with an encoder that is opened once and used by every run."""

    def __init__(self, bench: Bench, root: Path, dtype: str) -> None:
        self._bench, self._root, self._dtype = bench, root, dtype
        self._config = bench.encode_config(dtype=dtype)
        with tempfile.TemporaryDirectory(dir=root) as nowhere:
            version = Store(nowhere).create(bench.spec(dtype))
            self._work = ShardEncoder(bench.vae, version, self._config)
        self._busy = Busy(self._work.encoder)
        self.runs: list[Run] = []
        """Those of all views."""

    def whole(self, tars: Sequence[Path]) -> int:
        self.runs.append(self._run(tars, self._bench.config.views))
        return self.runs[-1].latents

    def passes(self, tars: Sequence[Path]) -> int:
        """The same pictures again and again, a view each time."""
        return sum(self._run(tars, 1).latents for _ in range(self._bench.config.views))

    def bare(self) -> int:
        """Only the encoder, fed from memory."""
        encoder, config = self._work.encoder, self._bench.config
        encoder.closed.clear()
        batch = list(pictures(config.batch_size, config.image_size))
        noise = [posterior_noise(number, encoder.spec.shape) for number in range(config.batch_size)]
        return encode_batches(encoder, [batch] * max(1, config.views_a_turn // config.batch_size), noise)

    def _run(self, tars: Sequence[Path], views: int) -> Run:
        """Encodes the tars into a store of its own, which is gone afterwards."""
        with tempfile.TemporaryDirectory(dir=self._root) as out:
            self._work.version = Store(out).create(self._bench.spec(self._dtype, views=views))
            self._work.encoder.closed.clear()  # as the end of the run before left it
            sources = find_sources([str(tar) for tar in tars])
            tally, moments = Tally(views), Moments()
            self._busy.spans()
            began = time.perf_counter()
            for outcome in run_local(sources, self._work, self._config, moments):
                if not isinstance(outcome, ShardReport):
                    raise CheckFailed(f"a shard failed: {outcome}")
                tally.add(outcome.commit)
            seconds = time.perf_counter() - began
            spans = self._busy.spans()
            shares = covered(spans) / seconds, share_between_ends(spans)
            return Run(tally.encoded * views, moments.rate(), *shares, tally)


def measure_pipeline(bench: Bench, notes: Notes, clock: Clock) -> None:
    """Views a second of every way, and for how much of the time the device computes."""
    config, device, dtype = bench.config, bench.device, bench.config.dtypes[0]
    details: dict[str, Any] = {
        "tars": config.tars,
        "pictures": config.tars * config.pictures,
        "picture_side": config.side,
        "dtype": dtype,
        "decode_threads": bench.encode_config().decode_threads,
        "dataloader_workers": usable_cores(),
        "starts": "workers of the straightforward way are forked for every pass; our encoder is opened before",
        "busy": HOW_BUSY,
        "passes": "each makes the plain view, the cheapest of them: real passes over augmented views take longer",
    }
    notes.details[PART] = details
    passes = f"{config.views} passes of {OURS}"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tars = write_tars(root / "tars", PictureSet(config.tars, config.pictures, config.side))
        batch = pictures(config.batch_size, config.image_size)
        batches = max(1, config.views_a_turn // config.batch_size)
        pipelines: list[Pipeline] = []

        def ours() -> TarWork:
            pipelines.append(Pipeline(bench, root, dtype))
            return pipelines[0].whole

        ways = _of_tars(STRAIGHTFORWARD, lambda: _straightforward(bench, root, dtype), tars, notes, bench)
        ways += opened(PART, LOOP, lambda: open_diffusers(bench, dtype, batch, batches), notes, device)
        ways += (mine := _of_tars(OURS, ours, tars, notes, bench))
        if mine:
            same_encoder = opened(PART, BARE, lambda: pipelines[0].bare, notes, device)
            same_encoder += _of_tars(passes, lambda: pipelines[0].passes, tars, notes, bench)
            ways += [replace(way, peak_gb=None) for way in same_encoder]  # which has its memory already
            pipelines[0].runs.clear()
        rates = rates_of(PART, ways, config.rounds, notes, clock, device)
    notes.add(PART, rate_figures([way for way in ways if way.name != passes], rates, "views a second"))
    if OURS in rates:
        notes.add(PART, _of_ours(rates, passes, pipelines[0].runs))
        details["last_run"] = pipelines[0].runs[-1].tally.to_dict()


def _of_tars(
    name: str,
    open_it: Callable[[], TarWork],
    tars: Sequence[Path],
    notes: Notes,
    bench: Bench,
) -> list[Way]:
    """A way from tars to latents, tried with the first tar."""
    held: list[TarWork] = []

    def with_first() -> Work:
        held.append(open_it())
        return partial(held[0], tars[:1])

    ways = opened(PART, name, with_first, notes, bench.device)
    return [replace(way, work=partial(held[0], tars)) for way in ways]


def _straightforward(bench: Bench, root: Path, dtype: str) -> TarWork:
    """The afternoon's pipeline with its VAE on the same device in the same precision."""
    from benchmarks import straightforward

    config, model = bench.config, own_model(bench, dtype)
    encode = straightforward.by_vae(model)

    def run(tars: Sequence[Path]) -> int:
        with tempfile.TemporaryDirectory(dir=root) as out:
            return straightforward.encode_tars(
                tars,
                Path(out),
                lambda images: encode(images.to(DTYPES[dtype])),
                config.views,
                config.image_size,
                config.batch_size,
                workers=usable_cores(),
            )

    return run


def _of_ours(rates: Mapping[str, tuple[float, ...]], passes: str, runs: Sequence[Run]) -> Iterator[Figure]:
    under_way = tuple(run.under_way for run in runs)
    ours = Figure(OURS, "views a second", rates[OURS])
    yield compared(UNDER_WAY, "views a second", under_way, ours)
    if passes in rates:
        yield compared(passes, "views a second", rates[passes], ours)
    if BARE in rates:
        yield share_figure(f"{OURS}: share of the bare encoder", rates[OURS], rates[BARE])
        yield share_figure(f"{UNDER_WAY}: share of the bare encoder", under_way, rates[BARE])
    if LOOP in rates:
        yield share_figure(f"{OURS} to the plain diffusers loop", rates[OURS], rates[LOOP], "times")
    yield Figure(f"{OURS}: device busy", "share", tuple(run.busy for run in runs))
    yield Figure(f"{UNDER_WAY}: device busy", "share", tuple(run.busy_under_way for run in runs))
