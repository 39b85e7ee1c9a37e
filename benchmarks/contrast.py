"""The contrastive loss of a large batch: memory and time, against OpenCLIP's and torch's own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from benchmarks.contrast_way import WAYS
from benchmarks.process import MEBIBYTE
from demo.report_machine import ROOT
from encode_pipeline.config import PositiveInt
from encode_pipeline.latents.command import CheckFailed, Settings


class ContrastConfig(Settings):
    out: Path | None = Field(None, description="also write the numbers to this JSON file")
    samples: PositiveInt = Field(16_384, description="pairs in the batch")
    width: PositiveInt = Field(512, description="of the embedding")


def measure(config: ContrastConfig) -> dict[str, Any]:
    """Loss and gradients of one batch in float32, each way in a process of its own."""
    result: dict[str, Any] = {"samples": config.samples, "width": config.width, "loss_ways": {}}
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for number, way in enumerate(WAYS):
            file = Path(folder) / f"{number}.pt"
            result["loss_ways"][way] = _in_own_process(way, config, file)
            found[way] = torch.load(file)
    first = next(iter(WAYS))
    for way, measured in result["loss_ways"].items():
        pairs = list(zip(found[way], found[first], strict=True))
        measured["memory_ratio"] = round(measured["peak_bytes"] / result["loss_ways"][first]["peak_bytes"], 4)
        measured["loss_difference"] = float((pairs[0][0] - pairs[0][1]).abs())
        measured["gradient_difference"] = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs[1:])
    return result


def _in_own_process(way: str, config: ContrastConfig, out: Path) -> dict[str, Any]:
    words = ["-m", "benchmarks.contrast_way", way, str(config.samples), str(config.width), str(out)]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise CheckFailed(f"{way} ended with exit status {done.returncode}; see above")
    measured: dict[str, Any] = json.loads(done.stdout)
    return {**measured, "peak_mib": round(measured["peak_bytes"] / MEBIBYTE, 1)}
