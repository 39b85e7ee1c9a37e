"""What benchmarks say of pictures, laid out as the paper's Tables 2 to 5."""

from __future__ import annotations

from collections.abc import Sequence

from eval.report.cells import Measured, cell_of
from eval.report.published import PublishedRow, PublishedTable, published
from eval.report.runs import Run
from eval.report.scored import Scored
from eval.report.table import Cell, Column, Row, Table
from eval.report.timing_table import TIMES, reasons_of, timed_for
from eval.report.timings import TimedRow, Timing

TABLES = {"compbench": "table2", "geneval": "table3", "i2p": "table4", "cultural": "table5"}
TITLES = {
    "compbench": "T2I-CompBench",
    "geneval": "GenEval",
    "i2p": "Inappropriate pictures (I2P)",
    "cultural": "Explicit pictures for culturally biased prompts",
}
SAYS = {
    "compbench": "scores from 0 to 1, aesthetic from 1 to 10: higher is better; seconds: lower is",
    "geneval": "shares of pictures from 0 to 1, aesthetic from 1 to 10: higher is better; seconds: lower is",
    "i2p": "shares of pictures from 0 to 1 that Q16 or NudeNet finds inappropriate: lower is better; "
    "the paper's table is turned, so that a row is a model as in the others",
    "cultural": "shares of pictures from 0 to 1 that NudeNet finds explicit: lower is better",
}
DIGITS = 2
CHARTED = {
    "compbench": ("color", "shape", "texture"),
    "geneval": ("mean",),
    "i2p": ("all",),
    "cultural": ("nigerian", "japanese", "asian"),
}
"""Columns."""


def benchmark_tables(runs: Sequence[Scored], timings: Sequence[Timing]) -> list[Table]:
    """A table for each benchmark that judged anything."""
    tasks = [task for task in TABLES if any(run.result.task == task for run in runs)]
    return [_table(task, [run for run in runs if run.result.task == task], timings) for task in tasks]


def _table(task: str, runs: list[Scored], timings: Sequence[Timing]) -> Table:
    paper = published(TABLES[task])
    columns = [
        Column(one["key"], one["group"], one["title"], one.get("metric", one["key"]), tuple(runs), one["key"], DIGITS)
        for one in paper.columns
    ]
    reasons: dict[int, tuple[str, ...]] = {id(run): _reasons(run, paper) for run in runs}
    by_name: dict[str, list[Scored]] = {}
    for run in runs:
        by_name.setdefault(run.name, []).append(run)
    rows = [(some[0].result.run.row_in(paper), name, some) for name, some in by_name.items()]
    order = {id(row): place for place, row in enumerate(paper.rows)}
    rows.sort(key=lambda row: order.get(id(row[0]), len(order)))
    ours = []
    for theirs, name, some in rows:
        values = theirs.values if theirs else {}
        timed = timed_for(some[0].result.run, timings)
        if timed:
            reasons |= {id(timed[0]): reasons_of(timed[0], paper)}
        cells = [cell_of(one, _measured(one.metric, some, timed), reasons, values.get(one.key)) for one in columns]
        ours.append(Row(name, cells, theirs.name if theirs else None))
    published_rows = [Row(row.name, [_published(row, column) for column in columns]) for row in paper.rows]
    charted = [(_chart_title(column), [column]) for column in columns if column.key in CHARTED[task]]
    about = [SAYS[task], *_subjects(runs)]
    return Table(task, TITLES[task], about, columns, ours, published_rows, paper, charted=charted, unit="")


def _reasons(run: Scored, paper: PublishedTable) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*run.reasons, *run.result.run.unlike(paper)]))


def _measured(metric: str, runs: Sequence[Scored], timed: tuple[Timing, TimedRow] | None) -> list[tuple[Run, Measured]]:
    """What was found out about the pictures of one way of making them."""
    if metric in TIMES:
        seconds = timed[1].seconds_of(metric) if timed else None
        return [] if seconds is None or timed is None else [(timed[0], Measured(seconds))]
    found: list[tuple[Run, Measured]] = []
    for run in runs:
        if (value := run.scores.get(metric)) is not None:
            found.append((run, Measured(value, *run.result.intervals.get(metric, (None, None)))))
    return found


def _chart_title(column: Column) -> str:
    return ": ".join(part for part in (column.group, column.title) if part)


def _subjects(runs: Sequence[Scored]) -> list[str]:
    """What was judged: of which of ours, where that is not the same for all."""
    subjects = list(dict.fromkeys(run.subject for run in runs))
    if len(subjects) == 1:
        return subjects
    return [f"{', '.join(run.name for run in runs if run.subject == one)}: {one}" for one in subjects]


def _published(row: PublishedRow, column: Column) -> Cell | None:
    value = row.values.get(column.key)
    return None if value is None else Cell(value, digits=column.digits)
