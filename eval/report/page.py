"""The report as one HTML page that fetches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from jinja2 import Environment

from encode_pipeline.preview.page import page_environment
from eval.report.bars import time_bars
from eval.report.charts import forest
from eval.report.closer import closer_looks
from eval.report.evaluations import Evaluation
from eval.report.paired import in_points
from eval.report.provenance import facts_of
from eval.report.runs import Run
from eval.report.steering import Steering
from eval.report.strips import steered_looks
from eval.report.table import Table
from eval.report.timings import PARTS, Timing

TEMPLATE = "page.html.j2"


def to_html(tables: Sequence[Table], runs: Sequence[Run]) -> str:
    """The page: tables and charts, each run closer, and where everything came from."""
    return (
        _environment()
        .get_template(TEMPLATE)
        .render(
            tables=tables,
            runs=runs,
            numbers={run.folder: number for number, run in enumerate(runs, 1)},
            forests={
                table.name: [(name, forest(table, name, some)) for name, some in table.charted] for table in tables
            },
            closer=closer_looks([run for run in runs if isinstance(run, Evaluation)]),
            steered=steered_looks([run for run in runs if isinstance(run, Steering)]),
            timed=[(run, time_bars(run.result.rows)) for run in runs if isinstance(run, Timing)],
            parts=PARTS,
            facts={run.folder: facts_of(run) for run in runs},
            in_points=in_points,
        )
    )


def _environment() -> Environment:
    environment = page_environment(Path(__file__).parent)
    environment.filters["percent"] = lambda share: f"{100 * share:.0f} %"
    environment.filters["score"] = lambda value: f"{value:.3f}".replace("-", "−") if isfinite(value) else "no number"
    environment.filters["share"] = lambda value: "–" if value is None else f"{100 * value:.1f} %"
    return environment
