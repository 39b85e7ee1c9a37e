"""A tiny SDXL pipeline that has learned to draw the demo's world, as `make table1-demo` needs one.

It has the parts of SDXL-Turbo in small — UNet, two text encoders, their tokenizers, a scheduler, the store's VAE — so
that whatever takes an SDXL pipeline takes this one. It learns to tell the noise in latents under their captions: at all
levels, or at the last alone, so that one step draws a picture (`one_step`). For that, each latent needs a noise of its
own: standard normal, but for the means of its 8x8 blocks, which are the latent's own, whitened over all latents.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from encode_pipeline.latents.cache import ShardCache
from encode_pipeline.latents.command import Settings
from encode_pipeline.latents.spec import convert_scale
from encode_pipeline.latents.store import Store, Version
from eval.denoise import denoise
from eval.generator import RANDOM, Generator, Prompts, build_tiny_pipeline, load_generator
from train.checkpoint import write_checkpoint
from train.export import folder_made_whole

WARMUP = 50
BLOCK = 8
"""Cells along the side of a block."""
UNPROMPTED = 0.1
"""Share of the batches without a prompt, so that guidance has something to lead away from."""
SAVE_EVERY = 250


class GeneratorConfig(Settings):
    """How a generator of the demo's world is trained."""

    data: str = Field(description="a sealed latent store of the world; view 0 is learned")
    out: Path = Field(description="folder of the pipeline; what a broken run goes on from lies beside it")
    steps: int = Field(gt=0)
    one_step: bool = Field(False, description="learn to draw in one step from pure noise, as SDXL-Turbo does")
    batch_size: int = Field(8, gt=0)
    lr: float = Field(2e-3, gt=0)
    seed: int = Field(0, ge=0)


