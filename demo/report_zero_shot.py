"""What the predictions add up to: shares with their intervals, confusions, and examples to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from demo.charts import Counts
from eval.intervals import wilson
from eval.zero_shot import Prediction, metrics

BOOTSTRAP_DRAWS = 10_000


@dataclass(frozen=True)
class Score:
    """A share of right answers, its 95 % interval, and what guessing would give."""

    name: str
    value: float
    low: float
    high: float
    chance: float
    chance_text: str


def color_of(class_name: str) -> str:
    return class_name.split()[0]


def shape_of(class_name: str) -> str:
    return class_name.split()[1]


def scores(predictions: Sequence[Prediction], classes: Sequence[str]) -> dict[str, Score]:
    """Every score of the page, by a short name."""
    n = len(predictions)
    measured = metrics(predictions)
    colors, shapes = unique(map(color_of, classes)), unique(map(shape_of, classes))

    def counted(name: str, hits: int, right_of: int, out_of: int) -> Score:
        return Score(name, hits / n, *wilson(hits, n), right_of / out_of, f"{right_of}/{out_of}")

    first = [(prediction.label, prediction.top5[0]) for prediction in predictions]
    best = min(5, len(classes))
    per_class = Score(
        "mean per class",
        measured["mean_per_class_recall"],
        *mean_per_class_interval(predictions),
        1 / len(classes),
        f"1/{len(classes)}",
    )
    return {
        "top1": counted("top-1", sum(label == said for label, said in first), 1, len(classes)),
        "top5": counted(f"top-{best}", sum(p.label in p.top5 for p in predictions), best, len(classes)),
        "per_class": per_class,
        "color": counted("colour right", sum(color_of(a) == color_of(b) for a, b in first), 1, len(colors)),
        "shape": counted("shape right", sum(shape_of(a) == shape_of(b) for a, b in first), 1, len(shapes)),
    }


def mean_per_class_interval(predictions: Sequence[Prediction]) -> tuple[float, float]:
    """A 95 % bootstrap interval that draws pictures anew within each class."""
    hits_of: dict[str, list[bool]] = {}
    for prediction in predictions:
        hits_of.setdefault(prediction.label, []).append(prediction.top5[0] == prediction.label)
    sizes = np.array([len(hits) for hits in hits_of.values()])
    shares = np.array([sum(hits) for hits in hits_of.values()]) / sizes
    rng = np.random.default_rng(0)
    drawn = rng.binomial(sizes, shares, size=(BOOTSTRAP_DRAWS, len(sizes))) / sizes
    low, high = np.quantile(drawn.mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def confusion_counts(pairs: Sequence[tuple[str, str]], names: Sequence[str]) -> Counts:
    """How often each name, by row, was taken for each, by column."""
    place = {name: number for number, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for label, said in pairs:
        counts[place[label], place[said]] += 1
    return counts


def examples(predictions: Sequence[Prediction], right: bool, count: int) -> list[Prediction]:
    """A few right or wrong predictions, spread evenly over the test set."""
    found = [prediction for prediction in predictions if (prediction.top5[0] == prediction.label) == right]
    places = np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)
    return [found[place] for place in places]


def unique(names: Sequence[str] | map[str]) -> list[str]:
    """Each name once, in the order of its first use."""
    return list(dict.fromkeys(names))
