"""What a result says beside its numbers: which model, which data, and on what it was computed."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from eval.clip import Clip
from eval.evaluation import EvaluationConfig
from eval.feed import Subject

METRICS = {"acc1": "top-1", "acc5": "top-5", "mean_per_class_recall": "per class"}
"""How a person calls them."""
LIBRARIES = {"torch": "torch", "open_clip": "open_clip_torch", "numpy": "numpy", "latent_clip": "latent-clip-pipeline"}


def asked(config: EvaluationConfig, model: Clip, subject: Subject) -> dict[str, Any]:
    """What decides the answers of any evaluation: the model, the data, and how the one looks at the other."""
    return {
        "weights": model.provenance["weights_sha256"],
        # The same weights may be read as ViT-B-32 or as ViT-B-32-quickgelu.
        **({"model": model.provenance["model"]} if "model" in model.provenance else {}),
        "preprocessing": model.provenance.get("preprocessing"),
        "latents": None if model.spec is None else model.spec.fingerprint,
        "data": subject.identity,
        "way": subject.way,
        "view": config.view,
        "batch_size": config.batch_size,
        "seed": config.seed,
    }


def described(model: Clip, subject: Subject) -> dict[str, Any]:
    """The model and the data of a result; the model's name as CLIP_benchmark splits it."""
    name, _, pretrained = model.name.partition("/")
    return {
        "model": name,
        "pretrained": pretrained or model.address,
        "step": model.provenance.get("step"),
        "provenance": model.provenance,
        "way": subject.way,
        "data": subject.about,
        "not_comparable": [*model.not_comparable, *subject.not_comparable],
    }


def surroundings(device: torch.device) -> dict[str, Any]:
    """The software and the machine of a result."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "versions": {name: version(distribution) for name, distribution in LIBRARIES.items()},
        "hardware": {"device": gpu or "cpu", "cpu": _processor(), "cores": os.cpu_count()},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def show(result: Mapping[str, Any]) -> str:
    """The result as a person reads it."""
    step = "" if result["step"] is None else f" at step {result['step']}"
    asked = f"of {result['classes']} classes" if "classes" in result else f"with {result['captions']} captions"
    scores = ", ".join(
        f"{METRICS.get(name, name)} {value:.1%} ({low:.1%} to {high:.1%})"
        for name, value in result["metrics"].items()
        for low, high in [result["intervals"][name]]
    )
    lines = [f"{result['model']}{step} on {result['n']} pictures {asked} ({result['way']}): {scores}"]
    if result.get("repeated_captions"):
        lines.append(
            f"{result['repeated_captions']} captions are also another picture's, for which they count as wrong"
        )
    if result["damaged"]:
        lines.append(f"{result['damaged']} damaged pictures count as wrong answers")
    if result["not_comparable"]:
        lines.append(f"not comparable: {'; '.join(result['not_comparable'])}")
    return "\n".join(lines)
