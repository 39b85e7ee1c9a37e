"""The parts of the demo's page: charts that are XML, intervals that are right, latents made visible."""

from __future__ import annotations

import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jinja2")

from demo import charts
from demo.report_flow import MEANING
from demo.report_run import read_run
from demo.report_zero_shot import confusion_counts, examples, mean_per_class_interval, scores
from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.latents.spec import LatentSpec, SpecError
from encode_pipeline.preview import svg
from encode_pipeline.preview.decoder import decode, load_decoder
from encode_pipeline.preview.page import jpeg, png
from encode_pipeline.preview.rgb import fit_rgb_map, latents_to_rgb
from encode_pipeline.preview.show import psnr
from encode_pipeline.records import Reason
from encode_pipeline.vae import load_vae
from eval.intervals import wilson
from eval.zero_shot import Prediction

NAMES = ["red <ring>", "red star", "blue <ring>", "blue star"]
PREDICTIONS = [
    Prediction("s", "0", NAMES[0], [NAMES[0], NAMES[1]]),
    Prediction("s", "1", NAMES[1], [NAMES[0], NAMES[1]]),
    Prediction("s", "2", NAMES[2], [NAMES[2], NAMES[1]]),
    Prediction("s", "3", NAMES[3], [NAMES[0], NAMES[1]]),
]
CHARTS = {
    "curve": charts.line_chart([(10, 4.1), (20, 2.5)], "step", "loss <nats>"),
    "one point at zero": charts.line_chart([(10, 0.0)], "step", "accuracy", percent=True, reference=(0.01, "chance")),
    "confusion": charts.confusion(np.array([[3, 1], [0, 0]]), ["red", "<blue>"]),
    "heat map": charts.heat_map(np.eye(4, dtype=np.int64), NAMES, ["red", "blue"]),
    "interval": charts.interval_bar(0.5, 0.4, 0.6, 0.1),
    "stack": charts.stacked_bar([("vae", 0.9), ("decode & co", 0.1)]),
}


