"""One run of steering with a stopwatch in it: from the noise to the decoded picture, part by part."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eval.reno import Judge, Recipe, optimise
from eval.rewards import Objective
from eval.steering.sampler import Sampler

FORWARD, BACKWARD = ("generator", "decode", "reward"), ("reward", "decode", "generator")
"""An iteration's parts in the order in which they come; what is left is the update."""
PICTURE = "picture"
"""The decoding of what was kept, once at the end."""


class Stopwatch:
    """The time between moments of a device's own work, each filed under what ended there."""

    def __init__(self, device: torch.device) -> None:
        self._is_gpu = device.type == "cuda"
        self._moments: list[tuple[str, Any]] = []
        self.ended("start")

    def ended(self, part: str) -> None:
        """A GPU is not waited for: it notes the moment when it comes to it."""
        moment: Any = time.perf_counter()
        if self._is_gpu:
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        self._moments.append((part, moment))

    def ends_with(self, tensor: Tensor, part: str) -> None:
        """Ends a part of the backward pass where it comes to the gradient of a tensor."""
        if tensor.requires_grad:
            tensor.register_hook(lambda gradient: self.ended(part))

    def seconds(self) -> dict[str, float]:
        """By part, over all of its times; together they are all the time from the first moment to the last."""
        if self._is_gpu:
            torch.cuda.synchronize()
        found: dict[str, float] = {}
        for (_, before), (part, after) in zip(self._moments, self._moments[1:], strict=False):
            span = before.elapsed_time(after) / 1000 if self._is_gpu else after - before
            found[part] = found.get(part, 0.0) + span
        return found


@dataclass(frozen=True)
class Bench:
    """What all ways to steer have in common, so that they can be compared."""

    sampler: Sampler
    prompts: list[str]
    noises: list[Tensor]
    """What pictures begin with, then what comes in between two steps."""

    def run(self, objective: Objective | None, iterations: int) -> dict[str, float]:
        """Seconds by part, from the noise to the decoded picture of what was kept."""
        generate = self.sampler.generate(self.prompts, self.noises[1:])
        if self._is_gpu:
            torch.cuda.synchronize()
        watch = Stopwatch(self.sampler.generator.device)

        def watched(noise_bchw: Tensor) -> Tensor:
            watch.ended("update")
            watch.ends_with(noise_bchw, "backward generator")
            latents = generate(noise_bchw)
            watch.ended("generator")
            return latents

        judge = self._judge(objective, watch)
        kept = optimise(self.noises[0], watched, judge, Recipe(iterations=iterations)).latents_bchw
        watch.ended("update")
        with torch.no_grad():
            self.sampler.decode(kept)
        watch.ended(PICTURE)
        return watch.seconds()

    def _judge(self, objective: Objective | None, watch: Stopwatch) -> Judge:
        def judge(latents_bchw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            if objective is None:
                return torch.zeros(len(latents_bchw), device=latents_bchw.device), {}
            pixels = None
            watch.ends_with(latents_bchw, "backward decode" if objective.needs_pixels else "backward reward")
            if objective.needs_pixels:
                pixels = self.sampler.decode(latents_bchw)
                watch.ends_with(pixels, "backward reward")
                watch.ended("decode")
            judged = objective(latents_bchw, pixels, self.prompts)
            watch.ended("reward")
            return judged

        return judge

    @property
    def _is_gpu(self) -> bool:
        return self.sampler.generator.device.type == "cuda"
