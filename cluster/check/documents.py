"""YAML with its line numbers kept: what a key says, and where it says it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Keys = tuple[str | int, ...]
"""The way from a document's top to a value: names in mappings, places in lists."""

PLACEHOLDER = re.compile(r"fill[-_ ]?in", re.IGNORECASE)
"""What a value holds that the user has to replace."""


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that is wrong, and where."""

    path: str
    line: int
    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: " + (f"{self.where}: " if self.where else "") + self.reason


@dataclass
class Document:
    """One YAML document of a file."""

    path: str
    text: str
    value: Any = None
    lines: dict[Keys, int] = field(default_factory=dict)

    def finding(self, keys: Keys, reason: str, line: int | None = None) -> Finding:
        return Finding(self.path, self.line(keys) if line is None else line, dotted(keys), reason)

    def line(self, keys: Keys) -> int:
        """The line of a key, or of the nearest one above it that is there."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return self.lines.get(keys, 1)

    def get(self, *keys: str | int) -> Any:
        """The value at the end of the way, or None."""
        value: Any = self.value
        for key in keys:
            keyed = isinstance(value, dict) and key in value
            listed = isinstance(value, list) and isinstance(key, int) and key < len(value)
            value = value[key] if keyed or listed else None
        return value

    def mapping(self, *keys: str | int) -> dict[str, Any]:
        value = self.get(*keys)
        return value if isinstance(value, dict) else {}

    def items(self, *keys: str | int) -> list[Any]:
        value = self.get(*keys)
        return value if isinstance(value, list) else []

    def walk(self, value: Any = None, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
        """Every value below, each with the way to it."""
        value = self.value if value is None and not keys else value
        yield keys, value
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from self.walk(inner, (*keys, key))
        elif isinstance(value, list):
            for place, inner in enumerate(value):
                yield from self.walk(inner, (*keys, place))


class _Loader(yaml.SafeLoader):
    """Plain values only; a date stays the text that Kubernetes takes it for."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_documents(path: str, text: str) -> tuple[list[Document], list[Finding]]:
    """The documents of a YAML file that say anything, and the faults of its YAML."""
    documents: list[Document] = []
    findings: list[Finding] = []
    loader = None
    try:
        loader = _Loader(text)
        while loader.check_node():
            node = loader.get_node()
            assert node is not None  # check_node says that there is one
            document = Document(path, text)
            document.lines[()] = node.start_mark.line + 1
            document.value = _build(loader, node, (), document, findings, ())
            if document.value is not None:
                documents.append(document)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if "quoted scalar" in str(error.context) and "end of stream" in str(error.problem):
            mark = error.context_mark  # where the quote opens; it is never closed
        line = mark.line + 1 if mark else 1
        context = f" {error.context}" if error.context else ""
        if error.context_mark and error.context_mark.line + 1 != line:
            context += f" that begins on line {error.context_mark.line + 1}"
        tab = "; a tab, where YAML indents by spaces" if "'\\t'" in str(error.problem) else ""
        findings.append(Finding(path, line, "", f"not YAML: {error.problem}{context}{tab}"))
    except yaml.YAMLError as error:
        findings.append(Finding(path, 1, "", f"not YAML: {' '.join(str(error).split())}"))
    finally:
        if loader is not None:
            loader.dispose()
    return documents, findings


def _build(
    loader: _Loader, node: yaml.Node, keys: Keys, document: Document, findings: list[Finding], above: tuple[int, ...]
) -> Any:
    """The plain value of a node; every key's line is noted on the way."""
    if id(node) in above:
        findings.append(document.finding(keys, "an alias of what it is part of"))
        return None
    above = (*above, id(node))
    if isinstance(node, yaml.SequenceNode):
        for place, inner in enumerate(node.value):
            document.lines[(*keys, place)] = inner.start_mark.line + 1
        return [
            _build(loader, inner, (*keys, place), document, findings, above) for place, inner in enumerate(node.value)
        ]
    if isinstance(node, yaml.MappingNode):
        merged: dict[str, Any] = {}
        built: dict[str, Any] = {}
        for key_node, inner in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                for part in inner.value if isinstance(inner, yaml.SequenceNode) else [inner]:
                    value = _build(loader, part, keys, document, findings, above)
                    merged = {**value, **merged} if isinstance(value, dict) else merged
                continue
            key = loader.construct_object(key_node, deep=True) if isinstance(key_node, yaml.ScalarNode) else None
            name = key if isinstance(key, str) else getattr(key_node, "value", "?")
            name = name if isinstance(name, str) else "?"
            if not isinstance(key, str):
                findings.append(
                    document.finding((*keys, name), "this key is not text for YAML; put it in quotes", line)
                )
            if name in built:
                first = document.lines[(*keys, name)]
                findings.append(
                    document.finding((*keys, name), f"given twice, first on line {first}; the last one would win", line)
                )
            document.lines[(*keys, name)] = line
            built[name] = _build(loader, inner, (*keys, name), document, findings, above)
        return {**merged, **built}
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError) as error:
        problem = getattr(error, "problem", None) or error
        findings.append(document.finding(keys, f"not a plain value: {problem}", node.start_mark.line + 1))
        return None


def dotted(keys: Keys) -> str:
    """A way as people write it: `spec.containers[0].image`."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".")


def nearest(word: str, known: Collection[str]) -> str:
    """The name that was probably meant, else all of them where they are few."""
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    if not close:
        lowered = {name.lower(): name for name in sorted(known)}
        close = [
            lowered[name] for name in difflib.get_close_matches(word.lower().replace("_", ""), lowered, n=1, cutoff=0.6)
        ]
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; valid: {', '.join(sorted(known))}" if 0 < len(known) <= 12 else ""


def filled_in(value: object) -> bool:
    """Whether a value is the user's own by now."""
    return not (isinstance(value, str) and PLACEHOLDER.search(value))


def placeholders(document: Document) -> Iterator[Finding]:
    """A line for each value that is still to be filled in."""
    for keys, value in document.walk():
        if not filled_in(value):
            yield document.finding(keys, f"still to be filled in: {' '.join(str(value).split())[:80]}")


def relative(path: Path) -> str:
    """The path as it is shortest to read from here."""
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else str(path)
