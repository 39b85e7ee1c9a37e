"""A run's pictures in the layout that the official scorers read.

GenEval         OUT/00000/metadata.jsonl   OUT/00000/samples/00000.png …
T2I-CompBench   OUT/color/samples/PROMPT_000000.png …, numbered through from 0 in each category
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from encode_pipeline.latents.command import RequestError, Settings
from encode_pipeline.latents.disk import sync
from eval.benchmarks.pictures import RECORD, check_png
from eval.steering.folder import SteeredRun
from eval.steering.prompt_sets import SAMPLES, Prompt

LONGEST_NAME = 255
"""Bytes of a file's name, on the file systems that there are."""
RESERVED = str.maketrans("_/", "  ")
"""What cannot stand in T2I-CompBench's names, where the prompt ends at the first underscore."""

Layout = Literal["geneval", "compbench"]


class ExportConfig(Settings):
    """A finished run, and where its pictures are to go."""

    run: Path = Field(description="folder of a finished run over GenEval's or T2I-CompBench's prompts, decoded")
    out: Path = Field(description="folder to be made; one that is there is left alone")
    format: Layout | None = Field(None, description="by default that of the run's prompts")


def export(config: ExportConfig) -> dict[str, Any]:
    """Copies every picture under the name that its scorer wants. The folder appears whole or not at all."""
    if config.out.exists():
        raise RequestError(f"{config.out}: is there already; choose another out=")
    run = SteeredRun.open(config.run)
    kind = run.result["prompts"]["kind"]
    layout = config.format or kind
    if layout not in ("geneval", "compbench"):
        raise RequestError(
            f"{config.run}: its prompts are of kind {kind}, which has no official scorer that reads names"
        )
    if layout != kind:
        raise RequestError(f"format={layout}: the prompts of {config.run} are of kind {kind}")
    items = list(run.items())
    pictures = run.images()
    for picture in pictures:
        check_png(picture)
    places = _geneval(items) if layout == "geneval" else _compbench(items, run.result["prompts"]["samples"])
    unfinished = config.out.with_name(f".unfinished-{config.out.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    for place, picture in zip(places, pictures, strict=True):
        target = unfinished / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, target)
    if layout == "geneval":
        for prompt, sample, _ in items:
            if sample == 0:
                record = json.dumps(dict(prompt.about))
                (unfinished / f"{prompt.number:05d}" / "metadata.jsonl").write_text(record, encoding="utf-8")
    renamed = {p.text: _spoken(p.text) for p, _, _ in items if layout == "compbench" and _spoken(p.text) != p.text}
    about = {key: value for key, value in run.result.items() if key != "metrics"}
    record = json.dumps({"format": layout, "renamed": renamed, "run": about}, indent=1) + "\n"
    (unfinished / RECORD).write_text(record, encoding="utf-8")
    unfinished.rename(config.out)
    sync(config.out.absolute().parent)
    return {
        "ok": True,
        "out": str(config.out),
        "format": layout,
        "pictures": len(places),
        "renamed": renamed,
        "not_comparable": run.result["not_comparable"],
    }


def show(result: Mapping[str, Any]) -> str:
    lines = [f"{result['pictures']} pictures in {result['out']}, in {result['format']}'s layout"]
    lines += [
        f"renamed, for its scorer reads prompts from names: {old!r} to {new!r}"
        for old, new in result["renamed"].items()
    ]
    return "\n".join([*lines, *(f"not comparable: {reason}" for reason in result["not_comparable"])])


Items = list[tuple[Prompt, int, str]]


def _geneval(items: Items) -> list[str]:
    """Where each picture goes."""
    return [f"{prompt.number:05d}/samples/{sample:05d}.png" for prompt, sample, _ in items]


def _compbench(items: Items, samples: int) -> list[str]:
    places = []
    for prompt, sample, name in items:
        category, index = prompt.about["category"], prompt.about["index"]
        if category == "complex" and samples != SAMPLES["compbench"]:
            wanted = f"{SAMPLES['compbench']} pictures of each"
            raise RequestError(f"{name}: the scorer of complex prompts counts on {wanted}, not {samples}")
        file = f"{_spoken(prompt.text)}_{index * samples + sample:06d}.png"
        if len(file.encode()) > LONGEST_NAME:
            raise RequestError(f"{name}: {len(file.encode())} bytes of prompt and number do not fit into a file's name")
        places.append(f"{category}/samples/{file}")
    return places


def _spoken(text: str) -> str:
    """A prompt as it may stand in a name."""
    return " ".join(text.translate(RESERVED).split()) if set(text) & {"_", "/"} else text
