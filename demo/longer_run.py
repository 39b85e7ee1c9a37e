"""What a longer demo reached: `python -m demo.longer_run OUT` records a finished one, for the page to compare with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from demo.report_machine import processor
from demo.report_run import read_run
from demo.report_zero_shot import scores

RECORD = Path(__file__).parent / "longer_run.json"
LENGTH = ("train_pictures", "test_pictures", "steps")


def record(out: Path) -> dict[str, Any]:
    """The scores of a finished demo, with the command that repeats it."""
    run = read_run(out)
    asked = json.loads((out / "steps.json").read_text())["asked"]
    words = " ".join(f"{key}={asked[key]}" for key in LENGTH)
    return {
        "command": f"python -m demo run {words} out=runs/demo-longer",
        "minutes": round(sum(step["seconds"] for step in run.steps.values()) / 60, 1),
        "processor": processor(),
        "scores": [
            {"name": score.name, "value": score.value, "low": score.low, "high": score.high}
            for score in scores(run.predictions, run.classes).values()
        ],
        "n": len(run.predictions),
    }


def read_record() -> dict[str, Any] | None:
    """The recorded longer run, if there is one."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else None


if __name__ == "__main__":
    RECORD.write_text(json.dumps(record(Path(sys.argv[1])), indent=1) + "\n")
