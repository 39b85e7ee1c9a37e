"""How a benchmark comes to its result: pictures of prompts, looked at part by part, each part once.

OUT/request.json OUT/parts/     as of every evaluation: the same command again goes on after a kill at any moment
OUT/predictions.jsonl           a line a picture
OUT/result.json                 written last
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import Field

from encode_pipeline.latents.command import RequestError, Settings, to_yaml
from encode_pipeline.latents.disk import replace
from encode_pipeline.latents.spec import digest
from eval import intervals
from eval.benchmarks.aesthetic import CLIP, AestheticHead
from eval.benchmarks.clip_score import features, open_picture, open_pixel_clip
from eval.benchmarks.pictures import PromptPicture, PromptPictures
from eval.clip import PixelClip
from eval.evaluation import PREDICTIONS, Address, as_lines, folder_to_work_in
from eval.parts import WorkFolder
from eval.result import surroundings
from train.distributed import Ranks

PART = 64
"""Pictures that are looked at before something is kept."""
DECIMALS = 6
"""Of a score: more would tell of the order in which a machine sums."""

Line = dict[str, Any]
Look = Callable[[Sequence[PromptPicture], Sequence[Image.Image]], list[Line]]
"""What is to be said of some pictures."""


class ScoringConfig(Settings):
    """Pictures, and how they are judged."""

    run: Address = Field(
        description="a run of `python -m eval reno` with decoded pictures, or a folder in the benchmark's own layout"
    )
    out: Path | None = Field(None, description=f"folder for result.json and {PREDICTIONS}; the same command goes on")
    aesthetic: Path | None = Field(
        None,
        description="LAION's improved aesthetic predictor, a .pth or .safetensors file: adds the mean of its scores",
    )
    aesthetic_clip: Address = Field(CLIP, description="the CLIP on whose features it was trained")
    batch_size: int = Field(16, gt=0, description="pictures looked at together")
    seed: int = Field(0, ge=0, description="of the bootstrap behind the intervals")


@dataclass(frozen=True)
class Aesthetic:
    """The predictor on the features that it was trained on."""

    head: AestheticHead
    clip: PixelClip

    @property
    def not_comparable(self) -> list[str]:
        return [f"aesthetic: {reason}" for reason in (*self.head.not_comparable, *self.clip.not_comparable)]

    def scores(self, images: Sequence[Image.Image]) -> list[float]:
        """A score for each picture."""
        scores: list[float] = self.head(features(self.clip, images)).tolist()
        return scores


def open_aesthetic(config: ScoringConfig) -> Aesthetic | None:
    """The predictor, where one is asked for."""
    if config.aesthetic is None:
        return None
    head, clip = AestheticHead.load(config.aesthetic), open_pixel_clip(config.aesthetic_clip)
    if clip.address != CLIP:
        head.not_comparable.append(f"features of {clip.name}, not of {CLIP}")
    return Aesthetic(head.to(clip.device), clip)


@dataclass(frozen=True)
class Scoring:
    """One benchmark on some pictures."""

    config: ScoringConfig
    task: str
    pictures: PromptPictures
    judges: Mapping[str, Any]
    """What each judge is, by its role: weights and whatever else decides the answers."""
    look: Look
    conclude: Callable[[list[Line]], dict[str, Any]]
    """From all lines to metrics, intervals and what else this benchmark has to say."""
    not_comparable: Sequence[str] = ()


def score(scoring: Scoring, ranks: Ranks) -> dict[str, Any]:
    """The result: from the folder if it is finished, else by all processes together."""
    config, pictures = scoring.config, scoring.pictures.pictures
    aesthetic = open_aesthetic(config)
    judges = dict(scoring.judges)
    if aesthetic is not None:
        judges["aesthetic"] = {"head": aesthetic.head.provenance, "clip": aesthetic.clip.provenance}
    request = {
        "task": scoring.task,
        "pictures": _identity(scoring.pictures),
        "judges": digest(judges),
        "batch_size": config.batch_size,
        "seed": config.seed,
    }
    starts = range(0, len(pictures), PART)
    names = [f"pictures {start} to {min(start + PART, len(pictures)) - 1}" for start in starts]

    def work(number: int) -> bytes:
        began, lines = time.monotonic(), []
        part = pictures[starts[number] :][:PART]
        # Whole float32 on GPUs too, and the same bits every time.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            for start in range(0, len(part), config.batch_size):
                batch = part[start : start + config.batch_size]
                images = [open_picture(picture) for picture in batch]
                told = scoring.look(batch, images)
                beauty = [{}] * len(batch) if aesthetic is None else _rounded("aesthetic", aesthetic.scores(images))
                lines += [
                    {**_named(picture), **line, **more} for picture, line, more in zip(batch, told, beauty, strict=True)
                ]
        seconds = time.monotonic() - began
        print(f"{names[number]} of {len(pictures)} in {seconds:.1f} s", file=sys.stderr, flush=True)
        return json.dumps({"lines": lines, "seconds": seconds}).encode()

    with folder_to_work_in(config.out, ranks) as path:
        folder = WorkFolder(path)
        folder.claim(request)
        result = folder.result()
        if result is None:
            files = folder.do_parts(names, ranks, work)
            if ranks.is_first:
                replace(path / "config.yaml", to_yaml(config).encode())
                parts = [json.loads(file.read_bytes()) for file in files]
                lines = [line for part in parts for line in part["lines"]]
                replace(path / PREDICTIONS, as_lines(lines))
                beauty = by_prompt(lines, "aesthetic") if aesthetic else []
                told = scoring.conclude(lines)
                if beauty:
                    told["intervals"]["aesthetic"] = intervals.mean(beauty, config.seed)
                reasons = [*scoring.pictures.not_comparable, *scoring.not_comparable]
                folder.finish(
                    {
                        "ok": True,
                        "task": scoring.task,
                        "run": {"address": config.run, **scoring.pictures.about},
                        **told,
                        "aesthetic": sum(beauty) / len(beauty) if beauty else None,
                        "n": len(lines),
                        "scorer": judges,
                        "not_comparable": [*reasons, *(aesthetic.not_comparable if aesthetic else [])],
                        "seed": config.seed,
                        "seconds": round(sum(part["seconds"] for part in parts), 1),
                        **surroundings(ranks.device),
                    }
                )
            ranks.wait()
            result = folder.result()
            ranks.wait()  # a folder that is not to stay goes with the first
    assert result is not None
    return result


def show(result: Mapping[str, Any]) -> str:
    """The result as a person reads it."""
    numbers = {**result["metrics"], **({} if result["aesthetic"] is None else {"aesthetic": result["aesthetic"]})}
    width = max(map(len, numbers))
    lines = [f"{result['task']} on {result['n']} pictures of {result['run']['address']}"]
    for name, value in numbers.items():
        low, high = result["intervals"][name]
        lines.append(f"  {name:<{width}}  {value:.3f} ({low:.3f} to {high:.3f})")
    if left_out := result.get("not_measured"):
        lines.append(f"not measured: {', '.join(left_out)}")
    if result["not_comparable"]:
        lines.append(f"not comparable: {'; '.join(result['not_comparable'])}")
    return "\n".join(lines)


def require_kind(pictures: PromptPictures, *kinds: str) -> None:
    """Refuses pictures of other prompts than a benchmark's own."""
    if pictures.kind not in kinds:
        where = pictures.about.get("folder") or "this run"
        raise RequestError(f"{where}: pictures of prompts of kind {pictures.kind}, not {' or '.join(kinds)}")


