"""The GPU as a benchmark sees it: what it is, when it is through with its work, and what memory that took."""

from __future__ import annotations

import gc
import os
import subprocess
from typing import Any

import torch


def facts(device: torch.device) -> dict[str, Any]:
    """Which hardware and drivers; on a CPU, that its numbers are none to compare."""
    if device.type == "cpu":
        return {"device": "cpu", "not_comparable": "run on a CPU, to try the code"}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "multiprocessors": properties.multi_processor_count,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cores": len(os.sched_getaffinity(0)),
        **_of_driver(properties.name),
    }


def _of_driver(name: str) -> dict[str, str]:
    """What NVIDIA's own tool says of the first GPU of this name; nothing where there is no such tool."""
    asked = ("driver_version", "power.limit", "clocks.max.sm")
    words = ["nvidia-smi", f"--query-gpu=name,{','.join(asked)}", "--format=csv,noheader"]
    try:
        lines = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return {}
    told = next((values for values in ([*map(str.strip, line.split(","))] for line in lines) if values[0] == name), [])
    return dict(zip(asked, told[1:], strict=False))


def wait_for(device: torch.device) -> None:
    """Until the device is through with all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device: torch.device) -> None:
    """Gives back what nobody holds any more, and what torch keeps of it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


class PeakMemory:
    """The most memory above what was in use at the start."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._before = device, 0
        release(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)

    def gigabytes(self) -> float | None:
        """None on a CPU, where torch does not count."""
        if self._device.type == "cpu":
            return None
        return (torch.cuda.max_memory_allocated(self._device) - self._before) / 1e9
