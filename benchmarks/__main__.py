"""`python -m benchmarks`: what is measured on this machine, as a table, as JSON and as a picture."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from benchmarks import (
    augment,
    commit,
    compare,
    contrast,
    decode,
    driver,
    encode,
    highlights,
    memory,
    one_decode,
    overhead,
    pipeline,
    reader,
    resume,
    scale,
    scale_plan,
    steering,
    storage,
    storage_accuracy,
    training,
    writer,
)
from benchmarks.figures import Measured
from benchmarks.gpu import run as gpu
from benchmarks.gpu.run import parts_of, without_gpu
from benchmarks.gpu.settings import GpuConfig
from benchmarks.ratio_picture import draw_ratios
from benchmarks.record import entry, record_of, write_record
from benchmarks.settings import BenchmarkConfig
from benchmarks.table import markdown
from encode_pipeline.config import PositiveInt
from encode_pipeline.latents.command import CheckFailed, RequestError, Settings, Verb, main, nearest


@dataclass(frozen=True)
class Benchmark:
    """One thing to measure."""

    settings: type[Settings]
    measure: Callable[[Any], Measured]
    in_bench: Mapping[str, Any] | None = field(default_factory=dict)
    """What `make bench` tells it, beside the rounds; None if it takes too long for that."""

    @property
    def about(self) -> str:
        assert self.measure.__doc__
        return self.measure.__doc__.splitlines()[0].rstrip(".")


BENCHMARKS: dict[str, Benchmark] = {
    "reader": Benchmark(BenchmarkConfig, reader.measure),
    "encode": Benchmark(BenchmarkConfig, encode.measure),
    "pipeline": Benchmark(pipeline.PipelineConfig, pipeline.measure),
    "one-decode": Benchmark(one_decode.OneDecodeConfig, one_decode.measure),
    "decode": Benchmark(decode.DecodeConfig, decode.measure),
    "augment": Benchmark(augment.AugmentConfig, augment.measure),
    "writer": Benchmark(writer.WriterConfig, writer.measure),
    "commit": Benchmark(commit.CommitConfig, commit.measure),
    "driver": Benchmark(driver.DriverConfig, driver.measure),
    "resume": Benchmark(resume.ResumeConfig, resume.measure),
    "overhead": Benchmark(overhead.OverheadConfig, overhead.measure),
    "steering": Benchmark(steering.SteeringConfig, steering.measure),
    "training": Benchmark(training.TrainingConfig, training.measure),
    "contrast": Benchmark(contrast.ContrastConfig, contrast.measure, {"samples": 4096, "rounds": 1}),
    "storage": Benchmark(storage.StorageConfig, storage.measure),
    "storage-accuracy": Benchmark(storage_accuracy.AccuracyConfig, storage_accuracy.measure, None),
    "memory": Benchmark(memory.MemoryConfig, memory.measure, None),
    "scaling": Benchmark(driver.ScalingConfig, driver.measure_scaling, None),
    "again": Benchmark(driver.AgainConfig, driver.measure_again, None),
}
IN_BENCH = [name for name, benchmark in BENCHMARKS.items() if benchmark.in_bench is not None]


class AllConfig(Settings):
    passes: PositiveInt = Field(3, description="times that all are gone through, so that a busy while is seen")
    rounds: PositiveInt = Field(2, description="rounds of each benchmark in each pass")
    only: list[str] = Field(IN_BENCH, min_length=1, description="the benchmarks, in this order")
    out: Path = Field(Path("runs/bench/bench.json"), description="the record; its table and picture go beside it")

    @field_validator("only")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in IN_BENCH:
                raise ValueError(f"no benchmark {name!r} among these{nearest(name, IN_BENCH)}")
        return names


def run_all(config: AllConfig) -> Mapping[str, Any]:
    """What takes no GPU and no hour, several times over; the record is there after each of them."""
    began = time.perf_counter()
    found: dict[str, Measured] = {}
    entries: dict[str, dict[str, Any]] = {}
    faults: dict[str, str] = {}
    for number in range(config.passes):
        for name in config.only:
            print(f"pass {number + 1} of {config.passes}: {name}", file=sys.stderr, flush=True)
            benchmark, started = BENCHMARKS[name], time.perf_counter()
            settings = benchmark.settings.model_validate({"rounds": config.rounds, **(benchmark.in_bench or {})})
            try:
                measured = benchmark.measure(settings)
            except (CheckFailed, RequestError) as error:
                faults[name] = str(error)
                print(f"error: {name}: {error}", file=sys.stderr, flush=True)
                continue
            found[name] = found[name].and_again(measured) if name in found else measured
            took = time.perf_counter() - started + entries.get(name, {"seconds": 0})["seconds"]
            entries[name] = entry(benchmark.about, told(settings), found[name], took)
            record = record_of(entries, time.perf_counter() - began)
            write_record(record, config.out)
    if not entries:
        raise CheckFailed(f"nothing could be measured: {'; '.join(faults.values())}")
    return finished(record, config.out, faults)


def finished(record: dict[str, Any], out: Path | None, faults: Mapping[str, str]) -> Mapping[str, Any]:
    """The record with its table and its picture beside it."""
    files = []
    if out is not None:
        write_record(record, out)
        out.with_suffix(".md").write_text(markdown(record), encoding="utf-8")
        files = [out, out.with_suffix(".md")]
        if draw_ratios(record, out.with_suffix(".png")):
            files.append(out.with_suffix(".png"))
    return {"ok": not faults, **record, "files": [str(file) for file in files], "faults": dict(faults)}


def told(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude={"out", "scratch"})


def show(content: Mapping[str, Any]) -> str:
    faults = [f"error: {name}: {fault}" for name, fault in content["faults"].items()]
    return "\n".join([markdown(content), *content["files"], *faults])


def verb(name: str, benchmark: Benchmark) -> Verb:
    def run(config: Any) -> Mapping[str, Any]:
        began = time.perf_counter()
        measured = benchmark.measure(config)
        took = time.perf_counter() - began
        return finished(record_of({name: entry(benchmark.about, told(config), measured, took)}, took), config.out, {})

    return Verb(benchmark.settings, run, benchmark.about, show=show)


GPU = "On one GPU: the encoder, the pipeline around it, training, its loss, steering"


def run_gpu(config: GpuConfig) -> Mapping[str, Any]:
    """What a GPU does; the record is there after each part. Without a GPU, what was left out."""
    if without_gpu(config):
        return {"ok": True, "left_out": [part.name for part in parts_of(config)]}
    began = time.perf_counter()

    def kept(measured: Measured) -> dict[str, Any]:
        took = time.perf_counter() - began
        record = record_of({"gpu": entry(GPU, told(config), measured, took)}, took)
        write_record(record, config.out)
        return record

    measured = gpu.measure(config, kept)
    return finished(kept(measured), config.out, measured.details["failed"])


def show_gpu(content: Mapping[str, Any]) -> str:
    if "benchmarks" in content:
        return show(content)
    return f"no CUDA GPU here, so nothing was measured; left out: {'; '.join(content['left_out'])}"


VERBS = {
    "run": Verb(AllConfig, run_all, "all that need no GPU and no hour, several times over", "only", show),
    **{name: verb(name, benchmark) for name, benchmark in BENCHMARKS.items()},
    "gpu": Verb(GpuConfig, run_gpu, "on one CUDA GPU, within eight minutes; without one it says so", show=show_gpu),
    "compare": Verb(
        compare.CompareConfig,
        compare.compare_records,
        "two records: which figures changed by more than their noise",
        argument="records",
        show=compare.show,
    ),
    "scale": Verb(
        scale_plan.ScaleConfig, scale.run, "on paper: billions of pictures, from what was measured", show=scale.show
    ),
    "highlights": Verb(
        highlights.HighlightsConfig,
        highlights.run,
        "the tables of README.md and docs/performance.md, out of the records",
        show=highlights.show,
    ),
}

if __name__ == "__main__":
    sys.exit(main("benchmarks", VERBS, sys.argv[1:], default="run"))
