"""The file that a run of benchmarks leaves: every figure, and the machine and the code that it is of."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import Measured, significant
from demo.report_machine import git_commit, graphics, memory_gb, processor, software
from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.spec import digest

FORMAT = 2
OF_NO_ACCOUNT = ("rounds", "passes", "out", "scratch")
"""Settings that change no figure's meaning."""


def record_of(benchmarks: Mapping[str, Mapping[str, Any]], seconds: float) -> dict[str, Any]:
    """What was measured, with all that is needed to judge it."""
    return {
        "format": FORMAT,
        "machine": {"processor": processor(), "memory_gb": memory_gb(), "gpu": graphics()},
        "load_average": [round(load, 2) for load in os.getloadavg()],  # well above the cores: others were at work too
        "software": software(),
        "commit": git_commit(),
        "seconds": round(seconds, 1),
        "benchmarks": dict(benchmarks),
    }


def entry(about: str, settings: Mapping[str, Any], measured: Measured, seconds: float) -> dict[str, Any]:
    """One benchmark's part of the record."""
    return {"about": about, "settings": dict(settings), "seconds": round(seconds, 1), **measured.to_dict()}


def write_record(record: Mapping[str, Any], path: Path) -> None:
    """Whole or not at all: an older one stays until the new one is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


@dataclass(frozen=True)
class Stated:
    """A figure as a record states it: its median, and between what its rounds lay."""

    unit: str
    better: str
    median: float
    least: float
    most: float
    exact: bool
    settings: str
    """A mark of what the benchmark was told: figures of other sizes are not compared."""


def read_record(path: Path) -> dict[str, Any]:
    """A record, or one line on why the file is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise RequestError(f"{path}: a folder; name the .json in it") from None
    except (ValueError, UnicodeDecodeError):
        raise RequestError(f"{path}: not JSON") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format", "none") if isinstance(content, dict) else "none"
        raise RequestError(f"{path}: not a record of benchmarks in format {FORMAT} (format: {found})")
    for part in ("machine", "benchmarks"):
        if not isinstance(content.get(part), dict):
            raise RequestError(f"{path}: a damaged record: has no {part}")
    return content


def stated(record: Mapping[str, Any], where: Path) -> dict[tuple[str, str, str], Stated]:
    """The figures of a record, and their ratios as figures of their own, by benchmark, name and unit."""
    found = {}
    try:
        for benchmark, content in record["benchmarks"].items():
            settings = digest({key: value for key, value in content["settings"].items() if key not in OF_NO_ACCOUNT})
            for figure in content["figures"]:
                name, better, exact = figure["name"], figure["better"], bool(figure.get("exact"))
                found[benchmark, name, figure["unit"]] = _stated(figure, figure["unit"], better, exact, settings)
                if "ratio" in figure and figure["against"] != name:
                    unit = f"times {figure['against']}"
                    found[benchmark, name, unit] = _stated(figure["ratio"], unit, better, exact, settings)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RequestError(f"{where}: a damaged record: {type(error).__name__} {error}") from None
    return found


def _stated(values: Mapping[str, Any], unit: str, better: str, exact: bool, settings: str) -> Stated:
    median, least, most = (significant(float(values[key])) for key in ("median", "least", "most"))
    return Stated(unit, better, median, least, most, exact, settings)
