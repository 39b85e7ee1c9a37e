"""A run over a benchmark that is killed, or shared by two processes: the same items to the byte, nothing done twice."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from encode_pipeline.latents.spec import LatentSpec
from eval.steering.folder import SteeredRun
from tests.clips import latent_clip
from tests.steered_runs import geneval_file
from tests.test_eval_encoded import model_spec  # noqa: F401
from tests.test_eval_resume import command
from tests.test_train_ranks import torchrun
from tests.traps import Traps

TIMES = ("seconds", "out")


@pytest.fixture(scope="module")
def words(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_pipeline: Path,
    model_spec: LatentSpec,  # noqa: F811
) -> list[str]:
    """The command line over four prompts, three pictures each, in batches of five: three batches."""
    folder = tmp_path_factory.mktemp("asked")
    checkpoint = latent_clip(folder / "latent.pt", model_spec)
    keys = {
        "prompts": geneval_file(folder / "evaluation_metadata.jsonl"),
        "generator": tiny_pipeline,
        "reward": f"clip:{checkpoint}",
        "size": 64,
        "samples": 3,
        "batch_size": 5,
        "iterations": 4,
        "steps": 2,
    }
    return ["-m", "eval", "reno", *(f"{key}={value}" for key, value in keys.items())]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    done = command(*words, f"out={out}")
    assert done.returncode == 0, done.stderr
    return out


def assert_the_same(one: Path, other: Path) -> None:
    """Every file of two runs but for what a clock and a folder say."""
    kinds = ("items/*", "images/*", "items.jsonl", "request.json")
    files = sorted(path.relative_to(one) for kind in kinds for path in one.glob(kind))
    assert files == sorted(path.relative_to(other) for kind in kinds for path in other.glob(kind))
    assert len(files) == 12 + 12 + 2
    for file in files:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file
    results = [json.loads((run / "result.json").read_text()) for run in (one, other)]
    assert [{key: value for key, value in result.items() if key not in TIMES} for result in results][:1] * 2 == [
        {key: value for key, value in result.items() if key not in TIMES} for result in results
    ]
    assert not (one / "parts").exists() and not (other / "parts").exists()


def test_killed_anywhere_it_goes_on_to_the_same_bytes(
    words: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    traps = Traps(monkeypatch, tmp_path)
    places = [
        ("mid-shard", "000000-002"),  # three of five items written
        ("before-commit", "000001-002*"),  # all of a batch, but not that it is done
        ("after-commit", "000001-002*"),
        ("after-payload", "000002-001"),  # all items there, half of the pictures
    ]
    there = [(3, 0), (10, 0), (10, 0), (12, 8)]
    for (at, name), (items, pictures) in zip(places, there, strict=True):
        trap = traps.set(at, "kill", name)
        assert command(*words, f"out={out}").returncode == -signal.SIGKILL
        assert len(trap.met()) == 1
        assert len(list(out.glob("items/[0-9]*"))) == items
        assert len(list(out.glob("images/[0-9]*"))) == pictures
        assert not (out / "result.json").exists()
    before = {path: path.stat().st_mtime_ns for path in out.glob("items/*.npz")}
    done = command(*words, f"out={out}")
    assert done.returncode == 0, done.stderr
    assert_the_same(whole, out)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    traps.lift()


def test_two_processes_share_the_batches(words: list[str], whole: Path, tmp_path: Path) -> None:
    done = torchrun(2, *words, f"out={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert_the_same(whole, tmp_path / "run")
    # Who made what is told once by each.
    assert done.stderr.count(" pictures in ") == 3


def test_asked_again_it_makes_nothing_and_says_the_same(words: list[str], whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*.npz")}
    again = command(*words, f"out={whole}", "--json")
    assert again.returncode == 0, again.stderr
    assert " pictures in " not in again.stderr
    assert json.loads(again.stdout) == {"out": str(whole), **SteeredRun.open(whole).result}
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*.npz")} == before
