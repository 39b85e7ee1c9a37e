"""Each run of pictures closer: how its scores went, and single pictures on their way from noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.spec import digest
from encode_pipeline.preview.show import thumbnail
from encode_pipeline.records import Pixels
from eval.report.curves import BAND, Single, curves
from eval.report.steering import Steering
from eval.steering.folder import IMAGES, Item

EXTREMES, PLAIN_ONES, LINES, FRAMES = 4, 8, 8, 6
"""Shown: items that rose most and least; of a run that nothing steered, items; lines beside those; steps of an item."""
CURVES_OF = 1000
"""Items: more are not read for the curves, but so many evenly from first to last."""
SIDE = 256


@dataclass(frozen=True)
class Frame:
    """An iteration of an item."""

    iteration: int
    preview: Pixels
    score: float | None


@dataclass(frozen=True)
class Strip:
    """One item on its way."""

    name: str
    number: int
    """In the run, from 0."""
    prompt: str
    kept: int
    frames: list[Frame]
    before: Pixels | None
    """What the same noise comes to without steering, decoded, where another run has it."""
    picture: Pixels | None
    """What was kept, decoded."""
    ends: dict[str, tuple[float, float]]
    """Of each score, at first and of what was kept."""


@dataclass(frozen=True)
class SteeredLook:
    """One run closer."""

    run: Steering
    charts: list[tuple[str, Markup]]
    numbers: list[tuple[str, str, str]]
    """What it came to: a name, a number, and more on it."""
    groups: list[tuple[str, list[Strip]]]
    notes: list[str]


def steered_looks(runs: Sequence[Steering]) -> list[SteeredLook]:
    """A look for each run of pictures."""
    plain = {_start(run): run for run in runs if not run.result.rewards}
    return [_look(run, plain.get(_start(run)) if run.result.rewards else None) for run in runs]


def _start(run: Steering) -> str:
    """What is the same for two runs that set out from the same noise under the same prompts."""
    prompts, generator = run.result.prompts, run.result.generator
    told = [run.written.get(name) for name in ("steps", "size", "seed", "seeds", "method")]
    return digest([prompts.sha256, prompts.samples, generator.get("weights_sha256"), *told])


def _look(run: Steering, plain: Steering | None) -> SteeredLook:
    groups, rewarded = _chosen(run), bool(run.result.rewards)
    items = {number: run.item(number) for _, numbers in groups for number in numbers}
    notes = [f"Avoided: “{one.provenance.concept}”" for one in run.result.rewards if one.provenance.concept]
    notes += [f"{one['item']} has no picture: {one['reason']}." for one in run.result.failures[:EXTREMES]]
    if not any((run.folder / IMAGES).glob("*.png")):
        notes.append("Nothing was decoded: the pictures are the latents in colours.")
    charts: list[tuple[str, Markup]] = []
    if rewarded:
        sample = np.unique(np.linspace(0, run.result.n - 1, min(run.result.n, CURVES_OF)).astype(int)).tolist()
        read = {number: items.get(number) or run.item(number) for number in sample}
        charts = [(reward.text, _curves(run, reward.name, read, groups)) for reward in run.result.rewards]
        if len(sample) < run.result.n:
            notes.append(f"The curves are of {len(sample):,} pictures, evenly from all {run.result.n:,}.")
    strips = [(name, [_strip(run, plain, number, items[number]) for number in numbers]) for name, numbers in groups]
    return SteeredLook(run, charts, _numbers(run) if rewarded else [], strips, notes)


def _chosen(run: Steering) -> list[tuple[str, list[int]]]:
    """Which items are shown, by the heading over them."""
    if not run.result.rewards:
        every = np.unique(np.linspace(0, run.result.n - 1, min(run.result.n, PLAIN_ONES)).astype(int))
        return [("As generated", every.tolist())]
    rise = np.nan_to_num(run.rise, nan=-np.inf, posinf=-np.inf, neginf=-np.inf)
    order = np.argsort(-rise, kind="stable")
    count = min(EXTREMES, len(order) // 2) or 1
    least = [int(number) for number in order[::-1][:count] if number not in order[:count]]
    groups = [("Improved most", order[:count].tolist()), ("Improved least", least)]
    return [(name, numbers) for name, numbers in groups if numbers]


def _curves(run: Steering, reward: str, read: dict[int, Item], groups: list[tuple[str, list[int]]]) -> Markup:
    values = np.stack([_row(item, reward) for item in read.values()])
    known = {number: kind for (_, numbers), kind in zip(groups, ("rose", "fell"), strict=False) for number in numbers}
    others = [number for number in read if number not in known]
    others = [others[at] for at in np.unique(np.linspace(0, len(others) - 1, min(LINES, len(others))).astype(int))]
    drawn = {**dict.fromkeys(others, "other"), **known}
    singles = [
        Single(run.run.lines[number]["prompt"], kind, _row(read.get(number) or run.item(number), reward))
        for number, kind in drawn.items()
    ]
    return curves(reward, values, singles)


def _row(item: Item, reward: str) -> npt.NDArray[np.float64]:
    scores = item.scores.get(reward)
    if scores is None:
        raise CheckFailed(f"{item.about['item']}: has no scores of {reward}")
    values = scores.astype(np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _numbers(run: Steering) -> list[tuple[str, str, str]]:
    """How many items improved, what each reward rose by, and which iterates were kept."""
    found: list[tuple[str, str, str]] = []
    for reward in run.result.rewards:
        measured = run.measured(reward.name)
        if not found and (risen := measured.get("risen")):
            about = f"of {run.result.n:,} pictures [{risen.low:.0f}, {risen.high:.0f}]"
            found.append(("improved", f"{risen.value:.0f} %", about))
        if rise := measured.get("rise"):
            first, kept = measured["first"].value, measured["kept"].value
            name = f"mean {reward.name}, from {_signed(first)} to {_signed(kept)}"
            interval = f"[{_signed(rise.low, '+')}, {_signed(rise.high, '+')}], prompts drawn anew"
            found.append((name, _signed(rise.value, "+"), interval))
    iterates = np.array([line["kept"] for line in run.run.lines])
    low, middle, high = np.percentile(iterates, [BAND[0], 50, BAND[1]]).round().astype(int)
    first_kept = f"most {low} to {high}; for {int((iterates <= 0).sum()):,} the one that nothing was done to"
    found.append(("iterate kept, in the middle", str(middle), first_kept))
    return found


def _signed(value: float | None, sign: str = "-") -> str:
    return "" if value is None else f"{value:{sign}.3f}".replace("-", "−")


def _strip(run: Steering, plain: Steering | None, number: int, item: Item) -> Strip:
    line, names = run.run.lines[number], [reward.name for reward in run.result.rewards]
    at = list(range(len(item.previews)))
    if len(at) > FRAMES:
        at = [at[place] for place in np.unique(np.linspace(0, len(at) - 1, FRAMES).round().astype(int))]
    frames = []
    for place in at:
        iteration = int(item.preview_at[place])
        score = float(item.scores[names[0]][iteration]) if names else None
        frames.append(Frame(iteration, item.previews[place], score))
    ends = {name: (float(run.ends[name][number][0]), float(run.ends[name][number][1])) for name in names}
    before = _picture(plain, line["item"]) if plain else None
    return Strip(line["item"], number, line["prompt"], line["kept"], frames, before, _picture(run, line["item"]), ends)


def _picture(run: Steering, name: str) -> Pixels | None:
    path = run.folder / IMAGES / f"{name}.png"
    if not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            return thumbnail(np.asarray(image.convert("RGB")), SIDE)
    except (OSError, ValueError, SyntaxError) as error:
        raise CheckFailed(f"{path}: damaged: {' '.join(str(error).split())}") from None
