"""Finished runs of every kind, each read and checked by the reader of its kind."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from encode_pipeline.latents.command import CheckFailed, RequestError
from encode_pipeline.latents.spec import digest
from eval.report import evaluations, scored, steering, timings
from eval.report.evaluations import Evaluation
from eval.report.runs import REQUEST, RESULT, Run, damaged
from eval.report.scored import Scored
from eval.report.setups import Setup, names_of
from eval.report.steering import Steering

READERS: dict[str, Callable[[Path, dict[str, Any]], Run]] = {
    **dict.fromkeys(evaluations.VERBS, evaluations.read),
    **dict.fromkeys(scored.TASKS, scored.read),
    steering.TASK: steering.read,
    timings.TASK: timings.read,
}
"""By the task that a result.json names."""
VERBS = {**evaluations.VERBS, **scored.VERBS, steering.TASK: "reno", timings.TASK: "timing"}


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in these folders, each of them once and with a name that tells it from others."""
    runs = [read_run(folder) for folder in {folder.resolve(): folder for folder in folders}.values()]
    models = evaluations.names_of([run for run in runs if isinstance(run, Evaluation)])
    ways = names_of([setup for run in runs if (setup := setup_of(run))])
    named: list[Run] = []
    for run in runs:
        if isinstance(run, Evaluation):
            run = replace(run, name=models[run.identity])
        elif setup := setup_of(run):
            run = replace(run, name=ways[digest(setup.identity)])
        named.append(run)
    return named


def setup_of(run: Run) -> Setup | None:
    """What made the pictures that a run holds or judges."""
    return run.result if isinstance(run, Steering) else run.result.run if isinstance(run, Scored) else None


def read_run(folder: Path) -> Run:
    """The run in a folder; one that is unfinished or damaged is refused."""
    path = folder / RESULT
    if not folder.is_dir():
        raise RequestError(f"{folder}: no such folder")
    if not path.is_file():
        if not (folder / REQUEST).is_file():
            raise RequestError(f"{folder}: no {RESULT} and no {REQUEST}: not the folder of a run")
        raise CheckFailed(f"{folder}: not finished: no {RESULT}; go on with {_begun_by(folder)}, as it was begun")
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        written = None
    if not isinstance(written, dict):
        raise damaged(folder, "not a JSON object")
    task = written.get("task")
    if not isinstance(task, str) or task not in READERS:
        raise damaged(folder, f"task is {task!r}, not one of {', '.join(READERS)}")
    return READERS[task](folder, written)


def _begun_by(folder: Path) -> str:
    """The command that an unfinished folder is of, as far as it says."""
    try:
        task = json.loads((folder / REQUEST).read_bytes()).get("task")
    except (ValueError, AttributeError):
        task = None
    return f"`python -m eval {VERBS.get(task, 'VERB')} … out={folder}`"
