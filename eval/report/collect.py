"""Finished runs of every kind, each read and checked by the reader of its kind."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from encode_pipeline.latents.command import CheckFailed, RequestError
from eval.report import evaluations, scored, steering, timings
from eval.report.runs import REQUEST, RESULT, Run, damaged

Reader = Callable[[Path, dict[str, Any]], Run]

READERS: dict[str, Reader] = {
    **dict.fromkeys(evaluations.TASKS, evaluations.read),
    steering.TASK: steering.read,
    **dict.fromkeys(scored.TASKS, scored.read),
    timings.TASK: timings.read,
}
"""By the task that a result.json names."""

VERBS = {**evaluations.VERBS, steering.TASK: "reno", timings.TASK: "timing", **dict(zip(scored.TASKS, scored.VERBS))}


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in these folders, each of them once, the models of all told apart by name."""
    runs = [read_run(folder) for folder in {folder.resolve(): folder for folder in folders}.values()]
