"""The published algorithm, restated with torch's own parts as its authors wrote it; and a batch as many single runs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eval.generator import load_generator
from eval.reno import Recipe, Steered, optimise, regulariser
from eval.rewards import Objective, open_objective
from eval.steering.sampler import Sampler
from tests.steering import PROMPTS, latent_checkpoint, normal


@pytest.fixture(scope="module")
def sampler(tiny_pipeline: Path) -> Sampler:
    return Sampler(load_generator(str(tiny_pipeline)), steps=2)


@pytest.fixture(scope="module", params=[0.01, 0.5], ids=["gradients as they are", "gradients shortened"])
def objective(
    request: pytest.FixtureRequest, sampler: Sampler, small_vae: Path, tmp_path_factory: pytest.TempPathFactory
) -> Objective:
    checkpoint = latent_checkpoint(tmp_path_factory.mktemp("clip") / "latent.pt", small_vae)
    return open_objective({f"clip:{checkpoint}": request.param}, sampler.vae)


def steer(sampler: Sampler, objective: Objective, which: slice, recipe: Recipe) -> tuple[Steered, list[Tensor]]:
    """Some of the prompts with their noises, and the noise of every iterate."""
    prompts, seen = PROMPTS[which], []
    generate = sampler.generate(prompts, [normal(4, seed=1)[which]])

    def watched(noise_bchw: Tensor) -> Tensor:
        seen.append(noise_bchw.detach().clone())
        return generate(noise_bchw)

    return optimise(normal(4)[which], watched, lambda z: objective(z, None, prompts), recipe), seen


def published(sampler: Sampler, objective: Objective, number: int, iterations: int) -> tuple[list[Tensor], int, Tensor]:
    """One picture as the authors' trainer has it, line by line: every noise, which is kept, and its latents."""
    (reward,) = objective.rewards
    lengths: list[Tensor] = []
    generate = sampler.generate([PROMPTS[number]], [normal(4, seed=1)[number : number + 1]])
    noise = torch.nn.Parameter(normal(4)[number : number + 1])
    optimizer = torch.optim.SGD([noise], lr=5.0, nesterov=True, momentum=0.9)
    best_loss, best_image, kept, seen = math.inf, torch.empty(0), -1, []
    for iteration in range(iterations):
        optimizer.zero_grad()
        seen.append(noise.detach().clone())
        image = generate(noise)
        total_loss = reward.loss(reward.score(image, [PROMPTS[number]])).mean() * reward.weight
        total_reward_loss = total_loss.item()
        norm = torch.linalg.vector_norm(noise).to(torch.float32)
        total_loss = total_loss + 0.01 * (0.5 * norm**2 - (math.prod(noise.shape[1:]) - 1) * torch.log(norm))
        if total_reward_loss < best_loss:
            best_loss, best_image, kept = total_reward_loss, image.detach(), iteration
        if iteration != iterations - 1:
            total_loss.backward()
            lengths.append(torch.nn.utils.clip_grad_norm_(noise, 0.1))
            optimizer.step()
    assert (max(lengths) > 0.1) == (reward.weight > 0.1)  # some are shortened in one of the two cases
    return seen, kept, best_image


def test_steps_are_the_published_ones(sampler: Sampler, objective: Objective) -> None:
    ours, seen = steer(sampler, objective, slice(0, 1), Recipe())
    theirs, kept, image = published(sampler, objective, 0, 50)
    assert len(seen) == len(theirs) == 50
    for updates in (1, 5, 49):
        assert float((seen[updates] - theirs[updates]).abs().max()) < 1e-5
        assert float((seen[updates] - seen[0]).abs().max()) > 1e-3  # it moved
    assert int(ours.kept_b[0]) == kept == int(ours.loss_ib.argmin())
    assert torch.equal(ours.noise_bchw, seen[kept])
    assert float((ours.latents_bchw - image).abs().max()) < 1e-4
    assert float(ours.loss_ib[kept, 0]) < float(ours.loss_ib[0, 0])


def test_a_batch_is_many_single_runs(sampler: Sampler, objective: Objective) -> None:
    recipe = Recipe(iterations=20)
    together, seen = steer(sampler, objective, slice(0, 4), recipe)
    for number in range(4):
        alone, alone_seen = steer(sampler, objective, slice(number, number + 1), recipe)
        assert float((seen[-1][number] - alone_seen[-1][0]).abs().max()) < 1e-4
        assert float((together.noise_bchw[number] - alone.noise_bchw[0]).abs().max()) < 1e-4
        assert float((together.latents_bchw[number] - alone.latents_bchw[0]).abs().max()) < 1e-4
        assert torch.allclose(together.loss_ib[:, number], alone.loss_ib[:, 0], atol=1e-4)
        assert int(together.kept_b[number]) == int(alone.kept_b[0])


