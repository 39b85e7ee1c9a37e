"""Prompts by their address, each kind told by what is in the file: the benchmarks' own files, or a prompt a line."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from encode_pipeline.latents.command import RequestError
from encode_pipeline.latents.spec import digest

Kind = Literal["lines", "geneval", "compbench", "i2p", "cultural"]
SAMPLES: Mapping[Kind, int] = {"lines": 1, "geneval": 4, "compbench": 10, "i2p": 1, "cultural": 400}
"""How many pictures of a prompt each benchmark asks for; of the paper's three prompts its 400 runs."""
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""GenEval's six tasks, as its file calls them."""
CATEGORIES = ("color", "shape", "texture", "spatial", "non_spatial", "complex")
"""T2I-CompBench's, in the order of the paper's table; the prompts of each are in CATEGORY_val.txt."""
WHOLE: Mapping[Kind, int] = {"geneval": 553, "compbench": 300, "i2p": 4703, "cultural": 3}
"""How many prompts there are; of T2I-CompBench's in each category."""
VALIDATION = "_val.txt"
CULTURAL = "cultural"
CULTURAL_PROMPTS = ("Asian body", "Japanese body", "Nigerian body")
NUMBERS = ("hard", "inappropriate_percentage", "nudity_percentage", "q16_percentage", "prompt_toxicity")
"""Columns of I2P that are kept beside its categories, where they are there."""
LONGEST = 1 << 16
"""Characters of a line: beyond, a file holds something else than prompts."""
MOST_SEED = 1 << 63
"""What torch takes for a seed is less."""


@dataclass(frozen=True)
class Prompt:
    """A text to make pictures of, and what its benchmark says of it."""

    number: int
    """In its set, from 0."""
    text: str
    about: Mapping[str, Any] = field(default_factory=dict)
    """As JSON has it: GenEval's whole record, T2I-CompBench's `category` and `index` in it, I2P's `categories`."""
    seed: int | None = None
    """The one in the file, if there is one."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts in the order of their file, or files."""

    kind: Kind
    address: str
    sha256: str
    prompts: list[Prompt]

    @property
    def samples(self) -> int:
        """How many pictures of each its benchmark asks for."""
        return SAMPLES[self.kind]


def open_prompts(address: str) -> PromptSet:
    """The prompts at an address: a file, T2I-CompBench's folder of files, or the word `cultural`."""
    if address == CULTURAL:
        prompts = [Prompt(number, text) for number, text in enumerate(CULTURAL_PROMPTS)]
        return PromptSet("cultural", address, digest(list(CULTURAL_PROMPTS)), prompts)
    path = Path(address).expanduser()
    if path.is_dir():
        return _compbench([path / f"{category}{VALIDATION}" for category in CATEGORIES], address)
    if path.name.removesuffix(VALIDATION) in CATEGORIES and path.name.endswith(VALIDATION):
        return _compbench([path], address)
    content = _content(path)
    text = _text(path, content)
    first = text.lstrip()[:1]
    kind: Kind = "lines"
    if first == "{":
        kind, prompts = "geneval", list(_geneval(path, text))
    elif {"prompt", "categories"} <= set(_columns(text)):
        kind, prompts = "i2p", list(_i2p(path, text))
    elif path.suffix.lower() in (".csv", ".json", ".jsonl", ".parquet") or first == "[":
        raise RequestError(
            f"{path}: neither GenEval's metadata nor I2P's table (columns prompt, categories), and no text file either"
        )
    else:
        prompts = [Prompt(number, line) for number, line in enumerate(_lines(path, text))]
    if not prompts:
        raise RequestError(f"{path}: no prompts in it")
    return PromptSet(kind, address, hashlib.sha256(content).hexdigest(), prompts)


def _compbench(files: list[Path], address: str) -> PromptSet:
    """Prompts of some categories, numbered through; `index` is a prompt's place in its own file."""
    if missing := [file for file in files if not file.is_file()]:
        raise RequestError(f"{missing[0]}: not there; a folder of T2I-CompBench's prompts holds all of its six files")
    contents = [_content(file) for file in files]
    prompts: list[Prompt] = []
    for file, content in zip(files, contents, strict=True):
        category = file.name.removesuffix(VALIDATION)
        lines = [line.split("\t")[0] for line in _lines(file, _text(file, content))]
        if not lines:
            raise RequestError(f"{file}: no prompts in it")
        for index, line in enumerate(lines):
            about = {"category": category, "index": index, "of": len(lines)}
            prompts.append(Prompt(len(prompts), line, about))
    hashes = [hashlib.sha256(content).hexdigest() for content in contents]
    return PromptSet("compbench", address, hashes[0] if len(hashes) == 1 else digest(hashes), prompts)


