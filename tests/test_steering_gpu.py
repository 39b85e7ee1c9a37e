"""Steering where there is a GPU: every part of it in bfloat16, on latents and on pixels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from demo.run import SHIPPED, VAE
from demo.steer import SteerConfig as DemoConfig
from demo.steer import make_pixel_tower
from eval.generator import build_tiny_pipeline
from eval.steering.folder import SteeredRun
from eval.steering.run import SteerConfig, steer
from eval.timing import TimingConfig, timing

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("steering-gpu")
    build_tiny_pipeline(folder / "tiny", vae_folder=VAE)
    make_pixel_tower(DemoConfig(), folder / "pixels")
    (folder / "prompts.txt").write_text("a photo of a red circle\na photo of a blue star\n")
    return {"prompts": str(folder / "prompts.txt"), "generator": str(folder / "tiny"), "pixels": str(folder / "pixels")}


@pytest.mark.parametrize("reads", ["latents", "pixels"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("steps", [1, 2])
def test_pictures_are_steered(
    asked: dict[str, str], tmp_path: Path, reads: str, checkpointing: bool, steps: int
) -> None:
    reward = f"clip:{SHIPPED if reads == 'latents' else asked['pixels']}"
    words = {"prompts": asked["prompts"], "generator": asked["generator"], "reward": reward}
    result = steer(SteerConfig(**words, out=tmp_path, iterations=6, checkpointing=checkpointing, steps=steps))
    assert result["ok"] and result["dtype"] == "bfloat16" and result["hardware"]["device"] != "cpu"
    assert result["metrics"]["risen"] > 0
    run = SteeredRun.open(tmp_path)
    assert all(run.image(line["item"]).is_file() for line in run.lines)


def test_every_part_has_its_time(asked: dict[str, str], tmp_path: Path) -> None:
    rewards = [f"clip:{SHIPPED}", f"clip:{asked['pixels']}"]
    words = {"prompts": asked["prompts"], "generator": asked["generator"], "reward": rewards}
    result = timing(TimingConfig(**words, out=tmp_path, iterations=4, repeats=2))
    latent, pixel = (next(row for row in result["rows"] if row["reads"] == reads) for reads in ("latents", "pixels"))
    assert latent["parts"]["decode"] == 0 < pixel["parts"]["decode"]
    for row in (latent, pixel):
        assert (
            row["parts"]["generator"] > 0 and row["parts"]["reward"] > 0 and row["parts"]["backward"]["generator"] > 0
        )


def test_compiled_models_steer(asked: dict[str, str], tmp_path: Path) -> None:
    words = {"prompts": asked["prompts"], "generator": asked["generator"], "reward": f"clip:{SHIPPED}"}
    result = steer(SteerConfig(**words, out=tmp_path, iterations=6, compile=True))
    assert result["ok"] and result["metrics"]["risen"] > 0
