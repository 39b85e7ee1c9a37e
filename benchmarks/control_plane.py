"""`python -m benchmarks.control_plane fleet|scaling SETTINGS.yaml`: the driver, measured as JSON.

In a process of its own: what other benchmarks import would count as the driver's memory.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.util import ActorPool

from benchmarks.fleet import FleetConfig, ScalingConfig
from benchmarks.idle_actor import IdleActor
from benchmarks.idle_commit import commit_of
from benchmarks.process import MEBIBYTE, forget_peak, resident
from demo.report_machine import ROOT
from demo.run import VAE
from encode_pipeline.config import EncodeConfig
from encode_pipeline.latents.command import build, read_yaml
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.on_ray.driver import run_on_ray
from encode_pipeline.progress import Progress, RunLog
from encode_pipeline.records import ShardReport
from encode_pipeline.run import spec_by_child
from encode_pipeline.sources import find_sources

FIRST = 2_000
"""Shards after which all actors are at work and the clock starts."""


def measure_fleet(config: FleetConfig) -> dict[str, Any]:
    """Tasks a second, the driver's memory, and the time until a finished run knows that it is."""
    with tempfile.TemporaryDirectory(dir=config.scratch) as folder:
        root = Path(folder)
        encode = _many_tars(root, config.shards)
        began = time.perf_counter()
        sources = find_sources(encode.source)
        found = time.perf_counter() - began
        version = Store(encode.store).create(spec_by_child(encode))
        encode = encode.model_copy(update={"engine": "ray", "actors": config.actors})
        with cluster(config.actors):
            ours = _give_out(sources, version, encode, IdleActor)
            theirs = _give_out_by_actor_pool(sources[: config.compared], version, encode)
        return {
            "shards": config.shards,
            "actors": config.actors,
            "finding_the_tars_seconds": round(found, 2),
            "driver": ours,
            "actor_pool": theirs,
            "tasks_to_actor_pool": round(ours["tasks_per_second"] / theirs["tasks_per_second"], 2),
            "resume": _resume(root, sources, version),
        }


def measure_scaling(config: ScalingConfig) -> dict[str, Any]:
    """Shards a second of 1, 2 and 4 actors that sleep as a GPU would work, against so many times one."""
    actor = type("SleepingActor", (IdleActor,), {"seconds_a_shard": config.seconds_a_shard})
    rates: dict[int, list[float]] = {1: [], 2: [], 4: []}
    with tempfile.TemporaryDirectory() as folder, cluster(max(rates)):
        encode = _many_tars(Path(folder), max(rates) * config.shards_an_actor)
        found = find_sources(encode.source)
        version = Store(encode.store).create(spec_by_child(encode))
        for _ in range(config.rounds):
            for actors in rates:
                settings = encode.model_copy(update={"engine": "ray", "actors": actors})
                sources = found[: actors * config.shards_an_actor]
                rates[actors].append(_steady_rate(sources, version, settings, actor))
    one = statistics.median(rates[1])
    return {
        "seconds_a_shard": config.seconds_a_shard,
        "shards_per_second": {str(actors): [round(rate, 4) for rate in seen] for actors, seen in rates.items()},
        "to_linear": {
            str(actors): round(statistics.median(seen) / (actors * one), 4) for actors, seen in rates.items()
        },
        "to_the_sleep": {
            str(actors): round(statistics.median(seen) * config.seconds_a_shard / actors, 4)
            for actors, seen in rates.items()
        },
    }


