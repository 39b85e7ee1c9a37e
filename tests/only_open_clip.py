"""A Python that has open_clip_torch and what it requires, and nothing else of this project's environment."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

STRANGERS = ("train", "encode_pipeline", "eval", "webdataset", "ray", "diffusers", "pydantic", "pyarrow")


def requirements_of(name: str) -> set[str]:
    """A distribution and everything that it requires here, by name."""
    seen: set[tuple[str, str]] = set()
    waiting = [(name, "")]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for line in importlib.metadata.distribution(name).requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                waiting += [(requirement.name, more) for more in ("", *requirement.extras)]
    return {name for name, _ in seen}


def link_site(folder: Path) -> Path:
    """A folder of links to those distributions alone, as site-packages of a fresh environment would hold them."""
    folder.mkdir()
    for name in requirements_of("open_clip_torch"):
        for file in importlib.metadata.distribution(name).files or []:
            link = folder / file.parts[0]
            if file.parts[0] not in ("..", "__pycache__") and not link.is_symlink():
                link.symlink_to(
                    Path(str(file.locate())).parents[len(file.parts) - 2] if len(file.parts) > 1 else file.locate()
                )
    return folder


def run_isolated(site: Path, code: str, cwd: Path) -> str:
    """What the code prints in an interpreter that sees the standard library and this folder."""
    first = (
        f"import sys, importlib.util; sys.path.append({str(site)!r})\n"
        f"assert not [name for name in {STRANGERS!r} if importlib.util.find_spec(name)], 'not isolated'\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", first + code],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
