"""What runs in a process of its own, and the memory of this one, as the kernel counts it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from demo.report_machine import ROOT
from encode_pipeline.latents.command import CheckFailed

MEBIBYTE = 1 << 20
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(name: str) -> int:
    """Bytes in memory: `VmRSS` now, `VmHWM` at most since the last reset."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit(f"error: {STATUS} has no {name}")
    return int(found[1]) * 1024


def forget_peak() -> None:
    """Starts the high-water mark again from here."""
    CLEAR.write_text("5")


def answer_of(module: str, *words: object, **environment: str) -> dict[str, Any]:
    """What `python -m MODULE WORDS` says in its last line, as JSON. What went wrong there is on the console."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CheckFailed(f"{module} {words[0]}: ended with exit status {done.returncode}; see above")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
