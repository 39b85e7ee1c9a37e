"""`python -m benchmarks gpu`: measures, keeps what there is after every part, and says what failed or was left out."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.figures import Measured
from benchmarks.gpu.run import measure, parts_of, without_gpu
from benchmarks.gpu.settings import GpuConfig
from demo.report_machine import git_commit, processor, software
from encode_pipeline.latents.command import Verb
from encode_pipeline.latents.disk import replace

ABOUT = "On one GPU: encoder, pipeline, training, loss and steering"


def run_gpu(config: GpuConfig) -> Mapping[str, Any]:
    """What was measured. A part that failed makes it not `ok`; that there is no GPU does not."""
    if without_gpu(config):
        return {"ok": True, "no_gpu": [part.name for part in parts_of(config)]}
    began = time.perf_counter()

    def written(measured: Measured) -> dict[str, Any]:
        content = record(config, measured, time.perf_counter() - began)
        if config.out is not None:
            config.out.parent.mkdir(parents=True, exist_ok=True)
            replace(config.out, (json.dumps(content, indent=1) + "\n").encode())
        return content

    measured = measure(config, written)
    content = written(measured)
    return {**content, "ok": not measured.details["failed"], "out": config.out and str(config.out)}


def record(config: GpuConfig, measured: Measured, seconds: float) -> dict[str, Any]:
    """The content of a results file."""
    asked = config.model_dump(mode="json", exclude={"out"})
    benchmark = {"about": ABOUT, "settings": asked, "seconds": round(seconds, 1), **measured.to_dict()}
    return {
        "format": 2,
        "machine": {"processor": processor(), "device": measured.details["device"]},
        "software": software(),
        "commit": git_commit(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "seconds": round(seconds, 1),
        "benchmarks": {"gpu": benchmark},
    }


def show(result: Mapping[str, Any]) -> str:
    """A line a figure, then what is missing and why."""
    if "no_gpu" in result:
        return f"no CUDA GPU here, so nothing was measured; left out: {'; '.join(result['no_gpu'])}"
    benchmark = result["benchmarks"]["gpu"]
    return "\n".join([f"on {benchmark['details']['device']}, {benchmark['details']['weights']}", *_lines(benchmark)])


def _lines(benchmark: Mapping[str, Any]) -> Iterator[str]:
    for figure in benchmark["figures"]:
        ratio = f"  {figure['ratio']['median']:.2f} x {figure['against']}" if "against" in figure else ""
        spread = f"{figure['least']:g} to {figure['most']:g}"
        yield f"  {figure['name']:<70}{figure['median']:>12g} {figure['unit']:<18} {spread}{ratio}"
    for kind, reasons in (("left out", benchmark["details"]["left_out"]), ("failed", benchmark["details"]["failed"])):
        yield from (f"  {kind}: {name}: {reason}" for name, reason in reasons.items())


VERB = Verb(GpuConfig, run_gpu, "on one CUDA GPU, within eight minutes; without one it says so", show=show)
