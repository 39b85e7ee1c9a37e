"""Reward-based noise optimisation as published (ReNO, Eyring et al. 2024), for a whole batch of pictures at once.

Each picture has its own noise, gradient norm, momentum and kept iterate: a batch is many single runs side by side.
Here nothing is known of diffusion models or files; `generate` and `judge` bring them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TINY = 1e-6
"""What torch adds to a norm before it divides by it."""

Generate = Callable[[Tensor], Tensor]
"""From noise to latents, gradients let through."""
Judge = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]
"""From latents to the loss of each picture, and its scores by their names."""


@dataclass(frozen=True)
class Recipe:
    """How noise is optimised; the defaults are the published ones."""

    iterations: int = 50
    """Pictures that are looked at; one update fewer. One alone is plain generation."""
    lr: float = 5.0
    momentum: float = 0.9
    nesterov: bool = True
    clip: float = 0.1
    """The longest gradient of a picture's noise that is not shortened."""
    regularise: float = 0.01
    """Weight of the term that keeps noise as long as normal noise is."""


@dataclass(frozen=True)
class Steered:
    """What came of a batch: of each picture the iterate with the lowest loss, and how it went."""

    noise_bchw: Tensor
    latents_bchw: Tensor
    first_bchw: Tensor
    """Latents of iterate 0: the picture without any steering."""
    kept_b: Tensor
    """Which iterate was kept; -1 where no loss was finite, and iterate 0 stands in."""
    loss_ib: Tensor
    """Of the rewards, without the regulariser: iterations by pictures. A loss that is not finite is never kept."""
    norm_ib: Tensor
    """Of the noise."""
    scores: dict[str, Tensor]
    """By reward, iterations by pictures."""


def optimise(
    noise_bchw: Tensor,
    generate: Generate,
    judge: Judge,
    recipe: Recipe,
    watch: Callable[[int, Tensor], None] | None = None,
) -> Steered:
    """Steers noise towards a lower loss; `watch` is shown the latents of every iterate."""
    noise = noise_bchw.detach().float().clone()
    velocity: Tensor | None = None
    lowest_b = torch.full((len(noise),), math.inf, device=noise.device)
    kept_b = torch.full((len(noise),), -1, device=noise.device)
    best_noise = noise.clone()
    losses, norms, scores = [], [], []
    first = best_latents = torch.empty(0)
    for iteration in range(recipe.iterations):
        is_last = iteration == recipe.iterations - 1
        with torch.set_grad_enabled(not is_last):
            noise.requires_grad_(not is_last)
            latents = generate(noise)
            loss_b, scores_b = judge(latents)
            norm_b = torch.linalg.vector_norm(noise.flatten(1), dim=1)
            # The published code steps on after the last picture has been judged; that step is never looked at.
            gradient = None if is_last else _gradient(loss_b, norm_b, noise, recipe)
        noise, latents, found_b = noise.detach(), latents.detach(), loss_b.detach().float()
        if watch is not None:
            watch(iteration, latents)
        if iteration == 0:
            first, best_latents = latents, latents.clone()
        better_b = found_b < lowest_b  # never of what is not a number; of equals the first
        lowest_b = torch.where(better_b, found_b, lowest_b)
        kept_b = torch.where(better_b, iteration, kept_b)
        best_noise = torch.where(_wide(better_b), noise, best_noise)
        best_latents = torch.where(_wide(better_b), latents, best_latents)
        losses.append(found_b)
        norms.append(norm_b.detach())
        scores.append({name: score_b.detach().float() for name, score_b in scores_b.items()})
        if gradient is not None:
            noise, velocity = step(noise, gradient, velocity, recipe)
    return Steered(
        noise_bchw=best_noise,
        latents_bchw=best_latents,
        first_bchw=first,
        kept_b=kept_b.cpu(),
        loss_ib=torch.stack(losses).cpu(),
        norm_ib=torch.stack(norms).cpu(),
        scores={name: torch.stack([found[name] for found in scores]).cpu() for name in scores[0]},
    )


def regulariser(norm_b: Tensor, numbers: int) -> Tensor:
    """What is least where noise of so many numbers is as long as its likeliest length, the root of one fewer."""
    return 0.5 * norm_b**2 - (numbers - 1) * norm_b.log()


def step(noise: Tensor, gradient: Tensor, velocity: Tensor | None, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Noise and velocity after one update by torch's SGD; a picture whose gradient is not finite stays as it is."""
    norm_b = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    sound = _wide(norm_b.isfinite())
    shortened = torch.where(sound, gradient * _wide((recipe.clip / (norm_b + TINY)).clamp(max=1.0)), 0.0)
    before = torch.zeros_like(noise) if velocity is None else velocity
    after = recipe.momentum * before + shortened
    change = shortened + recipe.momentum * after if recipe.nesterov else after
    return torch.where(sound, noise - recipe.lr * change, noise), torch.where(sound, after, before)


def _gradient(loss_b: Tensor, norm_b: Tensor, noise: Tensor, recipe: Recipe) -> Tensor:
    """Of each picture's own loss: pictures of a batch know nothing of each other, so the sum's is theirs."""
    total_b = loss_b.float() + recipe.regularise * regulariser(norm_b, noise[0].numel())
    (gradient,) = torch.autograd.grad(total_b.sum(), noise)
    return gradient


def _wide(values_b: Tensor) -> Tensor:
    return values_b[:, None, None, None]
