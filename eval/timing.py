"""How long steering takes, part by part: rewards of latents against rewards of pixels, and plain generation.

All ways have the same prompts and the same noise, and take turns, so that a busy moment of the machine meets them all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from encode_pipeline.encoder import DTYPES
from encode_pipeline.latents.command import Settings, to_yaml
from encode_pipeline.latents.disk import replace
from encode_pipeline.randomness import posterior_noise, seed_of
from eval.evaluation import Address
from eval.generator import load_generator
from eval.parts import WorkFolder
from eval.reno import Judge, Recipe, optimise
from eval.result import surroundings
from eval.rewards import Objective, open_objective
from eval.steering.prompt_sets import open_prompts
from eval.steering.sampler import Sampler

TASK = "timing"
PLAIN = "generation alone"
PARTS = ("generator", "decode", "reward")


class TimingConfig(Settings):
    """A generator, and the rewards whose cost is wanted."""

    generator: Address = Field(description="hub id or directory of an SDXL-family diffusers pipeline")
    reward: list[str] = Field(description="KIND:ADDRESS in [], each timed by itself: of latents, of pixels, or both")
    prompts: Address = Field(description="as `reno` takes them; the first ones are used")
    out: Path = Field(description="folder for result.json")
    iterations: PositiveInt = Field(Recipe.iterations, description="of a run; the paper's are 50")
    warmup: PositiveInt = Field(3, description="iterations of each way before anything is measured")
    repeats: PositiveInt = Field(5, description="runs of each way, all ways taking turns")
    batch_size: PositiveInt = Field(1, description="pictures that are optimised side by side; the paper's is 1")
    steps: int = Field(1, ge=1, le=4, description="denoising steps of the generator")
    size: PositiveInt = Field(512, description="side of the pictures")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="what everything computes in; auto is bfloat16 on a GPU and float32 on a CPU"
    )
    checkpointing: bool = Field(False, description="less memory, more time: activations are made twice")
    compile: bool = Field(False, description="have torch compile the generator and the rewards")
    seed: int = Field(0, ge=0, description="of the noise")


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
class Way:
    """Pictures steered by one reward, or by none."""

    name: str
    objective: Objective | None
    runs: list[dict[str, float]] = field(default_factory=list)
    """Seconds by part, of every measured run."""

    @property
    def reads(self) -> str | None:
        return self.objective.rewards[0].reads if self.objective else None


@dataclass(frozen=True)
class Bench:
    """What all ways have in common."""

    sampler: Sampler
    prompts: list[str]
    noises: list[Tensor]
    """What pictures begin with, then what comes in between two steps."""

    def run(self, way: Way, iterations: int) -> dict[str, float]:
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

        recipe = Recipe(iterations=iterations if way.objective else 1)
        kept = optimise(self.noises[0], watched, self._judge(way.objective, watch), recipe).latents_bchw
        watch.ended("update")
        with torch.no_grad():
            self.sampler.decode(kept)
        watch.ended("picture")
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


def timing(config: TimingConfig) -> dict[str, Any]:
    """Times every way in turns."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = ("bfloat16" if device.type == "cuda" else "float32") if config.dtype == "auto" else config.dtype
    generator = load_generator(config.generator, device, DTYPES[dtype])
    sampler = Sampler(generator, config.steps, config.checkpointing, config.compile)
    ways = [Way(PLAIN, None)]
    for term in dict.fromkeys(config.reward):
        settings = {"checkpointing": config.checkpointing, "compiled": config.compile, "dtype": DTYPES[dtype]}
        objective = open_objective(term, sampler.vae, **settings)
        ways.append(Way(_name(term, objective, [way.name for way in ways]), objective))
    bench = Bench(sampler, *_start(config, sampler))
    folder = WorkFolder(config.out)
    folder.claim({"task": TASK, **config.model_dump(mode="json", exclude={"out"})})
    replace(config.out / "config.yaml", to_yaml(config).encode())
    for way in ways:
        bench.run(way, config.warmup)
    for number in range(config.repeats):
        for way in ways if number % 2 == 0 else reversed(ways):
            way.runs.append(bench.run(way, config.iterations))
    rows = [row(way, config.iterations if way.objective else 1, config.batch_size) for way in ways]
    result = {
        "task": TASK,
        "ok": True,
        "generator": generator.identity(),
        "rows": rows,
        "pairs": pairs(rows),
        **{key: getattr(config, key) for key in ("iterations", "repeats", "batch_size", "steps", "size")},
        "dtype": dtype,
        **surroundings(device),
        "not_comparable": _reasons(config, generator.not_comparable),
    }
    folder.finish(result)
    return {"out": str(config.out), **result}


