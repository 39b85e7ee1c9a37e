"""`make steer-demo` at a small size: from drawing the world to the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demo.judge import JudgeConfig, judge
from demo.run import SHIPPED, VAE
from demo.steer import RED, SteerConfig, steer_demo
from demo.world import CLASS_NAMES
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.spec import LatentSpec
from encode_pipeline.vae import PIXELS, load_vae
from eval.generator import build_tiny_pipeline
from eval.steering.folder import SteeredRun
from eval.steering.run import SteerConfig as SteerRun
from eval.steering.run import steer
from tests.clips import latent_clip


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> SteerConfig:
    out = tmp_path_factory.mktemp("steer")
    config = SteerConfig(out=out, pictures=60, generator_steps=2, prompts=2, iterations=3, batch_size=2)
    steer_demo(config)
    return config


def test_pictures_are_led_to_their_prompts_and_away_from_red(demo: SteerConfig) -> None:
    runs = {path.name: SteeredRun.open(path) for path in (demo.out / "runs").iterdir()}
    assert {name: len(run.lines) for name, run in runs.items()} == dict.fromkeys(("plain", "clip", "red", "not-red"), 2)
    assert [line["prompt"].split()[-2] for line in runs["not-red"].lines] == ["red", "red"]
    for steered, plain in (("clip", "plain"), ("not-red", "red")):
        assert runs[steered].result["metrics"]["risen"] > 0
        for line, before in zip(runs[steered].lines, runs[plain].lines, strict=True):
            first, unsteered = runs[steered].read(line["item"]).first, runs[plain].read(before["item"]).latents
            assert (first == unsteered).all()  # the same noise, so that they can be compared
    assert all(run.result["not_comparable"] for run in runs.values())


def test_a_latent_reward_and_one_of_pixels_are_timed_together(demo: SteerConfig) -> None:
    timed = json.loads((demo.out / "timing" / "result.json").read_text())
    assert sorted(row["reads"] or "" for row in timed["rows"]) == ["", "latents", "pixels"]
    assert len(timed["pairs"]) == 1


def test_all_of_it_is_on_one_page(demo: SteerConfig) -> None:
    page = (demo.out / "report" / "report.html").read_text()
    assert "not comparable" in page and page.count('type="checkbox"') > 0  # pictures led away from something are veiled


def test_a_second_run_has_nothing_to_do(demo: SteerConfig) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo.out.rglob("*") if path.is_file()}
    steer_demo(demo)
    assert {path: path.stat().st_mtime_ns for path in demo.out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("reward", ["clip", "avoid"])
def test_of_twenty_prompts_nine_in_ten_are_led_where_they_should_be(tmp_path: Path, reward: str) -> None:
    """By the shipped tower, on a generator with random weights: what there is without an hour of training."""
    build_tiny_pipeline(tmp_path / "tiny", vae_folder=VAE)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a photo of a {name}\n" for name in CLASS_NAMES[:40:2]))
    asked = {"prompts": str(prompts), "generator": str(tmp_path / "tiny"), "reward": f"{reward}:{SHIPPED}"}
    concepts = RED if reward == "avoid" else None
    asked_for = SteerRun(**asked, concepts=concepts, out=tmp_path / "run", iterations=12, decode=False, previews=0)
    result = steer(asked_for)
    assert result["n"] == 20 and result["metrics"]["risen"] >= 0.9
    (scores,) = result["metrics"]["rewards"].values()
    assert scores["low"] > 0  # beyond chance


def test_a_tower_that_took_no_part_is_asked(demo: SteerConfig, tmp_path: Path) -> None:
    spec = LatentSpec(vae=load_vae(PIXELS).identity, shape=(3, 64, 64), image_size=512, views=1, recipe={}, seed=0)
    twin = latent_clip(tmp_path / "twin.pt", spec)
    found = judge(JudgeConfig(out=demo.out, checkpoint=twin))
    assert list(found) == ["plain", "clip", "red", "not-red"]
    assert all(0 <= each["named"] <= each["named_in_five"] <= each["pictures"] == 2 for each in found.values())
    with pytest.raises(RequestError, match="not a tower of vae=pixels"):
        judge(JudgeConfig(out=demo.out, checkpoint=SHIPPED))