@contextmanager
def cluster(gpus: int) -> Iterator[None]:
    """A Ray of this machine alone that says it has so many GPUs."""
    ray.init(address="local", num_cpus=gpus, num_gpus=gpus, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def _many_tars(root: Path, count: int) -> EncodeConfig:
    """So many tars that nobody will open, in one folder."""
    tars = root / "tars"
    tars.mkdir()
    for number in range(count):
        (tars / f"{number:08d}.tar").write_bytes(bytes(512))
    return EncodeConfig(vae=str(VAE), source=(str(tars),), store=str(root / "store"))


def _give_out(sources: list[SourceShard], version: Version, config: EncodeConfig, actor: type) -> dict[str, Any]:
    """The driver as a run has it, with its log and its count of everything."""
    forget_peak()
    before = resident("VmRSS")
    done, began = 0, 0.0
    cpu = time.process_time()
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        log = RunLog(version.storage, "runs/benchmark")
        with Progress(len(sources), 4, log, nowhere, gpus=1.0) as progress:
            for outcome in run_on_ray(sources, version, config, progress, actor):
                progress.add(outcome)
                done += 1
                if done == FIRST:
                    began = time.perf_counter()
            seconds = time.perf_counter() - began
    assert done == len(sources) == progress.tally.done
    return {
        "tasks_per_second": round((done - FIRST) / seconds, 1),
        "driver_cpu_ms_a_task": round(1000 * (time.process_time() - cpu) / done, 3),
        "peak_mib": round(resident("VmHWM") / MEBIBYTE, 1),
        "peak_above_start_mib": round((resident("VmHWM") - before) / MEBIBYTE, 1),
    }


def _give_out_by_actor_pool(sources: list[SourceShard], version: Version, config: EncodeConfig) -> dict[str, Any]:
    """The straightforward way: no log, no count, no care for anything that fails."""
    assert config.actors is not None
    remote = ray.remote(num_gpus=1, num_cpus=0)(IdleActor)
    actors = [remote.remote(config, version.fingerprint) for _ in range(config.actors)]
    ray.get([actor.ready.remote() for actor in actors])
    began = time.perf_counter()
    done = 0
    for answer in ActorPool(actors).map_unordered(lambda actor, source: actor.encode.remote(source), sources):
        assert isinstance(answer.outcome, ShardReport)
        done += 1
    rate = done / (time.perf_counter() - began)
    for actor in actors:
        ray.kill(actor)
    return {"tasks_per_second": round(rate, 1), "shards": done}


def _steady_rate(sources: list[SourceShard], version: Version, config: EncodeConfig, actor: type) -> float:
    """Shards a second once all actors are at work, and until the first of them runs out of it."""
    assert config.actors is not None
    ends: list[float] = []
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        progress = Progress(len(sources), 4, out=nowhere)
        for _ in run_on_ray(sources, version, config, progress, actor):
            ends.append(time.perf_counter())
    skipped = 3 * config.actors
    return (len(ends) - 2 * skipped) / (ends[-1 - skipped] - ends[skipped - 1])


def _resume(root: Path, sources: list[SourceShard], version: Version) -> dict[str, Any]:
    """The run's command again when all is done, in a process of its own, and the same for `status`."""
    commits = root / "store" / version.fingerprint / "commits"
    commits.mkdir()
    version.record_plan(sources)

    def commit(source: SourceShard) -> None:
        (commits / f"{source.name}.json").write_bytes(commit_of(source, version.fingerprint).to_json())

    began = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(commit, sources, chunksize=256):
            pass
    written = time.perf_counter() - began
    words = [f"source={root / 'tars'}", f"vae={VAE}", "engine=ray", "--json"]
    again = _command(["run", f"store={root / 'store'}", *words])
    assert again["already_done"] == len(sources) and again["shards"]["done"] == 0, again
    status = _command(["status", str(root / "store"), "--json"])
    assert status["shards"]["done"] == len(sources), status["shards"]
    return {
        "commits": len(sources),
        "writing_them_without_fsync_seconds": round(written, 1),
        "run_again_seconds": again["wall"],
        "run_again_peak_mib": again["peak_mib"],
        "status_seconds": status["wall"],
        "status_peak_mib": status["peak_mib"],
    }


def _command(words: list[str]) -> dict[str, Any]:
    """What a command says, how long it took from its start to its end, and the most memory it had."""
    code = (
        "import sys; from encode_pipeline.__main__ import VERBS; from encode_pipeline.latents.command import main\n"
        "status = main('encode_pipeline', VERBS, sys.argv[1:])\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')), file=sys.stderr)\n"
        "sys.exit(status)"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    wall = round(time.perf_counter() - began, 2)
    said: dict[str, Any] = json.loads(done.stdout)
    return {**said, "wall": wall, "peak_mib": round(int(done.stderr.split()[-2]) / 1024, 1)}


if __name__ == "__main__":
    _, what, path = sys.argv
    values = read_yaml(Path(path))
    if what == "fleet":
        print(json.dumps(measure_fleet(build(FleetConfig, values))))
    else:
        print(json.dumps(measure_scaling(build(ScalingConfig, values))))
