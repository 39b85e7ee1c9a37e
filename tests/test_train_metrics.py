"""What a run shows: lines that survive kills, TensorBoard and wandb read back with their own readers, curves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from encode_pipeline.latents.command import RequestError, main
from tests.test_boundaries import run_without
from train.__main__ import VERBS
from train.curves import BINS, reduced, write_curves
from train.metrics import MetricsLog, duration, read_metrics


def line(step: int, **more: Any) -> dict[str, Any]:
    """What the loop writes at a step."""
    shared = {"step": step, "samples": step * 8, "loss": 2.0 / step, "accuracy": 0.5, "logit_scale": 14.3}
    pace = {"grad_norm": 1.5, "lr": 1e-3, "samples_per_second": 100.0, "data_wait": 0.25, "skipped": 0}
    return {**shared, **pace, **more}


def lines_of(first: int, last: int, **more: Any) -> list[dict[str, Any]]:
    return [line(step, **more) for step in range(first, last + 1)]


def test_a_line_can_be_read_as_soon_as_it_is_written(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0, 10) as log:
        log.write(line(1))
        assert read_metrics(tmp_path / "metrics.jsonl") == [line(1)]


def test_after_a_resume_no_step_comes_twice_and_a_cut_line_is_dropped(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0, 10) as log:
        for step in range(1, 6):
            log.write(line(step))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])  # killed while it wrote step 5; the checkpoint is of step 3
    with MetricsLog(tmp_path, 3, 10) as log:
        for step in range(4, 11):
            log.write(line(step))
    assert path.read_text() == "".join(json.dumps(line(step)) + "\n" for step in range(1, 11))
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_kill_while_the_lines_are_taken_back_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    """The process ends, as by SIGKILL, at the moment when the new file would take the place of the old."""
    with MetricsLog(tmp_path, 0, 10) as log:
        for step in range(1, 6):
            log.write(line(step))
    before = (tmp_path / "metrics.jsonl").read_text()
    code = (
        "import os, sys; from pathlib import Path; from train.metrics import MetricsLog\n"
        "Path.replace = lambda self, target: os._exit(9)\n"
        "MetricsLog(Path(sys.argv[1]), 3, 10)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == 9 and (tmp_path / "metrics.jsonl").read_text() == before
    MetricsLog(tmp_path, 3, 10).close()
    assert [kept["step"] for kept in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_the_console_line_says_where_it_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MetricsLog(tmp_path, 0, 400) as log:
        log.write(line(1))
        log.write(line(2, mfu=0.41, zero_shot_acc1=0.25, skipped=12))
        log.write(line(400, samples_per_second=0.46))
    first, second, last = capsys.readouterr().err.splitlines()
    assert first == "step 1/400  loss 2.000  in-batch accuracy 50.0%  100 samples/s  waiting for data 25%"
    assert "MFU 41.0%  zero-shot 25.0%  12 samples skipped  " in second and second.endswith(" left")
    assert "  0.5 samples/s  " in last and "left" not in last


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3590, "1 h 00 min"), (86_400, "24 h 00 min"), (200_000, "2 d 07 h")],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_tensorboard_reads_a_resumed_run_back_without_a_step_twice(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path, 0, 10, tensorboard=True) as log:
        for step in range(1, 6):
            log.write(line(step, mfu=None))
    with MetricsLog(tmp_path, 3, 10, tensorboard=True) as log:
        for step in range(4, 11):
            log.write(line(step, zero_shot_acc1=0.125))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(line(1)) - {"step"} | {"zero_shot_acc1"}
    told = [(event.step, event.value) for event in events.Scalars("loss")]
    assert [step for step, _ in told] == list(range(1, 11))
    assert np.allclose([value for _, value in told], [2.0 / step for step in range(1, 11)])


def test_wandb_keeps_one_run_through_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = tmp_path / "b8"
    with MetricsLog(out, 0, 4, wandb="latents", settings={"lr": 1e-3}) as log:
        log.write(line(1))
        log.write(line(2))
    with MetricsLog(out, 2, 4, wandb="latents", settings={"lr": 1e-3}) as log:
        log.write(line(3))
    name = (out / "wandb_id").read_text().strip()
    files = sorted(out.glob("wandb/offline-run-*/run-*.wandb"))
    runs = [records_of(file) for file in files]
    assert len(runs) == 2
    assert {(run["id"], run["project"], run["name"]) for run in runs} == {(name, "latents", "b8")}
    assert sorted(step for run in runs for step in run["loss"]) == [1, 2, 3]
    assert {step: loss for run in runs for step, loss in run["loss"].items()} == {1: 2.0, 2: 1.0, 3: 2 / 3}


def records_of(file: Path) -> dict[str, Any]:
    """A run as wandb's own reader finds it in its file: identity, and the loss by step."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    store, run = DataStore(), {"loss": {}}
    store.open_for_scan(str(file))
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            run |= {"id": record.run.run_id, "project": record.run.project, "name": record.run.display_name}
        if record.HasField("history"):
            values = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            run["loss"][record.history.step.num] = json.loads(values["loss"])
    return run


