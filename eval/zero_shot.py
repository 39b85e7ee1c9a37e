"""Zero-shot classification: which class name fits a latent best."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from pydantic import Field

from encode_pipeline.latents.cache import ShardCache
from encode_pipeline.latents.command import RequestError, Settings, to_yaml
from encode_pipeline.latents.store import Store
from eval.models import LatentClip

CLASSES_FILE, TEMPLATES_FILE = "classnames.txt", "zeroshot_classification_templates.txt"


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


def zero_shot(config: ZeroShotConfig) -> dict[str, Any]:
    """Accuracy of a checkpoint over all samples of one view of a store."""
    model = LatentClip(config.checkpoint)
    version = Store(config.data).version(config.version)
    model.check(version.spec)
    if config.view >= version.spec.views:
        raise RequestError(f"view={config.view}: {version.storage.url()} has {version.spec.views} views, from 0")
    run_folder = config.checkpoint if config.checkpoint.is_dir() else config.checkpoint.parent
    cache = ShardCache(version, (config.out or run_folder) / "cache")
    rows = [row for row in version.manifest().to_pylist() if row["view"] == config.view]
    names, templates = _classes(config, cache, rows)
    class_rows = model.embed_classes(names, templates)
    predictions: list[Prediction] = []
    for row in rows:
        with cache.open(row) as shard:
            labels = [
                _label(shard.metadata(index), config.label, shard.keys[index], row["path"])
                for index in range(len(shard))
            ]
            if strange := sorted(set(labels) - set(names)):
                raise RequestError(f"{row['path']}: label {strange[0]!r} is not in {config.classes}/{CLASSES_FILE}")
            for start in range(0, len(shard), config.batch_size):
                some = range(start, min(start + config.batch_size, len(shard)))
                latents = torch.from_numpy(np.stack([shard.latent(index) for index in some]))
                best = (
                    (model.embed_latents(latents, version.spec) @ class_rows.T)
                    .topk(min(5, len(names)))
                    .indices.tolist()
                )
                predictions += [
                    Prediction(row["shard"], shard.keys[index], labels[index], [names[number] for number in ranks])
                    for index, ranks in zip(some, best, strict=True)
                ]
    if not predictions:
        raise RequestError(f"{version.storage.url()}: no samples to evaluate")
    result = {
        "dataset": config.data,
        "model": model.name,
        "checkpoint": str(config.checkpoint),
        "step": model.step,
        "task": "zeroshot_classification",
        "fingerprint": version.fingerprint,
        "classes": len(names),
        "templates": len(templates),
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


def _classes(config: ZeroShotConfig, cache: ShardCache, rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[str]]:
    if config.classes is not None:
        return read_classes(config.classes)
    names: set[str] = set()
    for row in rows:
        with cache.open(row) as shard:
            names |= {
                _label(shard.metadata(index), config.label, key, row["path"]) for index, key in enumerate(shard.keys)
            }
    return sorted(names), [template("{c}") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES]


def read_classes(folder: Path) -> tuple[list[str], list[str]]:
    """Class names and prompt templates from the two files that CLIP_benchmark uses."""
    names, templates = (_lines(folder / file) for file in (CLASSES_FILE, TEMPLATES_FILE))
    if len(set(names)) != len(names):
        raise RequestError(f"{folder / CLASSES_FILE}: a class stands twice")
    if unfit := [template for template in templates if "{c}" not in template]:
        raise RequestError(f"{folder / TEMPLATES_FILE}: {unfit[0]!r} has no {{c}} for the class name")
    return names, templates


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise RequestError(f"{path}: no such file")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise RequestError(f"{path}: not UTF-8") from None
    if not lines:
        raise RequestError(f"{path}: empty")
    return lines


def _label(metadata: dict[str, Any], field: str, key: str, path: str) -> str:
    label = metadata.get("metadata", {}).get(field)
    if not isinstance(label, str):
        raise RequestError(f"{path}: {key}: no {field} in its metadata")
    return label
