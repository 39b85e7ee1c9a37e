"""What steering did to its own rewards: a row for each run and reward."""

from __future__ import annotations

from collections.abc import Sequence

from eval.report.cells import cell_of
from eval.report.steering import Steering
from eval.report.table import Column, Row, Table

COLUMNS = [
    Column("risen", "", "risen, %", "risen", digits=0),
    Column("first", "Mean score", "as generated", "first", digits=4),
    Column("kept", "Mean score", "kept", "kept", digits=4),
    Column("rise", "Mean score", "rise", "rise", digits=4),
]


def steering_table(runs: Sequence[Steering]) -> Table:
    """How many items ended with a lower loss than they began with, and what each reward rose by."""
    rows = []
    for run in runs:
        for reward in run.result.rewards:
            name = f"{run.name}, {run.result.prompts.address}"
            name += f" ({reward.name})" if len(run.result.rewards) > 1 else ""
            measured = run.measured(reward.name)
            reasons = {id(run): tuple(run.reasons)}
            cells = [
                cell_of(one, [(run, measured[one.metric])] if one.metric in measured else [], reasons, None)
                for one in COLUMNS
            ]
            rows.append(Row(name, cells))
    about = [
        "risen: the share of pictures whose kept noise has a lower loss than the one they began with",
        "scores as each reward gives them, higher is better; of avoiding, one less the cosine to what is avoided",
    ]
    return Table("steering", "Steered", about, list(COLUMNS), rows, unit="")
