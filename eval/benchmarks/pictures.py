"""The pictures that a benchmark judges: a run's, or anyone's in the layout that the official scorers read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from encode_pipeline.latents.command import CheckFailed, RequestError
from eval.parts import RESULT
from eval.steering.folder import SteeredRun
from eval.steering.prompt_sets import CATEGORIES, Kind, Prompt, other_than_whole

RECORD = "export.json"
"""In an exported folder: which run its pictures are of. The official scorers do not look at it."""
SIGNATURE, END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


@dataclass(frozen=True)
class PromptPicture:
    """A picture of a prompt, the so-manieth."""

    prompt: Prompt
    sample: int
    path: Path


@dataclass(frozen=True)
class PromptPictures:
    """All pictures that a benchmark is to judge, prompt after prompt, none missing."""

    kind: Kind
    about: dict[str, Any]
    """Of a run its result without the lists that only it needs; of other pictures where they are."""
    not_comparable: list[str]
    pictures: list[PromptPicture]


def prompt_pictures(address: str | Path) -> PromptPictures:
    """The pictures of a finished run, or of a folder in GenEval's or T2I-CompBench's layout; loud if one is missing."""
    folder = Path(address).expanduser()
    if not folder.is_dir():
        raise RequestError(f"{folder}: no such folder")
    if (folder / RESULT).exists() or (folder / "request.json").exists():
        found = _of_run(SteeredRun.open(folder))
    elif _numbered(folder):
        found = _geneval(folder)
    elif categories := _categories(folder):
        found = _compbench(folder, categories)
    else:
        raise RequestError(
            f"{folder}: neither a run nor pictures in GenEval's layout (00000/metadata.jsonl, 00000/samples/00000.png) "
            "or T2I-CompBench's (color/samples/PROMPT_000000.png)"
        )
    for picture in found.pictures:
        check_png(picture.path)
    return found


def _of_run(run: SteeredRun) -> PromptPictures:
    pictures = [
        PromptPicture(prompt, sample, path) for (prompt, sample, _), path in zip(run.items(), run.images(), strict=True)
    ]
    about = {key: value for key, value in run.result.items() if key not in ("metrics", "not_comparable")}
    return PromptPictures(run.result["prompts"]["kind"], about, list(run.result["not_comparable"]), pictures)


def _numbered(folder: Path) -> list[Path]:
    """The folders that GenEval's scorer looks into, in the order of their numbers."""
    return sorted((path for path in folder.iterdir() if path.is_dir() and path.name.isdecimal()), key=_number)


def _number(path: Path) -> int:
    return int(path.name)


def _geneval(folder: Path) -> PromptPictures:
    pictures: list[PromptPicture] = []
    places = _numbered(folder)
    for number, place in enumerate(places):
        if _number(place) != number:
            raise CheckFailed(f"{folder}: no folder {number:05d}, but {place.name}")
        try:
            metadata = json.loads((place / "metadata.jsonl").read_text(encoding="utf-8"))
            prompt = Prompt(number, str(metadata["prompt"]), metadata)
        except OSError:
            raise CheckFailed(f"{place / 'metadata.jsonl'}: not there") from None
        except (ValueError, KeyError, TypeError):
            raise CheckFailed(f"{place / 'metadata.jsonl'}: not a record with a prompt") from None
        paths = sorted((path for path in (place / "samples").glob("*.png") if path.stem.isdecimal()), key=_sample)
        if not paths:
            raise CheckFailed(f"{place / 'samples'}: no pictures")
        pictures += [PromptPicture(prompt, sample, path) for sample, path in enumerate(paths)]
    counts = set(Counter(picture.prompt.number for picture in pictures).values())
    if len(counts) > 1:
        raise CheckFailed(f"{folder}: {min(counts)} pictures of some prompts, {max(counts)} of others")
    reasons = other_than_whole("geneval", [picture.prompt for picture in pictures if not picture.sample], counts.pop())
    return _of_folder("geneval", folder, reasons, pictures)


def _sample(path: Path) -> int:
    return int(path.stem)


def _categories(folder: Path) -> dict[str, Path]:
    """The categories with pictures: of one the folder itself may be given."""
    if (folder / "samples").is_dir() and folder.resolve().name in CATEGORIES:
        return {folder.resolve().name: folder}
    return {name: folder / name for name in CATEGORIES if (folder / name / "samples").is_dir()}


def _compbench(folder: Path, categories: Mapping[str, Path]) -> PromptPictures:
    pictures: list[PromptPicture] = []
    prompts: list[Prompt] = []
    each = set()
    for category, place in categories.items():
        samples = place / "samples"
        numbered = sorted((_id(path), path) for path in samples.iterdir() if not path.name.startswith("."))
        if [number for number, _ in numbered] != list(range(len(numbered))):
            gap = next(n for n, (number, _) in enumerate([*numbered, (-1, place)]) if n != number)
            raise CheckFailed(f"{samples}: no picture number {gap:06d}; its scorers count on every one")
        groups = [(text, [path for _, path in group]) for text, group in groupby(numbered, _text)]
        for index, (text, paths) in enumerate(groups):
            prompts.append(Prompt(len(prompts), text, {"category": category, "index": index, "of": len(groups)}))
            pictures += [PromptPicture(prompts[-1], sample, path) for sample, path in enumerate(paths)]
            if len(paths) != len(groups[0][1]):
                raise CheckFailed(f"{samples}: {len(paths)} pictures of {text!r}, {len(groups[0][1])} of the first")
            each.add(len(paths))
    if len(each) != 1:
        raise CheckFailed(f"{folder}: {', '.join(map(str, sorted(each))) or 'no'} pictures of a prompt")
    reasons = other_than_whole("compbench", prompts, each.pop())
    return _of_folder("compbench", folder, reasons, pictures)


def _text(numbered: tuple[int, Path]) -> str:
    """The prompt in a picture's name, as the scorers read it."""
    return numbered[1].name.split("_")[0]


def _id(path: Path) -> int:
    """The number at the end of a picture's name, as the scorers read it."""
    number = path.name.split("_")[-1].split(".")[0]
    if path.suffix != ".png" or not number.isdecimal():
        raise CheckFailed(f"{path}: not PROMPT_000000.png; the scorers would take it for a picture")
    return int(number)


def _of_folder(kind: Kind, folder: Path, reasons: list[str], pictures: list[PromptPicture]) -> PromptPictures:
    """Pictures in an official layout, with what is known of the run that they are from, if they are from one."""
    about: dict[str, Any] = {"folder": str(folder), "layout": kind}
    # That of a category lies in the export's folder.
    place = (folder.resolve().parent if (folder / "samples").is_dir() else folder) / RECORD
    if place.is_file():
        try:
            about["run"] = json.loads(place.read_bytes())["run"]
            reasons = list(dict.fromkeys([*about["run"]["not_comparable"], *reasons]))
        except (ValueError, KeyError, TypeError):
            raise CheckFailed(f"{place}: damaged: no record of a run") from None
    return PromptPictures(kind, about, reasons, pictures)


def check_png(path: Path) -> None:
    """Refuses a file that is no PNG, or only the beginning of one."""
    with path.open("rb") as file:
        begins = file.read(len(SIGNATURE)) == SIGNATURE
        file.seek(0, 2)
        file.seek(max(0, file.tell() - len(END)))
        if not begins or file.read() != END:
            raise CheckFailed(f"{path}: not a whole PNG")
