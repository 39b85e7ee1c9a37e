"""`make train`: starts `python -m train` as fits this machine: a process for every GPU, or a short check."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encode_pipeline.latents.command import CheckFailed, RequestError, load_settings, one_line, parse, read_yaml
from train.__main__ import VERBS
from train.config import read_recipe
from train.stores import open_stores

DEMO = "runs/demo/store"
"""Where `python -m demo latents` leaves them."""
FOR_GPUS = 1024
"""Samples: a recipe with a larger batch is made for GPUs and for more data than the demo's."""
ON_CPU: dict[str, Any] = {
    "steps": 20,
    "batch_size": 16,
    "warmup": 4,
    "lr": 1.0e-4,
    "precision": "float32",
    "grad_checkpointing": False,
    "log_every": 1,
}
ON_DEMO: dict[str, Any] = {"steps": 300, "batch_size": 128, "warmup": 30, "lr": 5.0e-4, "grad_checkpointing": False}
"""With a GPU; the batch is of each."""


@dataclass(frozen=True)
class Start:
    """What will be run, and what is said about it before."""

    words: list[str]
    """After `python -m train`."""
    processes: int
    notes: list[str]


def plan(given: Sequence[str], gpus_here: int) -> Start:
    """How a training is started here. What was given is never changed; what was not is chosen to fit."""
    words = [word for word in given if not word.startswith("gpus=")]
    gpus = _gpus(given, gpus_here)
    request = parse("train", VERBS, words, default="run")
    if request.overrides.get("help"):
        return Start(words, 1, [])
    said = (read_yaml(request.config) if request.config else {}) | request.overrides
    model = str(said.get("model", "latent-vit-demo"))
    batch = _recipes_batch(model)
    is_demo = said.get("data") == DEMO
    short = (gpus == 0 or is_demo) and batch > FOR_GPUS
    chosen: dict[str, Any] = {"model": model, "out": f"runs/{Path(model).stem}{'-check' if short else ''}"}
    if short:
        chosen |= ON_DEMO | {"batch_size": ON_DEMO["batch_size"] * gpus} if gpus else ON_CPU
    if "samples" in said:
        chosen.pop("steps", None)
    words += [
        f"{key}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in chosen.items()
        if key not in said
    ]
    config: Any = load_settings(VERBS["run"], VERBS.values(), parse("train", VERBS, words, default="run"))
    where = f"on {gpus} GPU{'s' if gpus > 1 else ''}" if gpus else "on the CPU: there is no GPU here"
    notes = [f"Training {model} {where}; into {config.out}."]
    if short:
        notes += [
            f"This is a check that everything runs, and not a training: {config.total_steps} steps of "
            f"{config.batch_size} samples, where the recipe has batches of {batch:,}"
            + (" and the demo has a few hundred pictures." if is_demo else "."),
            "Its numbers are not comparable with any other. For the whole recipe: "
            f"make train MODEL={model} DATA=STORE GPUS=8, with a store of your own on a machine with GPUs.",
        ]
    return Start(words, max(1, gpus), notes)


def check(start: Start) -> None:
    """Finds a wrong request before several processes do: told here in one line, and not by torchrun in fifty."""
    request = parse("train", VERBS, start.words, default="run")
    if start.processes > 1 and request.verb == "run" and not request.overrides.get("help"):
        config: Any = load_settings(VERBS["run"], VERBS.values(), request)
        config.pieces(start.processes)
        open_stores(config)


def _recipes_batch(model: str) -> int:
    """0 if the recipe says none, or nonsense, which is refused with all other settings."""
    settings = read_recipe(model).get("settings")
    batch = settings.get("batch_size") if isinstance(settings, dict) else None
    return batch if isinstance(batch, int) else 0


def command(start: Start) -> list[str]:
    """The command line; with several processes, torchrun's."""
    if start.processes == 1:
        return [sys.executable, "-m", "train", *start.words]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={start.processes}"]
    return [sys.executable, *torchrun, "-m", "train", *start.words]


def _gpus(given: Sequence[str], here: int) -> int:
    wanted = [word.removeprefix("gpus=") for word in given if word.startswith("gpus=")]
    if not wanted:
        return here
    if not wanted[-1].isdecimal() or int(wanted[-1]) < 1:
        raise RequestError(f"gpus={wanted[-1]}: give the number of GPUs, or nothing for all that are here")
    if int(wanted[-1]) > here:
        raise RequestError(f"gpus={wanted[-1]}: this machine has {here}")
    return int(wanted[-1])


def launch(given: Sequence[str]) -> None:
    """Becomes the training, so that signals reach it. With `--check` it only says whether the words make sense."""
    import torch

    only_check = "--check" in given
    try:
        start = plan([word for word in given if word != "--check"], torch.cuda.device_count())
        if only_check:
            return
        check(start)
    except (RequestError, CheckFailed, OSError) as error:
        print(f"error: {one_line(error) if isinstance(error, OSError) else error}", file=sys.stderr)
        sys.exit(2)
    print("\n".join(start.notes), file=sys.stderr, flush=True)
    words = command(start)
    os.execv(words[0], words)


if __name__ == "__main__":
    launch(sys.argv[1:])
