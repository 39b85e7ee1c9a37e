"""The denoising process against diffusers' scheduler, and the noise levels of both readings of the paper."""

from __future__ import annotations

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from torch import Tensor

from encode_pipeline.latents.command import RequestError
from eval.denoise import Level, Schedule, denoise, guided
from eval.tiny_generator import SCHEDULER


@pytest.fixture(scope="module")
def schedule() -> Schedule:
    """SDXL-Turbo's, from its scheduler's configuration."""
    return Schedule.from_config(SCHEDULER, "scheduler")


def blurred(x_bchw: Tensor, level: Level) -> Tensor:
    """Stands in for a UNet: any function of what it reads and of the time."""
    return torch.tanh(x_bchw.roll(1, -1)) + level.t / 1000


def noise(*seeds: int) -> list[Tensor]:
    return [torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds]


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_equals_the_scheduler_of_diffusers(schedule: Schedule, steps: int) -> None:
    scheduler = EulerAncestralDiscreteScheduler(**SCHEDULER)
    scheduler.set_timesteps(steps)
    levels = schedule.trailing(steps)
    assert [level.t for level in levels] == scheduler.timesteps.tolist()
    assert [level.sigma for level in levels] == pytest.approx(scheduler.sigmas[:-1].tolist(), rel=1e-6)
    first, *between = noise(*range(steps))
    theirs = first * scheduler.init_noise_sigma
    generator = torch.Generator().manual_seed(9)
    drawn = [torch.randn(2, 4, 8, 8, generator=generator) for _ in range(steps)]
    generator.manual_seed(9)
    for t, level in zip(scheduler.timesteps, levels, strict=True):
        seen = blurred(scheduler.scale_model_input(theirs, t), level)
        theirs = scheduler.step(seen, t, theirs, generator=generator).prev_sample
    ours = denoise(first * levels[0].sigma, levels, blurred, drawn[: len(between)])
    assert float((ours - theirs).abs().max()) < 1e-5


def test_one_step_from_the_end_of_the_schedule(schedule: Schedule) -> None:
    """z0 = x − σ·ε̂, of what the UNet sees in x over √(σ²+1)."""
    (level,) = schedule.trailing(1)
    assert (level.t, round(level.sigma, 4)) == (999, 14.6146)
    (x,) = noise(1)
    seen = blurred(x / (level.sigma**2 + 1) ** 0.5, level)
    assert torch.equal(denoise(x, [level], blurred), x - level.sigma * seen)


def test_the_noise_levels_of_both_readings(schedule: Schedule) -> None:
    workflow, literal = schedule.levels("workflow", 2), schedule.levels("literal", 1)
    for name, levels in (("workflow", workflow), ("literal", literal)):
        print(name, ", then ".join(f"t={level.t:g} sigma={level.sigma:.4g}" for level in levels))
    assert [(level.t, round(level.sigma, 3)) for level in workflow] == [(499.5, 1.616), (0, 0.029)]
    assert [(level.t, round(level.sigma, 3)) for level in literal] == [(659, 2.841)]
    assert [level.t for level in schedule.levels("literal", 2)] == [659, 329]


def test_levels_follow_the_configuration() -> None:
    linear = Schedule.from_config({"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}, "scheduler")
    scheduler = EulerAncestralDiscreteScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    assert linear.level(999).sigma == pytest.approx(float(scheduler.sigmas.max()), rel=1e-6)
    betas = [0.1, 0.2, 0.3]
    given = Schedule.from_config({"trained_betas": betas}, "scheduler")
    scheduler = EulerAncestralDiscreteScheduler(num_train_timesteps=3, trained_betas=betas)
    assert given.level(2).sigma == pytest.approx(float(scheduler.sigmas.max()), rel=1e-6)
    between = given.level(0.5).sigma
    assert between**2 == pytest.approx(given.level(0).sigma * given.level(1).sigma, rel=1e-6)


@pytest.mark.parametrize(
    "config", [{"prediction_type": "v_prediction"}, {"rescale_betas_zero_snr": True}, {"beta_schedule": "cosine"}]
)
def test_what_needs_another_process_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=r"turbo/scheduler: "):
        Schedule.from_config(config, "turbo/scheduler")


def test_gradients_come_through(schedule: Schedule) -> None:
    x, between = noise(1, 2)
    x.requires_grad_()
    levels = schedule.trailing(2)
    denoise(x * levels[0].sigma, levels, blurred, [between]).square().mean().backward()
    assert x.grad is not None and float(x.grad.abs().min()) > 0


def test_guidance_leads_away_from_the_negative_prompt() -> None:
    one, other = noise(1, 2)
    assert torch.allclose(guided(one, other, 1.0), one, atol=1e-6)
    assert torch.equal(guided(one, other, 0.0), other)
    assert torch.allclose(guided(one, other, 1.1), one + 0.1 * (one - other), atol=1e-6)


def test_as_many_noises_as_steps_between_levels(schedule: Schedule) -> None:
    with pytest.raises(ValueError, match="2 levels need 1 noises, not 0"):
        denoise(noise(1)[0], schedule.trailing(2), blurred)
