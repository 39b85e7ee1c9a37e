"""What is read changes under a running run: the tars, and the VAE."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from encode_pipeline.latents.spec import SpecError
from encode_pipeline.latents.store import Store
from tests.conftest import build_vae
from tests.fleet import Run, done, events, settings, write_tars
from tests.machines import Machines, machines
from tests.reckoning import reconcile
from tests.traps import Traps, wait_for
from tests.web import serving


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    with machines() as cluster:
        cluster.add()
        yield cluster


@pytest.fixture
def traps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Traps:
    return Traps(monkeypatch, tmp_path)


def test_tars_that_change_after_they_were_planned_are_refused_and_the_others_done(
    cluster: Machines, traps: Traps, tmp_path: Path
) -> None:
    """One is longer than it was. One is as long as before, but the server says that it is another."""
    tars = write_tars(tmp_path / "tars", tars=4)
    remote = (tars / "03.tar").rename(tmp_path / "03.tar").read_bytes()
    longer = tars / "01.tar"
    planned = longer.read_bytes()
    held = traps.set("before-read", "hold", times=None)
    with serving(remote) as web:
        config = settings(tmp_path, source=[str(tars), f"{web.url}/tars/03.tar"])
        run = Run(config)
        held.wait(3, run)
        longer.write_bytes(planned[:-1024] + planned)
        web.etag = '"two"'
        held.release()
        result = run.result()
        assert not result["ok"] and result["shards"] == {"done": 2, "failed": 2, "done_by_others": 0}
        assert {failure["source"]: failure["error"] for failure in result["failures"]} == {
            str(longer): f"SourceChanged: {longer}: {2 * len(planned) - 1024} bytes now, "
            f"{len(planned)} when the run was planned",
            f"{web.url}/tars/03.tar": f"SourceChanged: {web.url}/tars/03.tar: etag two now, "
            "one when the run was planned",
        }
        reconcile(config, failed=[str(longer), f"{web.url}/tars/03.tar"])

        longer.write_bytes(planned)
        web.etag = '"one"'
        again = Run(config).result()
        assert again["ok"] and again["already_done"] == 2 and again["shards"]["done"] == 2
        reconcile(config)


def swap(vae: Path, other: Path) -> None:
    """Puts another VAE in the place of one."""
    for file in other.iterdir():
        shutil.copy(file, vae / file.name)


def test_a_vae_swapped_under_a_run_is_refused_before_a_byte_is_written(
    cluster: Machines, traps: Traps, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two encoders one is killed after the swap; the other one does its work, until it is killed too."""
    write_tars(tmp_path / "tars")
    vae, right, wrong = (build_vae(tmp_path / name, seed) for name, seed in (("vae", 1), ("right", 1), ("wrong", 2)))
    config = settings(tmp_path, vae=str(vae))
    begun = traps.set("before-read", "pass", times=None)
    killed = traps.set("mid-shard", "hold", "00-*")
    waiting = traps.set("before-commit", "hold", times=None)
    killed_too = traps.set("after-build", "hold", "00-*", times=None)
    cluster.add()
    run = Run(config)
    (first,) = killed.wait(1, run)
    wait_for("both encoders", lambda: len({mark.process for mark in begun.met()}) == 2, run)
    swap(vae, wrong)
    os.kill(first.process, signal.SIGKILL)
    wait_for("a refusal", lambda: "is not the one of version" in capsys.readouterr().err, run)
    waiting.release()
    (second,) = killed_too.wait(1, run)
    storage = Store(config.store).version().storage
    before, files = done(config), storage.files("data")
    assert len(before) >= 3
    os.kill(second.process, signal.SIGKILL)
    with pytest.raises(SpecError, match="is not the one of version"):
        run.result()
    assert done(config) == before and storage.files("data") == files
    assert len(events(config, "encoder up")) == 2 and len(events(config, "encoder failed")) >= 2

    swap(vae, right)
    again = Run(config.model_copy(update={"engine": "local"})).result()
    assert again["ok"] and again["already_done"] == len(before)
    reconcile(config)
