"""How long steering takes, part by part: rewards of latents against rewards of pixels, and plain generation.

All ways have the same prompts and the same noise, and take turns, so that a busy moment of the machine meets them all.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from encode_pipeline.encoder import DTYPES
from encode_pipeline.latents.command import Settings, to_yaml
from encode_pipeline.latents.disk import replace
from encode_pipeline.latents.spec import digest
from encode_pipeline.randomness import posterior_noise, seed_of
from eval.evaluation import Address
from eval.generator import load_generator
from eval.parts import WorkFolder
from eval.reno import Recipe
from eval.report.published import published
from eval.result import surroundings
from eval.rewards import Objective, open_objective
from eval.steering.folder import CONFIG
from eval.steering.prompt_sets import open_prompts
from eval.steering.sampler import Sampler
from eval.steering.timed import BACKWARD, FORWARD, PICTURE, Bench

TASK = "timing"
PLAIN = "generation alone"
PAPER_ROWS = ("Base (SDXL-Turbo)", "CLIPScore: Latent-ViT-B/8", "CLIPScore: CLIP-ViT-B/32 L2B")
"""The paper's own comparison: 21 % less time."""


class TimingConfig(Settings):
    """A generator, and the rewards whose cost is wanted."""

    generator: Address = Field(description="hub id or directory of an SDXL-family diffusers pipeline")
    reward: str | list[str] = Field(
        description="KIND:ADDRESS, several in []: of latents or of pixels, each timed alone"
    )
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


@dataclass(frozen=True)
class Way:
    """Pictures steered by one reward, or by none."""

    name: str
    objective: Objective | None
    iterations: int
    runs: list[dict[str, float]] = field(default_factory=list)
    """Seconds by part, of every measured run."""


def timing(config: TimingConfig) -> dict[str, Any]:
    """Times every way in turns."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = ("bfloat16" if device.type == "cuda" else "float32") if config.dtype == "auto" else config.dtype
    generator = load_generator(config.generator, device, DTYPES[dtype])
    sampler = Sampler(generator, config.steps, config.checkpointing, config.compile)
    ways = [Way(PLAIN, None, 1)]
    for term in dict.fromkeys([config.reward] if isinstance(config.reward, str) else config.reward):
        objective = open_objective(
            term, sampler.vae, checkpointing=config.checkpointing, compiled=config.compile, dtype=DTYPES[dtype]
        )
        ways.append(Way(_name(term, objective, [way.name for way in ways]), objective, config.iterations))
    bench = Bench(sampler, *_start(config, sampler))
    folder = WorkFolder(config.out)
    facts = [reward.facts() for way in ways if way.objective for reward in way.objective.rewards]
    asked = config.model_dump(mode="json", exclude={"out"})
    folder.claim({"task": TASK, **asked, "models": digest([generator.identity(), facts])})  # other weights, other times
    if (found := folder.result()) is not None:
        return {"out": str(config.out), **found}
    replace(config.out / CONFIG, to_yaml(config).encode())
    for way in ways:
        bench.run(way.objective, min(config.warmup, way.iterations))
    for number in range(config.repeats):
        for way in ways if number % 2 == 0 else reversed(ways):
            way.runs.append(bench.run(way.objective, way.iterations))
    rows = [row(way, config.batch_size) for way in ways]
    of_rewards = [reason for way in ways if way.objective for reason in way.objective.not_comparable]
    result = {
        "task": TASK,
        "ok": True,
        "generator": generator.identity(),
        "rows": rows,
        "pairs": pairs(rows),
        **{key: getattr(config, key) for key in ("iterations", "repeats", "batch_size", "steps", "size")},
        "dtype": dtype,
        **surroundings(device),
        "not_comparable": _reasons(config, [*generator.not_comparable, *of_rewards]),
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


def row(way: Way, batch_size: int) -> dict[str, Any]:
    """What a way takes, as its run of median length has it: parts are seconds of an iteration."""
    runs = [_told(run, way) for run in way.runs]
    rewards = way.objective.rewards if way.objective else ()
    return {
        "name": way.name,
        "reads": rewards[0].reads if rewards else None,
        "rewards": [reward.facts() for reward in rewards],
        "iterations": way.iterations,
        "batch_size": batch_size,
        **sorted(runs, key=lambda run: run["seconds_total"])[len(runs) // 2],
        "runs": runs,
    }


def _told(run: Mapping[str, float], way: Way) -> dict[str, Any]:
    """The seconds of a run. A picture that is not steered is one iteration with its decoding, as the paper counts."""
    seconds = dict(run) if way.objective else {**run, "decode": run[PICTURE], PICTURE: 0.0}
    total = sum(seconds.values())
    return {
        "seconds_total": total,
        "seconds_per_iter": (total - seconds[PICTURE]) / way.iterations,
        "picture": seconds[PICTURE],
        "parts": {
            **{part: seconds.get(part, 0.0) / way.iterations for part in FORWARD},
            "backward": {part: seconds.get(f"backward {part}", 0.0) / way.iterations for part in BACKWARD},
            "update": seconds["update"] / way.iterations,
        },
    }


def pairs(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every reward of latents beside every one of pixels, run by run: how many times as long pixels take."""
    found = []
    for latent in (row for row in rows if row["reads"] == "latents"):
        for pixel in (row for row in rows if row["reads"] == "pixels"):
            both = list(zip(latent["runs"], pixel["runs"], strict=True))
            ratios = [theirs["seconds_total"] / ours["seconds_total"] for ours, theirs in both]
            shares = [ours["seconds_per_iter"] / theirs["seconds_per_iter"] for ours, theirs in both]
            decode = pixel["parts"]["decode"] + pixel["parts"]["backward"]["decode"]
            found.append(
                {
                    "latent": latent["name"],
                    "pixel": pixel["name"],
                    "ratio": statistics.median(ratios),
                    "low": min(ratios),
                    "high": max(ratios),
                    "saved": 1 - 1 / statistics.median(ratios),
                    "saved_per_iter": 1 - statistics.median(shares),
                    "decode_share": decode / pixel["seconds_per_iter"],
                }
            )
    return found


