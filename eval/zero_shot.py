"""Zero-shot classification: which class name fits a picture best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from torch import Tensor

from encode_pipeline.latents.spec import digest
from eval import intervals
from eval.evaluation import DonePart, Evaluation, EvaluationConfig
from eval.feed import Feed
from eval.models import open_model
from eval.picture_set import Part
from eval.result import asked, described, surroundings
from eval.ways import Labels, open_subject
from train.distributed import ranks_of_torchrun
from train.zero_shot import CLASSES_FILE, TEMPLATES_FILE

BEST = 5
DECIMALS = 6
"""Of a score: more would tell of the order in which a machine sums."""


class ZeroShotConfig(EvaluationConfig):
    """A zero-shot evaluation on a labelled latent store or on labelled pictures."""

    classes: Path | None = Field(
        None,
        description=f"folder with {CLASSES_FILE} and {TEMPLATES_FILE}; by default those beside the data, ImageNet's "
        "where its classes occur, else the labels in the data and OpenCLIP's seven short templates",
    )
    label: str = Field("class_name", description="the key of a sample's metadata that holds its class name in a store")


@dataclass(frozen=True)
class Prediction:
    """What the model said about one picture."""

    shard: str
    key: str
    label: str
    """Empty for a picture that an encoder refused together with its label."""
    top5: list[str]
    """Empty for a damaged picture."""
    scores: list[float] = field(default_factory=list)
    """The cosines of the five."""


def zero_shot(config: ZeroShotConfig) -> dict[str, Any]:
    """How often a model finds the class of a picture, over all pictures of a data set."""
    with ranks_of_torchrun() as ranks, ExitStack() as stack:
        model = open_model(config.checkpoint)
        subject = stack.enter_context(open_subject(config, model, ranks, Labels(config.label, config.classes)))
        assert subject.classes is not None
        classes = subject.classes
        shown = distinct(classes.names)
        hashes = {"templates_sha256": digest(classes.templates), "names_sha256": digest(classes.names)}

        @cache
        def class_rows() -> Tensor:
            rows: Tensor = model.embed_classes(classes.names, classes.templates)
            return rows

        def conclude(done: list[DonePart]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
            lines = [line for part in done for line in part.lines]
            predictions = [Prediction(line["shard"], line["key"], line["label"], line["top5"]) for line in lines]
            result = {
                **described(model, subject),
                "task": "zeroshot_classification",
                "metrics": metrics(predictions),
                "intervals": metric_intervals(predictions, config.seed),
                "classes": len(shown),
                "templates": len(classes.templates),
                **hashes,
                **surroundings(model.device),
            }
            return result, lines

        evaluation = Evaluation(
            config=config,
            request={
                "task": "zeroshot_classification",
                **asked(config, model, subject),
                "label": config.label,
                **hashes,
            },
            parts=subject.parts,
            work=lambda part: classify(subject.feed, part, class_rows, shown),
            conclude=conclude,
        )
        return evaluation.run(ranks)


def classify(feed: Feed, part: Part, class_rows: Callable[[], Tensor], names: Sequence[str]) -> DonePart:
    """The five best classes of each picture of a part, best first; all of them if there are fewer."""
    lines: list[dict[str, Any]] = []
    for batch in feed.batches(part):
        rows: Iterator[tuple[list[int], list[float]]] = iter(())
        if len(batch.features):
            best = (batch.features @ class_rows().T).topk(min(BEST, len(names)))
            rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        for item, damage in batch.items:
            line = {"shard": part.name, "key": item.key, "label": "" if item.label is None else names[item.label]}
            if damage is not None:
                lines.append({**line, "top5": [], "scores": [], "damaged": damage.reason})
                continue
            numbers, values = next(rows)
            top5 = [names[number] for number in numbers]
            lines.append({**line, "top5": top5, "scores": [round(value, DECIMALS) for value in values]})
    return DonePart(lines)


def distinct(names: Sequence[str]) -> list[str]:
    """The names of classes, each unlike the others: one that stands twice, as two of ImageNet's, gets its number."""
    count = Counter(names)
    return [f"{name} ({number})" if count[name] > 1 else name for number, name in enumerate(names)]


def metrics(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Top-1 and top-5 accuracy, and top-1 averaged over the classes that occur."""
    return {
        "acc1": float(np.mean([_is_right(prediction) for prediction in predictions])),
        "acc5": float(np.mean([prediction.label in prediction.top5 for prediction in predictions])),
        "mean_per_class_recall": float(np.mean([hits / total for hits, total in _by_class(predictions).values()])),
    }


def metric_intervals(predictions: Sequence[Prediction], seed: int) -> dict[str, intervals.Interval]:
    """The 95 % interval of each metric, by drawing pictures anew."""
    total = len(predictions)
    return {
        "acc1": intervals.share(sum(map(_is_right, predictions)), total, seed),
        "acc5": intervals.share(sum(prediction.label in prediction.top5 for prediction in predictions), total, seed),
        "mean_per_class_recall": intervals.mean_share(_by_class(predictions), seed),
    }


def _is_right(prediction: Prediction) -> bool:
    return prediction.top5[:1] == [prediction.label]


def _by_class(predictions: Sequence[Prediction]) -> dict[str, tuple[int, int]]:
    """Of every class that occurs, how many pictures are right and how many there are."""
    totals = Counter(prediction.label for prediction in predictions if prediction.label)
    hits = Counter(prediction.label for prediction in predictions if _is_right(prediction))
    return {label: (hits[label], total) for label, total in totals.items()}
