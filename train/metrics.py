"""One JSON line every few steps, and the same said to a person."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


class MetricsLog:
    """`metrics.jsonl` of a run. After a resume it goes on where the checkpoint was, with no step twice."""

    def __init__(self, path: Path, resumed_at: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(path) if line["step"] <= resumed_at]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._path = path

    def write(self, line: dict[str, Any], total_steps: int) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(
            f"step {line['step']}/{total_steps}  loss {line['loss']:.3f}  in-batch accuracy {line['accuracy']:.1%}"
            f"  {line['samples_per_second']:.0f} samples/s  waiting for data {line['data_wait']:.0%}",
            file=sys.stderr,
            flush=True,
        )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; one cut off by a crash is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
