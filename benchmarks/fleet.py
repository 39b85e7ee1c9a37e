"""The control plane: giving out a quarter of a million shards, going on where a run stopped, and how it scales."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pydantic import Field

from demo.report_machine import ROOT
from encode_pipeline.config import PositiveInt
from encode_pipeline.latents.command import CheckFailed, Settings, to_yaml


class FleetConfig(Settings):
    out: Path | None = Field(None, description="also write the numbers to this JSON file")
    shards: PositiveInt = Field(250_000, description="simulated source tars")
    actors: PositiveInt = Field(64, description="actors that do nothing")
    compared: PositiveInt = Field(25_000, description="shards for the straightforward way, Ray's own ActorPool")
    scratch: Path | None = Field(None, description="folder for tars, commits and log; the system's by default")


class ScalingConfig(Settings):
    out: Path | None = Field(None, description="also write the numbers to this JSON file")
    rounds: PositiveInt = Field(3, description="times that each number of actors is measured")
    seconds_a_shard: float = Field(1.0, gt=0, description="how long each actor sleeps over a shard")
    shards_an_actor: PositiveInt = Field(30, description="shards that each actor gets, about")


def measure(config: FleetConfig) -> dict[str, Any]:
    """Tasks a second, the driver's memory, and the time until a finished run knows that it is."""
    return _apart("fleet", config)


def measure_scaling(config: ScalingConfig) -> dict[str, Any]:
    """Shards a second of 1, 2 and 4 actors that sleep as a GPU would work, against so many times one."""
    return _apart("scaling", config)


def _apart(name: str, config: Settings) -> dict[str, Any]:
    """What `benchmarks.control_plane` measures."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.yaml"
        path.write_text(to_yaml(config), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.control_plane", name, str(path)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise CheckFailed(f"{name}: ended with exit status {done.returncode}; see above")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
