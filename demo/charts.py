"""Numbers as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from encode_pipeline.preview import svg

Counts = npt.NDArray[np.int64]
"""Rows are what was true, columns what was predicted."""


def line_chart(
    points: Sequence[tuple[float, float]],
    x_label: str,
    y_label: str,
    percent: bool = False,
    reference: tuple[float, str] | None = None,
) -> Markup:
    """A curve over axes that begin at zero; a reference is a dashed level with a name."""
    width, height, left, right, top, bottom = 330, 220, 48, 12, 28, 42
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_ticks, y_ticks = svg.nice_ticks(max(xs)), svg.nice_ticks(max([*ys, *(reference[:1] if reference else ())]))
    x_end, y_end = max(max(xs), x_ticks[1]), y_ticks[-1]

    def across(x: float) -> float:
        return left + (width - left - right) * x / x_end

    def down(y: float) -> float:
        return height - bottom - (height - top - bottom) * y / y_end

    chart = svg.frame(width, height, "chart", f"{y_label} over {x_label}")
    svg.text(chart, 0, 14, y_label, "title")
    for tick in y_ticks:
        svg.add(chart, "line", "grid", x1=left, x2=width - right, y1=down(tick), y2=down(tick))
        svg.text(chart, left - 7, down(tick) + 4, f"{tick:.0%}" if percent else f"{tick:,g}", "tick end")
    for tick in x_ticks:
        if tick <= x_end:
            svg.text(chart, across(tick), height - bottom + 17, f"{tick:,g}", "tick middle")
    svg.text(chart, (left + width - right) / 2, height - 6, x_label, "label middle")
    if reference:
        level, name = reference
        svg.add(chart, "line", "reference", x1=left, x2=width - right, y1=down(level), y2=down(level))
        svg.text(chart, width - right, down(level) - 5, name, "tick end")
    path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)
    svg.add(chart, "polyline", "curve", points=path)
    for x, y in points:
        spot = svg.add(chart, "circle", "spot", cx=across(x), cy=down(y), r=2.2)
        svg.title(spot, f"{x_label} {x:,g}: {f'{y:.1%}' if percent else f'{y:,.4g}'}")
    return svg.markup(chart)


def confusion(counts: Counts, names: Sequence[str]) -> Markup:
    """A labelled cell for every pair, as dark as its share of the row."""
    left, top, side = 66, 40, 320 / len(names)
    chart = svg.frame(left + 322, top + 322, "chart", "confusion of " + ", ".join(names))
    svg.text(chart, left + 160, 11, "predicted", "label middle")
    turned = svg.add(chart, "g", "", transform=f"translate(9 {top + 160}) rotate(-90)")
    svg.text(turned, 0, 0, "true", "label middle")
    for row, name in enumerate(names):
        svg.text(chart, left - 6, top + (row + 0.5) * side + 4, name, "tick end")
        svg.text(chart, left + (row + 0.5) * side, top - 7, name, "tick middle")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    for (row, column), count in np.ndenumerate(counts):
        share = float(shares[row, column])
        x, y = left + column * side, top + row * side
        svg.add(chart, "rect", "empty", x=x + 1, y=y + 1, width=side - 2, height=side - 2, rx=2)
        cell = svg.add(chart, "rect", "cell", x=x + 1, y=y + 1, width=side - 2, height=side - 2, rx=2)
        cell.set("fill-opacity", f"{share:.3f}")
        svg.title(cell, f"{names[row]} taken for {names[column]}: {count} of {counts[row].sum()}")
        ink = "none" if count == 0 else "over" if share > 0.5 else "count"
        svg.text(chart, x + side / 2, y + side / 2 + 4, str(count), f"{ink} middle")
    return svg.markup(chart)


def heat_map(counts: Counts, names: Sequence[str], groups: Sequence[str]) -> Markup:
    """Cells without numbers for many classes; each group names an equal run of them."""
    left, top, side = 66, 40, 320 / len(names)
    run = 320 / len(groups)
    chart = svg.frame(left + 322, top + 322, "chart", f"confusion of all {len(names)} classes")
    svg.text(chart, left + 160, 11, "predicted", "label middle")
    turned = svg.add(chart, "g", "", transform=f"translate(9 {top + 160}) rotate(-90)")
    svg.text(turned, 0, 0, "true", "label middle")
    svg.add(chart, "rect", "empty", x=left, y=top, width=320, height=320)
    for number, group in enumerate(groups):
        svg.text(chart, left - 6, top + (number + 0.5) * run + 4, group, "tick end")
        svg.text(chart, left + (number + 0.5) * run, top - 7, group, "tick middle")
    for number in range(1, len(groups)):
        svg.add(chart, "line", "divider", x1=left + number * run, x2=left + number * run, y1=top, y2=top + 320)
        svg.add(chart, "line", "divider", y1=top + number * run, y2=top + number * run, x1=left, x2=left + 320)
    for row, column in np.argwhere(counts):
        cell = svg.add(chart, "rect", "cell", x=left + column * side, y=top + row * side, width=side, height=side)
        cell.set("fill-opacity", f"{0.15 + 0.85 * counts[row, column] / counts[row].sum():.3f}")
        svg.title(cell, f"{names[row]} taken for {names[column]}: {counts[row, column]} of {counts[row].sum()}")
    return svg.markup(chart)


def interval_bar(value: float, low: float, high: float, chance: float) -> Markup:
    """A share between 0 and 1 with its interval, and a tick where chance would be."""
    width, middle = 240, 10

    def across(share: float) -> float:
        return 6 + (width - 12) * share

    chart = svg.frame(width, 20, "interval", f"{value:.1%}, from {low:.1%} to {high:.1%}")
    svg.add(chart, "line", "axis", x1=across(0), x2=across(1), y1=middle, y2=middle)
    svg.add(chart, "line", "chance", x1=across(chance), x2=across(chance), y1=middle - 7, y2=middle + 7)
    svg.add(chart, "line", "range", x1=across(low), x2=across(high), y1=middle, y2=middle)
    svg.add(chart, "circle", "spot", cx=across(value), cy=middle, r=4.5)
    return svg.markup(chart)


def stacked_bar(parts: Sequence[tuple[str, float]]) -> Markup:
    """Shares side by side; the part number n has the class `part-n`, which a legend can use too."""
    total = sum(share for _, share in parts) or 1.0
    chart = svg.frame(1000, 20, "stack", ", ".join(f"{name} {share / total:.1%}" for name, share in parts))
    chart.set("preserveAspectRatio", "none")
    start = 0.0
    for number, (name, share) in enumerate(parts):
        size = 1000 * share / total
        segment = svg.add(chart, "rect", f"part-{number}", x=start, y=0, width=size, height=20)
        svg.title(segment, f"{name}: {share / total:.1%}")
        start += size
    return svg.markup(chart)
