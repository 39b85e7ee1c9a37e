"""Folders of finished evaluations, written as `python -m eval zero-shot` leaves them, with answers drawn by chance."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip

from encode_pipeline.latents.spec import digest
from eval.class_names import imagenet_classes
from eval.intervals import share
from eval.zero_shot import distinct

Picture = tuple[str, str, str]
"""Shard, key, label."""


def pictures_of(names: Sequence[str], each: int, per_shard: int = 1000) -> list[Picture]:
    """So many pictures of every class, class after class, as ImageNet's folder has them."""
    return [
        (f"{number // per_shard:05d}", f"{number:08d}", names[number // each]) for number in range(len(names) * each)
    ]


def write_evaluation(folder: Path, names: Sequence[str], pictures: Sequence[Picture], **changes: Any) -> Path:
    """A run's folder. `accuracy` and `chance` shape the answers, `data` and `provenance` are laid over those here."""
    accuracy, seed = changes.pop("accuracy", 0.7), changes.pop("chance", 0)
    answers = drawn_answers(names, pictures, accuracy, seed)
    first = [line["label"] == line["top5"][0] for line in answers]
    five = [line["label"] in line["top5"] for line in answers]
    by_class: dict[str, list[bool]] = {}
    for line, hit in zip(answers, first, strict=True):
        by_class.setdefault(line["label"], []).append(hit)
    counts = {label: (sum(hits), len(hits)) for label, hits in by_class.items()}
    n = len(pictures)
    model = changes.get("model", "latent-vit-demo")
    result = {
        "ok": True,
        "dataset": "pictures",
        "model": model,
        "pretrained": "runs/b8",
        "task": "zeroshot_classification",
        "language": "en",
        "metrics": {
            "acc1": float(np.mean(first)),
            "acc5": float(np.mean(five)),
            "mean_per_class_recall": float(np.mean([hits / size for hits, size in counts.values()])),
        },
        "intervals": {
            "acc1": share(sum(first), n, 0),
            "acc5": share(sum(five), n, 0),
        },
        "n": n,
        "classes": len(names),
        "templates": 7,
        "damaged": 0,
        "way": "encoded",
        "not_comparable": [],
        "seed": 0,
        "templates_sha256": digest(["a photo of a {c}."]),
        "names_sha256": digest(list(names)),
        "versions": {"python": "3.11.9", "torch": "2.14.1", "open_clip_torch": "3.3.0"},
        "hardware": {"device": "cpu", "processor": "two cores"},
        "seconds": 61.5,
        **changes,
        "data": {**STORE, **changes.get("data", {})},
        "provenance": {**LATENT, "weights_sha256": digest(model), **changes.get("provenance", {})},
    }
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"data: {result['dataset']}\nview: 0\n")
    (folder / "request.json").write_text(json.dumps({"task": result["task"]}))
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return folder


VAE = {"name": "demo/vae", "weights_sha256": "5" * 64}
STORE: Mapping[str, Any] = {
    "kind": "store",
    "layout": None,
    "identity": "1" * 64,
    "fingerprint": "0123456789abcdef",
    "vae": VAE,
    "generated": None,
}
PICTURES: Mapping[str, Any] = {
    "kind": "pictures",
    "layout": "folder",
    "identity": "2" * 64,
    "fingerprint": None,
    "vae": None,
}
GENERATED: Mapping[str, Any] = {
    "generator": "stabilityai/sdxl-turbo",
    "weights_sha256": "7" * 64,
    "noise": "literal",
    "levels": [{"t": 659.0, "sigma": 2.841}],
    "guidance": 0.0,
    "seed": 0,
}
LATENT: Mapping[str, Any] = {
    "kind": "latent-clip",
    "address": "runs/b8",
    "step": 1400,
    "parameters": {"image": 85_700_000, "text": 63_430_000, "total": 149_130_000},
    "latents": {"fingerprint": "fedcba9876543210", "vae": VAE, "shape": [4, 64, 64], "scale": "raw"},
}
PIXEL: Mapping[str, Any] = {"kind": "open-clip", "address": "MODEL/TAG", "step": None, "latents": None}


IMAGENET = {
    "templates": 80,
    "templates_sha256": digest(imagenet_classes().templates),
    "names_sha256": digest(list(open_clip.IMAGENET_CLASSNAMES)),
}
B32 = {"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k", "provenance": PIXEL}
TINY = ["trained on 179,200 of the paper's 34 billion samples", "a small model (5.1 M parameters)"]
NAMES = ["red <ring>", "blue & star", "green_cross", "a | b", "white circle", "black square"]


def imagenet_evaluations(out: Path) -> list[Path]:
    """A latent model in both of the paper's ways and a pixel model, on as many pictures as ImageNet has."""
    names = distinct(open_clip.IMAGENET_CLASSNAMES)
    pictures = pictures_of(names, 50)
    runs: dict[str, dict[str, Any]] = {
        "b8-in": {"dataset": "latents"},
        "b8-gin-decoded": {"way": "decoded", "data": {"generated": GENERATED}, "accuracy": 0.8},
        "b8-gin-direct": {"way": "direct", "data": {"generated": GENERATED}, "accuracy": 0.8},
        "b32-in": {"way": "pixels", "data": PICTURES, "dataset": "imagenet", "accuracy": 0.66, **B32},
    }
    return [
        write_evaluation(
            out / name, names, pictures, **{"model": "latent-vit-b-8", "chance": chance, **IMAGENET, **changes}
        )
        for chance, (name, changes) in enumerate(runs.items())
    ]


def tiny(folder: Path, **changes: Any) -> Path:
    """A run on a few classes."""
    return write_evaluation(folder, NAMES, pictures_of(NAMES, 10), **{"not_comparable": TINY, **changes})


def drawn_answers(
    names: Sequence[str], pictures: Sequence[Picture], accuracy: float, seed: int
) -> list[dict[str, Any]]:
    """Answers of a model that takes a class for one of those next to it in the list, some classes more than others."""
    rng = random.Random(seed)
    number = {name: at for at, name in enumerate(names)}
    hardness = [rng.betavariate(8 * accuracy, 8 * (1 - accuracy)) for _ in names]
    lines = []
    for shard, key, label in pictures:
        at = number[label]
        near = [names[(at + step) % len(names)] for step in (1, -1, 2, -2, 3, -3) if len(names) > 6]
        others = [name for name in near or names if name != label]
        rng.shuffle(others)
        place = 0 if rng.random() < hardness[at] else rng.choice((1, 1, 2, 3, 9))
        top5 = [*others[:place], label, *others[place:]][:5] if place < 5 else others[:5]
        lines.append({"shard": shard, "key": key, "label": label, "top5": top5, "scores": [0.3] * len(top5)})
    return lines
