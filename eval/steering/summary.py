"""What a run comes to: a line for each item, and how far the rewards rose over all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np

from eval import intervals
from eval.steering.folder import Item

Line = dict[str, Any]


def line_of(item: Item) -> Line:
    """What items.jsonl says of an item: of each number what it was at first, and what it is of the kept iterate."""
    kept = max(item.about["kept"], 0)
    line = {key: item.about[key] for key in ("item", "prompt", "seed", "kept")}
    if item.scores:
        line["loss"] = [_number(item.loss[0]), _number(item.loss[kept])]
    line["scores"] = {name: [_number(score[0]), _number(score[kept])] for name, score in item.scores.items()}
    if why := broken(item):
        line["broken"] = why
    if count := int((~np.isfinite(item.loss)).sum()):
        line["not_finite"] = count  # iterates, none of which was kept
    return {**line, "about": item.about["about"]}


def broken(item: Item) -> str | None:
    """Why there is no picture of an item."""
    if not np.isfinite(item.latents).all():
        return "its latents are not finite"
    return "no iterate has a finite loss" if item.about["kept"] < 0 else None


def _number(value: np.floating) -> float | None:
    """As JSON can hold it."""
    return float(value) if isfinite(value) else None


def metrics(lines: Sequence[Line], samples: int, seed: int) -> dict[str, Any]:
    """Of how many items the loss fell, and each reward's mean at first, of what was kept, and of the rise between.

    In an interval prompts are drawn anew, with all of their samples; or samples, where there are more of these.
    """
    judged = [line["loss"] for line in lines if None not in line.get("loss", [None])]
    if not judged:
        return {}
    risen = sum(kept < first for first, kept in judged)
    found = {
        name: [(line["item"], *line["scores"][name]) for line in lines if None not in line["scores"][name]]
        for name in lines[0]["scores"]
    }
    return {
        "risen": risen / len(judged),
        "risen_interval": list(intervals.share(risen, len(judged), seed)),
        "loss": {"first": _mean([first for first, _ in judged]), "kept": _mean([kept for _, kept in judged])},
        "rewards": {name: _rise(scores, samples, seed) for name, scores in found.items() if scores},
    }


def _rise(scores: Sequence[tuple[str, float, float]], samples: int, seed: int) -> dict[str, float]:
    rises: dict[str, list[float]] = {}
    prompts = {item.partition("-")[0] for item, _, _ in scores}
    for item, first, kept in scores:
        rises.setdefault(item.partition("-")[0] if len(prompts) >= samples else item, []).append(kept - first)
    low, high = intervals.mean([_mean(of_one) for of_one in rises.values()], seed)
    return {
        "first": _mean([first for _, first, _ in scores]),
        "kept": _mean([kept for _, _, kept in scores]),
        "rise": _mean([kept - first for _, first, kept in scores]),
        "low": low,
        "high": high,
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def show(result: Mapping[str, Any]) -> str:
    """The result as a person reads it."""
    prompts, metrics = result["prompts"], result["metrics"]
    lines = [f"{result['n']} pictures of {prompts['count']} prompts ({prompts['kind']}) in {result['out']}"]
    if metrics:
        low, high = metrics["risen_interval"]
        lines[0] += f": the loss fell for {metrics['risen']:.1%} ({low:.1%} to {high:.1%})"
    for name, reward in metrics.get("rewards", {}).items():
        lines.append(
            f"{name}: {reward['first']:.4f} at first, {reward['kept']:.4f} kept; "
            f"a rise of {reward['rise']:.4f} ({reward['low']:.4f} to {reward['high']:.4f})"
        )
    lines += [f"broken: {failure['item']}: {failure['reason']}" for failure in result["failures"]]
    if result["not_comparable"]:
        lines.append(f"not comparable: {'; '.join(result['not_comparable'])}")
    return "\n".join(lines)