def _reasons(config: TimingConfig, reasons: Sequence[str]) -> list[str]:
    """Why the times say nothing about the paper's: what was timed is smaller, or another number of something."""
    found = [reason for reason in reasons if "small" in reason]
    for key, papers in (("iterations", 50), ("batch_size", 1), ("steps", 1), ("size", 512)):
        if (ours := getattr(config, key)) != papers:
            found.append(f"{key} is {ours}, the paper's {papers}")
    found += ["compiled, which the paper does not say"] * config.compile
    return list(dict.fromkeys(found))


def show(result: Mapping[str, Any]) -> str:
    """The times as a table, the paper's below."""
    titles = ("an iteration", "in all", *FORWARD, *(f"<- {part}" for part in BACKWARD), "update")
    width = max(len(name) for name in [*(row["name"] for row in result["rows"]), *PAPER_ROWS])
    lines = [f"{'seconds':<{width}}" + "".join(f"{title:>13}" for title in titles)]
    for row in result["rows"]:
        parts = [row["parts"][part] for part in FORWARD] + [row["parts"]["backward"][part] for part in BACKWARD]
        numbers = [row["seconds_per_iter"], row["seconds_total"], *parts, row["parts"]["update"]]
        lines.append(f"{row['name']:<{width}}" + "".join(f"{number:>13.4f}" for number in numbers))
    for pair in result["pairs"]:
        lines.append(
            f"{pair['latent']} instead of {pair['pixel']}: {pair['saved']:.1%} less time in all (pixels take "
            f"{pair['ratio']:.2f} times as long, {pair['low']:.2f} to {pair['high']:.2f} in {result['repeats']} runs); "
            f"an iteration {pair['saved_per_iter']:.1%} less, of which decoding is {pair['decode_share']:.1%}"
        )
    paper = published("table2")
    lines.append(f"{paper.source}, on {paper.data['hardware']}:")
    for row in paper.rows:
        if row.name in PAPER_ROWS:
            times = (row.values[key] for key in ("seconds_per_iter", "seconds_total"))
            lines.append(f"{row.name:<{width}}" + "".join(f"{seconds:>13.2f}" for seconds in times))
    return "\n".join([*lines, *(f"not comparable: {reason}" for reason in result["not_comparable"])])
