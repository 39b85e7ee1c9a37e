"""How many times better than the straightforward way: every ratio of a record, in one picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import machine_in_words, number

BETTER, WORSE, GREY = "#0b7285", "#c2410c", "#868e96"
ROW, WIDTH, ROWS = 0.27, 9.0, 44
"""Inches a row and a column, and rows of a column, about."""
HEADING: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": 8.5, "fontweight": "bold"}
Row = tuple[str, tuple[float, float, float] | None]
"""A label and its ratio: median, least and most. A heading has none."""


def draw_ratios(record: Mapping[str, Any], path: Path) -> bool:
    """Writes the picture; False, and no file, where nothing is compared with anything."""
    columns = _in_columns([*_groups(record)])
    if not columns:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (WIDTH * len(columns), 1.2 + ROW * max(map(len, columns)))
    figure, all_axes = pyplot.subplots(1, len(columns), figsize=size, layout="constrained", squeeze=False, sharex=True)
    for axes, rows in zip(all_axes[0], columns, strict=True):
        _draw(axes, rows)
        axes.set_ylim(max(map(len, columns)) - 0.4, -0.6)
    title = "Times better than what it is compared with; lines from least to most of the rounds."
    figure.suptitle(f"{title} {machine_in_words(record['machine'])}", fontsize=9, x=0.01, ha="left", wrap=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def _draw(axes: Any, rows: Sequence[Row]) -> None:
    for place, (label, ratio) in enumerate(rows):
        if ratio is None:
            axes.annotate(label, (0, place), (-4, 0), ("axes fraction", "data"), "offset points", **HEADING)
            continue
        median, least, most = ratio
        colour = BETTER if least > 1 else WORSE if most < 1 else GREY
        axes.plot([1, median], [place, place], color=colour, linewidth=6, solid_capstyle="butt", alpha=0.85)
        axes.plot([least, most], [place, place], color="black", linewidth=1.1, marker="|", markersize=5)
        end = (max(median, most, 1), place)
        axes.annotate(f"{number(median)}×", end, (5, 0), textcoords="offset points", va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.tick_params(axis="x", labelsize=8)
    bars = [(place, label) for place, (label, ratio) in enumerate(rows) if ratio]
    axes.set_yticks([place for place, _ in bars], [label for _, label in bars], fontsize=8)
    axes.margins(x=0.06)
    axes.grid(axis="x", alpha=0.25)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _groups(record: Mapping[str, Any]) -> Iterator[list[Row]]:
    """The bars that are compared with the same, under a heading that says with what."""
    for name, benchmark in record["benchmarks"].items():
        rows: list[Row] = []
        heading = None
        for figure in benchmark["figures"]:
            if "ratio" in figure and figure["against"] != figure["name"] and figure["better"] != "neither":
                if heading != figure["against"]:
                    if rows:
                        yield rows
                    heading = figure["against"]
                    rows = [(f"{name}, against {heading}", None)]
                rows.append((figure["name"], _times_better(figure)))
        if rows:
            yield rows


def _in_columns(groups: Sequence[list[Row]]) -> list[list[Row]]:
    """Groups one under the other, in columns of about the same height; none is torn apart."""
    total = sum(map(len, groups))
    height = total / max(1, round(total / ROWS))
    columns: list[list[Row]] = []
    for group in groups:
        if not columns or len(columns[-1]) + len(group) / 2 > height:
            columns.append([])
        columns[-1] += group
    return columns


def _times_better(figure: Mapping[str, Any]) -> tuple[float, float, float]:
    ratio = figure["ratio"]
    if figure["better"] == "more":
        return ratio["median"], ratio["least"], ratio["most"]
    return 1 / ratio["median"], 1 / ratio["most"], 1 / ratio["least"]
