"""The training loop, from the stores to the last checkpoint. Running it again goes on from the latest one."""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any

import open_clip
import torch
from torch.distributed import DistError
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from encode_pipeline.latents.command import CheckFailed, RequestError, to_yaml
from encode_pipeline.latents.disk import replace
from encode_pipeline.latents.store import Version
from train.checkpoint import checkpoints, save_checkpoint
from train.config import TrainConfig, architecture_of
from train.curves import write_curves
from train.data import LatentData, open_data
from train.distributed import Ranks, ranks_of_torchrun
from train.flops import training_flops
from train.guard import Guard
from train.loss import ContrastiveLoss
from train.meter import Meter
from train.metrics import FILE as METRICS
from train.metrics import MetricsLog, read_metrics
from train.model import build_model, parameter_groups, tokenizer_for
from train.resume import content_of, resume
from train.schedule import learning_rate
from train.step import Towers, backward, in_pieces
from train.stopping import Stop
from train.stores import addresses_of
from train.text_tower import load_text_tower
from train.versions import held_versions, remember
from train.zero_shot import ZeroShotSet

SECONDS_BETWEEN_CURVES = 60


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains a model on sealed latent stores and returns where it stands at the end."""
    with ranks_of_torchrun() as ranks, Stop() as stop:
        try:
            stores: dict[str, str | None] = dict.fromkeys(addresses_of(config), config.version)
            if config.zero_shot is not None:
                stores.setdefault(config.zero_shot, None)
            with held_versions("train", config.out, stores, ranks) as versions:
                return _train(config, versions, ranks, stop)
        except RequestError:
            if ranks.local == 0:
                raise
            raise SystemExit(2) from None  # all of a machine find the same fault, and one says it
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise CheckFailed(f"{error.filename or config.out}: {error.strerror}; the same command goes on") from None
        except RuntimeError as error:
            if ranks.world == 1 or not (isinstance(error, DistError) or "gloo" in str(error)):
                raise
            raise CheckFailed(f"process {ranks.rank} of {ranks.world}: ends because another one has") from None


def _train(config: TrainConfig, versions: Mapping[str, Version], ranks: Ranks, stop: Stop) -> dict[str, Any]:
    began = drawn = time.monotonic()
    pieces, total = config.pieces(ranks.world), config.total_steps
    config.out.mkdir(parents=True, exist_ok=True)
    architecture = architecture_of(config.model)
    tokenizer = tokenizer_for(architecture)
    data = open_data(config, tokenizer, versions)
    labelled = _labelled(config, versions, data)

    torch.manual_seed(config.seed)
    model = build_model(architecture, data.spec.shape[0], data.spec.shape[1], config.loss)
    if pieces > 1 and any(isinstance(part, _BatchNorm) for part in model.modules()):
        raise RequestError(f"model={config.model}: normalises over the batch, so it takes whole ones: say accum=1")
    if config.text_tower and not checkpoints(config.out / "checkpoints"):
        load_text_tower(model, config.text_tower)
    model.set_grad_checkpointing(config.grad_checkpointing)
    model.to(ranks.device).train()
    groups, betas = parameter_groups(model, config.weight_decay), (config.beta1, config.beta2)
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)
    first = step = resume(config, data, architecture, model, optimizer, ranks)
    if ranks.is_first:
        remember(config.out, versions)
    if config.compile:
        model.compile()
    parallel = DistributedDataParallel(model) if ranks.world > 1 else model
    towers = Towers(parallel, bfloat16=config.precision == "bfloat16")
    loss_of = ContrastiveLoss(ranks, config.loss, soft=config.repeated_captions == "soft")

    rows = ranks.rows(config.batch_size)
    guard = Guard(config.out, data, ranks)
    flops = training_flops(architecture, data.spec.shape[0], data.spec.shape[1])
    meter = Meter(config.batch_size, flops, config.peak_tflops, ranks)
    with closing(data.batches(step, total, rows)) as batches, _log(config, ranks, step) as log:
        while step < total:
            batch = meter.next(batches)
            rate = learning_rate(step, total, config.warmup, config.lr)
            for group in optimizer.param_groups:
                group["lr"] = rate
            latents_bchw = batch.latents_bchw.to(ranks.device, non_blocking=True)
            tokens_bl = batch.tokens_bl.to(ranks.device, non_blocking=True)
            position = step * config.batch_size + rows.start

            optimizer.zero_grad(set_to_none=True)
            contrast = backward(towers, in_pieces(latents_bchw, tokens_bl, pieces, config.seed, position), loss_of)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad or math.inf)
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            step += 1
            guard.note(step, batch, contrast.loss, norm)

            is_last = step == total
            is_ending = ranks.any(stop.told is not None) or is_last
            is_tested = labelled is not None and (is_last or step % config.zero_shot_every == 0)
            if is_last or is_tested or step % config.log_every == 0:
                guard.check()
                loss, right, lost = ranks.sums(contrast.loss.item(), contrast.right.item(), data.skipped)
                line = {
                    "step": step,
                    "samples": step * config.batch_size,
                    "loss": loss / ranks.world,
                    "accuracy": right / config.batch_size,
                    "logit_scale": model.logit_scale.exp().item(),
                    "grad_norm": norm.item(),
                    "lr": rate,
                    "skipped": int(lost),
                    **meter.read(),
                }
                if model.logit_bias is not None:
                    line["logit_bias"] = model.logit_bias.item()
                if labelled is not None and is_tested:
                    line |= _accuracy(labelled, model, tokenizer, ranks, towers.bfloat16)
                if log is not None:
                    log.write(line)
            if is_ending or step % config.checkpoint_every == 0:
                guard.check()
                (lost,) = ranks.sums(data.skipped)
                if ranks.is_first:
                    content = content_of(config, data, architecture, model, optimizer, step, int(lost))
                    save_checkpoint(config.out / "checkpoints", content, config.keep_checkpoints)
                    if is_ending or time.monotonic() - drawn > SECONDS_BETWEEN_CURVES:
                        lines, drawn = read_metrics(config.out / METRICS), time.monotonic()
                        write_curves({config.out.name: lines}, config.out / "curves.png", config.model)
                ranks.wait()  # who left now would take the others with it, this checkpoint too
            if is_ending and not is_last:
                raise stop.error()
    return {
        "checkpoint": str(checkpoints(config.out / "checkpoints")[-1]),
        "steps": step,
        "steps_now": step - first,
        "samples": step * config.batch_size,
        "seconds": round(time.monotonic() - began, 1),
        "device": str(ranks.device),
        "processes": ranks.world,
    }


def _log(config: TrainConfig, ranks: Ranks, step: int) -> AbstractContextManager[MetricsLog | None]:
    """The first process writes what all have measured, and what the run was told."""
    if not ranks.is_first:
        return nullcontext()
    replace(config.out / "config.yaml", to_yaml(config).encode())
    settings = config.model_dump(mode="json")
    return MetricsLog(config.out, step, config.total_steps, config.tensorboard, config.wandb, settings)


def _labelled(config: TrainConfig, versions: Mapping[str, Version], data: LatentData) -> ZeroShotSet | None:
    """The pictures to classify now and then, if there are any."""
    if config.zero_shot is None:
        return None
    name = versions[config.zero_shot].fingerprint
    return ZeroShotSet(config.zero_shot, config.classes, data.spec, config.cache or config.out / "cache", version=name)


def _accuracy(
    labelled: ZeroShotSet, model: open_clip.CLIP, tokenizer: open_clip.SimpleTokenizer, ranks: Ranks, bfloat16: bool
) -> dict[str, float]:
    """How many pictures find their class, each process asking for its share of them."""
    with torch.autocast(ranks.device.type, torch.bfloat16, enabled=bfloat16):
        counts = labelled.count(model, tokenizer, ranks.device, ranks.rank, ranks.world)
    first, among_five, total = ranks.sums(counts["right_at_1"], counts["right_at_5"], counts["n"])
    return {"zero_shot_acc1": first / total, "zero_shot_acc5": among_five / total}
