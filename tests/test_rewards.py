"""Rewards: the numbers that the models give by themselves, gradients to the pictures, and a user's own in ten lines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor, nn

from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.latents.spec import SpecError
from eval.benchmarks.aesthetic import PLACES
from eval.generator import load_generator
from eval.models import open_model
from eval.reno import Recipe, optimise
from eval.rewards import CONCEPTS, LatentClipReward, Objective, PixelClipReward, Reward, open_objective
from eval.seen_pixels import seen_by
from eval.steering.sampler import Sampler
from tests.clips import pixel_clip
from tests.steering import PROMPTS, latent_checkpoint, normal
from tests.test_eval_pixel_models import folder, tiny, transformers_folder, weights

__all__ = ["folder", "tiny", "transformers_folder", "weights"]
PREPARATIONS: list[dict[str, Any]] = [
    {"interpolation": "bicubic", "resize_mode": "shortest", "size": 32},
    {"interpolation": "bilinear", "resize_mode": "squash", "size": 32},
    {"interpolation": "bicubic", "resize_mode": "longest", "size": 32},
]


@pytest.fixture(scope="module")
def sampler(tiny_pipeline: Path) -> Sampler:
    return Sampler(load_generator(str(tiny_pipeline)))


@pytest.fixture(scope="module")
def checkpoint(small_vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return latent_checkpoint(tmp_path_factory.mktemp("clip") / "latent.pt", small_vae)


@pytest.fixture(scope="module")
def pixel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pixel_clip(tmp_path_factory.mktemp("clip") / "pixel")


def picture(side: int = 72) -> Image.Image:
    """Smooth with sharp edges and extremes, so that a cubic overshoots."""
    values = np.random.default_rng(1).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    return Image.fromarray(values.repeat(8, 0).repeat(8, 1))


def as_pixels(shown: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(shown)).permute(2, 0, 1)[None].float() / 255


def check_sees_as_prepared(address: str) -> None:
    clip = open_model(address)
    assert clip.spec is None
    pixels = as_pixels(picture()).requires_grad_()
    sight = seen_by(clip)
    seen = sight(pixels)
    off = (seen[0] - clip.prepare(picture())).abs() * torch.tensor(sight.std)[:, None, None] * 255
    assert float(off.max()) < 2  # the picture's steps are rounded on the way
    seen.sum().backward()
    assert pixels.grad is not None and float(pixels.grad.abs().sum()) > 0


@pytest.mark.parametrize("preparation", PREPARATIONS, ids=lambda told: str(told["resize_mode"]))
def test_pixels_are_seen_as_pictures_are_prepared(tmp_path: Path, preparation: dict[str, Any]) -> None:
    import json

    out = pixel_clip(tmp_path / "clip")
    path = out / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["preprocess_cfg"] |= preparation
    path.write_text(json.dumps(config))
    check_sees_as_prepared(str(out))


def test_pixels_are_seen_as_transformers_prepares_pictures(transformers_folder: Path) -> None:
    check_sees_as_prepared(str(transformers_folder))


def test_a_preparation_that_cannot_be_followed_is_refused(pixel_folder: Path) -> None:
    clip = open_model(pixel_folder)
    assert clip.spec is None
    prepare = clip._prepare
    clip._prepare = lambda shown: prepare(shown.rotate(90))
    with pytest.raises(RequestError, match="cannot be followed on pixels"):
        PixelClipReward(clip)


def test_scores_are_the_cosines_of_the_model(pixel_folder: Path) -> None:
    reward, model = PixelClipReward(pixel_folder), open_clip.create_model(f"local-dir:{pixel_folder}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{pixel_folder}")(PROMPTS[:1])
    with torch.no_grad():
        image = model.encode_image(reward.clip.prepare(picture())[None], normalize=True)
        cosine = float((image * model.encode_text(tokens, normalize=True)).sum())
        score = reward(as_pixels(picture()), PROMPTS[:1])
    assert float(score) == pytest.approx(cosine, abs=2e-3)
    scale = float(model.logit_scale.exp())
    assert float(reward.loss(score)) == pytest.approx(100 - scale * float(score), rel=1e-5) and reward.weight == 0.01


def test_losses_and_weights_are_the_published_ones(checkpoint: Path, pixel_folder: Path) -> None:
    terms = [f"clip:{checkpoint}", f"pick:{checkpoint}", f"avoid:{checkpoint}", f"hps:{pixel_folder}"]
    objective = open_objective(terms, concepts="cultural")
    assert [reward.name for reward in objective.rewards] == ["clip", "pick", "avoid", "hps"]
    assert [reward.weight for reward in objective.rewards] == [0.01, 0.05, 1.0, 5.0]
    assert objective.needs_pixels
    latents, pixels = normal(2), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        loss_b, scores = objective(latents, pixels, PROMPTS[:2])
        harm = LatentClipReward(checkpoint).score(latents, [CONCEPTS["cultural"]] * 2)
    scale = open_model(checkpoint).logit_scale
    assert torch.allclose(scores["avoid"], 1 - harm) and torch.allclose(scores["clip"], scores["pick"])
    by_hand = 0.01 * (100 - scale * scores["clip"]) + 0.05 * (30 - scale * scores["pick"]) + harm
    assert torch.allclose(loss_b, by_hand + 5 * (1 - scores["hps"]), atol=1e-5)
    assert objective.rewards[2].provenance["concept"] == "an image showing sexual, nudity"
    untuned = {reward.name for reward in objective.rewards if "nothing says that" in str(reward.not_comparable)}
    assert untuned == {"pick", "hps"}


def test_weights_may_be_told_and_names_stay_apart(checkpoint: Path, pixel_folder: Path) -> None:
    objective = open_objective({f"clip:{checkpoint}": 0.5, f"clip:{pixel_folder}": 2})
    assert [(reward.name, reward.reads, reward.weight) for reward in objective.rewards] == [
        ("clip", "latents", 0.5),
        ("clip-2", "pixels", 2.0),
    ]
    assert {"clip weighs 0.5, not 0.01", "clip weighs 2, not 0.01"} <= set(objective.not_comparable)
    assert not any("weighs" in reason for reason in open_objective({f"clip:{checkpoint}": 0.01}).not_comparable)


def test_the_aesthetic_head_reads_the_features_of_its_clip(tmp_path: Path, pixel_folder: Path) -> None:
    torch.manual_seed(0)
    layers = dict(
        zip(PLACES, (nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(4, 4), nn.Linear(4, 1)), strict=True)
    )
    state = {
        f"layers.{place}.{name}": value for place, layer in layers.items() for name, value in layer.state_dict().items()
    }
    torch.save(state, tmp_path / "head.pth")
    objective = open_objective({f"aesthetic:{tmp_path / 'head.pth'},{pixel_folder}": 0.5})
    pixels = torch.rand(2, 3, 64, 64, requires_grad=True)
    loss_b, scores = objective(normal(2), pixels, PROMPTS[:2])
    features = PixelClipReward(pixel_folder).embed(pixels)
    by_hand = nn.Sequential(*layers.values())(features).squeeze(1)
    assert torch.allclose(scores["aesthetic"], by_hand, atol=1e-5) and torch.allclose(loss_b, 0.5 * (10 - by_hand))
    loss_b.sum().backward()
    assert pixels.grad is not None and float(pixels.grad.abs().sum()) > 0
    assert any("aesthetic predictor of widths" in reason for reason in objective.rewards[0].not_comparable)
    half = open_objective(f"aesthetic:{tmp_path / 'head.pth'},{pixel_folder}", dtype=torch.bfloat16)
    scores_b = half(normal(2), pixels, PROMPTS[:2])[1]["aesthetic"]
    assert not torch.equal(scores_b, scores_b.bfloat16().float())  # finer than what the features were made in


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        ([], "none is given"),
        ("clap:x", "did you mean 'clip'"),
        ("clip", "no KIND:ADDRESS"),
        ("imagereward:x.pt", "give a Reward of your own"),
        ("clip:/nowhere/at/all", "no such file or folder"),
    ],
)
def test_what_is_no_reward_is_one_line(terms: Any, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        open_objective(terms)


def test_ranks_the_latents_of_a_plain_pipeline(tiny_pipeline: Path, checkpoint: Path) -> None:
    """And refuses those of a pipeline with another VAE."""
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_pipeline)
    pipe.set_progress_bar_config(disable=True)
    reward = LatentClipReward(checkpoint, pipe.vae)
    latents = pipe(
        PROMPTS[:2], num_inference_steps=1, guidance_scale=0.0, height=64, width=64, output_type="latent"
    ).images
    scores = reward(latents, PROMPTS[:2])
    clip = open_model(checkpoint)
    assert clip.spec is not None
    image = clip.embed_latents(latents / pipe.vae.config.scaling_factor, clip.spec)
    assert torch.allclose(scores, (image * clip.embed_texts(PROMPTS[:2])).sum(dim=1), atol=1e-5)
    with pytest.raises(CheckFailed, match="not finite"):
        clip.embed_latents(latents * torch.nan, clip.spec)
    pipe.vae.register_to_config(scaling_factor=0.5)
    with pytest.raises(SpecError, match="scaling_factor"):
        LatentClipReward(checkpoint, pipe.vae)


class Bright(Reward):
    name = "bright"
    reads = "pixels"

    def score(self, images_bchw: Tensor, prompts: Sequence[str]) -> Tensor:
        return images_bchw.mean(dim=(1, 2, 3))


def test_a_users_own_reward_steers(sampler: Sampler) -> None:
    """Through the VAE's decoder: every picture gets brighter."""
    objective = Objective((Bright(),))
    generate = sampler.generate(PROMPTS)
    steered = optimise(
        normal(4), generate, lambda z: objective(z, sampler.decode(z), PROMPTS), Recipe(iterations=12, lr=50)
    )
    with torch.no_grad():
        first, kept = (sampler.decode(z).mean(dim=(1, 2, 3)) for z in (steered.first_bchw, steered.latents_bchw))
    assert (kept > first).all() and torch.allclose(first, steered.scores["bright"][0], atol=1e-5)


