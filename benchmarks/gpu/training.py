"""A step of training on batches in memory: OpenCLIP's own loop against this project's step, and what saves memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping

import open_clip
import torch

from benchmarks.figures import Figure
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.ceiling import matmul
from benchmarks.gpu.device import PeakMemory
from benchmarks.gpu.notes import Clock, Notes
from benchmarks.gpu.ways import Way, Work, opened, rate_figures, rates_of, share_figure
from benchmarks.training import Batches, TrainingConfig, ours, theirs
from encode_pipeline.latents.command import CheckFailed
from train.config import architecture_of
from train.flops import peak_flops, training_flops
from train.model import build_model

THEIRS, OURS = "open_clip's own loop", "ours"
CEILING = "matmul ceiling"
PIECES = 4
"""Of a batch whose activations do not fit at once; the towers then compute everything a second time forwards."""
IN_PIECES = f"{OURS}, {PIECES} pieces"
APART = (THEIRS, OURS, f"{OURS}, compiled", f"{THEIRS}, compiled", f"{OURS}, checkpointing", IN_PIECES)
TOGETHER = (OURS, f"{OURS}, compiled, checkpointing")
CHANNELS, GRID = 4, 64
LEAST = 8
"""Samples in a step, below which a GPU is too small to say anything."""
HELD = 24
"""Times the weights: more than the moments of six optimisers and two more models with gradients take."""
ROOM = 0.95
"""Of the GPU's memory."""
COMPILING = 55.0
"""Seconds that torch may take to compile both towers, forwards and backwards."""


def measure_training(bench: Bench, notes: Notes, clock: Clock, model_name: str, together: bool = False) -> None:
    """Samples a second of forward, backward and update in bfloat16; MFU is of what the GPU's data sheet says.

    Compiling and checkpointing are measured apart, or only `together`.
    """
    config, device = bench.config, bench.device
    flops = training_flops(architecture_of(model_name), CHANNELS, GRID)
    torch.manual_seed(0)
    model = build_model(architecture_of(model_name), CHANNELS, GRID).to(device).train()
    settings = largest_that_fits(model, config.train_batch, config.train_steps, model_name, device)
    batches = Batches(settings, device, int(model.context_length))
    part = f"train {model_name}, batch {settings.batch_size}"
    if together:
        part += ", compiled and checkpointed"
    names = TOGETHER if together else APART
    ways: list[Way] = []
    for name, open_it in _ways(model, batches, settings):
        if name not in names or ("compiled" in name and not _may_compile(bench, part, name, ways, notes, clock)):
            continue
        model.zero_grad(set_to_none=True)  # or its gradients would count as this way's memory, or as none's
        ways += opened(part, name, open_it, notes, device)
    ceiling = opened(part, CEILING, lambda: matmul(config.matmul, torch.bfloat16, device), notes, device)
    rates = rates_of(part, [*ceiling, *ways], config.rounds, notes, clock, device)
    notes.add(part, rate_figures(ways, rates, "samples a second"))
    peak = _peak_tflops(bench)
    if peak is None:
        notes.left_out[f"{part}: MFU"] = "what this device can do at best is not known; say peak_tflops="
    notes.add(part, _shares(ways, rates, flops / 1e12, peak))
    notes.details[f"train {model_name}"] = {
        "batch": settings.batch_size,
        "gflop_per_sample": flops / 1e9,
        "peak_tflops": peak,
        "memory": "above the weights",
    }


def _may_compile(bench: Bench, part: str, name: str, ways: list[Way], notes: Notes, clock: Clock) -> bool:
    whole = f"{part}: {name}"
    if name == f"{THEIRS}, compiled":  # the model that is compiled by then, for another loop
        if any(way.name == f"{OURS}, compiled" for way in ways):
            return True
        notes.left_out[whole] = "as the model is not compiled"
    elif not bench.config.compile:
        notes.left_out[whole] = "compile=false"
    else:
        return clock.has(COMPILING, whole, notes)
    return False


def _peak_tflops(bench: Bench) -> float | None:
    if bench.config.peak_tflops is not None or bench.device.type == "cpu":
        return bench.config.peak_tflops
    known = peak_flops(torch.cuda.get_device_name(bench.device))
    return None if known is None else known / 1e12


def _shares(
    ways: list[Way], rates: Mapping[str, tuple[float, ...]], sample_tflop: float, peak: float | None
) -> Iterator[Figure]:
    """MFU and the share of the measured ceiling; and by how much longer a step takes in pieces."""
    for name in (way.name for way in ways if way.name in rates):
        tflops = tuple(rate * sample_tflop for rate in rates[name])
        if peak is not None:
            yield Figure(f"{name}: MFU", "share", tuple(value / peak for value in tflops))
        if CEILING in rates:
            yield share_figure(f"{name}: share of the ceiling", tflops, rates[CEILING])
    if CEILING in rates:
        yield Figure(CEILING, "TFLOP a second", rates[CEILING])
    if IN_PIECES in rates and OURS in rates:
        overheads = (whole / cut - 1 for whole, cut in zip(rates[OURS], rates[IN_PIECES], strict=True))
        yield Figure(f"GradCache overhead, {PIECES} pieces", "share of a step", tuple(overheads), "less")


def largest_that_fits(
    model: open_clip.CLIP, batch_size: int, steps: int, name: str, device: torch.device
) -> TrainingConfig:
    """The settings with the batch halved until a step of OpenCLIP's loop fits into memory, beside what others hold."""
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    while True:
        settings = TrainingConfig(model=name, batch_size=batch_size, steps=steps, precision="bfloat16")
        peak = PeakMemory(device)
        try:
            one = settings.model_copy(update={"steps": 1})
            theirs(model, Batches(one, device, int(model.context_length)), one)()
            taken = peak.gigabytes()
            if taken is None or taken * 1e9 + HELD * weights < ROOM * torch.cuda.mem_get_info(device)[1]:
                return settings
        except torch.OutOfMemoryError:
            pass
        finally:
            model.zero_grad(set_to_none=True)
        batch_size //= 2
        if batch_size < LEAST:
            raise CheckFailed(f"{name}: no step of {LEAST} samples fits into this GPU's memory")


def _ways(
    model: open_clip.CLIP, batches: Batches, settings: TrainingConfig
) -> Iterator[tuple[str, Callable[[], Work]]]:
    """Each with an optimiser of its own. What is not compiled shares its weights: they do not change the speed."""

    def open_compiled(one: open_clip.CLIP) -> Work:
        one.compile()
        return ours(one, batches, settings, 1)

    def open_checkpointed() -> Work:
        step = ours(model, batches, settings, 1)

        def work() -> int:
            model.set_grad_checkpointing(True)
            try:
                return step()
            finally:
                model.set_grad_checkpointing(False)

        return work

    compiled = copy.deepcopy(model)
    yield THEIRS, lambda: theirs(model, batches, settings)
    yield OURS, lambda: ours(model, batches, settings, 1)
    yield f"{OURS}, compiled", lambda: open_compiled(compiled)
    yield f"{THEIRS}, compiled", lambda: theirs(compiled, batches, settings)
    yield f"{OURS}, checkpointing", open_checkpointed
    if settings.batch_size % PIECES == 0:
        yield IN_PIECES, lambda: ours(model, batches, settings, PIECES)
    checkpointed = copy.deepcopy(model)
    checkpointed.set_grad_checkpointing(True)
    yield f"{OURS}, compiled, checkpointing", lambda: open_compiled(checkpointed)
