"""Encoders that are killed outright, at every place where it could hurt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from encode_pipeline.config import EncodeConfig
from tests.fleet import Run, events, settings, write_tars
from tests.machines import Machines, machines
from tests.reckoning import reconcile
from tests.traps import Trap, Traps

PLACES = ("before-read", "mid-shard", "after-build", "after-payload", "before-commit", "after-commit")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    with machines() as cluster:
        cluster.add()
        cluster.add()
        yield cluster


@dataclass(frozen=True)
class Storm:
    """A run in which an encoder was killed at every place, each time with another shard."""

    config: EncodeConfig
    result: dict[str, Any]
    traps: dict[str, Trap]


@pytest.fixture(scope="module")
def storm(cluster: Machines, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storm]:
    folder = tmp_path_factory.mktemp("storm")
    write_tars(folder / "tars")
    config = settings(folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        traps = Traps(monkeypatch, folder)
        kills = {place: traps.set(place, "kill", f"{number:02d}-*") for number, place in enumerate(PLACES)}
        yield Storm(config, Run(config).result(), kills)


@pytest.mark.parametrize("place", PLACES)
def test_killed_at_every_place_and_nothing_is_lost(storm: Storm, place: str) -> None:
    (mark,) = storm.traps[place].met()
    assert mark.shard in {event["shard"] for event in events(storm.config, "retry") if event["blame"] == "lost"}
    posts = [event["process"] for event in events(storm.config, "encoder up")]
    assert mark.process in posts[:-1]
    assert storm.result["ok"] and storm.result["shards"]["done"] == len(PLACES)
    reconcile(storm.config)


def test_a_commit_whose_maker_died_before_it_could_say_so_stands(storm: Storm) -> None:
    """It is not made again: the next try finds it."""
    assert storm.result["shards"]["done_by_others"] == 1
    assert sum(event["read"] for event in events(storm.config, "shard")) == storm.result["samples"]["read"] == 72


def test_a_tar_that_kills_whoever_reads_it_is_given_up_on_and_done_later(
    cluster: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = str(write_tars(tmp_path / "tars", tars=4) / "01.tar")
    traps = Traps(monkeypatch, tmp_path)
    kill = traps.set("before-read", "kill", "01-*", times=None)
    config = settings(tmp_path, max_attempts=2)
    result = Run(config).result()
    assert not result["ok"] and result["shards"] == {"done": 3, "failed": 1, "done_by_others": 0}
    assert [(f["source"], f["attempts"]) for f in result["failures"]] == [(poison, 2)]
    assert len(kill.met()) == 3  # once in company, twice alone
    (failure,) = reconcile(config, failed=[poison]).failures()
    assert failure.uri == poison and failure.attempts == 2 and failure.error.startswith("Actor")

    traps.lift()
    again = Run(settings(tmp_path, actors=1)).result()
    assert again["ok"] and again["already_done"] == 3 and again["shards"]["done"] == 1
    assert reconcile(config).storage.files("failures")  # the record stays; the commit outweighs it
