"""`python -m benchmarks.control_plane driver|scaling|again SETTINGS.yaml`: the driver, measured as JSON.

In a process of its own: what other benchmarks import would count as the driver's memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import astuple
from itertools import islice
from pathlib import Path
from typing import Any

import ray
from ray.util import ActorPool

from benchmarks.driver import SCALED, AgainConfig, DriverConfig, ScalingConfig
from benchmarks.idle_actor import IdleActor
from benchmarks.idle_commit import commit_of
from benchmarks.paired import in_turns
from benchmarks.process import MEBIBYTE, forget_peak, resident
from demo.report_machine import ROOT
from demo.run import VAE
from encode_pipeline.config import EncodeConfig
from encode_pipeline.latents.command import CheckFailed, build, read_yaml
from encode_pipeline.latents.commit import SourceShard
from encode_pipeline.latents.spec import LatentSpec, VaeIdentity
from encode_pipeline.latents.store import Store, Version
from encode_pipeline.on_ray.driver import run_on_ray
from encode_pipeline.progress import Progress, RunLog
from encode_pipeline.records import ShardReport
from encode_pipeline.run import spec_by_child
from encode_pipeline.sources import find_sources


def measure_driver(config: DriverConfig) -> dict[str, Any]:
    """What turns of giving out shards take, in Ray's way and in this driver's."""
    a_turn = max(1, config.shards // (config.rounds + 1))  # the first turn only brings everybody to work
    sources = [
        SourceShard(f"s3://pictures/laion/{number:08d}.tar", 1) for number in range(a_turn * (config.rounds + 1))
    ]
    with tempfile.TemporaryDirectory() as folder, cluster(2 * config.actors):
        version = _version(Path(folder))
        encode = _config(Path(folder), config.actors)
        theirs = _by_actor_pool(sources, version, encode)
        forget_peak()
        before = resident("VmRSS")
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123
            log = RunLog(version.storage, "runs/benchmark")
            progress = Progress(len(sources), 4, log, nowhere, gpus=1.0)
            with progress, closing(run_on_ray(sources, version, encode, progress, IdleActor)) as outcomes:

                def ours() -> None:
                    for outcome in islice(outcomes, a_turn):
                        progress.add(outcome)

                spent = in_turns({"Ray's ActorPool": lambda: theirs(a_turn), "this driver": ours}, config.rounds)
                left = list(outcomes)
        if left or progress.tally.done != len(sources):
            raise CheckFailed(f"{progress.tally.done} shards done and {len(left)} left over, of {len(sources)}")
        return {
            "shards_a_turn": a_turn,
            "spent": {name: [astuple(turn) for turn in turns] for name, turns in spent.items()},
            "peak_mib": round(resident("VmHWM") / MEBIBYTE, 1),
            "peak_above_start_mib": round((resident("VmHWM") - before) / MEBIBYTE, 1),
        }


def measure_scaling(config: ScalingConfig) -> dict[str, Any]:
    """Shards a second of some numbers of actors, in each round."""
    actor = type("SleepingActor", (IdleActor,), {"seconds_a_shard": config.seconds_a_shard})
    rates: dict[int, list[float]] = {actors: [] for actors in SCALED}
    with tempfile.TemporaryDirectory() as folder, cluster(max(SCALED)):
        version = _version(Path(folder))
        for _ in range(config.rounds):
            for actors, seen in rates.items():
                sources = _tars(actors * config.shards_an_actor)
                seen.append(_steady_rate(sources, version, _config(Path(folder), actors), actor))
    return {"rates": rates}


def measure_again(config: AgainConfig) -> dict[str, Any]:
    """The run's command again when all is done, and `status`, each in a process of its own."""
    with tempfile.TemporaryDirectory(dir=config.scratch) as folder:
        root = Path(folder)
        tars, store = root / "tars", root / "store"
        tars.mkdir()
        for number in range(config.shards):
            (tars / f"{number:08d}.tar").write_bytes(bytes(512))  # nobody will open them
        encode = EncodeConfig(vae=str(VAE), source=(str(tars),), store=str(store))
        began = time.perf_counter()
        sources = find_sources(encode.source)
        found = time.perf_counter() - began
        version = Store(store).create(spec_by_child(encode))
        version.record_plan(sources)
        commits = store / version.fingerprint / "commits"
        commits.mkdir()

        def commit(source: SourceShard) -> None:  # without fsync: no reader can tell
            (commits / f"{source.name}.json").write_bytes(commit_of(source, version.fingerprint).to_json())

        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(commit, sources, chunksize=256):
                pass
        run = _command(["run", f"store={store}", f"source={tars}", f"vae={VAE}", "engine=ray", "--json"])
        status = _command(["status", str(store), "--json"])
    if (run["already_done"], status["shards"]["done"]) != (len(sources), len(sources)):
        raise CheckFailed(f"{run['already_done']} and {status['shards']['done']} shards done of {len(sources)}")
    return {"finding_the_tars": found, "run": run["took"], "status": status["took"]}


@contextmanager
def cluster(gpus: int) -> Iterator[None]:
    """A Ray of this machine alone that says it has so many GPUs."""
    ray.init(address="local", num_cpus=1, num_gpus=gpus, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def _tars(count: int) -> list[SourceShard]:
    """Tars that nobody will open."""
    return [SourceShard(f"s3://pictures/laion/{number:08d}.tar", 1) for number in range(count)]


def _config(root: Path, actors: int) -> EncodeConfig:
    return EncodeConfig(vae="pixels", source=("none.tar",), store=str(root / "store"), engine="ray", actors=actors)


def _version(root: Path) -> Version:
    vae = VaeIdentity(name="none", weights_sha256="0" * 64, config={}, scaling_factor=1.0)
    spec = LatentSpec(vae=vae, shape=(4, 64, 64), image_size=512, views=4, recipe={}, seed=0)
    return Store(root / "store").create(spec)


def _by_actor_pool(sources: list[SourceShard], version: Version, config: EncodeConfig) -> Callable[[int], None]:
    """Gives out the next few shards: no log, no count, no care for anything that fails."""
    remote = ray.remote(num_gpus=1, num_cpus=0)(IdleActor)
    pool = ActorPool([remote.remote(config, version.fingerprint) for _ in range(config.actors or 1)])
    waiting = iter(sources)

    def turn(count: int) -> None:
        some = list(islice(waiting, count))
        for answer in pool.map_unordered(lambda actor, source: actor.encode.remote(source), some):
            if not isinstance(answer.outcome, ShardReport):
                raise CheckFailed(f"a shard failed: {answer.outcome}")

    return turn


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
    took = {"time": time.perf_counter() - began, "memory": int(done.stderr.split()[-2]) / 1024}
    said: dict[str, Any] = json.loads(done.stdout)
    return {**said, "took": took}


if __name__ == "__main__":
    _, what, path = sys.argv
    values = read_yaml(Path(path))
    if what == "driver":
        print(json.dumps(measure_driver(build(DriverConfig, values))))
    elif what == "scaling":
        print(json.dumps(measure_scaling(build(ScalingConfig, values))))
    else:
        print(json.dumps(measure_again(build(AgainConfig, values))))
