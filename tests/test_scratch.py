"""The scratch disk: what a process leaves that is killed outright, the next one frees; what is alive stays."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from encode_pipeline import scratch
from encode_pipeline.latents.failpoints import ENVIRONMENT
from encode_pipeline.latents.store import Store
from encode_pipeline.run import run
from encode_pipeline.scratch import scratch_folder
from tests.conftest import Configure

HOLDER = """
import sys
from pathlib import Path
from encode_pipeline.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "view0.tar").write_bytes(b"x" * 1000)
    (folder / "deeper").mkdir()
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has made no folder yet."""
    monkeypatch.setattr(scratch, "_cleared", set())


class Holder:
    """Another process, in the middle of a shard."""

    def __init__(self, place: Path) -> None:
        words = [sys.executable, "-c", HOLDER, str(place)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.folder = Path(self.process.stdout.readline().strip())

    def end(self, how: signal.Signals | None = None) -> None:
        if how is not None:
            self.process.send_signal(how)
        self.process.communicate()


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Holder]:
    holder = Holder(tmp_path)
    yield holder
    holder.end()


def test_a_folder_is_there_while_it_is_needed(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as one, scratch_folder(tmp_path) as other:
        assert one != other and one.parent == other.parent == tmp_path and one.name.startswith("latents-")
        (one / "build").mkdir()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError), scratch_folder(tmp_path):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with scratch_folder(None) as folder:
        assert folder.is_dir()
    assert not folder.exists()


def test_what_the_dead_left_goes_and_what_is_alive_stays(live: Holder, tmp_path: Path) -> None:
    dead = Holder(tmp_path)
    dead.end(signal.SIGKILL)
    assert (dead.folder / "view0.tar").exists()
    strange = [tmp_path / "latents-not-ours", tmp_path / "other"]
    for folder in strange:
        folder.mkdir()
    (tmp_path / "latents-link").symlink_to(dead.folder)
    with scratch_folder(tmp_path) as folder:
        assert not dead.folder.exists()
        assert (live.folder / "view0.tar").exists() and all(path.exists() for path in (*strange, folder))
        with scratch_folder(tmp_path) as second:  # nor does the same process take its own for dead
            assert folder.exists() and second.exists()
    live.end()
    assert not live.folder.exists()


def test_the_dead_are_looked_for_once(tmp_path: Path) -> None:
    with scratch_folder(tmp_path):
        pass
    dead = Holder(tmp_path)
    dead.end(signal.SIGKILL)
    with scratch_folder(tmp_path):
        assert dead.folder.exists()


def test_a_folder_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*words: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space left"), scratch_folder(tmp_path):
        pass
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_runs_that_are_killed_do_not_fill_the_disk(configure: Configure, tmp_path: Path) -> None:
    place, marks = tmp_path / "scratch", tmp_path / "marks"
    place.mkdir(), marks.mkdir()
    traps = [{"at": "after-build", "do": "kill", "times": None, "marks": str(marks)}]
    environment = {**os.environ, ENVIRONMENT: json.dumps(traps)}
    config = configure(scratch=place, views=1, limit=1)
    words = [f"{key}={getattr(config, key)}" for key in ("vae", "store", "scratch", "image_size", "views", "limit")]
    words += [f"source={config.source[0]}", "threads=1"]
    command = [sys.executable, "-m", "encode_pipeline", "run", *words]
    done = subprocess.run(command, env=environment, stderr=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL
    (left,) = place.iterdir()
    assert (left / "view0.tar").stat().st_size
    assert run(config)["ok"] and list(place.iterdir()) == []
    assert len(Store(config.store).version().done()) == 1
