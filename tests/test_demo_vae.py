"""The VAE that ships with the demo is what its card says, and keeps pictures it never saw."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from demo.image_tar import sha256_of
from demo.measure_vae import SHIPPED_VAE, centre_square, load_vae, measure, pictures_to_tensor
from demo.scene import render
from demo.train_vae import crops, learning_rate, small_vae, train

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = SHIPPED_VAE / "diffusion_pytorch_model.safetensors"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Two threads of a small model wait for each other longer than one works, once the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_it_is_an_autoencoder_kl_like_sdxls_only_smaller() -> None:
    config = json.loads((SHIPPED_VAE / "config.json").read_text())
    assert config["_class_name"] == "AutoencoderKL"
    assert config["latent_channels"] == 4
    assert len(config["down_block_types"]) == 4  # three of them halve: 8x down
    assert WEIGHTS.stat().st_size <= 4_000_000


def test_a_picture_becomes_four_channels_of_an_eighth_of_its_side() -> None:
    vae = load_vae(SHIPPED_VAE)
    with torch.no_grad():
        latents = vae.encode(torch.zeros(1, 3, 128, 192)).latent_dist.mode()
        assert latents.shape == (1, 4, 16, 24)
        assert vae.decode(latents).sample.shape == (1, 3, 128, 192)


def test_scaled_latents_have_a_spread_of_about_one() -> None:
    vae = load_vae(SHIPPED_VAE)
    pictures = [centre_square(render(0, "test", index).image, 512) for index in range(4)]
    with torch.no_grad():
        raw = torch.cat([vae.encode(pictures_to_tensor(p[None])).latent_dist.mean for p in pictures])
    assert 0.7 < float(raw.std()) * vae.config.scaling_factor < 1.4


def test_it_keeps_pictures_it_never_saw() -> None:
    measured = measure(SHIPPED_VAE, pictures=6)
    assert measured["psnr_mean"] >= 27, measured


def test_the_card_is_of_these_weights() -> None:
    card = (SHIPPED_VAE / "README.md").read_text()
    assert sha256_of(WEIGHTS) in card
    assert str(json.loads((SHIPPED_VAE / "config.json").read_text())["scaling_factor"]) in card


def test_training_starts_near_the_identity() -> None:
    torch.manual_seed(0)
    pixels = torch.full((1, 3, 64, 64), -0.5)
    pixels[:, 0, :, 32:] = 0.9
    with torch.no_grad():
        latents = small_vae().encode(pixels).latent_dist.mean
    left, right = latents[0, :, 4, 1], latents[0, :, 4, 6]
    assert (left - right).abs().max() > 0.5


def test_the_learning_rate_warms_up_and_ends_at_nothing() -> None:
    rates = [learning_rate(step, 1000) for step in range(1001)]
    assert rates[0] < rates[10] < max(rates) and rates[-1] == pytest.approx(0)


def test_resumed_batches_are_those_of_an_uninterrupted_run() -> None:
    straight = crops(7, 0)
    next(straight)
    assert torch.equal(next(straight), next(crops(7, 1)))


def test_training_resumed_equals_training_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demo.train_vae.CROP", 32)
    monkeypatch.setattr("demo.train_vae.LOG_EVERY", 1)
    monkeypatch.setattr("demo.train_vae.CHECKPOINT_EVERY_SECONDS", 0.0)
    monkeypatch.setattr("demo.train_vae.publish", lambda *_: {})
    monkeypatch.setattr("demo.train_vae.measure", lambda *_: {})
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train(straight, steps=2, seed=7)
    with monkeypatch.context() as interrupted:
        interrupted.setattr("demo.train_vae.crops", lambda *where: itertools.islice(crops(*where), 1))
        train(resumed, steps=2, seed=7)
    train(resumed, steps=2, seed=7)
    one, other = (torch.load(out / "resume.pt")["vae"] for out in (straight, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    steps = [json.loads(line)["step"] for line in (resumed / "training.jsonl").open()]
    assert steps == [1, 2]
