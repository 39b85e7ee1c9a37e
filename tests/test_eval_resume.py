"""An evaluation that is killed, shared or asked again: the same result and the same lines, and nothing done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.latents.spec import LatentSpec
from eval.clip import PixelClip
from eval.retrieval import RetrievalConfig, retrieval
from eval.zero_shot import ZeroShotConfig, zero_shot
from tests.clips import latent_clip, pixel_clip
from tests.picture_sets import captioned, numbered, wds
from tests.test_boundaries import ROOT, run_without
from tests.test_eval_encoded import spec_of
from tests.test_train_ranks import torchrun
from tests.traps import Traps

CLASSES = tuple(f"thing {number}" for number in range(7))
TIMES = ("seconds",)


@pytest.fixture(scope="module")
def pixel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pixel_clip(tmp_path_factory.mktemp("pixel") / "clip")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five tars, and so five parts."""
    samples = [numbered(number % 7, f"s{number:03d}", number) for number in range(35)]
    tars = [[member for sample in samples[start : start + 7] for member in sample] for start in range(0, 35, 7)]
    return wds(tmp_path_factory.mktemp("labelled") / "set", *tars, classes=CLASSES)


def words(verb: str, checkpoint: Path, data: Path, out: Path, **more: Any) -> list[str]:
    """The command line of an evaluation."""
    keys = {"checkpoint": checkpoint, "data": data, "out": out, "batch_size": 3, "cache": out.parent / "cache", **more}
    return ["-m", "eval", verb, *(f"{key}={value}" for key, value in keys.items())]


def command(*line: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # as torchrun sets it
    return subprocess.run(
        [sys.executable, *line], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=400, check=False
    )


def left_in(out: Path) -> tuple[dict[str, Any], bytes]:
    """The result without what only a clock says, and the lines."""
    result = json.loads((out / "result.json").read_text())
    assert not (out / "parts").exists()
    return {key: value for key, value in result.items() if key not in TIMES}, (out / "predictions.jsonl").read_bytes()


def test_killed_twice_and_resumed_and_shared_it_says_the_same(
    pixel: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    done = command(*words("zero-shot", pixel, labelled, whole))
    assert done.returncode == 0, done.stderr
    traps = Traps(monkeypatch, tmp_path)
    before, after = traps.set("before-commit", "kill", "00001*"), traps.set("after-commit", "kill", "00003*")
    resumed = words("zero-shot", pixel, labelled, tmp_path / "resumed")
    for trap, parts in ((before, 1), (after, 4)):  # a part computed and not written; a part just written
        assert command(*resumed).returncode == -signal.SIGKILL
        assert len(trap.met()) == 1
        there = [file.name for file in (tmp_path / "resumed" / "parts").iterdir() if not file.name.startswith(".")]
        assert len(there) == parts
    assert command(*resumed).returncode == 0
    assert left_in(tmp_path / "resumed") == left_in(whole)
    traps.lift()
    done = torchrun(2, *words("zero-shot", pixel, labelled, tmp_path / "shared"))
    assert done.returncode == 0, done.stderr
    assert left_in(tmp_path / "shared")[1] == left_in(whole)[1]


def test_a_killed_retrieval_goes_on(pixel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tars = [captioned(f"one {number}\ntwo {number}", f"s{number}", number) for number in range(4)]
    data = wds(tmp_path / "set", *tars, classes=())
    traps = Traps(monkeypatch, tmp_path)
    trap = traps.set("before-commit", "kill", "00002*")
    again = words("retrieval", pixel, data, tmp_path / "resumed")
    assert command(*again).returncode == -signal.SIGKILL and len(trap.met()) == 1
    assert command(*again).returncode == 0
    assert command(*words("retrieval", pixel, data, tmp_path / "whole")).returncode == 0
    assert left_in(tmp_path / "resumed") == left_in(tmp_path / "whole")


def test_a_finished_one_embeds_nothing_and_another_request_is_refused(
    pixel: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ZeroShotConfig(checkpoint=pixel, data=labelled, out=tmp_path / "out")
    result = zero_shot(asked)

    def never(*_: object) -> None:
        raise AssertionError("a finished evaluation embeds")

    monkeypatch.setattr(PixelClip, "embed_pixels", never)
    monkeypatch.setattr(PixelClip, "embed_classes", never)
    assert zero_shot(asked) == result
    for change, told in (
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"batch_size": 5}, "batch_size is 64 there and 5 here"),
        ({"checkpoint": pixel_clip(tmp_path / "other", seed=1)}, "weights is .* there and .* here"),
    ):
        with pytest.raises(RequestError, match=f"out: holds another evaluation: {told}; choose another out="):
            zero_shot(ZeroShotConfig(**{**asked.model_dump(), **change}))
    with pytest.raises(RequestError, match="task is zeroshot_classification there and zeroshot_retrieval here"):
        data = wds(tmp_path / "captions", captioned("a cat", "s0"), classes=())
        retrieval(RetrievalConfig(checkpoint=pixel, data=data, out=tmp_path / "out"))
    (tmp_path / "out" / "request.json").unlink()
    with pytest.raises(RequestError, match=r"holds the result\.json of something else"):
        zero_shot(asked)


@pytest.mark.parametrize("kind", ["pixels", "latents"])
def test_damaged_pictures_stop_it_or_count_as_wrong(
    kind: str, pixel: Path, small_vae: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    samples = [numbered(number % 7, f"s{number}", number) for number in range(14)]
    for number in (4, 11):
        samples[number][1] = (f"s{number}.png", b"\x89PNG\r\n\x1a\n" + bytes(50))
    tars = [[member for sample in samples[start : start + 7] for member in sample] for start in (0, 7)]
    data = wds(tmp_path / "set", *tars, classes=CLASSES)
    spec: LatentSpec = spec_of(small_vae)
    checkpoint = pixel if kind == "pixels" else latent_clip(tmp_path / "latent.pt", spec)
    asked: dict[str, Any] = {"checkpoint": checkpoint, "data": data, "cache": tmp_path / "cache"}
    with pytest.raises(CheckFailed, match=r"set: 00000-0-000: s4: .*; 2 of 14 pictures are damaged, all listed in"):
        zero_shot(ZeroShotConfig(**asked, out=tmp_path / "out"))
    listed = [json.loads(line) for line in (tmp_path / "out" / "damaged.jsonl").read_text().splitlines()]
    assert [item["key"] for item in listed] == ["s4", "s11"] and not (tmp_path / "out" / "result.json").exists()
    result = zero_shot(ZeroShotConfig(**asked, out=tmp_path / "out", damaged="wrong"))
    told = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert (result["n"], result["damaged"], len(told)) == (14, 2, 14)
    lost = {line["key"]: line for line in told if not line["top5"]}
    assert {key: line["label"] for key, line in lost.items()} == {"s4": "thing 4", "s11": "thing 4"}
    right = [line["top5"][:1] == [line["label"]] for line in told]
    assert result["metrics"]["acc1"] == pytest.approx(sum(right) / 14)
    with pytest.raises(CheckFailed, match="2 of 14 pictures are damaged"):  # finished or not
        zero_shot(ZeroShotConfig(**asked, out=tmp_path / "out"))


def test_latents_are_evaluated_without_the_encoder() -> None:
    done = run_without({"ray", "diffusers", "albumentations", "cv2"}, "import eval.zero_shot, eval.retrieval")
    assert done.returncode == 0, done.stderr
