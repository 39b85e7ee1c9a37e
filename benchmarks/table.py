"""A record as people read it: a table for each benchmark, in Markdown, which a terminal shows as well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NUMBERS = (2, 4)
"""Columns that stand to the right."""


def markdown(record: Mapping[str, Any]) -> str:
    """The whole record, beginning with what it is of."""
    return "\n".join(_lines(record)) + "\n"


def _lines(record: Mapping[str, Any]) -> Iterator[str]:
    machine = record["machine"]
    yield f"Machine: {machine_in_words(machine)}, load average at the end {record['load_average'][0]}.  "
    yield f"Software: {', '.join(f'{name} {version}' for name, version in record['software'].items())}.  "
    took = f" Measured in {record['seconds'] / 60:.1f} minutes." if record["seconds"] is not None else ""
    yield f"Commit: {record['commit'] or 'none'}.{took}"
    yield "In brackets: the least and the most of all rounds, which is the noise that a figure states."
    for name, benchmark in record["benchmarks"].items():
        yield ""
        yield f"**{name}**: {benchmark['about']}"
        if "weights" in benchmark["details"]:
            yield f"(weights: {benchmark['details']['weights']})"
        yield ""
        if benchmark["figures"]:
            yield from _table(benchmark["figures"])
        for problem in benchmark["details"].get("left_out", []):
            yield f"Left out: {problem}  "
        for part, reason in benchmark["details"].get("failed", {}).items():
            yield f"Failed: {part}: {reason}  "


def _table(figures: list[dict[str, Any]]) -> Iterator[str]:
    rows = [
        (figure["name"], figure["unit"], number(figure["median"]), between(figure), _ratio(figure))
        for figure in figures
    ]
    heads = ("", "unit", "median", "", "ratio")
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    yield _row(heads, widths)
    yield "|" + "|".join("-" * (width + 1) + (":" if at in NUMBERS else "-") for at, width in enumerate(widths)) + "|"
    for row in rows:
        yield _row(row, widths)


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    sides = [">" if at in NUMBERS else "<" for at in range(len(cells))]
    padded = [f"{cell:{side}{width}}" for cell, side, width in zip(cells, sides, widths, strict=True)]
    return f"| {' | '.join(padded)} |"


def between(values: Mapping[str, float]) -> str:
    """What the rounds lay between; nothing where they were all the same."""
    return "" if values["least"] == values["most"] else f"({number(values['least'])}–{number(values['most'])})"


def _ratio(figure: Mapping[str, Any]) -> str:
    if "ratio" not in figure or figure["against"] == figure["name"]:
        return "1" if "ratio" in figure else ""
    return f"{number(figure['ratio']['median'])} {between(figure['ratio'])}".strip()


def number(value: float) -> str:
    """Three digits, or all of a large number."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def machine_in_words(machine: Mapping[str, Any]) -> str:
    gpu = machine.get("gpu")
    words = [machine["processor"], *([f"{machine['memory_gb']:.0f} GB"] if "memory_gb" in machine else [])]
    if gpu:
        words.insert(0, f"{gpu['name']} ({gpu['memory_gb']} GB)" if "memory_gb" in gpu else gpu["name"])
    return ", ".join(words)
