"""A fleet whose object store refuses, lies, loses answers and damages bytes: the same latents, each exactly once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from encode_pipeline.config import EncodeConfig
from encode_pipeline.run import run
from tests.faulty_s3 import FaultyS3
from tests.fleet import settings, write_tars
from tests.machines import machines
from tests.reckoning import reconcile

TARS, COMMITS, DATA = "tars/*.tar", "*/commits/*", "*/data/*"


@dataclass(frozen=True)
class Fleet:
    """Two machines that reach their bucket through a server that fails by rule."""

    s3: FaultyS3
    tars: list[Path]

    def config(self, folder: Path, **changes: Any) -> EncodeConfig:
        bucket = self.s3.make_bucket()
        for tar in self.tars:
            bucket.client.upload_file(str(tar), bucket.name, f"tars/{tar.name}")
        return settings(folder, source=f"{bucket.url}/tars/*.tar", store=f"{bucket.url}/store", **changes)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    tars = write_tars(tmp_path_factory.mktemp("tars") / "tars", tars=4, good=6)
    with FaultyS3() as s3, pytest.MonkeyPatch.context() as environment:
        for name, value in s3.environment.items():
            environment.setenv(name, value)  # before the machines are started: their encoders inherit it
        with machines() as cluster:
            cluster.add()
            cluster.add()
            yield Fleet(s3, sorted(tars.glob("*.tar")))


@pytest.fixture(autouse=True)
def peace(fleet: Fleet) -> Iterator[None]:
    yield
    fleet.s3.clear()


@pytest.mark.parametrize(
    ("do", "rule"),
    [
        ("503", {"method": "GET", "key": TARS, "times": 3}),
        ("503", {"method": "PUT", "key": DATA, "times": 3}),
        ("503", {"method": "PUT", "key": COMMITS, "times": 3}),
        ("reset", {"times": 4}),
        ("cut", {"method": "GET", "key": TARS, "times": 3}),
        ("cut", {"method": "GET", "key": DATA, "times": 3}),
        ("short", {"method": "GET", "key": TARS, "times": 3}),
        ("short", {"method": "GET", "key": DATA, "times": 3}),
        ("flip", {"method": "GET", "key": TARS, "times": 2, "at": 100}),
        ("flip", {"method": "GET", "key": TARS, "times": 2, "at": 3000}),
        ("flip-up", {"method": "PUT", "key": DATA, "times": 2}),
        ("flip-up", {"method": "PUT", "key": COMMITS, "times": 1}),
        ("delay", {"seconds": 1.5, "chance": 0.1, "times": 30}),
        ("412", {"key": COMMITS, "times": 2}),
        ("409", {"key": COMMITS, "times": 3}),
        ("lose-reply", {"method": "PUT", "key": COMMITS, "times": 2}),
        ("lose-reply", {"method": "PUT", "key": DATA, "times": 2}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())).replace("/", ""),
)
def test_nothing_is_lost_on_a_server_that(fleet: Fleet, tmp_path: Path, do: Any, rule: dict[str, Any]) -> None:
    config = fleet.config(tmp_path, max_attempts=4)
    fault = fleet.s3.add(do, **rule)
    result = run(config)
    assert fault.met and result["ok"], result["failures"]
    fleet.s3.clear()
    reconcile(config)


def test_an_outage_of_the_server_counts_against_no_tar(fleet: Fleet, tmp_path: Path) -> None:
    """Every write fails until the run has noticed, with two tries a tar; then the server is well again."""
    config = fleet.config(tmp_path, max_attempts=2)
    fleet.s3.add("503", method="PUT", key=DATA, times=60)
    result = run(config)
    assert result["ok"], result["failures"]
    reconcile(config)
