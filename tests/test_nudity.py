"""NudeNet's own model from its wheel, on pictures of nothing in particular; and what is said where it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.benchmarks.nudity import EXPLICIT, NudeNet
from tests.test_boundaries import run_without

nudenet = pytest.importorskip("nudenet", reason="the extra nudity is not installed")


@pytest.fixture(scope="module")
def judge() -> NudeNet:
    return NudeNet.load()


def test_the_model_of_the_wheel_runs_and_says_who_it_is(judge: NudeNet, tmp_path: Path) -> None:
    assert judge.provenance["version"].startswith("3.4") and judge.provenance["threshold"] == 0.6
    assert judge.provenance["model"] == "320n.onnx" and len(judge.provenance["sha256"]) == 64
    plain = Image.new("RGB", (96, 64), (30, 90, 160))
    assert judge.find(plain) == {} and not judge.is_explicit({})
    assert judge.find(plain.convert("L")) == judge.find(plain.convert("RGBA")) == {}


def test_a_picture_reaches_the_model_as_its_file_would(judge: NudeNet, tmp_path: Path) -> None:
    """The library reads files with OpenCV; an array must come out as the same input, colours in the same order."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
    file = tmp_path / "picture.png"
    Image.fromarray(pixels).save(file)
    session, fed = judge.detector.onnx_session, []

    class Listening:
        def run(self, names: object, inputs: dict[str, np.ndarray]) -> object:
            fed.append(next(iter(inputs.values())))
            return session.run(names, inputs)

    judge.detector.onnx_session = Listening()
    try:
        with Image.open(file) as picture:
            judge.find(picture)
        judge.detector.detect(str(file))
    finally:
        judge.detector.onnx_session = session
    assert fed[0].shape == (1, 3, 320, 320)
    assert np.array_equal(*fed) and not np.array_equal(fed[0], fed[0][:, ::-1])


def test_only_what_is_exposed_counts_and_only_from_the_threshold_on(judge: NudeNet) -> None:
    said = [
        {"class": "FACE_FEMALE", "score": 0.9},
        {"class": "FEET_EXPOSED", "score": 0.9},
        {"class": "MALE_BREAST_EXPOSED", "score": 0.9},
        {"class": "BUTTOCKS_EXPOSED", "score": 0.3},
        {"class": "BUTTOCKS_EXPOSED", "score": 0.59},
        {"class": "BUTTOCKS_EXPOSED", "score": 0.4},
    ]

    class Detector:
        def detect(self, bgr: np.ndarray) -> list[dict[str, object]]:
            return said  # type: ignore[return-value]

    found = NudeNet(Detector(), 0.6, {}).find(Image.new("RGB", (8, 8)))
    assert found == {"BUTTOCKS_EXPOSED": 0.59}
    assert not NudeNet(None, 0.6, {}).is_explicit(found)
    assert NudeNet(None, 0.59, {}).is_explicit(found)
    assert len(EXPLICIT) == 5 and not any("COVERED" in label for label in EXPLICIT)


def test_its_absence_is_one_clear_line() -> None:
    code = """
from encode_pipeline.latents.command import RequestError
from eval.benchmarks.nudity import NudeNet
try:
    NudeNet.load()
except RequestError as error:
    print(error)
"""
    done = run_without({"nudenet"}, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and "pip install 'latent-clip-pipeline[nudity]'" in done.stdout
