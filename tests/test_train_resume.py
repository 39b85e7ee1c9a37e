"""A run that is killed, told to end, or goes on with another number of processes: what it learns stays the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from encode_pipeline.latents.store import Version
from tests.test_train import store_of, tiny_model
from tests.test_train_ranks import ROOT, torchrun
from train.checkpoint import checkpoints, load_checkpoint
from train.metrics import read_metrics

__all__ = ["tiny_model"]
STEPS = 60
TIMED = ("samples_per_second", "data_wait", "tflops_per_second", "mfu")
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def words(sealed: Version, tiny_model: str) -> list[str]:
    """What every run here is told; `out` and what else a test wants come on top."""
    return [
        *(f"model={tiny_model}", f"data={store_of(sealed)}", f"steps={STEPS}", "batch_size=12", "checkpoint_every=7"),
        *("workers=0", "keep_checkpoints=100", "repeated_captions=soft"),
    ]


@pytest.fixture
def start(words: list[str]) -> Iterator[Start]:
    """Starts runs by command, and sees that none outlives its test."""
    runs: list[subprocess.Popen[str]] = []

    def begin(*more: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        changed = {word.partition("=")[0] for word in more}
        kept = [word for word in words if word.partition("=")[0] not in changed]
        command = [sys.executable, "-m", "train", *kept, *more]
        runs.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
        return runs[-1]

    yield begin
    for run in runs:
        run.kill()
        run.wait()


def wait_for_step(out: Path, step: int, run: subprocess.Popen[str]) -> None:
    """Until the run has written a line of that step or a later one."""
    end = time.monotonic() + 120
    while not any(line["step"] >= step for line in read_metrics(out / "metrics.jsonl")):
        assert run.poll() is None, run.communicate()[1]
        assert time.monotonic() < end, "no such step in two minutes"
        time.sleep(0.005)


def learnt(out: Path) -> dict[str, torch.Tensor]:
    content = load_checkpoint(out)
    assert content["step"] == STEPS
    moments = {
        f"{number}.{name}": value
        for number, state in content["optimizer"]["state"].items()
        for name, value in state.items()
    }
    return content["state_dict"] | moments


def told(out: Path) -> list[dict[str, Any]]:
    """The metrics without those that depend on how busy the machine was."""
    return [{k: v for k, v in line.items() if k not in TIMED} for line in read_metrics(out / "metrics.jsonl")]


def assert_same_run(a: Path, b: Path) -> None:
    ours, theirs = learnt(a), learnt(b)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert told(a) == told(b) and len(told(a)) == STEPS


def test_killed_again_and_again_it_learns_the_same_to_the_bit(start: Start, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(f"out={whole}").wait() == 0
    for step in (5, 17, 38, 52):  # the first one before there is a checkpoint
        run = start(f"out={cut}")
        wait_for_step(cut, step, run)
        run.send_signal(signal.SIGKILL)
        run.wait()
        kept = [path.name for path in checkpoints(cut / "checkpoints")]
        assert not kept or kept[-1] < f"step_{STEPS:08d}.pt", "it had ended before it could be killed"
    assert start(f"out={cut}").wait() == 0
    assert_same_run(whole, cut)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_told_to_end_it_saves_the_step_under_way(start: Start, tmp_path: Path, number: int, status: int) -> None:
    out = tmp_path / "out"
    run = start(f"out={out}", "checkpoint_every=1000")
    wait_for_step(out, 10, run)
    run.send_signal(number)
    _, said = run.communicate()
    assert run.returncode == status
    assert said.splitlines()[-1] == "interrupted; run the same command again to go on" and "Traceback" not in said
    (saved,) = checkpoints(out / "checkpoints")
    assert 10 <= load_checkpoint(saved)["step"] < STEPS
    assert start(f"out={out}", "checkpoint_every=1000").wait() == 0
    whole = tmp_path / "whole"
    assert start(f"out={whole}").wait() == 0
    assert_same_run(whole, out)


def test_another_number_of_processes_goes_on_with_the_same_batches(
    words: list[str], start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two processes begin, are told to end, and four go on: batches, rates and what is learnt are as of one."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert start(f"out={whole}").wait() == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "train"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        [*command, *words, f"out={out}"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    wait_for_step(out, 20, run)
    run.send_signal(signal.SIGTERM)
    run.communicate()
    assert 20 <= load_checkpoint(out)["step"] < STEPS
    done = torchrun(4, "-m", "train", *words, f"out={out}", "accum=3")
    assert done.returncode == 0, done.stderr
    ours, theirs = told(out), told(whole)
    assert [(line["step"], line["samples"], line["lr"]) for line in ours] == [
        (line["step"], line["samples"], line["lr"]) for line in theirs
    ]
    difference = max(abs(a["loss"] - b["loss"]) for a, b in zip(ours, theirs, strict=True))
    a, b = load_checkpoint(out)["state_dict"], load_checkpoint(whole)["state_dict"]
    weights = max(float((a[key] - b[key]).abs().max()) for key in a)
    with capsys.disabled():
        print(
            f"\n2, then 4 processes against one, {STEPS} steps: "
            f"loss differs by {difference:.1e} at most, weights by {weights:.1e}"
        )
    assert difference < 1e-4 and weights < 1e-3


def test_all_processes_of_a_run_look_into_one_folder(words: list[str], tmp_path: Path) -> None:
    """A second machine without the first one's folder would begin anew beside it."""
    code = (
        "import os, sys; from encode_pipeline.latents.command import main; from train.__main__ import VERBS;"
        f"out = {str(tmp_path)!r} + '/out' + os.environ['RANK'] * (sys.argv.pop(1) == 'apart');"
        "sys.exit(main('train', VERBS, [*sys.argv[1:], 'out=' + out], default='run'))"
    )
    script = tmp_path / "start.py"
    script.write_text(code)
    short = [word for word in words if not word.startswith(("steps", "checkpoint_every"))]
    first = torchrun(1, str(script), "together", *short, "steps=4", "checkpoint_every=2")
    assert first.returncode == 0, first.stderr
    (tmp_path / "out").rename(tmp_path / "out0")
    done = torchrun(2, str(script), "apart", *short, "steps=4", "checkpoint_every=2")
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "different checkpoints" in said[0]


def test_metrics_name_what_they_measure(start: Start, tmp_path: Path) -> None:
    run = start(f"out={tmp_path / 'out'}", "steps=5", "peak_tflops=1")
    assert run.wait() == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    wanted = {"step", "samples", "loss", "accuracy", "logit_scale", "grad_norm", "lr", "skipped", *TIMED}
    assert all(set(line) == wanted for line in lines)
    assert all(0 <= line["data_wait"] <= 1 and line["mfu"] > 0 for line in lines)
    assert (tmp_path / "out" / "curves.png").stat().st_size > 1000
