"""The demo at a tenth of its size: every step, the report, a browser, and a second run that has nothing to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import webdataset as wds

from demo.run import DemoConfig, make_latents, run_demo
from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.store import Store
from tests.test_demo_report import console_lines
from train.zero_shot import read_classes


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoConfig:
    config = DemoConfig(out=tmp_path_factory.mktemp("demo"), train_pictures=60, test_pictures=48, steps=4)
    run_demo(config)
    return config


def test_latents_are_float16_4x64x64_of_512_pictures_in_four_views(demo: DemoConfig) -> None:
    version = Store(demo.out / "store").version()
    assert (version.spec.image_size, version.spec.views, version.spec.shape) == (512, 4, (4, 64, 64))
    urls = version.storage.read("shards.txt").decode().split()
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode().to_tuple("npy", "json"))
    assert {(latent.shape, str(latent.dtype)) for latent, _ in samples} == {((4, 64, 64), "float16")}
    assert {record["view"] for _, record in samples} == {0, 1, 2, 3}


def test_rejects_are_those_that_were_planted(demo: DemoConfig) -> None:
    steps = json.loads((demo.out / "steps.json").read_text())["steps"]
    planted: dict[str, int] = {}
    for plan in steps["world"]["result"]["warts"].values():
        for reason, count in plan["expected_rejected"].items():
            planted[reason] = planted.get(reason, 0) + count
    status = steps["status"]["result"]
    assert planted and status["rejected"] == planted
    assert status["samples"]["read"] == status["samples"]["encoded"] + status["samples"]["rejected"]
    for commit in Store(demo.out / "store").version().commits():
        assert commit.read == commit.encoded + sum(commit.rejected.values())


def test_the_report_opens_without_a_console_line(demo: DemoConfig, tmp_path: Path) -> None:
    page = demo.out / "report.html"
    html = page.read_text()
    assert "://" not in html.replace("http://www.w3.org", "")  # one file: nothing is fetched
    assert len(html) < 4_000_000 and "not comparable" in html
    assert console_lines(page, tmp_path / "profile") == []


def test_a_second_run_has_nothing_to_do(demo: DemoConfig) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo.out.rglob("*") if path.is_file()}
    assert run_demo(demo)["report"].endswith("report.html")
    assert {path: path.stat().st_mtime_ns for path in demo.out.rglob("*") if path.is_file()} == before


def test_its_latents_are_those_that_make_train_takes(demo: DemoConfig) -> None:
    before = (demo.out / "steps.json").stat().st_mtime_ns
    places = make_latents(demo)
    assert Store(places["data"]).version().spec.views == 4 and Store(places["test_data"]).version().spec.views == 1
    assert len(read_classes(Path(places["classes"]))[0]) == 48
    assert (demo.out / "steps.json").stat().st_mtime_ns == before


def test_another_demo_in_the_same_folder_is_refused(demo: DemoConfig) -> None:
    with pytest.raises(CheckFailed, match="holds a demo of other settings"):
        run_demo(demo.model_copy(update={"steps": 5}))
