"""Where a number came from: everything that its run left about itself."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from eval.report.runs import CONFIG, Run

SHOWN_ELSEWHERE = ("ok", "metrics", "intervals", "not_comparable")


def command_of(run: Run) -> str:
    """What gives these numbers again."""
    return f"python -m eval {run.verb} --config {shlex.quote(str(run.folder / CONFIG))}"


def facts_of(run: Run) -> dict[str, str]:
    """All that result.json says of the run besides its scores, level by level, and the command."""
    found = {"folder": str(run.folder), "command": command_of(run)}
    found |= dict(_flat({key: value for key, value in run.written.items() if key not in SHOWN_ELSEWHERE}))
    return found


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}: ")
        elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
            yield from _flat({f"{name} {number}": one for number, one in enumerate(value, 1)})
        elif isinstance(value, list):
            yield name, ", ".join(map(str, value)) or "none"
        else:
            yield name, "none" if value is None or value == {} else str(value)