def console_lines(page: Path, profile: Path) -> list[str]:
    """What a page in a browser says to its console; nothing is what it should say. Skips where there is no browser."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here")
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", *quiet]
    command += ["--enable-logging=stderr", "--v=0", f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "</html>" in done.stdout, done.stderr[-2000:]
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_xml_with_nothing_out_of_its_frame(name: str) -> None:
    chart = ET.fromstring(CHARTS[name])
    _, _, width, height = map(float, chart.attrib["viewBox"].split())
    for element in chart.iter():
        for key, limit in (("x", width), ("cx", width), ("y", height), ("cy", height)):
            assert 0 <= float(element.get(key, 0)) <= limit


def test_ticks_are_round_and_reach_the_highest_value() -> None:
    assert svg.nice_ticks(4.85) == [0, 1, 2, 3, 4, 5]
    assert svg.nice_ticks(300) == [0, 100, 200, 300]
    assert svg.nice_ticks(0.001)[-1] == 0.001
    for highest in (1e-5, 0.3, 0.7, 1, 9.9, 1234.5):
        ticks = svg.nice_ticks(highest)
        assert 3 <= len(ticks) <= 6 and ticks[-2] < highest <= ticks[-1]


def test_charts_speak_to_no_console(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><html><body>{''.join(CHARTS.values())}</body></html>")
    assert console_lines(page, tmp_path / "profile") == []
    page.write_text("<html><script>undefined.x</script></html>")
    assert len(console_lines(page, tmp_path / "profile")) == 1


def test_the_wilson_interval_is_the_textbooks() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    low, high = wilson(0, 20)
    assert low == 0 and high == pytest.approx(0.1611, abs=1e-4)


def test_scores_know_colours_shapes_and_chance() -> None:
    found = scores(PREDICTIONS, NAMES)
    assert {key: score.value for key, score in found.items()} == {
        "top1": 0.5,
        "top5": 0.75,
        "per_class": 0.5,
        "color": 0.75,
        "shape": 0.5,
    }
    assert (found["top1"].chance, found["color"].chance, found["shape"].chance) == (1 / 4, 1 / 2, 1 / 2)
    assert all(score.low <= score.value <= score.high for score in found.values())


def test_the_bootstrap_agrees_with_the_interval_of_a_plain_share() -> None:
    many = [Prediction("s", str(n), "a b", ["a b" if n % 4 else "a c"]) for n in range(400)]
    assert mean_per_class_interval(many) == pytest.approx(wilson(300, 400), abs=0.01)


def test_confusions_and_examples_are_of_the_predictions() -> None:
    counts = confusion_counts([(p.label, p.top5[0]) for p in PREDICTIONS], NAMES)
    assert counts.sum() == len(PREDICTIONS) and counts.trace() == 2 and counts[3, 0] == 1
    assert [p.key for p in examples(PREDICTIONS, True, 6)] == ["0", "2"]
    assert [p.key for p in examples(PREDICTIONS, False, 1)] == ["1"]
    assert examples(PREDICTIONS[:1], False, 6) == []


def test_every_reason_has_its_phrase() -> None:
    assert set(MEANING) == set(Reason)


def test_pictures_become_data_uris_and_psnr_is_in_decibels() -> None:
    grey = np.full((40, 60, 3), 100, np.uint8)
    assert jpeg(grey).startswith("data:image/jpeg;base64,") and png(grey).startswith("data:image/png;base64,")
    assert psnr(grey, grey + 1) == pytest.approx(48.13, abs=0.01)


def test_a_folder_without_a_demo_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=r"steps\.json: no such file"):
        read_run(tmp_path)
    (tmp_path / "steps.json").write_text('{"asked": {}, "steps": {"world": {}}}')
    with pytest.raises(CheckFailed, match="have not been run: train, zero-shot"):
        read_run(tmp_path)


@pytest.mark.parametrize(("channels", "reduction"), [(4, 8), (16, 4)])
def test_a_linear_map_is_found_again(channels: int, reduction: int) -> None:
    rng = np.random.default_rng(0)
    truth = np.vstack([rng.uniform(-12, 12, (channels, 3)), np.full((1, 3), 128.0)])
    latents = rng.standard_normal((3, channels, 8, 8))
    colours = np.einsum("nchw,cd->nhwd", latents, truth[:-1]) + truth[-1]
    pictures = colours.round().clip(0, 255).astype(np.uint8).repeat(reduction, 1).repeat(reduction, 2)
    assert fit_rgb_map(latents, pictures) == pytest.approx(truth, abs=1.0)


def test_a_latent_as_rgb_has_a_pixel_a_cell() -> None:
    rgb_map = np.array([[1000.0, 0, 0], [0, 1, 0], [10, 20, 30]])
    rgb = latents_to_rgb(np.ones((2, 5, 7), np.float16), rgb_map)
    assert rgb.dtype == np.uint8 and rgb.shape == (5, 7, 3)
    assert rgb[0, 0].tolist() == [255, 21, 30]


def test_pictures_must_lie_on_their_latents() -> None:
    with pytest.raises(RequestError, match="do not lie on"):
        fit_rgb_map(np.zeros((1, 4, 8, 8)), np.zeros((1, 64, 60, 3), np.uint8))


def test_latents_decode_in_whatever_scale_they_are_stored(small_vae: Path, spec: LatentSpec) -> None:
    identity = load_vae(str(small_vae)).identity
    raw_spec = spec.model_copy(update={"vae": identity})
    scaled_spec = raw_spec.model_copy(update={"scale": "model"})
    vae = load_decoder(raw_spec)
    latents = np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float16)
    pictures = decode(latents, raw_spec, vae)
    assert pictures.dtype == np.uint8 and pictures.shape == (2, 64, 64, 3)
    scaled = (latents.astype(np.float32) * identity.scaling_factor).astype(np.float16)
    assert np.abs(decode(scaled, scaled_spec, vae).astype(int) - pictures).max() <= 2


def test_another_vae_is_refused(small_vae: Path, spec: LatentSpec) -> None:
    with pytest.raises(SpecError, match="is not the one of version"):
        load_decoder(spec, str(small_vae))
