"""Training curves as one picture of small panels: a run by itself, or several over the same axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from encode_pipeline.latents.command import CheckFailed, RequestError
from train.metrics import FILE, read_metrics

Lines = Sequence[Mapping[str, Any]]
Numbers = npt.NDArray[np.float64]

BINS = 240
"""More points than this are drawn as the mean of each of so many stretches, and the range in it."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#6a3d9a", "#555555")
INK, PALE = "#222222", "#777777"
ACROSS = 3


@dataclass(frozen=True)
class Panel:
    key: str
    title: str
    share: bool = False
    """Of one: drawn as per cent, up from zero."""
    log: bool = False


PANELS = (
    Panel("loss", "loss"),
    Panel("accuracy", "accuracy in the batch", share=True),
    Panel("zero_shot_acc1", "zero-shot accuracy", share=True),
    Panel("logit_scale", "logit scale"),
    Panel("logit_bias", "logit bias"),
    Panel("grad_norm", "gradient norm", log=True),
    Panel("lr", "learning rate"),
    Panel("samples_per_second", "samples a second"),
    Panel("data_wait", "share of time waiting for data", share=True),
    Panel("mfu", "share of the GPUs' peak (MFU)", share=True),
)


def write_curves(runs: Mapping[str, Lines], path: Path, title: str) -> None:
    """A PNG with a panel for each number that the runs' lines hold, over the samples seen; nothing without lines."""
    if not all(runs.values()):
        return
    if len(runs) > len(COLOURS):
        raise RequestError(f"{len(runs)} runs in one picture; {len(COLOURS)} at most")
    panels = [panel for panel in PANELS if any(panel.key in line for lines in runs.values() for line in lines)]
    rows = math.ceil(len(panels) / ACROSS)
    head = 0.62 + 0.22 * len(runs)
    height = head + 2.5 * rows + 0.3
    body = ConstrainedLayoutEngine(rect=(0.005, 0.3 / height, 0.985, 2.5 * rows / height), w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(12, height), dpi=150, facecolor="white", layout=body)
    grid = figure.subplots(rows, ACROSS, squeeze=False)
    for place, panel in zip(grid.flat, panels, strict=False):
        _draw(place, panel, runs)
    for place in list(grid.flat)[len(panels) :]:
        place.set_axis_off()
    figure.text(0.012, 1 - 0.16 / height, title, fontsize=14, color=INK, va="top", weight="bold")
    for number, (colour, text) in enumerate(zip(COLOURS, _how_far(runs), strict=False)):
        ink = colour if len(runs) > 1 else PALE
        figure.text(0.012, 1 - (0.5 + 0.22 * number) / height, text, fontsize=10, color=ink, va="top")
    is_thinned = max(map(len, runs.values())) > BINS
    thinned = " · line: mean of a stretch, band: its least and most" if is_thinned else ""
    figure.text(0.012, 0.1 / height, f"across: samples seen{thinned}", fontsize=9, color=PALE)
    unfinished = path.with_name(f".{path.name}.unfinished")
    figure.savefig(unfinished, format="png")
    unfinished.replace(path)


def compare_runs(folders: Sequence[str], out: Path) -> None:
    """The curves of one or more runs' folders in one picture, at `out`."""
    runs: dict[str, Lines] = {}
    if not folders:
        raise RequestError("runs: no folder")
    for folder in folders:
        path = Path(folder) / FILE
        if not path.is_file():
            raise RequestError(f"{path}: no such file; runs= takes folders of training runs")
        if not (lines := read_metrics(path)):
            raise CheckFailed(f"{path}: no line of metrics yet")
        runs[folder] = lines
    names = [Path(folder).name for folder in runs]
    if len(set(names)) == len(names):
        runs = dict(zip(names, runs.values(), strict=True))
    if out.is_dir():
        raise RequestError(f"out={out}: is a folder; name the picture")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_curves(runs, out, ", ".join(runs) if len(runs) == 1 else f"{len(runs)} runs")


