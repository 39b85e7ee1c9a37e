"""The control plane: giving out shards against Ray's own ActorPool, how it scales, and a quarter of a million at once.

What is measured runs in a process of its own, `benchmarks.control_plane`, without the libraries of other benchmarks.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pydantic import Field

from benchmarks.figures import Figure, Measured, compared, measured_once
from benchmarks.paired import Spent, compare
from benchmarks.process import answer_of
from benchmarks.settings import BenchmarkConfig
from encode_pipeline.config import PositiveInt
from encode_pipeline.latents.command import Settings, to_yaml

SCALED = (1, 2, 4)
"""Actors that `scaling` compares."""


class DriverConfig(BenchmarkConfig):
    shards: PositiveInt = Field(8_000, description="shards that each way gives out in all its turns")
    actors: PositiveInt = Field(8, description="actors of each way, which answer at once")


class ScalingConfig(BenchmarkConfig):
    seconds_a_shard: float = Field(1.0, gt=0, description="how long each actor sleeps over a shard")
    shards_an_actor: PositiveInt = Field(30, description="shards that each actor gets, about")


class AgainConfig(Settings):
    out: Path | None = Field(None, description="also write the numbers to this JSON file")
    shards: PositiveInt = Field(250_000, description="source tars, all of them done")
    scratch: Path | None = Field(None, description="folder for tars and commits; the system's by default")


def measure(config: DriverConfig) -> Measured:
    """Shards a second that a driver gives out and hears of, with its log and its count of everything."""
    found = apart("driver", config)
    spent = {way: [Spent(*turn) for turn in turns] for way, turns in found["spent"].items()}
    peak = measured_once("this pipeline: memory above start", "MiB", found["peak_above_start_mib"])
    details = {"actors": config.actors, "shards_a_turn": found["shards_a_turn"], "peak_mib": found["peak_mib"]}
    return Measured((*compare(found["shards_a_turn"], spent, "shards"), peak), details)


def measure_scaling(config: ScalingConfig) -> Measured:
    """Shards a second of 1, 2 and 4 actors that sleep as a GPU would work, against one, and against the sleep."""
    rates = apart("scaling", config)["rates"]
    one = Figure("1 actor", "shards a second", tuple(rates["1"]), against="1 actor", ratios=(1.0,) * config.rounds)
    figures = [one, *(compared(f"{actors} actors", one.unit, rates[str(actors)], one) for actors in SCALED[1:])]
    limit = [SCALED[-1] / config.seconds_a_shard] * config.rounds
    return Measured((*figures, compared(f"limit: {SCALED[-1]} that sleep and ask nobody", one.unit, limit, one)))


def measure_again(config: AgainConfig) -> Measured:
    """Seconds and memory of the run's command when all is done, and of `status`: each from its start to its end."""
    found = apart("again", config)
    figures = [
        measured_once(f"{command}: {what}", unit, found[command][what])
        for command in ("run", "status")
        for what, unit in (("time", "seconds"), ("memory", "MiB"))
    ]
    figures.append(measured_once("finding the tars", "seconds", found["finding_the_tars"]))
    return Measured(tuple(figures), {"shards": config.shards})


def apart(name: str, config: Settings) -> dict[str, Any]:
    """What `benchmarks.control_plane` says."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.yaml"
        path.write_text(to_yaml(config), encoding="utf-8")
        return answer_of("benchmarks.control_plane", name, path)
