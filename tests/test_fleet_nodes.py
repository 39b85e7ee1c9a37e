"""Machines that die, freeze, come back, join and are taken away with notice."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from encode_pipeline.latents.failpoints import ENVIRONMENT
from encode_pipeline.latents.store import Store
from tests.fleet import Run, done, events, settings, write_tars
from tests.machines import Machines, machines, thaw
from tests.reckoning import reconcile
from tests.traps import Traps, wait_for

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def head() -> Iterator[Machines]:
    with machines() as cluster:
        yield cluster


@pytest.fixture
def cluster(head: Machines) -> Iterator[Machines]:
    yield head
    head.clear()


@pytest.fixture
def traps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Traps:
    return Traps(monkeypatch, tmp_path)


def wait_to_hear(text: str, capsys: Capture, run: Run) -> None:
    wait_for(f"the words {text!r}", lambda: text in capsys.readouterr().err, run)


def test_without_a_machine_then_with_one_that_dies_then_with_another(
    cluster: Machines, traps: Traps, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encode_pipeline.on_ray.driver.QUIET", 0.2)
    write_tars(tmp_path / "tars")
    config = settings(tmp_path)
    held = traps.set("before-commit", "hold")
    run = Run(config)
    wait_to_hear(
        "waiting: none of 0 encoders is up; the cluster is full, or has no GPUs now; one that can grow is", capsys, run
    )
    first = cluster.add()
    (mark,) = held.wait(1, run)
    assert cluster.of(mark.process) is first
    cluster.kill(first)
    wait_to_hear("waiting: none of 1 encoders is up", capsys, run)
    cluster.add()
    result = run.result()
    assert result["ok"] and result["shards"]["done"] == 6
    assert [mark.shard for mark in held.met()] == [mark.shard]
    left = Store(config.store).version().unreferenced()
    assert f"data/{mark.shard}" in {folder.rpartition("/")[0] for folder in left}
    reconcile(config)


def test_a_machine_that_joins_is_put_to_use(cluster: Machines, traps: Traps, tmp_path: Path) -> None:
    write_tars(tmp_path / "tars")
    config = settings(tmp_path)
    held = traps.set("before-commit", "hold", times=3)
    made = traps.set("after-commit", "pass", times=None)
    cluster.add()
    run = Run(config)
    busy = held.wait(3, run)  # all that an encoder takes at once
    newcomer = cluster.add()
    wait_for("commits of the new machine", lambda: len(done(config)) == 3, run)
    assert {cluster.of(mark.process) for mark in made.met()} == {newcomer}
    held.release()
    assert run.result()["ok"]
    assert {mark.shard for mark in busy}.isdisjoint(mark.shard for mark in made.met()[:3])
    reconcile(config)


def test_a_machine_that_froze_and_was_replaced_changes_nothing_when_it_thaws(
    cluster: Machines, traps: Traps, tmp_path: Path
) -> None:
    """Frozen just before a commit, it goes on in the middle of it when others have long done its work."""
    write_tars(tmp_path / "tars")
    config = settings(tmp_path)
    held = traps.set("before-commit", "hold")
    after = traps.set("after-commit", "hold", times=None)
    after.release()
    last = traps.set("before-read", "hold", "05-*", times=None)
    cluster.add()
    cluster.add()
    run = Run(config)
    (zombie,) = held.wait(1, run)
    cluster.freeze(cluster.of(zombie.process))
    cluster.add()
    wait_for("all shards but the last", lambda: len(done(config)) == 5, run)
    storage = Store(config.store).version().storage
    commits = {path: storage.read(path) for path in storage.files("commits")}

    after.hold()
    held.release()
    thaw(zombie.process)
    wait_for("the zombie's commit", lambda: zombie in after.met(), run)
    assert {path: storage.read(path) for path in storage.files("commits")} == commits
    cluster.kill(cluster.of(zombie.process))
    after.release()
    last.release()
    assert run.result()["ok"]
    left = Store(config.store).version().unreferenced()
    assert f"data/{zombie.shard}" in {folder.rpartition("/")[0] for folder in left}
    assert {path: storage.read(path) for path in commits} == commits
    reconcile(config)


def test_with_five_seconds_notice_shards_are_given_back(
    cluster: Machines, traps: Traps, tmp_path: Path, capsys: Capture
) -> None:
    """None of them counts as tried: one try is all they have."""
    write_tars(tmp_path / "tars")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    config = settings(tmp_path, max_attempts=1, scratch=scratch)
    held = traps.set("mid-shard", "hold")
    machine = cluster.add()
    run = Run(config)
    (mark,) = held.wait(1, run)
    ends = cluster.drain(machine, 5.0)
    wait_to_hear("its machine goes away in", capsys, run)
    wait_for("the last moment", lambda: time.time() > ends - 0.9, run)
    held.release()
    wait_for("all shards to be given back", lambda: not list(scratch.iterdir()), run)
    cluster.kill(machine)
    cluster.add()
    result = run.result()
    assert result["ok"] and result["shards"]["done"] == 6
    given_back = {event["shard"] for event in events(config, "retry") if event["blame"] == "called_back"}
    assert mark.shard in given_back and len(given_back) == 3
    reconcile(config)


def test_with_a_minutes_notice_shards_are_finished_unless_the_machine_dies_before(
    cluster: Machines, traps: Traps, tmp_path: Path, capsys: Capture
) -> None:
    """The second machine dies before the driver can have heard of its notice: its shards are excused all the same."""
    write_tars(tmp_path / "tars")
    config = settings(tmp_path, max_attempts=1)
    begun = traps.set("before-read", "pass", times=None)
    first_held = traps.set("mid-shard", "hold", "00-*")
    last_held = traps.set("mid-shard", "hold", "05-*")
    first = cluster.add()
    run = Run(config)
    (leaver,) = first_held.wait(1, run)
    cluster.drain(first, 60.0)
    wait_to_hear("its machine goes away in", capsys, run)
    second = cluster.add()
    first_held.release()
    (successor,) = last_held.wait(1, run)
    assert cluster.of(successor.process) is second
    assert {mark.shard for mark in begun.met() if mark.process == leaver.process} <= done(config)
    cluster.drain(second, 60.0)
    cluster.kill(second)
    cluster.add()
    result = run.result()
    assert result["ok"] and result["shards"]["done"] == 6
    assert "lost" not in {event["blame"] for event in events(config, "retry")}
    reconcile(config)


def test_a_machine_that_shuts_down_before_it_could_be_drained_costs_no_try(
    cluster: Machines, traps: Traps, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Google's may: none of its tars is suspected of having brought that about."""
    monkeypatch.setattr("encode_pipeline.on_ray.driver.QUIET", 0.2)
    write_tars(tmp_path / "tars")
    config = settings(tmp_path, max_attempts=1)
    held = traps.set("before-commit", "hold", times=3)
    machine = cluster.add()
    run = Run(config)
    busy = held.wait(3, run)
    cluster.shut_down_in_order(machine)
    wait_to_hear("waiting: none of 1 encoders is up", capsys, run)
    held.release()
    cluster.add()
    result = run.result()
    assert result["ok"] and result["shards"]["done"] == 6
    retries = {event["shard"]: event["blame"] for event in events(config, "retry")}
    assert retries == {mark.shard: "preempted" for mark in busy}
    reconcile(config)


def test_a_machine_that_kills_every_tar_costs_none_of_them(cluster: Machines, tmp_path: Path) -> None:
    """The other one is held until the bad one has had its share; a tar has no second try that counts."""
    write_tars(tmp_path / "tars", tars=8)
    bad, good = tmp_path / "bad", tmp_path / "good"
    for marks, trap in (
        (bad, {"at": "before-read", "do": "kill", "times": None}),
        (good, {"at": "before-commit", "do": "hold", "times": None}),
    ):
        marks.mkdir()
        cluster.add(**{ENVIRONMENT: json.dumps([{**trap, "marks": str(marks)}])})
    run = Run(settings(tmp_path, max_attempts=1))
    wait_for("the bad machine's share", lambda: list(bad.iterdir()), run)
    wait_for("the good machine's", lambda: list(good.iterdir()), run)
    (good / "release").touch()
    result = run.result()
    assert result["ok"] and result["shards"] == {"done": 8, "failed": 0, "done_by_others": 0}
    reconcile(settings(tmp_path))
