"""Disks that fill up: scratch on one machine, scratch everywhere, and the store."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from encode_pipeline.__main__ import VERBS
from encode_pipeline.config import EncodeConfig
from encode_pipeline.latents.command import main, to_yaml
from encode_pipeline.latents.store import Store
from tests.fleet import Run, done, events, settings, write_tars
from tests.machines import Machines, machines
from tests.reckoning import reconcile
from tests.traps import Traps, wait_for

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    with machines() as cluster:
        cluster.add()
        yield cluster


@pytest.fixture
def traps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Traps:
    return Traps(monkeypatch, tmp_path)


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system with so little room."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs"]
    mounted = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def make_room(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)


def command(config: EncodeConfig, folder: Path) -> int:
    """The exit status of a run by its command line, here."""
    file = folder / "run.yaml"
    file.write_text(to_yaml(config))
    status: int = Run(config, lambda _: main("encode_pipeline", VERBS, ["run", "--config", str(file)])).result()
    return status


def test_a_machine_whose_scratch_is_full_leaves_the_work_to_the_others(
    cluster: Machines, traps: Traps, tmp_path: Path, capsys: Capture
) -> None:
    """The other is held until the full one has had its turn."""
    write_tars(tmp_path / "tars")
    config = settings(tmp_path, max_attempts=1)
    held = traps.set("before-commit", "hold", times=3)
    with small_disk(tmp_path / "small", kilobytes=24) as disk:
        full = cluster.add(TMPDIR=str(disk))
        run = Run(config)
        marks = held.wait(3, run)
        wait_for("word of the full disk", lambda: "No space left on device" in capsys.readouterr().err, run)
        held.release()
        assert run.result()["ok"]
        cluster.kill(full)
    (refused,) = {event["encoder"] for event in events(config, "no room")}
    assert {e["process"] for e in events(config, "encoder up") if e["encoder"] != refused} == {marks[0].process}
    reconcile(config)


@pytest.mark.parametrize(
    ("engine", "complaint"), [("ray", "no machine has room left to write to"), ("local", "No space left on device")]
)
def test_without_room_for_scratch_anywhere_a_run_ends_in_one_line(
    cluster: Machines, tmp_path: Path, capsys: Capture, engine: str, complaint: str
) -> None:
    write_tars(tmp_path / "tars")
    with small_disk(tmp_path / "small", kilobytes=24) as disk:
        config = settings(tmp_path, engine=engine, scratch=disk, max_attempts=1)
        assert command(config, tmp_path) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: ") and complaint in last
        assert last.endswith("; make room, and run the same command again")
        assert done(config) == set() and list(disk.iterdir()) == []
        make_room(disk)
        assert command(config, tmp_path) == 0
    reconcile(config)


@pytest.mark.parametrize("engine", ["ray", "local"])
def test_a_store_that_fills_up_ends_a_run_in_one_line(
    cluster: Machines, tmp_path: Path, capsys: Capture, engine: str
) -> None:
    write_tars(tmp_path / "tars")
    with small_disk(tmp_path / "store", kilobytes=200) as disk:
        config = settings(tmp_path, engine=engine, max_attempts=1)
        assert command(config, tmp_path) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: ") and last.endswith("make room, and run the same command again")
        before = done(config)
        assert len(before) < 6 and len(list(Store(config.store).version().commits())) == len(before)
        make_room(disk)
        assert command(config, tmp_path) == 0
        assert f"{len(before)} before" in capsys.readouterr().out
        reconcile(config)
