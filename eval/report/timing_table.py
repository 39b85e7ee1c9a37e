"""How long steering takes, beside the times of the paper's Table 2."""

from __future__ import annotations

from collections.abc import Sequence

from eval.report.cells import Measured, cell_of
from eval.report.published import PublishedTable, published
from eval.report.runs import Run
from eval.report.setups import Setup
from eval.report.table import Cell, Column, Row, Table
from eval.report.timings import PARTS, TimedRow, Timing

TIMES = ("seconds_per_iter", "seconds_total")


def timing_table(timings: Sequence[Timing]) -> Table:
    """A row for each way to steer, with what the paper says of the same model."""
    paper = published("table2")
    columns = [
        Column("seconds_per_iter", "Time (s)", "per iter.", "seconds_per_iter", digits=3),
        Column("seconds_total", "Time (s)", "total", "seconds_total", paper="seconds_total", digits=2),
    ]
    for part, (group, title) in PARTS.items():
        columns.append(Column(f"seconds_{part}", group, title, part, digits=3))
    ours = []
    for run in timings:
        reasons = {id(run): reasons_of(run, paper)}
        for row in run.result.rows:
            theirs = run.setup_of(row).row_in(paper)
            beside = [theirs.values.get(column.paper or "") if theirs else None for column in columns]
            cells = [
                cell_of(column, _measured(run, row, column), reasons, value)
                for column, value in zip(columns, beside, strict=True)
            ]
            ours.append(Row(_name(run, row, timings), cells, theirs.name if theirs else None))
    about = [f"{run.subject}: {run.told}" for run in timings]
    return Table("timing", "Time", about, columns, ours, _published(paper, len(PARTS)), paper, unit=" s")


def _measured(run: Timing, row: TimedRow, column: Column) -> list[tuple[Run, Measured]]:
    seconds = row.seconds_of(column.metric)
    return [] if seconds is None else [(run, Measured(seconds))]


def _name(run: Timing, row: TimedRow, timings: Sequence[Timing]) -> str:
    """What was timed, with the machine where there are several."""
    return row.name if len(timings) == 1 else f"{row.name} on {run.device}"


def _published(paper: PublishedTable, others: int) -> list[Row]:
    """The paper's times: those of a model are the same whatever reward it gave."""
    rows: dict[tuple[float, ...], list[str]] = {}
    for row in paper.rows:
        rows.setdefault(tuple(row.values[key] for key in TIMES), []).append(row.name)
    nothing: list[Cell | None] = [None] * others
    return [Row(_both(names), [*(Cell(time, digits=2) for time in times), *nothing]) for times, names in rows.items()]


def _both(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(name.rpartition(": ")[2] for name in names))


def timed_for(setup: Setup, timings: Sequence[Timing]) -> tuple[Timing, TimedRow] | None:
    """The first timing of the same rewards on the same generator, one picture at a time."""
    return next(
        (
            (run, row)
            for run in timings
            for row in run.result.rows
            if run.result.generator.get("weights_sha256") == setup.generator.get("weights_sha256")
            and run.setup_of(row).reward == setup.reward
            and [one.provenance for one in row.rewards] == [one.provenance for one in setup.rewards]
            and row.batch_size == 1
        ),
        None,
    )


def reasons_of(run: Timing, paper: PublishedTable) -> tuple[str, ...]:
    """Why a time cannot stand beside the paper's."""
    found = [*run.reasons, *Setup(generator=run.result.generator).unlike(paper)]
    if str(paper.data["hardware"]).removeprefix("NVIDIA ") not in run.device:
        found.append(f"timed on {run.device}, where the paper has {paper.data['hardware']}")
    return tuple(dict.fromkeys(found))