def told(losses: list[list[float]]) -> Steered:
    """A run whose losses are as told, picture by picture; its latents are the number of the iterate."""
    iterate = iter(range(len(losses[0])))

    def generate(noise_bchw: Tensor) -> Tensor:
        return noise_bchw * 0 + next(iterate)

    def judge(latents_bchw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        now = int(latents_bchw.detach().nan_to_num()[0, 0, 0, 0])
        found_b = torch.tensor([each[now] for each in losses])
        return found_b + 0 * latents_bchw.sum(dim=(1, 2, 3)), {"told": 1 - found_b}

    return optimise(normal(len(losses)), generate, judge, Recipe(iterations=len(losses[0])))


def test_the_lowest_loss_is_kept_and_of_equals_the_first() -> None:
    nan, inf = math.nan, math.inf
    found = told([[0.1, 0.5, 0.4], [0.3, 0.2, 0.2], [nan, 0.9, 0.8], [inf, 0.7, nan], [nan, nan, nan]])
    assert found.kept_b.tolist() == [0, 1, 2, 1, -1]
    assert [int(latents[0, 0, 0]) for latents in found.latents_bchw] == [0, 1, 2, 1, 0]
    assert torch.equal(found.noise_bchw[0], normal(5)[0]) and torch.equal(found.noise_bchw[4], normal(5)[4])
    assert int(found.first_bchw.sum()) == 0
    assert found.scores["told"][2].tolist()[:3] == pytest.approx([0.6, 0.8, 0.2])


def test_a_picture_that_breaks_spoils_no_other(sampler: Sampler, objective: Objective) -> None:
    """Its neighbour's noise and latents are what they are without it."""
    prompts, recipe = PROMPTS[:2], Recipe(iterations=5)
    between = [normal(4, seed=1)[:2]]

    def run(noise_bchw: Tensor) -> Steered:
        generate = sampler.generate(prompts, between)
        return optimise(noise_bchw, generate, lambda z: objective(z, None, prompts), recipe)

    noise = normal(2)
    well = run(noise)
    broken = noise.clone()
    broken[0, 0, 0, 0] = math.nan
    ill = run(broken)
    assert ill.kept_b.tolist() == [-1, int(well.kept_b[1])]
    assert ill.loss_ib[:, 0].isnan().all() and ill.loss_ib[:, 1].isfinite().all()
    assert float((ill.noise_bchw[1] - well.noise_bchw[1]).abs().max()) < 1e-5
    assert float((ill.latents_bchw[1] - well.latents_bchw[1]).abs().max()) < 1e-4


def test_one_iteration_is_plain_generation(sampler: Sampler, objective: Objective) -> None:
    found, seen = steer(sampler, objective, slice(0, 2), Recipe(iterations=1))
    with torch.no_grad():
        plain = sampler.generate(PROMPTS[:2], [normal(4, seed=1)[:2]])(normal(2))
    assert len(seen) == 1 and torch.equal(found.latents_bchw, plain) and torch.equal(found.first_bchw, plain)
    assert torch.equal(found.noise_bchw, normal(2)) and found.kept_b.tolist() == [0, 0]


def test_the_regulariser_is_least_at_the_root_of_the_numbers() -> None:
    """By the published formula at √(D−1), which is √D to within 1/√D."""
    numbers = 4 * 8 * 8
    norms = torch.linspace(10, 22, 120_001, dtype=torch.float64)
    least = float(norms[regulariser(norms, numbers).argmin()])
    assert least == pytest.approx(math.sqrt(numbers - 1), abs=2e-4)
    assert abs(least - math.sqrt(numbers)) < 1 / math.sqrt(numbers)


@pytest.mark.parametrize("length", [0.8, 1.3])
def test_noise_without_a_reward_becomes_as_long_as_noise_is(length: float) -> None:
    found: list[Tensor] = []

    def generate(noise_bchw: Tensor) -> Tensor:
        found.append(noise_bchw.detach().flatten(1).norm(dim=1))
        return noise_bchw

    def judge(latents_bchw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return 0 * latents_bchw.sum(dim=(1, 2, 3)), {}

    optimise(normal(2) * length, generate, judge, Recipe(iterations=300))
    assert found[-1].tolist() == pytest.approx([math.sqrt(4 * 8 * 8 - 1)] * 2, abs=1e-3)