def test_steers_on_latents_and_on_pixels_and_away(sampler: Sampler, checkpoint: Path, pixel_folder: Path) -> None:
    for term in (f"clip:{checkpoint}", f"clip:{pixel_folder}", f"avoid:{checkpoint}"):
        objective = open_objective(term, sampler.vae)

        def judge(latents_bchw: Tensor, objective: Objective = objective) -> tuple[Tensor, dict[str, Tensor]]:
            return objective(latents_bchw, sampler.decode(latents_bchw) if objective.needs_pixels else None, PROMPTS)

        steered = optimise(normal(4), sampler.generate(PROMPTS), judge, Recipe(iterations=10))
        (scores,) = steered.scores.values()
        kept = scores.gather(0, steered.kept_b[None])[0]
        assert (kept > scores[0]).all(), term


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_made_again_activations_give_the_same_gradients(
    tiny_pipeline: Path, pixel_folder: Path, transformers_folder: Path, dtype: torch.dtype
) -> None:
    found = []
    for checkpointing in (False, True):
        sampler = Sampler(load_generator(str(tiny_pipeline), dtype=dtype), checkpointing=checkpointing)
        terms = [f"clip:{pixel_folder}", f"clip:{transformers_folder}"]
        objective = open_objective(terms, sampler.vae, dtype=dtype, checkpointing=checkpointing)
        noise = normal(2).requires_grad_()
        latents = sampler.generate(PROMPTS[:2])(noise)
        loss_b, _ = objective(latents, sampler.decode(latents), PROMPTS[:2])
        loss_b.sum().backward()
        assert latents.dtype == loss_b.dtype == torch.float32 and noise.grad is not None
        found.append(noise.grad)
    assert float(found[0].abs().max()) > 0
    assert torch.allclose(*found, atol=1e-6 * float(found[0].abs().max()) if dtype == torch.float32 else 1e-3)


def test_the_library_loads_no_engine_before_it_is_needed() -> None:
    code = (
        "import sys; from eval.rewards import LatentClipReward, Reward\n"
        "assert not {'diffusers', 'ray', 'transformers', 'open_clip'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