@pytest.mark.parametrize(("package", "asked"), [("tensorboard", "tensorboard=True"), ("wandb", "wandb='p'")])
def test_a_missing_package_is_named_before_anything_is_written(package: str, asked: str, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from train.metrics import MetricsLog; "
        "from encode_pipeline.latents.command import RequestError\n"
        f"try: MetricsLog(Path(sys.argv[1]), 0, 1, {asked})\n"
        "except RequestError as error: print(error)"
    )
    done = run_without({package}, code, str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("; install latent-clip-pipeline[tracking]\n") and package in done.stdout
    assert not (tmp_path / "out").exists()


def test_few_points_are_drawn_as_they_are_and_many_by_their_means_and_ranges() -> None:
    x = np.arange(1.0, 101.0)
    assert np.array_equal(reduced(x, x**2).mean, x**2)
    x = np.arange(1.0, 50_001.0)
    y = np.sin(x) + 5
    y[31_415] = 40.0  # one spike among fifty thousand must be seen
    curve = reduced(x, y)
    assert len(curve.x) <= BINS and curve.most.max() == 40.0
    assert np.all((curve.least <= curve.mean) & (curve.mean <= curve.most) & (np.diff(curve.x, prepend=0) > 0))
    sizes = np.full(len(curve.x), len(x) / len(curve.x))
    assert np.average(curve.mean, weights=sizes) == pytest.approx(y.mean(), rel=1e-3)


def test_the_picture_shows_what_the_lines_hold(tmp_path: Path) -> None:
    """Panels are counted by their place: ten numbers need a row more than eight."""
    few, many = tmp_path / "few.png", tmp_path / "many.png"
    write_curves({"run": lines_of(1, 9)}, few, "few")
    more = [line(9, zero_shot_acc1=0.2, zero_shot_acc5=0.5, mfu=0.4, logit_bias=-10.0)]
    write_curves({"run": lines_of(1, 8) + more}, many, "many")
    write_curves({"run": []}, tmp_path / "none.png", "no line yet")
    with Image.open(few) as one, Image.open(many) as other:
        assert one.width == other.width >= 1200 and one.height < other.height
        assert len(one.convert("RGB").getcolors(1 << 20) or []) > 50
    assert {file.name for file in tmp_path.iterdir()} == {"few.png", "many.png"}


def test_runs_are_compared_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        with MetricsLog(tmp_path / name, 0, 10) as log:
            log.write(line(10))
    (tmp_path / "empty").mkdir()
    out = tmp_path / "pictures" / "both.png"
    words = ["curves", f"runs=[{tmp_path}/a, {tmp_path}/b]", f"out={out}"]
    assert main("train", VERBS, words) == 0 and out.is_file()
    assert main("train", VERBS, ["curves", f"{tmp_path}/a", f"out={tmp_path}/a.png"]) == 0
    assert (tmp_path / "a.png").is_file()
    assert main("train", VERBS, ["curves", f"{tmp_path}/empty", f"out={out}"]) == 2
    assert "empty/metrics.jsonl: no such file; runs= takes folders of training runs" in capsys.readouterr().err


def test_nine_runs_are_too_many(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="9 runs in one picture; 8 at most"):
        write_curves({str(number): [line(1)] for number in range(9)}, tmp_path / "x.png", "x")
