"""Pictures of prompts by safe latent diffusion, in a folder as steered ones are: the verb `sld`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt

from encode_pipeline.encoder import DTYPES
from encode_pipeline.latents.command import Settings, to_yaml
from encode_pipeline.latents.disk import replace
from encode_pipeline.randomness import seed_of
from eval.evaluation import Address, as_lines
from eval.parts import WorkFolder
from eval.reno import Recipe
from eval.result import surroundings
from eval.safe_diffusion import HYPER_STRONG, SafeDiffusion, load_safe_diffusion
from eval.steering.batches import Job, Seeds, check_seeds, item_facts, noises_of
from eval.steering.folder import CONFIG, ITEMS, LINES, TASK, Item, SteeredRun, write_image
from eval.steering.prompt_sets import first_of, open_prompts, other_than_whole
from eval.steering.summary import line_of
from train.distributed import ranks_of_torchrun

STEPS, GUIDANCE, SIZE = 50, 7.5, 512
"""Of the official evaluation."""


class SldConfig(Settings):
    """Prompts, and a Stable Diffusion 1 to make safe pictures of them."""

    prompts: Address = Field(description="I2P's CSV, `cultural` for the paper's three, or any other that reno takes")
    generator: Address = Field(description="hub id or directory of a Stable Diffusion 1 pipeline of diffusers")
    out: Path = Field(description="folder for all that is kept; the same command goes on")
    samples: PositiveInt | None = Field(None, description="pictures of each prompt; by default as the benchmark wants")
    limit: PositiveInt | None = Field(None, description="only the first so many prompts")
    steps: PositiveInt = Field(STEPS, description="denoising steps")
    guidance: float = Field(GUIDANCE, gt=1, description="towards the prompt; the guidance to safety builds on it")
    size: PositiveInt = Field(SIZE, description="side of the pictures")
    batch_size: PositiveInt = Field(4, description="pictures that are made side by side")
    seed: int = Field(0, ge=0, description="of the noise, with a prompt's number and a sample's")
    seeds: Seeds = Field("own", description="`file` takes the noise from the seeds in I2P's table")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="what the generator computes in; auto is float16 on a GPU and float32 on a CPU"
    )


def sld(config: SldConfig) -> dict[str, Any]:
    """Makes what is still missing, and says what it all comes to. Running it again goes on where it stopped."""
    with ranks_of_torchrun() as ranks:
        prompts = first_of(open_prompts(config.prompts), config.limit)
        check_seeds(config.seeds, prompts)
        auto = "float16" if ranks.device.type == "cuda" else "float32"
        dtype = auto if config.dtype == "auto" else config.dtype
        generator = load_safe_diffusion(config.generator, ranks.device, DTYPES[dtype])
        generator.vae.latent_shape(config.size)  # refuses sizes that are none
        samples = config.samples or prompts.samples
        about = {"kind": prompts.kind, "sha256": prompts.sha256, "count": len(prompts.prompts), "samples": samples}
        facts = {
            "generator": generator.identity,
            "rewards": [],
            "recipe": asdict(Recipe(iterations=1)),
            "method": "sld",
            "safety": {"strength": "hyper-strong", "guidance": config.guidance, **HYPER_STRONG},
            "steps": config.steps,
            "size": config.size,
            "dtype": dtype,
            "batch_size": config.batch_size,
            "seed": config.seed,
            "seeds": config.seeds,
        }
        folder = WorkFolder(config.out)
        folder.claim({"task": TASK, "prompts": about, **facts})
        jobs = [Job(prompt, sample) for prompt in prompts.prompts for sample in range(samples)]
        if folder.result() is None:
            batches = [jobs[start : start + config.batch_size] for start in range(0, len(jobs), config.batch_size)]
            names = [batch[0].name for batch in batches]
            files = folder.do_parts(names, ranks, lambda number: _make(generator, batches[number], config))
            if ranks.is_first:
                replace(config.out / CONFIG, to_yaml(config).encode())
                done = [json.loads(file.read_bytes()) for file in files]
                lines = [line for part in done for line in part["lines"]]
                failures = [{"item": line["item"], "reason": line["broken"]} for line in lines if "broken" in line]
                around = surroundings(ranks.device)
                reasons = generator.not_comparable + other_than_whole(prompts.kind, prompts.prompts, samples)
                replace(config.out / LINES, as_lines(lines))
                folder.finish(
                    {
                        "task": TASK,
                        "ok": not failures,
                        "prompts": {**about, "address": config.prompts},
                        **facts,
                        "metrics": {},
                        "n": len(lines),
                        "failures": failures,
                        "not_comparable": reasons + _other_than_official(config),
                        "seconds": round(sum(part["seconds"] for part in done), 1),
                        "versions": {**around["versions"], "diffusers": version("diffusers")},
                        "hardware": around["hardware"],
                    }
                )
            ranks.wait()
        return {"out": str(config.out), **SteeredRun.open(config.out).result}


def _make(generator: SafeDiffusion, jobs: Sequence[Job], config: SldConfig) -> bytes:
    """Makes a batch of items and writes their files and pictures; returns their lines."""
    began = time.monotonic()
    shape = generator.vae.latent_shape(config.size)
    noise = np.stack([noises_of(job, 1, shape, config.seed, config.seeds)[0] for job in jobs])
    later = [seed_of(config.seed, "prompts", str(job.prompt.number), job.sample, "steps") % 2**63 for job in jobs]
    texts = [job.prompt.text for job in jobs]
    # Whole float32 on GPUs too, and the same bits every time.
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        latents, pictures = generator.make(texts, torch.from_numpy(noise), later, config.steps, config.guidance)
    lines = []
    for row, job in enumerate(jobs):
        kept = latents[row].cpu().numpy()
        item = Item(
            about=item_facts(job, 0, config.seed, config.seeds),
            noise=noise[row],
            latents=kept,
            first=kept,
            loss=np.zeros(1, np.float32),
            norm=np.linalg.norm(noise[row].reshape(1, -1), axis=1),
        )
        replace(config.out / ITEMS / f"{job.name}.npz", item.to_bytes())
        if np.isfinite(kept).all():
            write_image(config.out, job.name, pictures[row])
        lines.append(line_of(item))
    seconds = time.monotonic() - began
    print(f"{jobs[0].name} to {jobs[-1].name}: {len(jobs)} pictures in {seconds:.1f} s", file=sys.stderr, flush=True)
    return json.dumps({"lines": lines, "seconds": seconds}).encode()


def _other_than_official(config: SldConfig) -> list[str]:
    official = {"steps": STEPS, "guidance": GUIDANCE, "size": SIZE}
    return [
        f"{key}={value:g}, officially {official[key]:g}"
        for key, value in config.model_dump(include=set(official)).items()
        if value != official[key]
    ]
