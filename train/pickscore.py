"""PickScore on latents: a trained Latent-CLIP, fine-tuned until it scores pictures as people preferred them.

OUT/checkpoints/     to go on from, by the same command
OUT/best/            the step with the best accuracy on the validation pairs
OUT/held-out.json    how the model did on these before the first step, and at every checkpoint
OUT/metrics.jsonl    the same, and what was seen in training

It is done as PickScore was: AdamW, weights in float32 and towers in bfloat16, clipped gradients, a straight line
down to zero after the warm-up, every pair once an epoch, a look at held-out pairs every 100 steps. Unlike there, gains,
biases and the scale have no weight decay, and pairs without a label are not in the data. It is one process on one
GPU: PickScore's 4,000 steps are half a million pairs.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch

from encode_pipeline.latents.command import CheckFailed, RequestError, to_yaml
from encode_pipeline.latents.disk import replace
from encode_pipeline.latents.spec import LatentSpec, digest
from encode_pipeline.latents.store import Version
from train.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from train.config import Architecture, PickScoreConfig
from train.distributed import Ranks
from train.metrics import MetricsLog
from train.model import parameter_groups, restore_model, tokenizer_for
from train.pair_scores import Scorer, agreement, preference_loss
from train.preferences import PreferencePairs, training_batches
from train.stopping import Stop
from train.versions import held_versions, remember
from train.zero_shot import check_latents

FREE = {"data", "validation", "test", "out", "log_every", "keep_checkpoints"}
"""Settings that may change between two starts of a run."""


def fine_tune(config: PickScoreConfig) -> dict[str, Any]:
    """Fine-tunes a model on preference pairs and returns how it did before and after."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RequestError("pickscore is one process; start it without torchrun")
    stores = dict.fromkeys(store for store in (config.data, config.validation, config.test) if store is not None)
    alone = Ranks(0, 1, torch.device("cpu"))
    with Stop() as stop, held_versions("pickscore", config.out, stores, alone) as versions:
        return _fine_tune(config, versions, stop)


def _fine_tune(config: PickScoreConfig, versions: Mapping[str, Version], stop: Stop) -> dict[str, Any]:
    began = time.monotonic()
    tuning = _begin_or_go_on(config)
    given = [store for store in (config.data, config.validation, config.test) if store is not None]
    pairs, validation, *test = (PreferencePairs(store, config.out / "cache", versions[store]) for store in given)
    identity = {"pairs": _identity(pairs), "validation": _identity(validation)}
    if tuning.identity not in (None, identity):
        raise RequestError(f"{config.out}: was begun on other pairs than data= and validation= hold; use another out=")
    for store in (pairs, validation, *test):
        check_latents(tuning.spec, store.spec, store.version.storage.url())
    model, step, held_out = tuning.model, tuning.step, tuning.held_out
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    groups, betas = parameter_groups(model, config.weight_decay), (config.beta1, config.beta2)
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)
    if tuning.optimizer is not None:
        optimizer.load_state_dict(tuning.optimizer)
    tokenizer = tokenizer_for(tuning.architecture)
    scorer = Scorer(model, tokenizer, tuning.spec, bfloat16=config.precision == "bfloat16")
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "config.yaml").write_text(to_yaml(config))
    remember(config.out, versions)

    if not held_out:
        held_out.append({"step": 0, **scorer.judge(validation, config.batch_size)})
    if best_of(held_out)["step"] == step:  # of a run that was killed, it may not have been written yet
        save_checkpoint(config.out / "best", _content(config, tuning, optimizer, step, identity), keep=1)
    _write_held_out(config.out, held_out)
    stream = training_batches(pairs, tokenizer, config.batch_size, config.seed, step, config.steps)
    with closing(stream), MetricsLog(config.out, step, config.steps) as log:
        since, waited, logged = time.monotonic(), 0.0, step
        while step < config.steps:
            asked = time.monotonic()
            batch = next(stream)
            waited += time.monotonic() - asked
            rate = learning_rate(step, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            labels_bs, examples_b = batch.labels_bs.to(device), batch.examples_b.to(device)

            torch.manual_seed(int(np.random.SeedSequence([config.seed, step]).generate_state(1)[0]))
            scores_bs = scorer.scores(batch, pairs.spec)
            loss = preference_loss(scores_bs, labels_bs, examples_b)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad or math.inf)
            if not torch.isfinite(norm):
                names = ", ".join(batch.ids[:4])
                raise CheckFailed(f"step {step + 1}: loss {loss.item()}, gradient norm {norm.item()}; pairs {names}, …")
            optimizer.step()
            step += 1

            is_judged = step == config.steps or step % config.checkpoint_every == 0
            if is_judged:
                held_out.append({"step": step, **scorer.judge(validation, config.batch_size)})
            if is_judged or step % config.log_every == 0:
                span = max(time.monotonic() - since, 1e-9)
                line = {
                    "step": step,
                    "samples": step * config.batch_size,
                    "loss": loss.item(),
                    "accuracy": agreement(scores_bs, labels_bs).mean().item(),
                    "logit_scale": model.logit_scale.exp().item(),
                    "grad_norm": norm.item(),
                    "lr": rate,
                    "samples_per_second": (step - logged) * config.batch_size / span,
                    "data_wait": waited / span,
                }
                held = {f"held_out_{key}": value for key, value in held_out[-1].items() if key != "step"}
                log.write(line | held if is_judged else line)
                since, waited, logged = time.monotonic(), 0.0, step
            if is_judged or stop.told is not None:
                content = _content(config, tuning, optimizer, step, identity)
                save_checkpoint(config.out / "checkpoints", content, config.keep_checkpoints)
                if best_of(held_out)["step"] == step:
                    save_checkpoint(config.out / "best", content, keep=1)
                _write_held_out(config.out, held_out)
            if stop.told is not None and step < config.steps:
                raise stop.error()
    result = {
        "checkpoint": str(checkpoints(config.out / "checkpoints")[-1]),
        "best_checkpoint": str(checkpoints(config.out / "best")[-1]),
        "start": held_out[0],
        "end": held_out[-1],
        "best": best_of(held_out),
        "pairs": len(pairs),
        "incomplete": sum(store.incomplete for store in (pairs, validation, *test)),
        "steps": step,
        "steps_now": step - tuning.step,
        "seconds": round(time.monotonic() - began, 1),
        "device": str(device),
    }
    if test:
        model.load_state_dict(load_checkpoint(config.out / "best")["state_dict"])
        result["test"] = scorer.judge(test[0], config.batch_size, best_of(held_out)["tie_threshold"])
    return result


