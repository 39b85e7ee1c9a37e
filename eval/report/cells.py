"""One number of a table, from the runs that measured it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from encode_pipeline.latents.command import CheckFailed
from eval.report.runs import Run
from eval.report.table import Cell, Column

ROUNDING = 1e-9


@dataclass(frozen=True)
class Measured:
    """A number as a run has it, in the table's unit."""

    value: float
    low: float | None = None
    high: float | None = None


def cell_of(
    column: Column,
    measured: Sequence[tuple[Run, Measured]],
    reasons: Mapping[int, tuple[str, ...]],
    published_value: float | None,
) -> Cell | None:
    """What these runs of one model have for a column, if any has; two that disagree are an error."""
    if not measured:
        return None
    (first, number), *others = measured
    for run, other in others:
        if abs(other.value - number.value) > ROUNDING:
            raise CheckFailed(
                f"{first.folder} and {run.folder}: the same model on the same pictures, {column.metric} "
                f"{number.value:.4g} and {other.value:.4g}; leave one of them out"
            )
    why = reasons[id(first)]
    difference = None if published_value is None or why else round(number.value, column.digits) - published_value
    return Cell(number.value, first, number.low, number.high, why, difference, column.digits)
