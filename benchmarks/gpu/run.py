"""The parts in the order of their worth, each within what is left of the minutes; what was measured is always kept."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from benchmarks.figures import Measured
from benchmarks.gpu.device import facts, release
from benchmarks.gpu.notes import Clock, Notes
from benchmarks.gpu.settings import GpuConfig
from encode_pipeline.latents.command import RequestError

if TYPE_CHECKING:
    from benchmarks.gpu.bench import Bench

WEIGHTS = "random, of the real sizes: speeds are comparable, latents, losses and rewards are not"
RECOMPILED = 64
"""How often torch may compile the same lines for another model. Beyond its own eight it runs them as they are, and
says so only in a warning."""
Keep = Callable[[Measured], object]
Do = Callable[["Bench", Notes, Clock], None]


@dataclass(frozen=True)
class Part:
    """Something to measure, and how many seconds that takes on an H200."""

    name: str
    do: Do
    needs: float
    """For a round of every way but the compiled ones, two of the pipeline. Without so many left it is not begun."""
    most: float
    """It begins no further round, and compiles nothing, that would go beyond these."""
    extra: bool = False
    """Whether it has only the time that all others leave."""


def measure(config: GpuConfig, keep: Keep | None = None) -> Measured:
    """Encoder, pipeline, training, loss and steering on one GPU, within some minutes.

    `keep` is given what there is after every part. What failed or was left out stands in the details, with the reason.
    """
    if without_gpu(config):
        raise RequestError("no CUDA GPU here")
    if config.device == "cpu" and torch.cuda.is_available():
        raise RequestError("device=cpu: there is a GPU here, which parts of it would take; set CUDA_VISIBLE_DEVICES=")
    clock, device = Clock(60 * config.minutes), torch.device(config.device)
    notes = Notes({"weights": WEIGHTS, **facts(device), "seconds": {}})
    torch._dynamo.config.recompile_limit = RECOMPILED
    bench: Bench | None = None
    parts = list(parts_of(config))
    for number, part in enumerate(parts):
        if not clock.has(part.needs, part.name, notes):
            continue
        print(f"measuring: {part.name}, {clock.left():.0f} s left", file=sys.stderr, flush=True)
        began = time.perf_counter()
        try:
            if bench is None:
                bench = _opened(config, notes)
            part.do(bench, notes, Clock(seconds_for(part, parts[number + 1 :], clock.left()), clock))
        except Exception as error:  # whatever it is, the other parts go on, and the status says it at the end
            notes.give_up(part.name, error)
        try:
            torch.compiler.reset()  # what is compiled holds on to memory, and counts towards how often torch compiles
            release(device)
        except Exception as error:  # a GPU that has been asked for something illegal answers nothing more
            notes.give_up(f"{part.name}: cleaning up", error)
        notes.details["seconds"][part.name] = round(time.perf_counter() - began, 1)
        if keep is not None:
            keep(notes.measured())
    return notes.measured()


def without_gpu(config: GpuConfig) -> bool:
    """Whether a GPU is wanted that is not there."""
    return config.device == "cuda" and not torch.cuda.is_available()


def _opened(config: GpuConfig, notes: Notes) -> Bench:
    from benchmarks.gpu.bench import open_bench

    bench = open_bench(config)
    notes.details["view_tflop"] = bench.view_tflop
    return bench


def seconds_for(part: Part, later: Iterable[Part], left: float) -> float:
    """What a part gets of the seconds left: beyond its need only such as the later parts, extras aside, do not need."""
    free = left - sum(other.needs for other in later if not other.extra)
    return min(part.most, max(part.needs, free))


def parts_of(config: GpuConfig) -> Iterator[Part]:
    """Each imports what it needs itself: what is not installed costs no other part."""
    dtype, *other_dtypes = config.dtypes
    yield _encoder(dtype, config.batch_size, 40, 160)
    for batch_size in sorted({*config.other_batch_sizes} - {config.batch_size}):
        yield _encoder(dtype, batch_size, 8, 14, swept=True)
    yield Part("pipeline", _pipeline, 70, 70)
    for model in config.models:
        yield Part(f"train {model}", partial(_training, model=model), 30, 110)
    yield Part("loss", _loss, 8, 25)
    yield Part("reno", _steering, 20, 40)
    for other in other_dtypes:
        yield _encoder(other, config.batch_size, 20, 120)
    yield Part("bits", _bits, 15, 120, extra=True)
    for model in config.models if config.compile else ():
        do = partial(_training, model=model, together=True)
        yield Part(f"train {model}, compiled and checkpointed", do, 75, 100, extra=True)


def _encoder(dtype: str, batch_size: int, needs: float, most: float, swept: bool = False) -> Part:
    def do(bench: Bench, notes: Notes, clock: Clock) -> None:
        from benchmarks.gpu.encoder import SWEPT, WAYS, measure_encoder

        measure_encoder(bench, notes, clock, dtype, batch_size, SWEPT if swept else WAYS)

    return Part(f"encoder {dtype}, batch {batch_size}", do, needs, most)


def _pipeline(bench: Bench, notes: Notes, clock: Clock) -> None:
    from benchmarks.gpu.pipeline import measure_pipeline

    measure_pipeline(bench, notes, clock)


def _training(bench: Bench, notes: Notes, clock: Clock, model: str, together: bool = False) -> None:
    from benchmarks.gpu.training import measure_training

    measure_training(bench, notes, clock, model, together)


def _loss(bench: Bench, notes: Notes, clock: Clock) -> None:
    from benchmarks.gpu.loss import measure_loss

    measure_loss(bench, notes, clock)


def _steering(bench: Bench, notes: Notes, clock: Clock) -> None:
    from benchmarks.gpu.steering import measure_steering

    measure_steering(bench, notes, clock)


def _bits(bench: Bench, notes: Notes, clock: Clock) -> None:
    from benchmarks.gpu.bits import measure_bits

    measure_bits(bench, notes, clock)
