"""A finished demo's folder, read back: every number of the page comes from here."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encode_pipeline.latents.cache import ShardCache
from encode_pipeline.latents.command import CheckFailed, read_yaml
from encode_pipeline.latents.commit import ShardCommit
from encode_pipeline.latents.reader import LatentShard
from encode_pipeline.latents.store import MANIFEST, Store, Version
from eval.zero_shot import Prediction, metrics
from train.metrics import read_metrics
from train.zero_shot import read_classes

STORES = {"": "store", "-test": "test-store"}
"""A store's folder by what its steps' names end in."""
NEEDED_STEPS = (
    "world",
    "train",
    "zero-shot",
    "zero-shot-shipped",
    *(f"{step}{end}" for end in STORES for step in ("encode", "seal", "verify", "promote", "status")),
)


@dataclass(frozen=True)
class StoreFacts:
    """One latent store: what it says of itself, and what its two steps reported."""

    version: Version
    commits: list[ShardCommit]
    manifest: list[dict[str, Any]]
    status: Mapping[str, Any]
    encode: Mapping[str, Any]
    seconds: float
    commit_bytes: int
    manifest_bytes: int

    @property
    def read(self) -> int:
        return sum(commit.read for commit in self.commits)

    @property
    def encoded(self) -> int:
        return sum(commit.encoded for commit in self.commits)

    @property
    def rejected(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for commit in self.commits:
            total.update(commit.rejected)
        return total

    @property
    def latents(self) -> int:
        return self.encoded * self.version.spec.views

    @property
    def source_bytes(self) -> int:
        return sum(commit.source.size for commit in self.commits)

    @property
    def tar_bytes(self) -> int:
        return sum(int(row["size"]) for row in self.manifest)

    def open(self, row: Mapping[str, Any]) -> LatentShard:
        """The shard of a manifest row; the store is on this disk, so nothing is copied."""
        return ShardCache(self.version, Path()).open(row)

    def rows(self, view: int) -> list[dict[str, Any]]:
        return sorted((row for row in self.manifest if row["view"] == view), key=lambda row: str(row["shard"]))


@dataclass(frozen=True)
class DemoRun:
    """All that a finished demo left behind."""

    out: Path
    steps: dict[str, dict[str, Any]]
    world: dict[str, Any]
    store: StoreFacts
    test_store: StoreFacts
    classes: list[str]
    training: list[dict[str, Any]]
    settings: dict[str, Any]
    checkpoint: Path
    zero_shot: dict[str, Any]
    predictions: list[Prediction]
    shipped: dict[str, Any]
    """What the model that comes with the demo was measured at, on the same pictures."""
    shipped_predictions: list[Prediction]


def read_run(out: Path) -> DemoRun:
    """Reads a demo's folder; whatever is missing or does not fit together is named in the error."""
    steps = _json(out / "steps.json")["steps"]
    if lacking := [name for name in NEEDED_STEPS if name not in steps]:
        raise CheckFailed(f"{out / 'steps.json'}: these steps have not been run: {', '.join(lacking)}")
    training = read_metrics(out / "train" / "metrics.jsonl")
    if not training:
        raise CheckFailed(f"{out / 'train' / 'metrics.jsonl'}: no line of training metrics")
    checkpoint = out / "train" / "checkpoints" / Path(steps["train"]["result"]["checkpoint"]).name
    if not checkpoint.is_file():
        raise CheckFailed(f"{checkpoint}: no such checkpoint")
    zero_shot, predictions = _zero_shot(out / "zero-shot")
    shipped, shipped_predictions = _zero_shot(out / "zero-shot-shipped")
    return DemoRun(
        out=out,
        steps=steps,
        world=_json(out / "world" / "world.json"),
        store=_store_facts(out, "", steps),
        test_store=_store_facts(out, "-test", steps),
        classes=read_classes(out / "world" / "test")[0],
        training=training,
        settings=read_yaml(out / "train" / "config.yaml"),
        checkpoint=checkpoint,
        zero_shot=zero_shot,
        predictions=predictions,
        shipped=shipped,
        shipped_predictions=shipped_predictions,
    )


def _zero_shot(folder: Path) -> tuple[dict[str, Any], list[Prediction]]:
    result, predictions = _json(folder / "result.json"), _predictions(folder / "predictions.jsonl")
    if (found := metrics(predictions)) != result["metrics"]:
        raise CheckFailed(f"{folder}: result.json says {result['metrics']}, predictions.jsonl gives {found}")
    return result, predictions


def _store_facts(out: Path, end: str, steps: Mapping[str, Any]) -> StoreFacts:
    version = Store(out / STORES[end]).version()
    encode = steps[f"encode{end}"]
    if encode["result"]["fingerprint"] != version.fingerprint:
        raise CheckFailed(f"{version.storage.url()}: is not the version that the step encode{end} made")
    return StoreFacts(
        version=version,
        commits=list(version.commits()),
        manifest=version.manifest().to_pylist(),
        status=steps[f"status{end}"]["result"],
        encode=encode["result"],
        seconds=encode["seconds"],
        commit_bytes=sum(version.storage.files("commits").values()),
        manifest_bytes=version.storage.size(MANIFEST),
    )


def _predictions(path: Path) -> list[Prediction]:
    try:
        return [Prediction(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise CheckFailed(f"{path}: no such file; run the demo again") from None
    except (ValueError, TypeError) as error:
        raise CheckFailed(f"{path}: not a list of predictions: {error}") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckFailed(f"{path}: no such file; run the demo again") from None
    except ValueError as error:
        raise CheckFailed(f"{path}: not JSON: {error}") from None
    return content
