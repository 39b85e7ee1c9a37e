"""Class by class: who is right how often, and what is taken for what."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eval.intervals import wilson
from eval.report.evaluations import Answers

MATRIX_CLASSES = 60
"""More are no matrix any more, but a list of what is confused most."""


@dataclass(frozen=True)
class ClassScore:
    """How often pictures of a class are given its name."""

    name: str
    right: int
    n: int
    taken_for: str | None
    """What it is most often mistaken for."""
    times: int
    mistake: int | None
    """The place of a picture that was mistaken so."""
    hit: int | None
    """The place of one that was not."""

    @property
    def share(self) -> float:
        return self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.right, self.n)


def class_scores(answers: Answers) -> list[ClassScore]:
    """Every class that occurs, the worst first."""
    places: dict[str, list[int]] = {}
    for at, label in enumerate(answers.labels):
        if label:  # it went with a picture that was refused before its label was read
            places.setdefault(label, []).append(at)
    scores = []
    for name, mine in places.items():
        wrong = [at for at in mine if not answers.first[at]]
        said = Counter(answers.said[at] for at in wrong if answers.said[at] is not None)
        taken_for, times = min(said.items(), key=lambda item: (-item[1], item[0] or "")) if said else (None, 0)
        mistake = next((at for at in wrong if answers.said[at] == taken_for), None)
        hit = next((at for at in mine if answers.first[at]), None)
        scores.append(ClassScore(name, len(mine) - len(wrong), len(mine), taken_for, times, mistake, hit))
    return sorted(scores, key=lambda score: (score.share, -score.n, score.name))


def confused_pairs(answers: Answers, count: int) -> list[tuple[str, str, int, int]]:
    """What is most often taken for what: class, answer, how often, and out of how many of the class."""
    sizes = Counter(answers.labels)
    wrong = Counter(
        (label, said)
        for label, said, hit in zip(answers.labels, answers.said, answers.first, strict=True)
        if said is not None and not hit
    )
    ranked = sorted(wrong.items(), key=lambda item: (-item[1] / sizes[item[0][0]], item[0]))
    return [(label, said, times, sizes[label]) for (label, said), times in ranked[:count]]


def confusion(answers: Answers) -> tuple[list[str], npt.NDArray[np.int64]]:
    """All names that occur, and how often each, by row, was taken for each, by column."""
    names = sorted({*answers.labels, *(said for said in answers.said if said is not None)})
    number = {name: at for at, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), np.int64)
    for label, said in zip(answers.labels, answers.said, strict=True):
        if said is not None:
            counts[number[label], number[said]] += 1
    return names, counts