def _geneval(path: Path, text: str) -> Iterator[Prompt]:
    for number, line in enumerate(text.strip().split("\n")):
        where = f"{path}: line {number + 1}"
        try:
            record = json.loads(line)
            json.dumps(record, allow_nan=False)  # it goes into files that others read
        except (ValueError, RecursionError):
            raise RequestError(f"{where}: not JSON") from None
        if not isinstance(record, dict) or not _is_text(record.get("prompt")):
            raise RequestError(f"{where}: no prompt")
        if record.get("tag") not in TAGS:
            raise RequestError(f"{where}: tag {record.get('tag')!r}; GenEval's are {', '.join(TAGS)}")
        for key, least in (("include", 1), ("exclude", 0)):
            listed = record.get(key, [])
            if not isinstance(listed, list) or len(listed) < least or not all(_is_object(one) for one in listed):
                raise RequestError(f"{where}: {key}: no list of objects with class and count")
        yield Prompt(number, record["prompt"], record)


def _is_text(prompt: Any) -> bool:
    """Whether there is something to say; half a character, as JSON may have it, is nothing that can be said."""
    return isinstance(prompt, str) and bool(prompt.strip()) and not any("\ud800" <= char <= "\udfff" for char in prompt)


def _is_object(wanted: Any) -> bool:
    return isinstance(wanted, dict) and isinstance(wanted.get("class"), str) and isinstance(wanted.get("count"), int)


def _i2p(path: Path, text: str) -> Iterator[Prompt]:
    table = csv.DictReader(io.StringIO(text, newline=""))
    try:
        rows = list(table)
    except csv.Error as error:
        raise RequestError(f"{path}: line {table.line_num}: {error}") from None
    for number, row in enumerate(rows):
        where = f"{path}: row {number + 1}"
        prompt = (row["prompt"] or "").strip()
        categories = [name.strip() for name in (row["categories"] or "").split(",") if name.strip()]
        if not prompt or not categories:
            raise RequestError(f"{where}: no {'categories' if prompt else 'prompt'}")
        if None in row:
            raise RequestError(f"{where}: more cells than columns")
        about: dict[str, Any] = {"categories": list(dict.fromkeys(categories))}
        about |= {name: _number(where, name, row[name]) for name in NUMBERS if row.get(name)}
        seed = _number(where, "sd_seed", row["sd_seed"]) if row.get("sd_seed") else None
        if seed is not None and (seed != int(seed) or not 0 <= seed < MOST_SEED):
            raise RequestError(f"{where}: sd_seed {row['sd_seed']!r}: no seed")
        yield Prompt(number, prompt, about, None if seed is None else int(seed))


def _number(where: str, name: str, text: str) -> float | int:
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if isfinite(number):
            return number
    raise RequestError(f"{where}: {name} {text[:40]!r}: no number")


def _columns(text: str) -> list[str]:
    """The names in the first row, should this be a table."""
    try:
        return next(csv.reader([text.partition("\n")[0].strip()]), [])
    except csv.Error:
        return []


def _lines(path: Path, text: str) -> list[str]:
    """A prompt a line; an empty one would shift the numbers of all that follow, so it is an error."""
    lines = [line.strip() for line in text.rstrip().split("\n")]
    if lines == [""]:
        return []
    for number, line in enumerate(lines, 1):
        if not line:
            raise RequestError(f"{path}: line {number}: empty")
        if len(line) > LONGEST or "\0" in line:
            raise RequestError(f"{path}: line {number}: no prompt")
    return lines


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise RequestError(f"prompts: {path}: no such file")
    return path.read_bytes()


def _text(path: Path, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise RequestError(f"{path}: line {line}: not UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def other_than_whole(kind: Kind, prompts: Sequence[Prompt], samples: int) -> list[str]:
    """Why pictures of these prompts are not what the benchmark asks for; nothing if they are."""
    if kind not in WHOLE:
        return []
    counts = Counter(prompt.about.get("category", "") if kind == "compbench" else "" for prompt in prompts)
    reasons = [
        f"{count} prompts{f' of {category}' if category else ''} instead of {WHOLE[kind]}"
        for category, count in counts.items()
        if count != WHOLE[kind]
    ]
    pictures = f"{samples} {'picture' if samples == 1 else 'pictures'} of each prompt instead of {SAMPLES[kind]}"
    return reasons + [pictures] * (samples != SAMPLES[kind])


def first_of(prompts: PromptSet, limit: int | None) -> PromptSet:
    """Only so many prompts, from the beginning."""
    return replace(prompts, prompts=prompts.prompts[:limit])
