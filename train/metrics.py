"""What a run says as it goes: JSON lines always, a line on the console, TensorBoard and Weights & Biases if asked."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from encode_pipeline.latents.command import RequestError

FILE = "metrics.jsonl"


class MetricsLog:
    """`metrics.jsonl` of a run, and whatever else it was asked to tell.

    After a resume everything goes on where the checkpoint was, with no step twice.
    """

    def __init__(
        self,
        out: Path,
        resumed_at: int,
        total_steps: int,
        tensorboard: bool = False,
        wandb: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        board = _module("torch.utils.tensorboard", "tensorboard=true") if tensorboard else None
        tracker = _module("wandb", f"wandb={wandb}") if wandb is not None else None
        out.mkdir(parents=True, exist_ok=True)
        path = out / FILE
        _keep_lines(path, resumed_at)
        self._file = path.open("a", encoding="utf-8")
        self._total = total_steps
        self._paced: tuple[float, int] | None = None
        # Whatever a killed run wrote beyond its checkpoint comes again: TensorBoard is told to forget it, and wandb
        # keeps what it has.
        self._board = board.SummaryWriter(str(out / "tensorboard"), purge_step=resumed_at + 1) if board else None
        self._run = _wandb_run(tracker, str(wandb), out, settings) if tracker else None

    def write(self, line: Mapping[str, Any]) -> None:
        """One line, readable by others as soon as this returns."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        values = {key: value for key, value in line.items() if key != "step" and value is not None}
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, line["step"])
            self._board.flush()
        if self._run is not None:
            self._run.log(values, step=line["step"])
        print(self._console(line), file=sys.stderr, flush=True)

    def close(self, failed: bool = False) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._run is not None:
            self._run.finish(exit_code=int(failed))

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close(failed=kind is not None)

    def _console(self, line: Mapping[str, Any]) -> str:
        step, rate = line["step"], line["samples_per_second"]
        parts = [
            f"step {step}/{self._total}",
            f"loss {line['loss']:.3f}",
            f"in-batch accuracy {line['accuracy']:.1%}",
            f"{rate:,.{0 if rate >= 10 else 1}f} samples/s",
            f"waiting for data {line['data_wait']:.0%}",
        ]
        if line.get("mfu") is not None:
            parts.append(f"MFU {line['mfu']:.1%}")
        if line.get("zero_shot_acc1") is not None:
            parts.append(f"zero-shot {line['zero_shot_acc1']:.1%}")
        if line.get("skipped"):
            parts.append(f"{line['skipped']:,} samples skipped")
        if (left := self._seconds_left(step)) is not None and step < self._total:
            parts.append(f"{duration(left)} left")
        return "  ".join(parts)

    def _seconds_left(self, step: int) -> float | None:
        """From the pace since the first line, before which there are compiling and warming up."""
        now = time.monotonic()
        if self._paced is None:
            self._paced = now, step
            return None
        since, first = self._paced
        return (now - since) / max(1, step - first) * (self._total - step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; one cut off by a crash is left out, with whatever follows it."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def duration(seconds: float) -> str:
    """Seconds as a person says them: 40 s, 12 min, 3 h 05 min, 2 d 07 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02} min"
    return f"{hours // 24} d {hours % 24:02} h"


def _keep_lines(path: Path, last_step: int) -> None:
    """Takes away the lines after a step, all at once or not at all."""
    kept = [line for line in read_metrics(path) if line["step"] <= last_step]
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in kept)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _module(name: str, key: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RequestError(f"{key}: {error}; install latent-clip-pipeline[tracking]") from None


def _wandb_run(wandb: Any, project: str, out: Path, settings: Mapping[str, Any] | None) -> Any:
    """The run's page at Weights & Biases: the same one whenever the same folder goes on."""
    name = out / "wandb_id"
    if not name.exists():
        name.write_text(uuid.uuid4().hex[:12] + "\n")
    run_id = name.read_text().strip()
    try:
        return wandb.init(
            project=project, id=run_id, name=out.name, resume="allow", dir=str(out), config=dict(settings or {})
        )
    except wandb.Error as error:
        raise RequestError(f"wandb={project}: {' '.join(str(error).split())}") from None
