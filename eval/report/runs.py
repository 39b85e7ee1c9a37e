"""A finished run of any kind: its folder, and what it says of itself."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict

from encode_pipeline.latents.command import CheckFailed, RequestError, Settings, build, read_yaml

RESULT, PREDICTIONS, CONFIG, REQUEST = "result.json", "predictions.jsonl", "config.yaml", "request.json"


class Read(Settings):
    """What is read back may hold more than the report needs."""

    model_config = ConfigDict(extra="ignore")


Facts = TypeVar("Facts", bound=Read)
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Run(ABC):
    """What the report says of every run, whatever it measured."""

    folder: Path
    written: dict[str, Any]
    """result.json as it stands."""
    config: dict[str, Any]
    """What the run was told; empty if it left no config.yaml."""
    name: str = ""
    """What was measured, unlike any other in the report."""

    @property
    @abstractmethod
    def verb(self) -> str:
        """What gives it again, after `python -m eval`."""

    @property
    @abstractmethod
    def way(self) -> str:
        """How it was measured, in a word."""

    @property
    @abstractmethod
    def subject(self) -> str:
        """On what it was measured, shortly."""

    @property
    @abstractmethod
    def weights(self) -> str:
        """Those that the numbers hang on, by content."""

    @property
    def reasons(self) -> list[str]:
        """Why its numbers cannot stand beside the paper's."""
        return list(dict.fromkeys(self.written.get("not_comparable", [])))

    @property
    def seed(self) -> int | None:
        return self.written.get("seed")


def read_result(folder: Path, kind: type[Facts], written: dict[str, Any]) -> Facts:
    """What a result.json says, if it says all that is needed."""
    try:
        return build(kind, written)
    except RequestError as error:
        raise damaged(folder, str(error)) from None


def damaged(folder: Path, what: str) -> CheckFailed:
    return CheckFailed(f"{folder / RESULT}: damaged: {what}")


def read_config(folder: Path) -> dict[str, Any]:
    return read_yaml(folder / CONFIG) if (folder / CONFIG).is_file() else {}


def read_lines(path: Path, fields: dict[str, type], n: int) -> list[dict[str, Any]]:
    """The lines of a JSONL file, each with these fields, as many as the result counts."""
    lines: list[dict[str, Any]] = []
    for number, line in enumerate(_lines(path), 1):
        try:
            values = json.loads(line)
        except ValueError:
            values = None
        if not isinstance(values, dict) or not all(isinstance(values.get(key), fields[key]) for key in fields):
            raise CheckFailed(f"{path}: line {number}: not a prediction")
        lines.append(values)
    if len(lines) != n:
        raise CheckFailed(f"{path}: {len(lines)} lines, but {RESULT} says n={n}")
    return lines


def _lines(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise CheckFailed(f"{path}: no such file")
    with path.open(encoding="utf-8") as file:
        try:
            yield from file
        except UnicodeDecodeError:
            raise CheckFailed(f"{path}: damaged: not UTF-8") from None


def told_apart(names: Mapping[Key, str], steps: Mapping[Key, object], hashes: Mapping[Key, str]) -> dict[Key, str]:
    """The same names, with the step of training or a hash behind those that several bear."""
    found = dict(names)
    for name in [name for name, count in Counter(names.values()).items() if count > 1]:
        twins = [twin for twin in names if names[twin] == name]
        by_step = len({steps[twin] for twin in twins} - {None}) == len(twins)
        found |= {twin: f"{name}, {f'step {steps[twin]}' if by_step else hashes[twin][:8]}" for twin in twins}
    return found
