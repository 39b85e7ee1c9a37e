"""Each classification class by class: the worst and the best with a picture, and what is taken for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from eval.intervals import wilson
from eval.report.charts import confusion_matrix
from eval.report.classes import MATRIX_CLASSES, ClassScore, class_scores, confused_pairs, confusion
from eval.report.evaluations import Evaluation
from eval.report.examples import Gallery, Look, gallery

SHOWN_CLASSES = 5
SHOWN_PAIRS = 15
FEW = 5


@dataclass(frozen=True)
class Closer:
    """One evaluation class by class."""

    run: Evaluation
    worst: list[ClassScore]
    best: list[ClassScore]
    looks: Mapping[str, Look]
    """A picture for each class shown."""
    note: str
    reliability: str
    matrix: Markup | None
    pairs: list[tuple[str, str, int, int]]


def closer_looks(runs: Sequence[Evaluation]) -> list[Closer]:
    """A look for each classification."""
    return [_closer(run, found) for run, found in _with_galleries(runs)]


def _with_galleries(runs: Sequence[Evaluation]) -> list[tuple[Evaluation, Gallery]]:
    """Each classification with its pictures; those of one data set are looked up together."""
    asked = [run for run in runs if run.answers is not None]
    groups: dict[tuple[Any, ...], list[Evaluation]] = {}
    for run in asked:
        data, config = run.result.data, run.config
        address = config.get("data", run.result.dataset)
        key = (data.kind, address, data.fingerprint, config.get("view"), config.get("vae"))
        groups.setdefault(key, []).append(run)
    found: dict[int, Gallery] = {}
    for some in groups.values():
        places = [place for run in some for place in _places(run).values()]
        shown = gallery(some[0], places)
        found |= {id(run): shown for run in some}
    return [(run, found[id(run)]) for run in asked]


def _extremes(run: Evaluation) -> tuple[list[ClassScore], list[ClassScore]]:
    """The worst classes and the best, none of them in both."""
    assert run.answers is not None
    scores = class_scores(run.answers)
    count = min(SHOWN_CLASSES, len(scores) // 2)
    return [score for score in scores[:count] if score.right < score.n], scores[::-1][:count]


def _places(run: Evaluation) -> dict[str, tuple[str, str]]:
    """Where the picture for each class shown is."""
    assert run.answers is not None
    worst, best = _extremes(run)
    at = {score.name: score.mistake for score in worst} | {score.name: score.hit for score in best}
    return {name: run.answers.places[place] for name, place in at.items() if place is not None}


def _closer(run: Evaluation, found: Gallery) -> Closer:
    assert run.answers is not None
    worst, best = _extremes(run)
    places = _places(run)
    names, counts = confusion(run.answers)
    is_matrix = len(names) <= MATRIX_CLASSES
    return Closer(
        run,
        worst,
        best,
        {name: found.looks[place] for name, place in places.items() if place in found.looks},
        found.note,
        _reliability(run),
        confusion_matrix(names, counts) if is_matrix else None,
        confused_pairs(run.answers, SHOWN_PAIRS),
    )


def _reliability(run: Evaluation) -> str:
    """How much a single class's number can be trusted."""
    assert run.answers is not None
    sizes = sorted(score.n for score in class_scores(run.answers))
    middle = sizes[len(sizes) // 2]
    low, high = wilson(round(middle / 2), middle)
    spread = f"{sizes[0]}" if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"
    pictures = "picture" if sizes[-1] == 1 else "pictures"
    if middle < FEW:
        return f"{len(sizes):,} classes with {spread} {pictures} each: too few for the share of any to say much."
    return (
        f"{len(sizes):,} classes with {spread} {pictures} each. Of {middle}, a share of one half has a 95 % interval "
        f"of {100 * low:.0f}–{100 * high:.0f} %: which classes come first and last is partly chance."
    )
