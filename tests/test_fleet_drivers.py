"""Drivers that die, compete and are told to stop."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet import Command, Run, done, settings, write_tars
from tests.machines import Machines, is_alive, machines
from tests.reckoning import reconcile
from tests.traps import Traps, wait_for


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    with machines() as cluster:
        cluster.add()
        yield cluster


@pytest.fixture
def traps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Traps:
    return Traps(monkeypatch, tmp_path)


def test_a_driver_that_is_killed_and_started_again_does_only_what_is_missing(
    cluster: Machines, traps: Traps, tmp_path: Path
) -> None:
    write_tars(tmp_path / "tars")
    config = settings(tmp_path)
    begun = traps.set("before-read", "pass", times=None)
    held = traps.set("before-commit", "hold", "03-*")
    with Command(config, cluster.address, tmp_path / "first") as command:
        (orphan,) = held.wait(1, command)
        wait_for("two commits", lambda: len(done(config)) >= 2, command)
        command.process.kill()
    wait_for("the end of the dead driver's encoder", lambda: not is_alive(orphan.process))
    before, begun_before = done(config), len(begun.met())
    assert 2 <= len(before) < 6 and orphan.shard not in before
    result = Run(config).result()
    assert result["ok"] and result["already_done"] == len(before) and result["shards"]["done"] == 6 - len(before)
    assert sorted(mark.shard for mark in begun.met()[begun_before:]) == sorted(done(config) - before)
    reconcile(config)


def test_three_drivers_on_one_store_at_once(cluster: Machines, traps: Traps, tmp_path: Path) -> None:
    """Two on a GPU that they share, and one that knows nothing of Ray. All are made to commit the same at once."""
    write_tars(tmp_path / "tars")
    config = settings(tmp_path, actors=1, gpus_per_actor=0.5)
    held = traps.set("before-commit", "hold", times=9)
    one = Run(config)
    with (
        Command(config, cluster.address, tmp_path / "two") as two,
        Command(settings(tmp_path, engine="local"), cluster.address, tmp_path / "three") as three,
    ):
        rivals = held.wait(9, one)
        assert set(Counter(mark.shard for mark in rivals).values()) == {3} == {len({m.process for m in rivals})}
        held.release()
        results = [one.result(), two.result(), three.result()]
    assert all(result["ok"] and result["shards"]["done"] == 6 and not result["already_done"] for result in results)
    assert sum(6 - result["shards"]["done_by_others"] for result in results) == 6
    reconcile(config)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_told_to_stop_gives_back_what_it_has_and_leaves_nothing_behind(
    cluster: Machines, traps: Traps, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    write_tars(tmp_path / "tars", tars=5, good=40)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    config = settings(tmp_path, scratch=scratch)
    held = traps.set("mid-shard", "hold", "03-*")
    with Command(config, cluster.address, tmp_path / "command") as command:
        (mark,) = held.wait(1, command)
        command.process.send_signal(number)
        wait_for("word that it ends", lambda: "ending:" in command.said, command)
        held.release()
        assert command.status() == status
        assert command.said.splitlines()[-1] == "interrupted; run the same command again to go on"
        assert "Traceback" not in command.said
    assert list(scratch.iterdir()) == []
    before = done(config)
    assert before and mark.shard not in before
    result = Run(settings(tmp_path, engine="local")).result()
    assert result["ok"] and result["already_done"] == len(before)
    reconcile(config)


def test_an_interrupt_from_the_keyboard_reaches_a_whole_cluster_and_does_no_harm(traps: Traps, tmp_path: Path) -> None:
    """A terminal sends it to every process of the command, those of Ray included."""
    write_tars(tmp_path / "tars", tars=5, good=40)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    config = settings(tmp_path, scratch=scratch, gpus_per_actor=0, actors=1)
    held = traps.set("mid-shard", "hold", "03-*")
    with Command(config, "", tmp_path / "command") as command:
        (mark,) = held.wait(1, command)
        os.killpg(command.process.pid, signal.SIGINT)
        wait_for("word that it ends", lambda: "ending:" in command.said, command)
        held.release()
        assert command.status() == 130
        assert command.said.splitlines()[-1] == "interrupted; run the same command again to go on"
    assert list(scratch.iterdir()) == []
    wait_for("the end of its encoder", lambda: not is_alive(mark.process))
    before = done(config)
    assert before and mark.shard not in before
    result = Run(settings(tmp_path, engine="local")).result()
    assert result["ok"] and result["already_done"] == len(before)
    reconcile(config)
