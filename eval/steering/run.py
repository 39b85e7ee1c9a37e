"""Pictures of prompts, steered by rewards or as the generator makes them: the verb `reno`.

prompts × samples ─▶ noise ─▶ latents ─▶ rewards ─▶ noise …   batch by batch, each item's file once its batch is done
                                  └─▶ decoded only once, of what is kept, if at all
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, FiniteFloat, PositiveInt

from encode_pipeline.encoder import DTYPES
from encode_pipeline.latents.command import RequestError, Settings, to_yaml
from encode_pipeline.latents.disk import names_in, replace
from encode_pipeline.latents.failpoints import failpoint
from encode_pipeline.latents.spec import convert_scale
from encode_pipeline.vae import LoadedVae, decode_latents
from eval.evaluation import Address, as_lines
from eval.generator import load_generator
from eval.parts import WorkFolder
from eval.reno import Recipe
from eval.result import surroundings
from eval.rewards import open_objective
from eval.steering.batches import Job, Seeds, Steering, check_seeds
from eval.steering.folder import CONFIG, IMAGES, ITEMS, LINES, TASK, Item, SteeredRun, write_image
from eval.steering.paper import SIZE, STEPS, concepts_of, other_than_paper
from eval.steering.previews import colours_of, shown_at
from eval.steering.prompt_sets import PromptSet, first_of, open_prompts, other_than_whole
from eval.steering.sampler import Sampler
from eval.steering.summary import broken, line_of, metrics
from train.distributed import Ranks, ranks_of_torchrun


class SteerConfig(Settings):
    """Prompts, a generator, and rewards to steer it by."""

    prompts: Address = Field(
        description="GenEval's evaluation_metadata.jsonl, T2I-CompBench's CATEGORY_val.txt or the folder of its six, "
        "I2P's CSV, a text file with a prompt a line, or `cultural` for the paper's three"
    )
    generator: Address = Field(description="hub id or directory of an SDXL-family diffusers pipeline")
    out: Path = Field(description="folder for all that is kept; the same command goes on")
    reward: str | list[str] | dict[str, FiniteFloat] | None = Field(
        None,
        description="KIND:ADDRESS, several in [], or {KIND:ADDRESS: weight}; kinds are clip, pick, hps, avoid, "
        "aesthetic; without one, pictures as the generator makes them",
    )
    concepts: str | None = Field(
        None, description="what avoid: turns from: i2p, cultural or a text of several words; by default as in the paper"
    )
    samples: PositiveInt | None = Field(None, description="pictures of each prompt; by default as the benchmark wants")
    limit: PositiveInt | None = Field(None, description="only the first so many prompts")
    steps: int = Field(STEPS, ge=1, le=4, description="denoising steps of the generator")
    iterations: PositiveInt | None = Field(None, description="by default 50, which are 49 updates; without rewards 1")
    size: PositiveInt = Field(SIZE, description="side of the pictures")
    batch_size: PositiveInt = Field(4, description="pictures that are optimised side by side")
    seed: int = Field(0, ge=0, description="of the noise, with a prompt's number and a sample's; and of the intervals")
    seeds: Seeds = Field(
        "own", description="`file` takes the noise from the seeds in I2P's table, as diffusers draws it"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="what all models compute in; auto is bfloat16 on a GPU and float32 on a CPU"
    )
    checkpointing: bool = Field(False, description="less memory, more time: activations are made twice")
    compile: bool = Field(False, description="have torch compile the generator and the rewards")
    previews: int = Field(6, ge=0, description="iterations whose latents are kept as small pictures")
    decode: bool = Field(True, description="decode what is kept; may be said later, with all else the same")


def steer(config: SteerConfig) -> dict[str, Any]:
    """Makes what is still missing, and says what it all comes to. Running it again goes on where it stopped."""
    with ranks_of_torchrun() as ranks:
        run = _prepared(config, ranks)
        folder = WorkFolder(config.out)
        folder.claim(run.request)
        if ranks.is_first:
            replace(config.out / CONFIG, to_yaml(config).encode())
        jobs = [Job(prompt, sample) for prompt in run.prompts.prompts for sample in range(run.samples)]
        result = folder.result()
        if result is None:
            batches = [jobs[start : start + config.batch_size] for start in range(0, len(jobs), config.batch_size)]
            names = [f"{batch[0].name}..{batch[-1].name}" for batch in batches]
            files = folder.do_parts(names, ranks, lambda number: _do(run.steering, batches[number], config))
        if config.decode:
            _decode_missing(config.out, run.vae, jobs, ranks)
        if result is None and ranks.is_first:
            done = [json.loads(file.read_bytes()) for file in files]
            lines = [line for part in done for line in part["lines"]]
            replace(config.out / LINES, as_lines(lines))
            folder.finish(_result(config, run, lines, sum(part["seconds"] for part in done)))
        ranks.wait()
        return {"out": str(config.out), **SteeredRun.open(config.out).result}


@dataclass(frozen=True)
class Prepared:
    """All that was asked for, opened."""

    prompts: PromptSet
    samples: int
    steering: Steering
    vae: LoadedVae
    """In float32, to decode and to show with."""
    request: dict[str, Any]
    facts: dict[str, Any]
    """Of the result: all that is known before anything is made."""


def _prepared(config: SteerConfig, ranks: Ranks) -> Prepared:
    if config.reward is None and (config.iterations or 1) > 1:
        raise RequestError(f"iterations={config.iterations}: there is nothing to steer by; give reward=")
    whole = open_prompts(config.prompts)
    prompts = first_of(whole, config.limit)
    concepts = concepts_of(config.concepts, config.reward, prompts.kind)
    check_seeds(config.seeds, prompts)
    auto = "bfloat16" if ranks.device.type == "cuda" else "float32"
    dtype = auto if config.dtype == "auto" else config.dtype
    generator = load_generator(config.generator, ranks.device, DTYPES[dtype])
    vae = generator.load_vae()
    shape = vae.latent_shape(config.size)
    vae.model.to(ranks.device)
    objective = None
    if config.reward is not None:
        objective = open_objective(
            config.reward,
            vae.model,
            concepts,
            checkpointing=config.checkpointing,
            compiled=config.compile,
            dtype=DTYPES[dtype],  # of all models alike, as published
        )
        for reward in objective.rewards:
            if reward.reads == "latents":  # of another size, they are refused before the folder is claimed
                reward.score(torch.randn(1, *shape, device=ranks.device), [""])
    samples = config.samples or prompts.samples
    recipe = Recipe(iterations=config.iterations or (1 if objective is None else Recipe.iterations))
    steering = Steering(
        sampler=Sampler(generator, config.steps, config.checkpointing, config.compile),
        objective=objective,
        recipe=recipe,
        shape=shape,
        seed=config.seed,
        seeds=config.seeds,
        colours=colours_of(vae) if config.previews else None,
        shown_at=shown_at(recipe.iterations, config.previews),
    )
    rewards = [reward.facts() for reward in (objective.rewards if objective else ())]
    about = {"kind": prompts.kind, "sha256": prompts.sha256, "count": len(prompts.prompts), "samples": samples}
    facts: dict[str, Any] = {
        "generator": {**generator.identity(), "vae_sha256": vae.identity.weights_sha256},
        "rewards": rewards,
        "recipe": asdict(recipe),
        "steps": config.steps,
        "size": config.size,
        "dtype": dtype,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "seeds": config.seeds,
    }
    # By content: the same weights may lie in another place by the time that a run goes on.
    request = {
        "task": TASK,
        "prompts": about,
        **facts,
        "generator": {key: value for key, value in facts["generator"].items() if key != "generator"},
        "rewards": [{**reward, "provenance": _without_address(reward["provenance"])} for reward in rewards],
        "compile": config.compile,
        "previews": config.previews,
    }
    reasons = [*generator.not_comparable, *(objective.not_comparable if objective else [])]
    reasons += other_than_whole(prompts.kind, prompts.prompts, samples)
    reasons += other_than_paper(prompts.kind, config.size, config.steps, recipe, objective)
    facts = {"prompts": {**about, "address": config.prompts}, **facts, "not_comparable": list(dict.fromkeys(reasons))}
    return Prepared(prompts, samples, steering, vae, request, facts)


def _without_address(provenance: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in provenance.items() if key != "address"}


def _do(steering: Steering, jobs: Sequence[Job], config: SteerConfig) -> bytes:
    """Makes a batch of items and writes their files; returns their lines."""
    began = time.monotonic()
    try:
        # Whole float32 on GPUs too, and of cuDNN the same bits every time; those of attention may differ.
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            items = steering.items(jobs)
    except torch.OutOfMemoryError:
        raise RequestError(
            f"batch_size={config.batch_size}: not enough memory; a smaller one in another out=, or checkpointing=true"
        ) from None
    for job, item in zip(jobs, items, strict=True):
        replace(config.out / ITEMS / f"{job.name}.npz", item.to_bytes())
        failpoint("mid-shard", job.name)
    lines, seconds = [line_of(item) for item in items], time.monotonic() - began
    print(f"{jobs[0].name} to {jobs[-1].name}: {len(items)} pictures in {seconds:.1f} s", file=sys.stderr, flush=True)
    return json.dumps({"lines": lines, "seconds": seconds}).encode()


def _decode_missing(out: Path, vae: LoadedVae, jobs: Sequence[Job], ranks: Ranks) -> None:
    """Decodes what was kept of each item that has no picture yet."""
    there = set(names_in(out / IMAGES))
    missing = ranks.collect([job.name for job in jobs if f"{job.name}.png" not in there])[0]
    for name in missing[ranks.rank :: ranks.world]:
        item = Item.from_file(out / ITEMS / f"{name}.npz")
        if broken(item):
            continue  # listed in the result
        raw = convert_scale(item.latents[None], vae.identity, "model", "raw")
        write_image(out, name, decode_latents(vae, raw)[0])
        failpoint("after-payload", name)
    ranks.wait()


def _result(config: SteerConfig, run: Prepared, lines: Sequence[Mapping[str, Any]], seconds: float) -> dict[str, Any]:
    failures = [{"item": line["item"], "reason": line["broken"]} for line in lines if "broken" in line]
    software = {name: version(name) for name in ("diffusers", "transformers")}
    around = surroundings(run.steering.sampler.generator.device)
    return {
        "task": TASK,
        "ok": not failures,
        **run.facts,
        "metrics": metrics([dict(line) for line in lines], run.samples, config.seed),
        "n": len(lines),
        "failures": failures,
        "seconds": round(seconds, 1),
        "versions": {**around["versions"], **software},
        "hardware": around["hardware"],
    }
