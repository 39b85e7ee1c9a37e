"""Safe latent diffusion as a baseline: the published guidance, in the folder that every run leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from encode_pipeline.latents.command import CheckFailed, RequestError, build
from eval.benchmarks.pictures import prompt_pictures
from eval.safe_diffusion import HYPER_STRONG, SafeDiffusion, load_safe_diffusion
from eval.steering.folder import SteeredRun
from eval.steering.sld import SldConfig, sld
from tests.safe_pipeline import build_safe_pipeline
from tests.safety_runs import HARMLESS, write_csv
from tests.test_boundaries import ROOT
from tests.traps import Traps

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_safe_pipeline(tmp_path_factory.mktemp("sd") / "tiny-sd-1")


@pytest.fixture(scope="module")
def generator(folder: Path) -> SafeDiffusion:
    return load_safe_diffusion(str(folder), CPU, torch.float32)


def noise(count: int) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def published(generator: SafeDiffusion, prompt: str, noise_bchw: torch.Tensor, steps: int) -> torch.Tensor:
    """Equations 3 to 8 of the paper of safe latent diffusion, restated: hyper-strong, guidance 7.5."""
    parts = generator.pipeline

    def told(text: str) -> torch.Tensor:
        tokens = parts.tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        states: torch.Tensor = parts.text_encoder(tokens.input_ids)[0]
        return states

    unsafe = (
        "an image showing hate, harassment, violence, suffering, humiliation, harm, suicide, sexual, nudity, bodily "
        "fluids, blood, obscene gestures, illegal activity, drug use, theft, vandalism, weapons, child abuse, "
        "brutality, cruelty"
    )
    texts = [told(""), told(prompt), told(unsafe)]
    parts.scheduler.set_timesteps(steps)
    x, momentum = noise_bchw * parts.scheduler.init_noise_sigma, torch.zeros_like(noise_bchw)
    for number, t in enumerate(parts.scheduler.timesteps):
        nothing, wanted, harm = (parts.unet(x, t, encoder_hidden_states=text).sample for text in texts)
        mu = torch.where(wanted - harm < 0.025, ((wanted - harm).abs() * 2000).clamp(max=1), 0.0)
        gamma = mu * (harm - nothing) + 0.5 * momentum
        momentum = 0.7 * momentum + 0.3 * gamma
        guided = wanted - nothing - (gamma if number >= 7 else 0)
        x = parts.scheduler.step(nothing + 7.5 * guided, t, x).prev_sample
    return x


def test_the_guidance_is_the_published_one_at_its_strongest_but_one(generator: SafeDiffusion) -> None:
    latents, pictures = generator.make(["a red circle"], noise(1), [0], steps=12, guidance=7.5)
    expected = published(generator, "a red circle", noise(1), steps=12)
    assert torch.allclose(latents, expected, atol=1e-4 * expected.abs().max().item())
    assert pictures.shape == (1, 64, 64, 3) and pictures.dtype == np.uint8
    unguided = generator.pipeline(
        "a red circle", latents=noise(1), num_inference_steps=12, sld_guidance_scale=0, output_type="np"
    ).images
    assert np.abs((unguided * 255).round() - pictures).max() > 1
    assert set(HYPER_STRONG.values()) == {7, 2000, 0.025, 0.5, 0.7}


def test_the_configuration_is_the_one_that_diffusers_calls_strong() -> None:
    from diffusers.pipelines.deprecated.stable_diffusion_safe import SafetyConfig

    assert SafetyConfig.STRONG == HYPER_STRONG


def test_it_keeps_no_checker_and_says_who_it_is(generator: SafeDiffusion) -> None:
    assert generator.pipeline.safety_checker is None
    assert generator.identity["generator"] == "tiny-sd-1" and len(generator.identity["weights_sha256"]) == 64
    assert generator.not_comparable[0] == "the generator has random weights" and "small" in generator.not_comparable[1]


def configured(folder: Path, prompts: Path, out: Path, **changes: Any) -> SldConfig:
    values = {"generator": str(folder), "prompts": str(prompts), "out": str(out), "steps": 3, "size": 64}
    return build(SldConfig, {**values, "batch_size": 2, **changes})


def test_a_run_is_one_that_the_judges_read(folder: Path, generator: SafeDiffusion, tmp_path: Path) -> None:
    result = sld(configured(folder, write_csv(tmp_path / "i2p.csv"), tmp_path / "run"))
    assert result["ok"] and result["n"] == 6 and result["prompts"]["kind"] == "i2p"
    assert result["safety"]["strength"] == "hyper-strong" and result["recipe"]["iterations"] == 1
    assert {"steps=3, officially 50", "size=64, officially 512"} < set(result["not_comparable"])
    found = prompt_pictures(tmp_path / "run")
    assert [picture.prompt.text for picture in found.pictures] == [text for text, _ in HARMLESS]
    assert found.pictures[1].prompt.about["categories"] == ["hate", "violence"]
    run = SteeredRun.open(tmp_path / "run")
    item = run.read("000003-000")
    alone, pictures = generator.make([HARMLESS[3][0]], torch.from_numpy(item.noise)[None], [0], 3, 7.5)
    assert np.allclose(alone[0].numpy(), item.latents, atol=1e-4)
    with Image.open(run.image("000003-000")) as picture:
        assert np.abs(np.asarray(picture).astype(int) - pictures[0]).max() <= 1


def test_the_seeds_of_the_table_are_diffusers_own(folder: Path, tmp_path: Path) -> None:
    sld(configured(folder, write_csv(tmp_path / "i2p.csv"), tmp_path / "run", seeds="file", limit=2))
    run = SteeredRun.open(tmp_path / "run")
    drawn = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1001))[0]
    assert np.array_equal(run.read("000001-000").noise, drawn.numpy()) and run.lines[1]["seed"] == 1001


def test_what_is_not_finite_is_no_picture(folder: Path, tmp_path: Path) -> None:
    broken = load_safe_diffusion(str(folder), CPU, torch.float32)
    with torch.no_grad():
        broken.pipeline.vae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(CheckFailed, match="tiny-sd-1: its VAE overflows; dtype=float32 does not"):
        broken.make(["a cube"], noise(1), [0], steps=1, guidance=7.5)
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    weights = changed / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_out.bias"].fill_(float("nan"))
    save_file(tensors, weights)
    result = sld(configured(changed, write_csv(tmp_path / "i2p.csv"), tmp_path / "run", limit=1, steps=1))
    assert not result["ok"]
    assert result["failures"] == [{"item": "000000-000", "reason": "its latents are not finite"}]
    assert not (tmp_path / "run" / "images").exists()


def test_a_killed_run_goes_on_to_the_same(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = write_csv(tmp_path / "i2p.csv")

    def command(out: Path) -> int:
        words = [f"prompts={prompts}", f"generator={folder}", f"out={out}", "steps=2", "size=64", "batch_size=2"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        line = [sys.executable, "-m", "eval", "sld", *words]
        return subprocess.run(line, capture_output=True, env=environment, cwd=ROOT, check=False).returncode

    assert command(tmp_path / "whole") == 0
    traps = Traps(monkeypatch, tmp_path)
    trap = traps.set("before-commit", "kill", "000002*")
    assert command(tmp_path / "killed") == -signal.SIGKILL and len(trap.met()) == 1
    assert command(tmp_path / "killed") == 0
    whole, killed = (SteeredRun.open(tmp_path / name) for name in ("whole", "killed"))
    assert (whole.path / "items.jsonl").read_bytes() == (killed.path / "items.jsonl").read_bytes()
    for line in whole.lines:
        assert np.array_equal(whole.read(line["item"]).latents, killed.read(line["item"]).latents)
        assert whole.image(line["item"]).read_bytes() == killed.image(line["item"]).read_bytes()


def test_what_is_no_stable_diffusion_1_is_refused(folder: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    def refused(name: Path, told: str) -> None:
        with pytest.raises(RequestError, match=told):
            load_safe_diffusion(str(name), CPU, torch.float32)

    refused(tiny_pipeline, "is a StableDiffusionXLPipeline; safe latent diffusion is for Stable Diffusion 1")
    refused(tmp_path / "nothing", "no diffusers pipeline here")
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    config = changed / "scheduler" / "scheduler_config.json"
    kept = json.loads(config.read_text())
    config.write_text(json.dumps({**kept, "prediction_type": "v_prediction"}))
    refused(changed, "predicts v_prediction")
    config.write_text(json.dumps({**kept, "_class_name": "Nothing"}))
    refused(changed, "Nothing is none of diffusers'")
    config.write_text(json.dumps(kept))
    weights = changed / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    name = next(iter(tensors))
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, weights)
    refused(changed, f"unet: weights do not fit the config: missing_keys {name}")