@dataclass(frozen=True)
class Curve:
    x: Numbers
    mean: Numbers
    least: Numbers
    most: Numbers


def reduced(x: Numbers, y: Numbers) -> Curve:
    """The points as they are; of too many, the mean, least and most of each of `BINS` equal stretches."""
    if len(x) <= BINS:
        return Curve(x, y, y, y)
    edges = np.linspace(x[0], x[-1], BINS + 1)[1:-1]
    starts = np.unique(np.searchsorted(x, np.concatenate([[x[0]], edges])))  # a stretch without a point is none
    sizes = np.diff(np.append(starts, len(x)))
    mean = [np.add.reduceat(values, starts) / sizes for values in (x, y)]
    return Curve(mean[0], mean[1], np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts))


def _draw(place: Axes, panel: Panel, runs: Mapping[str, Lines]) -> None:
    place.set_title(panel.title, loc="left", fontsize=10.5, color=INK)
    for colour, lines in zip(COLOURS, runs.values(), strict=False):
        _curve(place, lines, panel, colour)
        if panel.key == "zero_shot_acc1":
            _curve(place, lines, Panel("zero_shot_acc5", ""), colour, style=(0, (1, 1.5)))
    if panel.key == "zero_shot_acc1":
        note = "line: first answer · dotted: among five"
        place.text(0.99, 0.03, note, transform=place.transAxes, fontsize=8, color=PALE, ha="right")
    if len(runs) == 1 and (last := [line[panel.key] for line in next(iter(runs.values())) if panel.key in line]):
        place.set_title(_said(panel, last[-1]), loc="right", fontsize=10.5, color=COLOURS[0], weight="bold")
    place.set_xlim(left=0)
    if panel.share or panel.key == "samples_per_second":
        top = place.get_ylim()[1]
        place.set_ylim(0, max(top, 0.05) if panel.key == "data_wait" else top)  # a thousandth is no mountain
    if panel.log:
        place.set_yscale("log")
    low, high = place.get_ylim()
    decades = LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,), numticks=6)
    for axis, is_log, as_share in ((place.xaxis, False, False), (place.yaxis, panel.log, panel.share)):
        axis.set_major_locator(decades if is_log else MaxNLocator(5))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(_percent if as_share else _short)
    place.tick_params(labelsize=9, labelcolor=PALE, length=0)
    place.grid(color="#e6e6e6", linewidth=0.8)
    place.set_axisbelow(True)
    for side in place.spines.values():
        side.set_visible(False)


def _curve(place: Axes, lines: Lines, panel: Panel, colour: str, style: Any = "solid") -> None:
    points = [(line["samples"], line[panel.key]) for line in lines if line.get(panel.key) is not None]
    if not points:
        return
    x, y = np.array(points, dtype=np.float64).T
    curve = reduced(x, y)
    if len(curve.x) < len(x):
        place.fill_between(curve.x, curve.least, curve.most, color=colour, alpha=0.18, linewidth=0)
    marker = "o" if len(curve.x) < 20 else None
    place.plot(curve.x, curve.mean, color=colour, linewidth=1.5, linestyle=style, marker=marker, markersize=3)


def _said(panel: Panel, value: float) -> str:
    if panel.share:
        return f"{value:.1%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _short(value: float, _: object) -> str:
    """A tick's number with thousands, millions and billions by their letter."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _percent(value: float, _: object) -> str:
    return f"{100 * value:g}%"


def _how_far(runs: Mapping[str, Lines]) -> list[str]:
    told = []
    for name, lines in runs.items():
        last = lines[-1]
        skipped = f", {last['skipped']:,} skipped" if last.get("skipped") else ""
        begin = f"{name}: " if len(runs) > 1 else ""
        told.append(f"{begin}{last['step']:,} steps, {last['samples']:,} samples{skipped}")
    return told
