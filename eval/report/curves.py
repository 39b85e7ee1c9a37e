"""How scores went from iteration to iteration, as inline SVG."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from encode_pipeline.preview import svg
from eval.report.charts import round_numbers

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 520, 250, 58, 12, 10, 36
BAND = (10, 90)
"""Per cent of the items that lie under the lower and the upper edge of the band."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Single:
    """One item's way."""

    name: str
    kind: str
    """What the style sheet knows it by: `rose`, `fell` or `other`."""
    values: Floats


def curves(title: str, values: Floats, singles: Sequence[Single]) -> Markup:
    """Items by iterations: their mean, the band that most of them lie in, and some of them alone."""
    last: int = max(1, values.shape[1] - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of an iteration at which no score is a number
        mean = np.nanmean(values, axis=0)
        lower, upper = np.nanpercentile(values, BAND, axis=0)
    shown = np.concatenate([lower, upper, *(single.values for single in singles)])
    finite = shown[np.isfinite(shown)]
    ticks = round_numbers(float(finite.min()), float(finite.max())) if finite.size else [0.0, 1.0]

    def across(iteration: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * iteration / last

    def down(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (ticks[-1] - value) / (ticks[-1] - ticks[0])

    def points(numbers: Floats) -> list[str]:
        places = [(at, float(value)) for at, value in enumerate(numbers) if math.isfinite(value)]
        return [f"{across(at):.1f} {down(value):.1f}" for at, value in places]

    chart = svg.frame(WIDTH, HEIGHT, "chart steps", f"{title} by iteration, mean of {len(values)} pictures")
    for tick in ticks:
        svg.add(chart, "line", "grid", x1=LEFT, x2=WIDTH - RIGHT, y1=down(tick), y2=down(tick))
        svg.text(chart, LEFT - 7, down(tick) + 4, f"{tick:.6g}".replace("-", "−"), "tick end")
    for at in sorted({round(part * last / 5) for part in range(6)}):
        svg.text(chart, across(at), HEIGHT - BOTTOM + 16, str(at), "tick middle")
    svg.text(chart, across(last / 2), HEIGHT - 4, "iteration", "tick middle")
    svg.add(chart, "path", "band", d=_path([*points(upper), *points(lower)[::-1]]) + "Z")
    for single in singles:
        svg.title(svg.add(chart, "path", f"single {single.kind}", d=_path(points(single.values))), single.name)
    svg.title(svg.add(chart, "path", "curve", d=_path(points(mean))), f"mean of {len(values):,} pictures")
    return svg.markup(chart)


def _path(points: Sequence[str]) -> str:
    return "M" + "L".join(points or ["0 0"])
