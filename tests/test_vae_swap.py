"""A VAE is swapped under a trainer that goes on: one new version, promoted once, and nobody is disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("jinja2")

from encode_pipeline.__main__ import VERBS
from encode_pipeline.latents.audit import Audit
from encode_pipeline.latents.command import RequestError, main
from encode_pipeline.latents.lease import leases
from encode_pipeline.latents.store import Store
from tests.changed_vaes import DEMO_VAE, untrained
from tests.store_commands import StoreCommand
from tests.test_boundaries import ROOT
from tests.test_train import tiny_model
from tests.test_train_resume import wait_for_step
from tests.traps import Traps
from train.checkpoint import load_checkpoint
from train.config import TrainConfig
from train.loop import train

__all__ = ["tiny_model"]
STEPS = 16


@pytest.fixture
def words(world: Path, tmp_path: Path) -> list[str]:
    """What every encoding is told but for its VAE: pictures as small as the demo's VAE can see."""
    settings = {"source": world / "train", "store": tmp_path / "store", "image_size": 128, "views": 2}
    settings |= {"batch_size": 8, "threads": 1, "compare_samples": 6}
    return [f"{key}={value}" for key, value in settings.items()]


@pytest.fixture
def trainer(tiny_model: str, tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts trainers by command, each into a folder of its name; none outlives the test."""
    running: list[subprocess.Popen[str]] = []

    def start(name: str) -> subprocess.Popen[str]:
        words = [f"{key}={value}" for key, value in training(tiny_model, tmp_path, name).items()]
        command = [sys.executable, "-m", "train", *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        running.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


def training(model: str, folder: Path, name: str) -> dict[str, Any]:
    """What a trainer is told."""
    return {"model": model, "data": str(folder / "store"), "out": folder / name, "steps": STEPS, "batch_size": 12}


def reencode_here(words: list[str], vae: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    status = main("encode_pipeline", VERBS, ["reencode", *words, f"vae={vae}", "--if-changed", "--json"])
    return status, json.loads(capsys.readouterr().out)


def gc(store: Store, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main("encode_pipeline", VERBS, ["gc", store.storage.url(), "keep=0", "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_a_vae_is_swapped_under_a_trainer(
    words: list[str],
    trainer: Callable[[str], subprocess.Popen[str]],
    tuned_vae: Path,
    tiny_model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(
        "OMP_NUM_THREADS", "1"
    )  # on a busy machine threads that wait for each other take ten times as long
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    old = reencode_here(words, DEMO_VAE, capsys)[1]["promoted"]
    store = Store(tmp_path / "store")

    # A trainer holds it, caught in the middle of its run; another learns the same undisturbed.
    held = trainer("held")
    wait_for_step(tmp_path / "held", 5, held)
    held.send_signal(signal.SIGSTOP)
    assert trainer("calm").wait() == 0
    assert [lease.version for lease in leases(store.storage)] == [old]

    # Two schedules come at the same moment, and are let go together when each is about to promote.
    traps = Traps(monkeypatch, tmp_path)
    gate = traps.set("before-promotion", "hold", times=2)
    one, other = (StoreCommand("reencode", *words, f"vae={tuned_vae}", "--if-changed") for _ in range(2))
    gate.wait(2, one)
    gate.release()
    assert (one.status, other.status) == (0, 0), (one.end, other.end)
    traps.lift()
    new = one.result["promoted"]
    assert one.result["fingerprint"] == other.result["promoted"] == new != old
    for said in (one.complaints, other.complaints):
        assert not any(word in said.lower() for word in ("error", "warning", "traceback")), said
    assert set(store.versions()) == {old, new} and store.current() == new
    told = [(entry.event, entry.version) for entry in Audit(store.storage).entries()]
    assert [version for event, version in told if event == "promoted"] == [old, new]
    assert told.count(("reencode-began", new)) == told.count(("sealed", new)) == told.count(("compared", new)) == 1
    assert one.result["compared"]["psnr"]["loss"] < 0.5 and one.result["compared"]["against"] == old

    # What is read or promoted stays; who comes now reads the new one.
    assert gc(store, capsys)["freed"] == {} and set(store.versions()) == {old, new}
    train(TrainConfig(**training(tiny_model, tmp_path, "fresh") | {"steps": 2}))
    assert load_checkpoint(tmp_path / "fresh")["spec"]["fingerprint"] == new

    # The trainer that was there before ends as if nothing had been.
    held.send_signal(signal.SIGCONT)
    assert held.wait() == 0, held.communicate()
    learnt, calm = (load_checkpoint(tmp_path / name) for name in ("held", "calm"))
    assert learnt["step"] == calm["step"] == STEPS and learnt["spec"]["fingerprint"] == old
    assert all(torch.equal(learnt["state_dict"][key], calm["state_dict"][key]) for key in calm["state_dict"])

    # What it learnt is of no use on the new latents, and the trainer says so.
    changed = TrainConfig(**training(tiny_model, tmp_path, "held") | {"version": new})
    with pytest.raises(RequestError, match="was trained on other latents") as refusal:
        train(changed)
    assert all(str(vae) in str(refusal.value) for vae in (DEMO_VAE, tuned_vae))

    # Nobody reads the old one any more.
    assert list(gc(store, capsys)["freed"]) == [old] and store.versions() == [new]

    # A VAE that has learnt nothing is encoded with, looked at, and not let in.
    status, verdict = reencode_here(words, untrained(tmp_path / "untrained"), capsys)
    assert status == 1 and verdict["outcome"] == "refused" and "max_psnr_loss is 1" in verdict["why"]
    assert store.current() == verdict["promoted"] == new and verdict["fingerprint"] in store.versions()
    assert Audit(store.storage).entries()[-1].event == "refused"
