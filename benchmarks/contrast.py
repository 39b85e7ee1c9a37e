"""The contrastive loss of a large batch: memory and time, against OpenCLIP's and torch's own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from benchmarks.contrast_way import WAYS, Gradients
from benchmarks.figures import Figure, Measured, compared
from benchmarks.process import MEBIBYTE, answer_of
from benchmarks.settings import BenchmarkConfig
from encode_pipeline.config import PositiveInt
from encode_pipeline.latents.command import RequestError


class ContrastConfig(BenchmarkConfig):
    rounds: PositiveInt = Field(1, description="rounds, in each of which every way has its turn")
    samples: PositiveInt = Field(16_384, description="pairs in the batch")
    width: PositiveInt = Field(512, description="of the embedding")


MAPPED_FROM = str(128 << 10)
"""Bytes from which the C library gives a tensor's memory back to the kernel. Else it keeps now more of it, now less."""


def measure(config: ContrastConfig) -> Measured:
    """Memory and time of the loss and gradients of one batch in float32, each way in two processes of its own."""
    memory: dict[str, list[float]] = {way: [] for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        files = {way: Path(folder) / f"{number}.pt" for number, way in enumerate(WAYS)}
        for _ in range(config.rounds):
            for way, file in files.items():
                seconds[way].append(_in_own_process(way, config, file)["seconds"])
                held = _in_own_process(way, config, file, MALLOC_MMAP_THRESHOLD_=MAPPED_FROM)["peak_bytes"]
                if held <= 0:
                    raise RequestError(f"samples={config.samples}: too few to see what {way} holds in memory")
                memory[way].append(held / MEBIBYTE)
        found = {way: torch.load(file) for way, file in files.items()}
    details = {way: _difference(found[way], found[next(iter(WAYS))]) for way in WAYS}
    return Measured((*_figures(memory, "memory", "MiB"), *_figures(seconds, "time", "seconds")), details)


def _figures(turns: dict[str, list[float]], kind: str, unit: str) -> Iterator[Figure]:
    """Each way against the first."""
    first, *others = ((f"{way}, {kind}", values) for way, values in turns.items())
    base = Figure(first[0], unit, tuple(first[1]), "less")
    yield from (compared(name, unit, values, base, "less") for name, values in [first, *others])


def _difference(found: Gradients, first: Gradients) -> dict[str, float]:
    """How far a way's loss and gradients are from the first way's."""
    loss, *gradients = zip(found, first, strict=True)
    return {
        "loss_difference": float((loss[0] - loss[1]).abs()),
        "gradient_difference": max(float((a - b).abs().max() / b.abs().max()) for a, b in gradients),
    }


def _in_own_process(way: str, config: ContrastConfig, out: Path, **environment: str) -> dict[str, Any]:
    return answer_of("benchmarks.contrast_way", way, config.samples, config.width, out, **environment)