def by_prompt(lines: Iterable[Mapping[str, Any]], key: str) -> list[float]:
    """What is drawn anew for an interval: the mean of each prompt, whose pictures are alike; of one alone, pictures."""
    values: dict[int, list[float]] = {}
    for line in lines:
        values.setdefault(line["number"], []).append(float(line[key]))
    only = list(values.values())
    return only[0] if len(only) == 1 else [sum(each) / len(each) for each in only]


def rounded(value: float) -> float:
    """A score as it is written down."""
    return round(value, DECIMALS)


def _rounded(key: str, values: Sequence[float]) -> list[Line]:
    return [{key: rounded(value)} for value in values]


def _named(picture: PromptPicture) -> Line:
    return {"number": picture.prompt.number, "sample": picture.sample, "prompt": picture.prompt.text}


def _identity(pictures: PromptPictures) -> str:
    """Of all that is judged, by content: pictures of one name and size may be others."""

    def sha256(picture: PromptPicture) -> str:
        return hashlib.sha256(picture.path.read_bytes()).hexdigest()

    with ThreadPoolExecutor() as threads:
        hashes = list(threads.map(sha256, pictures.pictures))
    return digest(
        [
            [picture.prompt.number, picture.prompt.text, dict(picture.prompt.about), picture.sample, sha256]
            for picture, sha256 in zip(pictures.pictures, hashes, strict=True)
        ]
    )
