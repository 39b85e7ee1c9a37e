"""Some items, from noise to all that is kept of them: the work between two moments at which a run may be killed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from encode_pipeline.latents.command import RequestError
from encode_pipeline.preview.rgb import RgbMap
from encode_pipeline.randomness import posterior_noise, seed_of
from encode_pipeline.records import Pixels
from eval.reno import Recipe, optimise
from eval.rewards import Objective
from eval.steering.folder import Item, item_name
from eval.steering.previews import as_pictures
from eval.steering.prompt_sets import Prompt, PromptSet
from eval.steering.sampler import Sampler

Shape = tuple[int, int, int]
Seeds = Literal["own", "file"]


@dataclass(frozen=True)
class Job:
    """One picture to be made: a prompt, and the so-manieth of it."""

    prompt: Prompt
    sample: int

    @property
    def name(self) -> str:
        return item_name(self.prompt.number, self.sample)


@dataclass(frozen=True)
class Steering:
    """All that decides what comes of a prompt and its noise."""

    sampler: Sampler
    objective: Objective | None
    """None for pictures as the generator makes them."""
    recipe: Recipe
    shape: Shape
    """Of latents: channels, height, width."""
    seed: int
    seeds: Seeds
    colours: RgbMap | None
    """How latents are shown; None if they are not."""
    shown_at: Sequence[int]
    """At which iterations."""

    def items(self, jobs: Sequence[Job]) -> list[Item]:
        """What came of some jobs, optimised side by side."""
        texts = [job.prompt.text for job in jobs]
        # From noise of each job: first that of its latents, then what the process adds between two steps.
        levels = len(self.sampler.levels)
        drawn = (noises_of(job, levels, self.shape, self.seed, self.seeds) for job in jobs)
        noises = [_stacked(level) for level in zip(*drawn, strict=True)]
        shown: list[Pixels] = []

        def judge(latents_bchw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            if self.objective is None:
                return torch.zeros(len(latents_bchw), device=latents_bchw.device), {}
            pixels = self.sampler.decode(latents_bchw) if self.objective.needs_pixels else None
            return self.objective(latents_bchw, pixels, texts)

        def watch(iteration: int, latents_bchw: Tensor) -> None:
            if self.colours is not None and iteration in self.shown_at:
                shown.append(as_pictures(latents_bchw.cpu().numpy(), self.colours))

        noise = noises[0].to(self.sampler.generator.device)
        steered = optimise(noise, self.sampler.generate(texts, noises[1:]), judge, self.recipe, watch)
        previews = np.stack(shown, axis=1) if shown else np.zeros((len(jobs), 0, *self.shape[1:], 3), np.uint8)
        return [
            Item(
                about=item_facts(job, int(steered.kept_b[row]), self.seed, self.seeds),
                noise=_array(steered.noise_bchw[row]),
                latents=_array(steered.latents_bchw[row]),
                first=_array(steered.first_bchw[row]),
                loss=_array(steered.loss_ib[:, row]),
                norm=_array(steered.norm_ib[:, row]),
                scores={name: _array(score_ib[:, row]) for name, score_ib in steered.scores.items()},
                previews=previews[row],
                preview_at=np.array(self.shown_at if shown else [], np.int64),
            )
            for row, job in enumerate(jobs)
        ]


def item_facts(job: Job, kept: int, seed: int, seeds: Seeds) -> dict[str, Any]:
    """What an item says of itself; `kept` is the iterate."""
    return {
        "item": job.name,
        "number": job.prompt.number,
        "sample": job.sample,
        "prompt": job.prompt.text,
        "seed": seed if seeds == "own" else seed_in_file(job),
        "kept": kept,
        "about": dict(job.prompt.about),
    }


def noises_of(job: Job, count: int, shape: Shape, seed: int, seeds: Seeds) -> list[npt.NDArray[np.float32]]:
    """Standard normal, by seed, prompt number and sample alone; or as diffusers draws from the seed in the file."""
    if seeds == "own":
        key, sample = str(job.prompt.number), job.sample
        return [
            posterior_noise(seed_of(seed, "prompts", key, sample, f"noise {level}"), shape) for level in range(count)
        ]
    chance = torch.Generator().manual_seed(seed_in_file(job))
    return [torch.randn((1, *shape), generator=chance)[0].numpy() for _ in range(count)]


def check_seeds(seeds: Seeds, prompts: PromptSet) -> None:
    """Refuses to draw from seeds in a file where a prompt has none."""
    if seeds == "file" and (without := [prompt for prompt in prompts.prompts if prompt.seed is None]):
        raise RequestError(f"seeds=file: {prompts.address}: prompt {without[0].number} has no sd_seed")


def seed_in_file(job: Job) -> int:
    """The seed that the prompts' file has for a picture: counted on for those after the first of its prompt."""
    assert job.prompt.seed is not None
    return job.prompt.seed + job.sample


def _stacked(noises: Sequence[npt.NDArray[np.float32]]) -> Tensor:
    return torch.from_numpy(np.stack(noises))


def _array(tensor: Tensor) -> npt.NDArray[np.float32]:
    return np.array(tensor.detach().float().cpu().numpy(), order="C")
