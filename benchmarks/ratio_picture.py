"""How many times better than the straightforward way: every ratio of a record, in one picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.table import machine_in_words, number

BETTER, WORSE, GREY = "#0b7285", "#c2410c", "#868e96"
ROW = 0.27
HEADING: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": 8.5, "fontweight": "bold"}


def draw_ratios(record: Mapping[str, Any], path: Path) -> bool:
    """Writes the picture; False, and no file, where nothing is compared with anything."""
    rows = _rows(record)
    if not rows:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 1.3 + ROW * len(rows)), layout="constrained")
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
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}×" if f"{value:.0e}"[0] in "25" else "")
    axes.tick_params(axis="x", which="both", labelsize=8)
    bars = [(place, label) for place, (label, ratio) in enumerate(rows) if ratio]
    axes.set_yticks([place for place, _ in bars], [label for _, label in bars], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.12)
    axes.grid(axis="x", alpha=0.25)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(
        f"Times better than what it is compared with; lines from least to most of the rounds\n"
        f"{machine_in_words(record['machine'])}",
        fontsize=9,
        loc="left",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return True


def _rows(record: Mapping[str, Any]) -> list[tuple[str, tuple[float, float, float] | None]]:
    """Label and ratio of each bar, under a heading for each benchmark and for what it is compared with."""
    rows: list[tuple[str, tuple[float, float, float] | None]] = []
    for name, benchmark in record["benchmarks"].items():
        heading = None
        for figure in benchmark["figures"]:
            if "ratio" in figure and figure["against"] != figure["name"] and figure["better"] != "neither":
                if heading != figure["against"]:
                    heading = figure["against"]
                    rows.append((f"{name}, against {heading}", None))
                rows.append((figure["name"], _times_better(figure)))
    return rows


def _times_better(figure: Mapping[str, Any]) -> tuple[float, float, float]:
    ratio = figure["ratio"]
    if figure["better"] == "more":
        return ratio["median"], ratio["least"], ratio["most"]
    return 1 / ratio["median"], 1 / ratio["most"], 1 / ratio["least"]
