"""The training loop, from the store to the last checkpoint. Running it again goes on from the latest one."""

from __future__ import annotations

import math
import time
from typing import Any

import open_clip
import torch

from encode_pipeline.latents.command import CheckFailed, RequestError, to_yaml
from encode_pipeline.latents.spec import LatentSpec
from train.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from train.config import TrainConfig, architecture_of
from train.data import open_data
from train.loss import HardClipLoss, SoftClipLoss
from train.metrics import MetricsLog
from train.model import build_model, parameter_groups, tokenizer_for

OF_THIS_MACHINE = {"data", "out", "version", "workers", "cache", "log_every", "checkpoint_every", "keep_checkpoints"}


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains a model on a sealed latent store and returns where it stands at the end."""
    config.out.mkdir(parents=True, exist_ok=True)
    architecture = architecture_of(config.model)
    tokenizer = tokenizer_for(architecture)
    data = open_data(config, tokenizer)
    spec = data.spec
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    model = build_model(architecture, spec.shape[0], spec.shape[1]).to(device)
    loss_of = SoftClipLoss() if config.repeated_captions == "soft" else HardClipLoss()
    groups = parameter_groups(model, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps)
    total = config.total_steps
    step = _resume(config, spec, model, optimizer)
    (config.out / "config.yaml").write_text(to_yaml(config))
    log = MetricsLog(config.out / "metrics.jsonl", step)
    started_at, began = step, time.monotonic()
    since_log, waited, logged_step = began, 0.0, step

    stream = data.batches(step, total, range(config.batch_size))
    model.train()
    while step < total:
        asked = time.monotonic()
        batch = next(stream)
        waited += time.monotonic() - asked
        latents_bchw = batch.latents_bchw.to(device, torch.float32)
        tokens_bl = batch.tokens_bl.to(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)

        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            features = model(latents_bchw, tokens_bl)
        image, text = features["image_features"].float(), features["text_features"].float()
        loss = loss_of(image, text, features["logit_scale"], tokens_bl)
        if not torch.isfinite(loss):
            raise CheckFailed(f"step {step + 1}: loss is {loss.item()}; first sample: {data.name(batch.ids[0])}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad or math.inf)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        step += 1

        if step % config.log_every == 0 or step == total:
            now = time.monotonic()
            span = max(now - since_log, 1e-9)
            log.write(
                {
                    "step": step,
                    "samples": step * config.batch_size,
                    "loss": loss.item(),
                    "accuracy": in_batch_accuracy(image, text),
                    "logit_scale": features["logit_scale"].item(),
                    "grad_norm": norm.item(),
                    "lr": learning_rate(step - 1, config),
                    "samples_per_second": (step - logged_step) * config.batch_size / span,
                    "data_wait": waited / span,
                },
                total,
            )
            since_log, waited, logged_step = now, 0.0, step
        if step % config.checkpoint_every == 0 or step == total:
            content = {
                "epoch": step * config.batch_size // data.samples,
                "name": config.model,
                "step": step,
                "state_dict": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "spec": spec.to_dict(),
                "architecture": architecture.model_dump(mode="json"),
                "settings": config.model_dump(mode="json"),
                "open_clip": open_clip.__version__,
            }
            save_checkpoint(config.out / "checkpoints", content, config.keep_checkpoints)
    return {
        "checkpoint": str(checkpoints(config.out / "checkpoints")[-1]),
        "steps": step,
        "steps_now": step - started_at,
        "samples": step * config.batch_size,
        "seconds": round(time.monotonic() - began, 1),
        "device": str(device),
    }


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.total_steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@torch.no_grad()
def in_batch_accuracy(image: torch.Tensor, text: torch.Tensor) -> float:
    """How often the nearest caption of the batch is the picture's own."""
    return float((torch.argmax(image @ text.T, dim=1).cpu() == torch.arange(len(image))).float().mean())


def _resume(config: TrainConfig, spec: LatentSpec, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Loads the run's latest checkpoint, if it has one, and says at which step it was made."""
    if not checkpoints(config.out / "checkpoints"):
        return 0
    content = load_checkpoint(config.out)
    before = LatentSpec.from_dict(content["spec"], f"{config.out}: checkpoint")
    if before.fingerprint != spec.fingerprint:
        difference = before.difference(spec)
        raise RequestError(f"{config.out}: was trained on other latents ({difference}); use another out=")
    now = config.model_dump(mode="json")
    for key, value in content["settings"].items():
        if key not in OF_THIS_MACHINE and key in now and now[key] != value:
            raise RequestError(f"{config.out}: was begun with {key}={value}, not {now[key]}; use another out=")
    model.load_state_dict(content["state_dict"])
    optimizer.load_state_dict(content["optimizer"])
    return int(content["step"])