def _start(config: TimingConfig, sampler: Sampler) -> tuple[list[str], list[Tensor]]:
    texts = [prompt.text for prompt in open_prompts(config.prompts).prompts]
    prompts = [texts[number % len(texts)] for number in range(config.batch_size)]
    shape, device = sampler.shape(config.size), sampler.generator.device

    def noise(level: int) -> Tensor:
        rows = [
            posterior_noise(seed_of(config.seed, "timing", str(number), level, "noise"), shape)
            for number in range(config.batch_size)
        ]
        return torch.stack([torch.from_numpy(row) for row in rows]).to(device)

    return prompts, [noise(level) for level in range(config.steps)]


def _name(term: str, objective: Objective, taken: Sequence[str]) -> str:
    """The model's own name, or the whole term where another way has it already."""
    kind = objective.rewards[0].name
    name = f"{kind} {objective.rewards[0].provenance.get('name', '')}".strip()
    return term if name in taken else name


def row(way: Way, iterations: int, batch_size: int) -> dict[str, Any]:
    """What a way takes: medians over its runs, parts per iteration."""
    totals = [sum(run.values()) for run in way.runs]
    loops = [total - run["picture"] for total, run in zip(totals, way.runs, strict=True)]

    def part(name: str) -> float:
        return statistics.median(run.get(name, 0.0) for run in way.runs) / iterations

    rewards = way.objective.rewards if way.objective else ()
    return {
        "name": way.name,
        "reads": way.reads,
        "rewards": [
            {
                "model": reward.provenance.get("name"),
                **reward.provenance,
                **{key: getattr(reward, key) for key in ("name", "reads", "weight")},
                "not_comparable": list(reward.not_comparable),
            }
            for reward in rewards
        ],
        "iterations": iterations,
        "batch_size": batch_size,
        "seconds_per_iter": statistics.median(loops) / iterations,
        "seconds_total": statistics.median(totals),
        "parts": {
            **{name: part(name) for name in PARTS},
            "backward": {name: part(f"backward {name}") for name in ("reward", "decode", "generator")},
            "update": part("update"),
        },
        "picture": statistics.median(run["picture"] for run in way.runs),
        "runs": [
            {"seconds_total": total, "seconds_per_iter": loop / iterations, "parts": run}
            for total, loop, run in zip(totals, loops, way.runs, strict=True)
        ],
    }


def pairs(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every reward of latents beside every one of pixels, run by run: how many times as long pixels take."""
    found = []
    for latent in (row for row in rows if row["reads"] == "latents"):
        for pixel in (row for row in rows if row["reads"] == "pixels"):
            both = zip(latent["runs"], pixel["runs"], strict=True)
            ratios = [theirs["seconds_total"] / ours["seconds_total"] for ours, theirs in both]
            decode = pixel["parts"]["decode"] + pixel["parts"]["backward"]["decode"]
            found.append(
                {
                    "latent": latent["name"],
                    "pixel": pixel["name"],
                    "ratio": statistics.median(ratios),
                    "low": min(ratios),
                    "high": max(ratios),
                    "saved": 1 - statistics.median(1 / ratio for ratio in ratios),
                    "decode_share": decode / pixel["seconds_per_iter"],
                }
            )
    return found


def _reasons(config: TimingConfig, of_generator: Sequence[str]) -> list[str]:
    """Why the times say nothing about the paper's; how long a model was trained does not matter to them."""
    reasons = [reason for reason in of_generator if "random" not in reason]
    for key, papers in (("iterations", 50), ("batch_size", 1), ("steps", 1), ("size", 512)):
        if (ours := getattr(config, key)) != papers:
            reasons.append(f"{key} is {ours}, the paper's {papers}")
    return reasons
