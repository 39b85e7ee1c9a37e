"""Numbers as inline SVG. Colours come from the page's style sheet by class, so that they follow its theme."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

Counts = npt.NDArray[np.int64]
"""Rows are what was true, columns what was predicted."""

Shape = str | float


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
    x_ticks, y_ticks = nice_ticks(max(xs)), nice_ticks(max([*ys, *(reference[:1] if reference else ())]))
    x_end, y_end = max(max(xs), x_ticks[1]), y_ticks[-1]

    def across(x: float) -> float:
        return left + (width - left - right) * x / x_end

    def down(y: float) -> float:
        return height - bottom - (height - top - bottom) * y / y_end

    svg = _svg(width, height, "chart", f"{y_label} over {x_label}")
    _text(svg, 0, 14, y_label, "title")
    for tick in y_ticks:
        _add(svg, "line", "grid", x1=left, x2=width - right, y1=down(tick), y2=down(tick))
        _text(svg, left - 7, down(tick) + 4, f"{tick:.0%}" if percent else f"{tick:,g}", "tick end")
    for tick in x_ticks:
        if tick <= x_end:
            _text(svg, across(tick), height - bottom + 17, f"{tick:,g}", "tick middle")
    _text(svg, (left + width - right) / 2, height - 6, x_label, "label middle")
    if reference:
        level, name = reference
        _add(svg, "line", "reference", x1=left, x2=width - right, y1=down(level), y2=down(level))
        _text(svg, width - right, down(level) - 5, name, "tick end")
    path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)
    _add(svg, "polyline", "curve", points=path)
    for x, y in points:
        spot = _add(svg, "circle", "spot", cx=across(x), cy=down(y), r=2.2)
        _title(spot, f"{x_label} {x:,g}: {f'{y:.1%}' if percent else f'{y:,.4g}'}")
    return _markup(svg)


def confusion(counts: Counts, names: Sequence[str]) -> Markup:
    """A labelled cell for every pair, as dark as its share of the row."""
    left, top, side = 66, 40, 320 / len(names)
    svg = _svg(left + 322, top + 322, "chart", "confusion of " + ", ".join(names))
    _text(svg, left + 160, 11, "predicted", "label middle")
    turned = _add(svg, "g", "", transform=f"translate(9 {top + 160}) rotate(-90)")
    _text(turned, 0, 0, "true", "label middle")
    for row, name in enumerate(names):
        _text(svg, left - 6, top + (row + 0.5) * side + 4, name, "tick end")
        _text(svg, left + (row + 0.5) * side, top - 7, name, "tick middle")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    for (row, column), count in np.ndenumerate(counts):
        share = float(shares[row, column])
        x, y = left + column * side, top + row * side
        _add(svg, "rect", "empty", x=x + 1, y=y + 1, width=side - 2, height=side - 2, rx=2)
        cell = _add(svg, "rect", "cell", x=x + 1, y=y + 1, width=side - 2, height=side - 2, rx=2)
        cell.set("fill-opacity", f"{share:.3f}")
        _title(cell, f"{names[row]} taken for {names[column]}: {count} of {counts[row].sum()}")
        ink = "none" if count == 0 else "over" if share > 0.5 else "count"
        _text(svg, x + side / 2, y + side / 2 + 4, str(count), f"{ink} middle")
    return _markup(svg)


def heat_map(counts: Counts, names: Sequence[str], groups: Sequence[str]) -> Markup:
    """Cells without numbers for many classes; each group names an equal run of them."""
    left, top, side = 66, 40, 320 / len(names)
    run = 320 / len(groups)
    svg = _svg(left + 322, top + 322, "chart", f"confusion of all {len(names)} classes")
    _text(svg, left + 160, 11, "predicted", "label middle")
    turned = _add(svg, "g", "", transform=f"translate(9 {top + 160}) rotate(-90)")
    _text(turned, 0, 0, "true", "label middle")
    _add(svg, "rect", "empty", x=left, y=top, width=320, height=320)
    for number, group in enumerate(groups):
        _text(svg, left - 6, top + (number + 0.5) * run + 4, group, "tick end")
        _text(svg, left + (number + 0.5) * run, top - 7, group, "tick middle")
    for number in range(1, len(groups)):
        _add(svg, "line", "divider", x1=left + number * run, x2=left + number * run, y1=top, y2=top + 320)
        _add(svg, "line", "divider", y1=top + number * run, y2=top + number * run, x1=left, x2=left + 320)
    for row, column in np.argwhere(counts):
        cell = _add(svg, "rect", "cell", x=left + column * side, y=top + row * side, width=side, height=side)
        cell.set("fill-opacity", f"{0.15 + 0.85 * counts[row, column] / counts[row].sum():.3f}")
        _title(cell, f"{names[row]} taken for {names[column]}: {counts[row, column]} of {counts[row].sum()}")
    return _markup(svg)


def interval_bar(value: float, low: float, high: float, chance: float) -> Markup:
    """A share between 0 and 1 with its interval, and a tick where chance would be."""
    width, middle = 240, 10

    def across(share: float) -> float:
        return 6 + (width - 12) * share

    svg = _svg(width, 20, "interval", f"{value:.1%}, from {low:.1%} to {high:.1%}")
    _add(svg, "line", "axis", x1=across(0), x2=across(1), y1=middle, y2=middle)
    _add(svg, "line", "chance", x1=across(chance), x2=across(chance), y1=middle - 7, y2=middle + 7)
    _add(svg, "line", "range", x1=across(low), x2=across(high), y1=middle, y2=middle)
    _add(svg, "circle", "spot", cx=across(value), cy=middle, r=4.5)
    return _markup(svg)


def stacked_bar(parts: Sequence[tuple[str, float]]) -> Markup:
    """Shares side by side; the part number n has the class `part-n`, which a legend can use too."""
    total = sum(share for _, share in parts) or 1.0
    svg = _svg(1000, 20, "stack", ", ".join(f"{name} {share / total:.1%}" for name, share in parts))
    svg.set("preserveAspectRatio", "none")
    start = 0.0
    for number, (name, share) in enumerate(parts):
        size = 1000 * share / total
        segment = _add(svg, "rect", f"part-{number}", x=start, y=0, width=size, height=20)
        _title(segment, f"{name}: {share / total:.1%}")
        start += size
    return _markup(svg)


def nice_ticks(highest: float) -> list[float]:
    """Round numbers from zero to at least the highest value, four to six of them."""
    if highest <= 0:
        highest = 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    step = next(power * part for part in (0.1, 0.2, 0.25, 0.5, 1, 2, 2.5) if highest / (power * part) <= 5)
    count = math.ceil(round(highest / step, 9))
    return [round(step * number, 12) for number in range(count + 1)]


def _svg(width: float, height: float, kind: str, description: str) -> ET.Element:
    box = f"0 0 {width:g} {height:g}"
    return ET.Element("svg", {"viewBox": box, "class": kind, "role": "img", "aria-label": description})


def _add(parent: ET.Element, name: str, kind: str, **attributes: Shape) -> ET.Element:
    texts = {key: value if isinstance(value, str) else f"{value:.2f}" for key, value in attributes.items()}
    return ET.SubElement(parent, name, {**({"class": kind} if kind else {}), **texts})


def _text(parent: ET.Element, x: float, y: float, text: str, kind: str) -> None:
    _add(parent, "text", kind, x=x, y=y).text = text


def _title(parent: ET.Element, text: str) -> None:
    ET.SubElement(parent, "title").text = text


def _markup(svg: ET.Element) -> Markup:
    return Markup(ET.tostring(svg, encoding="unicode"))
