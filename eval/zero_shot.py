"""Zero-shot classification: which class name fits a latent best."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from encode_pipeline.latents.command import RequestError, Settings, to_yaml
from eval.models import LatentClip, open_model
from train.zero_shot import CLASSES_FILE, TEMPLATES_FILE, ZeroShotSet, best_classes


class ZeroShotConfig(Settings):
    """A zero-shot evaluation on a labelled latent store."""

    checkpoint: Path = Field(description="a checkpoint, or a training run's folder")
    data: str = Field(description="a sealed latent store")
    classes: Path | None = Field(
        None,
        description=f"folder with {CLASSES_FILE} and {TEMPLATES_FILE}; by default the labels that occur in the data, "
        "and OpenCLIP's seven short templates",
    )
    out: Path | None = Field(None, description="folder for result.json and predictions.jsonl")
    version: str | None = Field(None, description="beginning of a fingerprint; by default the promoted or only version")
    label: str = Field("class_name", description="the key of a sample's metadata that holds its class name")
    view: int = Field(0, ge=0, description="which view of the pictures to look at")
    batch_size: int = Field(64, gt=0)


@dataclass(frozen=True)
class Prediction:
    """What the model said about one picture."""

    shard: str
    key: str
    label: str
    top5: list[str]


@torch.inference_mode()
def zero_shot(config: ZeroShotConfig) -> dict[str, Any]:
    """Accuracy of a checkpoint over all samples of one view of a store."""
    model = open_model(config.checkpoint)
    if not isinstance(model, LatentClip):
        raise RequestError(f"{config.checkpoint}: reads pictures, and data= holds latents")
    run_folder = config.checkpoint if config.checkpoint.is_dir() else config.checkpoint.parent
    cache = (config.out or run_folder) / "cache"
    pictures = ZeroShotSet(config.data, config.classes, model.spec, cache, config.label, config.view, config.version)
    class_rows = model.embed_classes(pictures.names, pictures.templates)
    names = pictures.names
    predictions: list[Prediction] = []
    for batch in pictures.batches(config.batch_size):
        best = best_classes(model.embed_latents(batch.latents_bchw, model.spec), class_rows).tolist()
        predictions += [
            Prediction(batch.shard, key, names[label], [names[number] for number in ranks])
            for key, label, ranks in zip(batch.keys, batch.labels, best, strict=True)
        ]
    result = {
        "dataset": config.data,
        "model": model.name,
        "checkpoint": str(config.checkpoint),
        "step": model.provenance.get("step"),
        "task": "zeroshot_classification",
        "fingerprint": pictures.version.fingerprint,
        "classes": len(names),
        "templates": len(pictures.templates),
        "n": len(predictions),
        "metrics": metrics(predictions),
    }
    if config.out is not None:
        config.out.mkdir(parents=True, exist_ok=True)
        (config.out / "config.yaml").write_text(to_yaml(config))
        (config.out / "predictions.jsonl").write_text("".join(json.dumps(vars(p)) + "\n" for p in predictions))
        (config.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def metrics(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Top-1 and top-5 accuracy, and top-1 averaged over classes."""
    right = [prediction.top5[0] == prediction.label for prediction in predictions]
    by_class: dict[str, list[bool]] = {}
    for prediction, hit in zip(predictions, right, strict=True):
        by_class.setdefault(prediction.label, []).append(hit)
    return {
        "acc1": float(np.mean(right)),
        "acc5": float(np.mean([prediction.label in prediction.top5 for prediction in predictions])),
        "mean_per_class_recall": float(np.mean([np.mean(hits) for hits in by_class.values()])),
    }
