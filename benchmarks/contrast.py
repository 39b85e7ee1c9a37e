"""The contrastive loss of a large batch: memory and time, against OpenCLIP's and torch's own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from benchmarks.contrast_way import WAYS, Gradients
from benchmarks.figures import Figure, Measured, compared
from benchmarks.process import MEBIBYTE
from benchmarks.settings import BenchmarkConfig
from demo.report_machine import ROOT
from encode_pipeline.config import PositiveInt
from encode_pipeline.latents.command import CheckFailed


class ContrastConfig(BenchmarkConfig):
    rounds: PositiveInt = Field(1, description="rounds, in each of which every way has its turn")
    samples: PositiveInt = Field(16_384, description="pairs in the batch")
    width: PositiveInt = Field(512, description="of the embedding")


KINDS = {"peak_mib": "memory", "seconds": "time"}


def measure(config: ContrastConfig) -> Measured:
    """Memory and time of the loss and gradients of one batch in float32, each way in a process of its own."""
    turns: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        files = {way: Path(folder) / f"{number}.pt" for number, way in enumerate(WAYS)}
        for _ in range(config.rounds):
            for way, file in files.items():
                turns[way].append(_in_own_process(way, config, file))
        found = {way: torch.load(file) for way, file in files.items()}
    details = {way: _difference(found[way], found[next(iter(WAYS))]) for way in WAYS}
    return Measured((*_figures(turns, "peak_mib", "MiB"), *_figures(turns, "seconds", "seconds")), details)


def _figures(turns: dict[str, list[dict[str, Any]]], key: str, unit: str) -> Iterator[Figure]:
    """Each way against the first."""
    first, *others = ((f"{way}, {KINDS[key]}", [turn[key] for turn in took]) for way, took in turns.items())
    base = Figure(first[0], unit, tuple(first[1]), "less")
    yield from (compared(name, unit, values, base, "less") for name, values in [first, *others])


def _difference(found: Gradients, first: Gradients) -> dict[str, float]:
    """How far a way's loss and gradients are from the first way's."""
    loss, *gradients = zip(found, first, strict=True)
    return {
        "loss_difference": float((loss[0] - loss[1]).abs()),
        "gradient_difference": max(float((a - b).abs().max() / b.abs().max()) for a, b in gradients),
    }


def _in_own_process(way: str, config: ContrastConfig, out: Path) -> dict[str, Any]:
    words = ["-m", "benchmarks.contrast_way", way, str(config.samples), str(config.width), str(out)]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise CheckFailed(f"{way} ended with exit status {done.returncode}; see above")
    measured: dict[str, Any] = json.loads(done.stdout)
    return {**measured, "peak_mib": round(measured["peak_bytes"] / MEBIBYTE, 1)}
