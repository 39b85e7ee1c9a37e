"""Noise optimised for many pictures at once, against one after the other as the published code does it."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from benchmarks.figures import Measured
from benchmarks.paired import paired
from benchmarks.settings import BenchmarkConfig
from demo.report_machine import ROOT
from encode_pipeline.config import PositiveInt
from encode_pipeline.encoder import DTYPES
from eval.generator import build_tiny_pipeline, load_generator
from eval.reno import Recipe, optimise
from eval.rewards import open_objective
from eval.steering.sampler import Sampler

WORDS = ("a red circle", "two blue squares", "a drawing of a green star", "a photo of three yellow rings")


class SteeringConfig(BenchmarkConfig):
    generator: str | None = Field(None, description="an SDXL pipeline; by default a tiny one with the demo's VAE")
    reward: str | None = Field(None, description="KIND:ADDRESS; by default the Latent-CLIP in demo/")
    pictures: PositiveInt = Field(8, description="pictures in a turn")
    batch_sizes: list[PositiveInt] = Field([4, 8], description="pictures that are optimised side by side")
    iterations: PositiveInt = Field(5, description="of each picture")
    size: PositiveInt = Field(512, description="side of the pictures")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


def measure(config: SteeringConfig) -> Measured:
    """Pictures times iterations a second: generate, judge, step."""
    device, dtype = torch.device("cuda" if torch.cuda.is_available() else "cpu"), DTYPES[config.dtype]
    with tempfile.TemporaryDirectory() as folder:
        if config.generator is None:
            build_tiny_pipeline(Path(folder) / "tiny", vae_folder=ROOT / "demo" / "vae")
        sampler = Sampler(load_generator(config.generator or str(Path(folder) / "tiny"), device, dtype))
        objective = open_objective(config.reward or f"clip:{ROOT / 'demo' / 'latent-clip'}", sampler.vae, dtype=dtype)
    prompts = [WORDS[number % len(WORDS)] for number in range(config.pictures)]
    chance = torch.Generator().manual_seed(0)
    noise = torch.randn(config.pictures, *sampler.shape(config.size), generator=chance).to(device)

    def steer(batch_size: int) -> int:
        for start in range(0, config.pictures, batch_size):
            some = prompts[start : start + batch_size]

            def judge(latents: torch.Tensor, some: list[str] = some) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
                return objective(latents, sampler.decode(latents) if objective.needs_pixels else None, some)

            begin = noise[start : start + batch_size]
            # What was kept comes back to the CPU, so that the GPU is through with its work.
            optimise(begin, sampler.generate(some), judge, Recipe(iterations=config.iterations)).noise_bchw.cpu()
        return config.pictures * config.iterations

    ways = {"one at a time": partial(steer, 1)}
    ways |= {f"{size} at a time": partial(steer, size) for size in config.batch_sizes}
    details = {"weights": "tiny and random" if config.generator is None else config.generator, "device": device.type}
    return Measured(tuple(paired(ways, config.rounds, unit="iterations of a picture")), details)
