"""Going on from a run's latest checkpoint, if it is the same run."""

from __future__ import annotations

from typing import Any

import open_clip
import torch

from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.spec import LatentSpec
from train.checkpoint import checkpoints, load_checkpoint
from train.config import Architecture, TrainConfig
from train.data import LatentData
from train.distributed import Ranks

FREE = {
    *("data", "out", "version", "accum", "grad_checkpointing", "compile", "workers", "cache", "cache_gb"),
    *("log_every", "checkpoint_every", "keep_checkpoints", "zero_shot", "classes", "zero_shot_every"),
    *("tensorboard", "wandb", "peak_tflops", "damaged"),
}
"""Settings that may change between two starts of a run: where things are and how fast they go, not what is learnt;
and what to do about a damaged shard, which may be known only then."""


def resume(
    config: TrainConfig,
    data: LatentData,
    architecture: Architecture,
    model: open_clip.CLIP,
    optimizer: torch.optim.Optimizer,
    ranks: Ranks,
) -> int:
    """Loads the run's latest checkpoint, if it has one, and says after which step it was made."""
    step = 0
    if checkpoints(config.out / "checkpoints"):
        content = load_checkpoint(config.out)
        _check_same_run(content, config, data, architecture)
        model.load_state_dict(content["state_dict"])
        optimizer.load_state_dict(content["optimizer"])
        step = int(content["step"])
        data.skipped = content["skipped"] if ranks.is_first else 0  # of all ranks, which add up their own
    steps = ranks.collect(step)
    if len(set(steps)) > 1:
        raise RequestError(f"{config.out}: the machines find different checkpoints there; out= must be one for all")
    return step


def content_of(
    config: TrainConfig,
    data: LatentData,
    architecture: Architecture,
    model: open_clip.CLIP,
    optimizer: torch.optim.Optimizer,
    step: int,
    skipped: int,
) -> dict[str, Any]:
    """What a checkpoint holds, in OpenCLIP's shape and with what it takes to go on."""
    return {
        "epoch": step * config.batch_size // data.samples,
        "name": config.model,
        "step": step,
        "skipped": skipped,
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "spec": data.spec.to_dict(),
        "data": data.identity,
        "architecture": architecture.model_dump(mode="json"),
        "settings": config.model_dump(mode="json"),
        "open_clip": open_clip.__version__,
    }


def _check_same_run(content: dict[str, Any], config: TrainConfig, data: LatentData, architecture: Architecture) -> None:
    where = config.out
    if not {"optimizer", "settings", "data", "skipped"} <= set(content):
        raise RequestError(f"{where}: its checkpoint holds a model only, nothing to go on from; use another out=")
    before = LatentSpec.from_dict(content["spec"], f"{where}: checkpoint")
    if before.fingerprint != data.spec.fingerprint:
        raise RequestError(
            f"{where}: was trained on other latents ({before.difference(data.spec)} in data=); use another out=, or "
            f"version={before.fingerprint}"
        )
    now = config.model_dump(mode="json")
    for key, value in content["settings"].items():
        if key not in FREE and key in now and now[key] != value:
            raise RequestError(f"{where}: was begun with {key}={value}, not {now[key]}; use another out=")
    if content["architecture"] != architecture.model_dump(mode="json"):
        raise RequestError(f"{where}: {config.model} has another architecture than when it was begun; use another out=")
    if content["data"] != data.identity:
        raise RequestError(f"{where}: was begun on other samples than data= holds now; use another out=")
