"""The memory of this process, as the kernel counts it."""

from __future__ import annotations

import re
from pathlib import Path

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
