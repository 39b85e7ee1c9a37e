"""Runs laid out as the paper's tables, and where the paper has none, as tables of that shape."""

from __future__ import annotations

from collections.abc import Sequence

from eval.report.benchmark_tables import benchmark_tables
from eval.report.evaluations import Evaluation
from eval.report.runs import Run
from eval.report.scored import Scored
from eval.report.steering import Steering
from eval.report.steering_table import steering_table
from eval.report.table import Table
from eval.report.timing_table import timing_table
from eval.report.timings import Timing
from eval.report.zero_shot_tables import zero_shot_tables


def tables(runs: Sequence[Run]) -> list[Table]:
    """The paper's first to fifth, as far as something was measured for them; then times, and what rose."""
    timings = [run for run in runs if isinstance(run, Timing)]
    found = zero_shot_tables([run for run in runs if isinstance(run, Evaluation)])
    found += benchmark_tables([run for run in runs if isinstance(run, Scored)], timings)
    found += [timing_table(timings)] if timings else []
    steered = [run for run in runs if isinstance(run, Steering) and run.result.rewards]
    return [*found, *([steering_table(steered)] if steered else [])]
