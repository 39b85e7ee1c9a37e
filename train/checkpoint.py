"""Checkpoints: written whole or not at all, in OpenCLIP's shape, with the LatentSpec inside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from encode_pipeline.latents.command import RequestError

KEYS = {"epoch", "name", "state_dict", "step", "spec", "architecture"}
"""Of every checkpoint; one to resume from has `optimizer` and `settings` besides."""


def save_checkpoint(folder: Path, content: dict[str, Any], keep: int) -> Path:
    """Writes `step_N.pt`, then forgets all but the last few."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{content['step']:08d}.pt"
    unfinished = folder / f".{path.name}.unfinished"
    with unfinished.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    return sorted(folder.glob("step_*.pt"))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint file, or the latest one of a run's folder; read without running any code in it."""
    if path.is_dir():
        found = checkpoints(path / "checkpoints") or checkpoints(path) or sorted(path.glob("model.pt"))
        if not found:
            raise RequestError(f"{path}: no checkpoint in this folder")
        path = found[-1]
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RequestError(f"{path}: no such checkpoint") from None
    except Exception as error:  # torch raises many kinds on bytes that are no checkpoint, with advice not to follow
        raise RequestError(f"{path}: not a checkpoint that can be read safely ({type(error).__name__})") from None
    lacking = KEYS - set(content) if isinstance(content, dict) else KEYS
    if lacking:
        raise RequestError(f"{path}: not a checkpoint of this trainer: no {', '.join(sorted(lacking))}")
    kinds = {"epoch": int, "name": str, "step": int}
    if wrong := [key for key in KEYS if not isinstance(content[key], kinds.get(key, dict))]:
        raise RequestError(f"{path}: not a checkpoint of this trainer: {', '.join(sorted(wrong))} of another kind")
    return dict(content)
