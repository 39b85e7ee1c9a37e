"""What the paper steered and how, and in what other pictures differ from that."""

from __future__ import annotations

from typing import Any

from encode_pipeline.latents.command import RequestError, nearest
from eval.reno import Recipe
from eval.rewards import CONCEPTS, Objective
from eval.steering.prompt_sets import Kind

SIZE, STEPS = 512, 1
"""Of its pictures."""


def concepts_of(told: str | None, reward: Any, kind: Kind) -> str:
    """What is to be turned from, by name or as a text; the paper's own if nothing was told."""
    if told is None:
        return _papers(kind)
    if "avoid:" not in str(reward):
        raise RequestError(f"concepts={told}: no reward turns from it; that would be one of avoid:ADDRESS")
    if told not in CONCEPTS and len(told.split()) < 2:  # rather a name misspelt
        raise RequestError(f"concepts={told}: neither a name nor a text of several words{nearest(told, CONCEPTS)}")
    return told


def other_than_paper(kind: Kind, size: int, steps: int, recipe: Recipe, objective: Objective | None) -> list[str]:
    """What was done another way than in the paper."""
    reasons = []
    rewards = () if objective is None else objective.rewards
    if {reward.provenance.get("concept") for reward in rewards} - {None, CONCEPTS[_papers(kind)]}:
        reasons.append("another concept turned from than the paper's")
    if rewards and recipe.iterations != Recipe.iterations:
        reasons.append(f"{recipe.iterations} iterations instead of {Recipe.iterations}")
    if steps != STEPS:
        reasons.append(f"{steps} denoising steps instead of {STEPS}")
    return reasons + [f"pictures of {size} pixels instead of {SIZE}"] * (size != SIZE)


def _papers(kind: Kind) -> str:
    return "cultural" if kind == "cultural" else "i2p"
