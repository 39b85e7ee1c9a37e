"""`python -m benchmarks`: every benchmark that this machine can run, as a table and as JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from benchmarks import contrast, encode, fleet, memory, one_decode, overhead, pipeline, reader, steering, training
from benchmarks.gpu import command as gpu
from benchmarks.settings import BenchmarkConfig
from benchmarks.show import show
from demo.report_machine import git_commit, processor, software
from encode_pipeline.latents.command import Settings, Verb, main


class AllConfig(Settings):
    out: Path | None = Field(Path("runs/bench.json"), description="where the numbers go")


def run_all(config: AllConfig) -> Mapping[str, Any]:
    """All but those that take a quarter of an hour."""
    results = {}
    for name, (settings, measure) in MEASURES.items():
        if name not in ("memory", "fleet", "scaling", "contrast"):
            print(f"measuring: {name}", file=sys.stderr, flush=True)
            results[name] = measure(settings())
    return written(config.out, results)


def written(out: Path | None, results: Mapping[str, Any]) -> Mapping[str, Any]:
    """The results beside the machine they came from, in the file if one is wanted."""
    content = {
        "processor": processor(),
        "load_average": [round(load, 2) for load in os.getloadavg()],  # well above the cores: others were at work too
        "software": software(),
        "commit": git_commit(),
        "results": results,
    }
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(content, indent=1) + "\n")
        return {"out": str(out), **content}
    return content


def verb(name: str, settings: type[Settings], measure: Callable[[Any], dict[str, Any]]) -> Verb:
    def run(config: Any) -> Mapping[str, Any]:
        asked = config.model_dump(mode="json", exclude={"out"})
        return written(config.out, {name: {"settings": asked, **measure(config)}})

    assert measure.__doc__
    return Verb(settings, run, measure.__doc__.splitlines()[0].rstrip("."), show=show)


MEASURES: dict[str, tuple[type[Settings], Callable[[Any], dict[str, Any]]]] = {
    "reader": (BenchmarkConfig, reader.measure),
    "encode": (BenchmarkConfig, encode.measure),
    "pipeline": (pipeline.PipelineConfig, pipeline.measure),
    "one-decode": (one_decode.OneDecodeConfig, one_decode.measure),
    "overhead": (overhead.OverheadConfig, overhead.measure),
    "memory": (memory.MemoryConfig, memory.measure),
    "fleet": (fleet.FleetConfig, fleet.measure),
    "scaling": (fleet.ScalingConfig, fleet.measure_scaling),
    "contrast": (contrast.ContrastConfig, contrast.measure),
    "steering": (steering.SteeringConfig, steering.measure),
    "training": (training.TrainingConfig, training.measure),
}
VERBS = {
    "run": Verb(AllConfig, run_all, "those that take no quarter of an hour and no GPU", show=show),
    **{name: verb(name, settings, measure) for name, (settings, measure) in MEASURES.items()},
    "gpu": gpu.VERB,
}

if __name__ == "__main__":
    sys.exit(main("benchmarks", VERBS, sys.argv[1:], default="run"))
