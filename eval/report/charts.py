"""The report's numbers as inline SVG."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from encode_pipeline.preview import svg
from eval.report.table import PERCENT, Cell, Column, Table

WIDTH, LEFT, RIGHT, TOP, ROW = 430, 18, 22, 4, 36
LETTERS = 62
"""Of a model's name, that fit over its line."""


def forest(table: Table, title: str, columns: Sequence[Column]) -> Markup:
    """A line a model: each score with its interval, the paper's beside it as diamonds; filled is the first score."""
    places = [table.columns.index(column) for column in columns]
    theirs = {row.name: row for row in table.published}
    ours = [row for row in table.ours if any(row.cells[at] for at in places)]
    matched = {row.paper for row in ours}
    others = [row for row in table.published if row.name not in matched and any(row.cells[at] for at in places)]
    rows = [(row, theirs.get(row.paper or "")) for row in ours] + [(None, row) for row in others]
    ticks = round_numbers(*_range([row.cells[at] for pair in rows for row in pair if row for at in places], table.unit))
    height = TOP + ROW * len(rows) + 26

    def across(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    chart = svg.frame(WIDTH, height, "chart forest", f"{title}: {table.title}, ours and published")
    for tick in ticks:
        svg.add(chart, "line", "grid", x1=across(tick), x2=across(tick), y1=TOP, y2=height - 24)
        svg.text(chart, across(tick), height - 8, f"{tick:g}{table.unit}", "tick middle")
    for number, (mine, published) in enumerate(rows):
        top = TOP + ROW * number
        name = mine.name if mine else published.name if published else ""
        svg.text(chart, 0, top + 14, name if len(name) <= LETTERS else name[: LETTERS - 1] + "…", "name")
        for row, kind in ((published, "theirs" if mine else "theirs other"), (mine, "ours")):
            for place, cell in enumerate([row.cells[at] for at in places] if row else []):
                if cell:
                    words = " ".join(part for part in (name, cell.text + table.unit, cell.interval) if part)
                    _mark(chart, across, top + 25, cell, f"{kind} {'first' if place == 0 else 'more'}", words)
    return svg.markup(chart)


def confusion_matrix(names: Sequence[str], counts: npt.NDArray[np.int64]) -> Markup:
    """A cell for every pair that occurs, as dark as its share of the row."""
    longest = max(map(len, names))
    left, top = 12 + 6.1 * min(longest, 28), 12 + 4.8 * min(longest, 28)
    side = max(15.0, min(40.0, 700 / len(names)))
    size = side * len(names)
    chart = svg.frame(left + size + 2 + 0.5 * top, top + size + 2, "chart matrix", f"confusion of {len(names)} classes")
    chart.set("style", f"min-width: {0.8 * (left + size):.0f}px; max-width: {left + size + 0.5 * top:.0f}px")
    svg.add(chart, "rect", "empty", x=left, y=top, width=size, height=size)
    for number, name in enumerate(names):
        short = name if len(name) <= 28 else name[:27] + "…"
        middle = (number + 0.5) * side
        svg.text(chart, left - 6, top + middle + 4, short, "tick end")
        turned = svg.add(chart, "g", "", transform=f"translate({left + middle + 3:.1f} {top - 6:.1f}) rotate(-60)")
        svg.text(turned, 0, 0, short, "tick")
    sums = np.maximum(counts.sum(axis=1), 1)
    for row, column in np.argwhere(counts):
        count = int(counts[row, column])
        x, y = left + column * side, top + row * side
        kind = "cell" if row == column else "cell wrong"
        cell = svg.add(chart, "rect", kind, x=x + 0.5, y=y + 0.5, width=side - 1, height=side - 1)
        share = count / sums[row]
        cell.set("fill-opacity", f"{0.12 + 0.88 * share:.2f}")
        svg.title(cell, f"{names[row]} taken for {names[column]}: {count} of {sums[row]}")
        if side >= 22:
            svg.text(chart, x + side / 2, y + side / 2 + 4, str(count), f"{'over' if share > 0.5 else 'count'} middle")
    return svg.markup(chart)


def round_numbers(low: float, high: float) -> list[float]:
    """Three to seven round numbers, from below the lower to above the higher."""
    span = max(high - low, abs(high) * 1e-3, 1e-6)
    power = 10.0 ** math.floor(math.log10(span))
    step = next(power * part for part in (0.2, 0.25, 0.5, 1, 2) if span / (power * part) <= 5)
    first, last = math.floor(round(low / step, 6)), math.ceil(round(high / step, 6))
    return [round(step * number, 12) for number in range(first, max(last, first + 1) + 1)]


def _mark(chart: ET.Element, across: Callable[[float], float], y: float, cell: Cell, kind: str, words: str) -> None:
    x = across(cell.value)
    if cell.low is not None and cell.high is not None:
        svg.add(chart, "line", f"range {kind}", x1=across(cell.low), x2=across(cell.high), y1=y, y2=y)
    if kind.startswith("ours"):
        mark = svg.add(chart, "circle", kind, cx=x, cy=y, r=3.8)
    else:
        mark = svg.add(chart, "path", kind, d=f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z")
    svg.title(mark, words)


def _range(cells: Sequence[Cell | None], unit: str) -> tuple[float, float]:
    """What all numbers and intervals lie between, with a little room."""
    numbers = [number for cell in cells if cell for number in (cell.value, cell.low, cell.high) if number is not None]
    whole = 100.0 if unit == PERCENT else 1.0
    return max(0.0, min(numbers) - whole / 100), min(whole, max(numbers) + whole / 100)