def train_generator(config: GeneratorConfig) -> dict[str, Any]:
    """Trains what has not been trained yet, and leaves the pipeline in `out`."""
    version = Store(config.data).version()
    vae = Path(version.spec.vae.name)
    latents, captions = _samples(version, config.out)
    loss_of = partial(_one_step_loss, codes=_codes(latents)) if config.one_step else _loss
    resume = config.out.with_name(f"{config.out.name}.unfinished.pt")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        start = Path(scratch) / "tiny"
        build_tiny_pipeline(start, config.seed, vae)
        generator = load_generator(str(start))
        models = [generator.unet, *generator.text_encoders]
        for model in models:
            model.requires_grad_(True).train()
        generator.unet.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(chain(*(model.parameters() for model in models)), betas=(0.9, 0.99))
        first, loss = _load(resume, models, optimizer)
        for step in range(first, config.steps):
            for group in optimizer.param_groups:
                group["lr"] = (
                    config.lr * min(1, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / config.steps)) / 2
                )
            batch = loss_of(generator, latents, captions, config, step)
            batch.backward()
            torch.nn.utils.clip_grad_norm_(chain(*(model.parameters() for model in models)), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss = batch.item() if loss is None else 0.98 * loss + 0.02 * batch.item()
            if (step + 1) % 50 == 0:
                left = (time.monotonic() - began) / (step + 1 - first) * (config.steps - step - 1) / 60
                print(
                    f"step {step + 1}/{config.steps}  loss {loss:.4f}  {left:.0f} min left", file=sys.stderr, flush=True
                )
            if (step + 1) % SAVE_EVERY == 0:
                _save(resume, models, optimizer, step + 1, loss)
        _write(config.out, start, generator)
    resume.unlink(missing_ok=True)
    return {"out": str(config.out), "steps": config.steps, "loss": loss, "seconds": round(time.monotonic() - began, 1)}


def _samples(version: Version, out: Path) -> tuple[Tensor, list[str]]:
    """View 0 of all samples, in the diffusion model's scale, and their captions."""
    cache = ShardCache(version, out.parent / "cache")
    latents, captions = [], []
    for row in version.manifest().to_pylist():
        if row["view"] == 0:
            with cache.open(row) as shard:
                latents += [shard.latent(index).copy() for index in range(len(shard))]
                captions += [shard.caption(index) for index in range(len(shard))]
    values = torch.from_numpy(np.stack(latents)).float()
    return convert_scale(values, version.spec.vae, version.spec.scale, "model"), captions


def _loss(generator: Generator, latents: Tensor, captions: list[str], config: GeneratorConfig, step: int) -> Tensor:
    """The squared error of the noise that is told, at times and on samples that the step's number decides."""
    rng = np.random.default_rng([config.seed, step])
    chosen = rng.integers(len(latents), size=config.batch_size)
    clean = latents[torch.from_numpy(chosen)]
    noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
    times = rng.integers(len(generator.schedule.log_sigmas), size=config.batch_size)
    sigmas = torch.from_numpy(np.exp(generator.schedule.log_sigmas[times])).float()[:, None, None, None]
    said = [""] * config.batch_size if rng.random() < UNPROMPTED else [captions[number] for number in chosen]
    prompts: Prompts = generator.embed_prompts(said)
    seen = (clean + sigmas * noise) / (sigmas**2 + 1).sqrt()
    told = generator.eps(seen.contiguous(memory_format=torch.channels_last), torch.from_numpy(times), prompts)
    return (told - noise).square().mean()


def _codes(latents_bchw: Tensor) -> Tensor:
    """What of each latent its noise tells: the means of its blocks, whitened: over all latents they are noise."""
    blocks = torch.nn.functional.avg_pool2d(latents_bchw, BLOCK).flatten(1)
    centred = blocks - blocks.mean(dim=0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    whitened = centred @ (vectors / (values + values.mean() / 1000).sqrt()) @ vectors.T  # each block stays where it was
    side = latents_bchw.shape[-1] // BLOCK
    codes: Tensor = whitened.unflatten(1, (-1, side, side))
    return codes


def _one_step_loss(
    generator: Generator, latents: Tensor, captions: list[str], config: GeneratorConfig, step: int, *, codes: Tensor
) -> Tensor:
    """The squared error of the latents that one step makes of their noises."""
    rng = np.random.default_rng([config.seed, step])
    chosen = rng.integers(len(latents), size=config.batch_size)
    clean = latents[torch.from_numpy(chosen)]
    noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
    # The mean of a block of noise has a deviation of one over its side.
    means = codes[torch.from_numpy(chosen)] / BLOCK - torch.nn.functional.avg_pool2d(noise, BLOCK)
    noise = noise + means.repeat_interleave(BLOCK, dim=2).repeat_interleave(BLOCK, dim=3)
    (level,) = generator.schedule.trailing(1)
    prompts = generator.embed_prompts([captions[number] for number in chosen])
    return (
        (denoise(noise * level.sigma, [level], lambda x, at: generator.eps(x, at.t, prompts)) - clean).square().mean()
    )


def _write(out: Path, start: Path, generator: Generator) -> None:
    """The folder of the pipeline it began as, with what has been learned, in half precision."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(start)
    pipeline.unet.load_state_dict(generator.unet.state_dict())
    pipeline.text_encoder.load_state_dict(generator.text_encoders[0].state_dict())
    pipeline.text_encoder_2.load_state_dict(generator.text_encoders[1].state_dict())
    with folder_made_whole(out) as folder:
        for part in (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2):
            part.half()
        pipeline.save_pretrained(folder)
        index = folder / "model_index.json"
        said = {key: value for key, value in json.loads(index.read_text()).items() if key != RANDOM}
        index.write_text(json.dumps(said, indent=2) + "\n")


def _save(path: Path, models: list[Any], optimizer: torch.optim.Optimizer, step: int, loss: float) -> None:
    content = {"models": [model.state_dict() for model in models], "optimizer": optimizer.state_dict()}
    write_checkpoint(path, {**content, "step": step, "loss": loss})


def _load(path: Path, models: list[Any], optimizer: torch.optim.Optimizer) -> tuple[int, float | None]:
    if not path.exists():
        return 0, None
    content = torch.load(path, weights_only=True)
    for model, state in zip(models, content["models"], strict=True):
        model.load_state_dict(state)
    optimizer.load_state_dict(content["optimizer"])
    return int(content["step"]), float(content["loss"])
