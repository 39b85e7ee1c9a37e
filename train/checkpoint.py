"""Checkpoints: written whole or not at all, in OpenCLIP's shape, with the LatentSpec inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from encode_pipeline.latents.command import CheckFailed, RequestError, one_line
from encode_pipeline.latents.disk import sync

KINDS: dict[str, type] = {
    "epoch": int,
    "name": str,
    "step": int,
    "state_dict": dict,
    "spec": dict,
    "architecture": dict,
}
"""What every checkpoint holds. One that training can go on from also has `optimizer` and `settings`."""


def save_checkpoint(folder: Path, content: dict[str, Any], keep: int) -> Path:
    """Writes `step_N.pt`, then forgets all but the last few. Without room for it, those before stay as they are."""
    path = folder / f"step_{content['step']:08d}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_checkpoint(path, content)
    except OSError as error:
        rest = checkpoints(folder)
        good = f"the last good checkpoint is {rest[-1].name}" if rest else "there is no checkpoint yet"
        raise CheckFailed(f"{path}: {error.strerror or one_line(error)}; {good}; the same command goes on") from error
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def history(content: Mapping[str, Any]) -> dict[str, Any]:
    """How the weights in a checkpoint came to be, as far as it says: what it does not say is None."""
    step, settings = content["step"], content.get("settings", {})
    tuned_from = settings.get("checkpoint")
    is_counted = "batch_size" in settings and tuned_from is None and "imported_from" not in content
    return {
        "step": step,
        "epoch": content["epoch"],
        "samples": step * settings["batch_size"] if is_counted else None,
        "imported_from": content.get("imported_from"),
        "fine_tuned_from": tuned_from,
    }


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Makes the file appear whole; if it cannot, nothing of it stays."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            torch.save(content, file)
        sync(unfinished)
        unfinished.replace(path)
        sync(path.parent)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch reports a full disk as a failed check of its own
            raise error.__context__ from None
        raise
    finally:
        unfinished.unlink(missing_ok=True)


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
    lacking = set(KINDS) - set(content) if isinstance(content, dict) else set(KINDS)
    if lacking:
        raise RequestError(f"{path}: not a checkpoint of this trainer: no {', '.join(sorted(lacking))}")
    if wrong := [key for key, kind in KINDS.items() if not isinstance(content[key], kind)]:
        raise RequestError(f"{path}: not a checkpoint of this trainer: {', '.join(sorted(wrong))} of another kind")
    return dict(content)
