"""What the demo ran on: software, processor, and the state of the source tree."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DISTRIBUTIONS = {
    "torch": "torch",
    "diffusers": "diffusers",
    "open_clip": "open_clip_torch",
    "ray": "ray",
    "webdataset": "webdataset",
    "albumentations": "albumentations",
    "numpy": "numpy",
}
ROOT = Path(__file__).parents[1]


def software() -> dict[str, str]:
    """Versions by name; what is not installed is left out, since no step can have used it."""
    found = {"python": platform.python_version()}
    for name, distribution in DISTRIBUTIONS.items():
        try:
            found[name] = version(distribution)
        except PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The CPU's name and how many cores this process may use."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def memory_gb() -> float:
    """Of the whole machine."""
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def graphics() -> dict[str, str] | None:
    """The GPU's name and memory, CUDA and the driver; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    about = torch.cuda.get_device_properties(0)
    found = {"name": about.name, "memory_gb": f"{about.total_memory / 1e9:.1f}", "cuda": str(torch.version.cuda)}
    driver = Path("/proc/driver/nvidia/version")
    if driver.exists():
        found["driver"] = driver.read_text(errors="replace").splitlines()[0]
    return found


def git_commit() -> str | None:
    """The commit of the source tree, marked if files differ from it; None outside of a checkout."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    return f"{commit}, with uncommitted changes" if _git("status", "--porcelain", "--untracked-files=no") else commit


def _git(*words: str) -> str | None:
    """What git says, or None if it is not installed or has nothing to say."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
