"""The sampler makes what diffusers' own pipeline makes, from noise to pixels, and lets gradients through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from encode_pipeline.latents.command import RequestError
from eval.generator import load_generator
from eval.steering.sampler import Sampler
from tests.steering import PROMPTS, normal

COUNT = 2


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline: Path) -> Any:
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_pictures_are_the_pipelines(tiny_pipeline: Path, pipeline: Any, steps: int) -> None:
    sampler = Sampler(load_generator(str(tiny_pipeline)), steps)
    chance = torch.Generator().manual_seed(7)  # of the pipeline, which draws once more than it uses
    between = [torch.randn(COUNT, 4, 8, 8, generator=chance) for _ in range(steps)][: steps - 1]

    def theirs(kind: str) -> torch.Tensor:
        made: torch.Tensor = pipeline(
            PROMPTS[:COUNT],
            num_inference_steps=steps,
            guidance_scale=0.0,
            latents=normal(COUNT),
            height=64,
            width=64,
            output_type=kind,
            generator=torch.Generator().manual_seed(7),
        ).images
        return made

    noise = normal(COUNT).requires_grad_()
    latents = sampler.generate(PROMPTS[:COUNT], between)(noise)
    pixels = sampler.decode(latents)
    assert float((latents - theirs("latent")).detach().abs().max()) < 1e-5 * steps
    assert float((pixels - theirs("pt")).detach().abs().max()) < 1e-4
    pixels.sum().backward()
    assert noise.grad is not None and (noise.grad.flatten(1).norm(dim=1) > 0).all()
    assert not any(
        weight.requires_grad for model in (sampler.generator.unet, sampler.vae) for weight in model.parameters()
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(tiny_pipeline: Path, dtype: torch.dtype) -> None:
    """And a VAE that says it overflows in float16 stays in float32."""
    made = []
    for kind in (torch.float32, dtype):
        sampler = Sampler(load_generator(str(tiny_pipeline), dtype=kind))
        noise = normal(COUNT).requires_grad_()
        pixels = sampler.decode(sampler.generate(PROMPTS[:COUNT])(noise))
        pixels.mean().backward()
        assert pixels.dtype == torch.float32 and noise.grad is not None and noise.grad.isfinite().all()
        made.append(pixels.detach())
    assert sampler.vae.dtype == (torch.float32 if dtype == torch.float16 else dtype)
    assert 0 < float((made[0] - made[1]).abs().mean()) < 0.02


def test_a_compiled_generator_makes_the_same(tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced by torch's compiler, though not turned into machine code, which takes minutes."""
    compiled: list[str] = []
    really = torch.nn.Module.compile

    def traced(self: torch.nn.Module, *args: Any, **more: Any) -> None:
        compiled.append(type(self).__name__)
        really(self, *args, backend="eager", **more)

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    made = []
    for is_compiled in (False, True):
        sampler = Sampler(load_generator(str(tiny_pipeline)), compiled=is_compiled)
        noise = normal(COUNT).requires_grad_()
        pixels = sampler.decode(sampler.generate(PROMPTS[:COUNT])(noise))
        (gradient,) = torch.autograd.grad(pixels.mean(), noise)
        made.append((pixels.detach(), gradient))
    assert compiled == ["UNet2DConditionModel", "Decoder"]
    (pixels, gradient), (same, as_steep) = made
    assert float((pixels - same).abs().max()) < 1e-4
    assert float((gradient - as_steep).abs().max()) < 1e-3 * float(gradient.abs().max())


def test_five_steps_are_too_many(tiny_pipeline: Path) -> None:
    with pytest.raises(RequestError, match="steps=5: a picture is steered through 1 to 4"):
        Sampler(load_generator(str(tiny_pipeline)), 5)
