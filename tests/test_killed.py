"""A run that is killed outright, at any moment, and run again: the same bytes as one that nobody disturbed."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from encode_pipeline.latents.store import Store
from encode_pipeline.latents.verify import verify
from encode_pipeline.run import run
from tests.conftest import SIDE, Configure, encode_and_seal, payload_hashes

PATIENCE = 120.0


@pytest.fixture(scope="module")
def tars(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve tars: enough that a run can be caught in the middle."""
    folder = tmp_path_factory.mktemp("tars")
    for copy in range(4):
        for tar in (world / "train").glob("*.tar"):
            shutil.copy(tar, folder / f"{tar.stem}-{copy}.tar")
    return folder


def start(store: Path, tars: Path, vae: Path) -> subprocess.Popen[bytes]:
    words = [f"source={tars}", f"store={store}", f"vae={vae}", f"image_size={SIDE}", "batch_size=8", "threads=2"]
    command = [sys.executable, "-m", "encode_pipeline", "run", *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, preexec_fn=hear_interrupts)


def hear_interrupts() -> None:
    """What a shell starts in the background is deaf to them, and so are its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_commits(store: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + PATIENCE
    while len(list(store.glob("*/commits/*.json"))) < count:
        assert process.poll() is None and time.monotonic() < until, "the run ended before it could be caught"
        time.sleep(0.01)


def test_killed_twice_and_run_again(configure: Configure, tars: Path, small_vae: Path, tmp_path: Path) -> None:
    store = tmp_path / "disturbed"
    for commits in (1, 4):
        process = start(store, tars, small_vae)
        wait_for_commits(store, commits, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    left = len(Store(store).version().done())
    assert 4 <= left < 12
    result = run(configure(source=str(tars), store=str(store)))
    assert result["ok"] and result["already_done"] == left and result["shards"]["done"] == 12 - left
    disturbed = Store(store).version()
    disturbed.seal()
    calm = encode_and_seal(configure(source=str(tars), store=str(tmp_path / "calm")))
    assert payload_hashes(disturbed) == payload_hashes(calm)
    assert verify(disturbed).to_dict()["ok"]


def test_an_interrupt_ends_the_run_soon_and_in_one_line(tars: Path, small_vae: Path, tmp_path: Path) -> None:
    store = tmp_path / "interrupted"
    process = start(store, tars, small_vae)
    wait_for_commits(store, 1, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert said.decode().splitlines()[-1] == "interrupted; run the same command again to go on"
    assert "Traceback" not in said.decode()


def test_told_to_end_it_ends_in_order(configure: Configure, tars: Path, small_vae: Path, tmp_path: Path) -> None:
    """As a machine does that is about to be taken away, or `kill` without more."""
    process = start(tmp_path / "store", tars, small_vae)
    wait_for_commits(tmp_path / "store", 1, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143 and b"interrupted; run the same command again to go on" in said
    assert b"Traceback" not in said
    assert run(configure(source=str(tars), store=str(tmp_path / "store")))["ok"]