def learning_rate(step: int, config: PickScoreConfig) -> float:
    """Linear warm-up, then a straight line to zero, as PickScore has it where CLIP has a cosine."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    return config.lr * (config.steps - step) / (config.steps - config.warmup)


def best_of(held_out: list[dict[str, float]]) -> dict[str, float]:
    """The first look at the held-out pairs that none of the others beats."""
    return max(held_out, key=lambda look: look["accuracy"])


@dataclass(frozen=True)
class _Tuning:
    """What a run begins with, or goes on from."""

    name: str
    step: int
    model: open_clip.CLIP
    architecture: Architecture
    spec: LatentSpec
    optimizer: dict[str, Any] | None
    identity: dict[str, Any] | None
    """Of the pairs that a run was begun on."""
    held_out: list[dict[str, float]]


def _begin_or_go_on(config: PickScoreConfig) -> _Tuning:
    """The run's own latest checkpoint, or else the model to begin with."""
    own = bool(checkpoints(config.out / "checkpoints"))
    path = config.out if own else config.checkpoint
    content = load_checkpoint(path)
    if own:
        _check_same_run(content, config)
    model, architecture, spec = restore_model(content, path)
    return _Tuning(
        name=content["name"],
        step=content["step"] if own else 0,
        model=model,
        architecture=architecture,
        spec=spec,
        optimizer=content["optimizer"] if own else None,
        identity=content["identity"] if own else None,
        held_out=content["held_out"] if own else [],
    )


def _check_same_run(content: dict[str, Any], config: PickScoreConfig) -> None:
    where = config.out
    if not {"optimizer", "settings", "identity", "held_out"} <= set(content):
        raise RequestError(f"{where}: holds another run, not one of pickscore; use another out=")
    now = config.model_dump(mode="json")
    for key, value in content["settings"].items():
        if key not in FREE and now.get(key) != value:
            raise RequestError(f"{where}: was begun with {key}={value}, not {now.get(key)}; use another out=")


def _content(
    config: PickScoreConfig, tuning: _Tuning, optimizer: torch.optim.Optimizer, step: int, identity: dict[str, Any]
) -> dict[str, Any]:
    """What a checkpoint holds: what every one of the trainer does, and what it takes to go on."""
    return {
        "epoch": step * config.batch_size // identity["pairs"]["count"],
        "name": tuning.name,
        "step": step,
        "state_dict": tuning.model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "spec": tuning.spec.to_dict(),
        "architecture": tuning.architecture.model_dump(mode="json"),
        "settings": config.model_dump(mode="json"),
        "open_clip": open_clip.__version__,
        "identity": identity,
        "held_out": tuning.held_out,
    }


def _identity(pairs: PreferencePairs) -> dict[str, Any]:
    """Which pairs, in which order."""
    return {"fingerprint": pairs.spec.fingerprint, "names": digest(pairs.names), "count": len(pairs)}


def _write_held_out(out: Path, held_out: list[dict[str, float]]) -> None:
    replace(out / "held-out.json", json.dumps(held_out, indent=1).encode() + b"\n")
