"""The report as Markdown, with the reasons that numbers are not comparable as footnotes."""

from __future__ import annotations

from collections.abc import Sequence

from eval.report.paired import in_points
from eval.report.provenance import command_of
from eval.report.runs import Run
from eval.report.table import Cell, Table


def to_markdown(tables: Sequence[Table], runs: Sequence[Run]) -> str:
    """All tables, then where every number came from."""
    lines = ["# Results", ""]
    lines += [
        "With 95 % intervals in brackets. Δ is the difference to the published number of the same model, where the two",
        "can be compared. A number with a footnote cannot stand beside the paper's.",
        "",
    ]
    for table in tables:
        lines += _table(table)
    lines += ["## Where the numbers came from", ""]
    head = ["run", "model", "weights", "on", "way", "seed", "again with"]
    lines += [_line(head), _line(["---"] * len(head))]
    for run in runs:
        cells = [str(run.folder), run.name, run.weights[:12], run.subject, run.way, str(run.seed)]
        lines.append(_line([*map(_escaped, cells), f"`{command_of(run)}`"]))
    return "\n".join(lines) + "\n"


def _table(table: Table) -> list[str]:
    lines = [f"## {_escaped(table.title)}", "", *(f"- {_escaped(text)}" for text in table.about), ""]
    heads = [column.head for column in table.columns]
    lines += [_line(["", "model", *heads]), _line(["---", "---", *["---:"] * len(heads)])]
    for row in table.ours:
        lines.append(_line(["ours", _escaped(row.name), *(_ours(table, cell) for cell in row.cells)]))
    for row in table.published:
        lines.append(_line(["published", _escaped(row.name), *(cell.text if cell else "–" for cell in row.cells)]))
    lines.append("")
    if table.paper:
        lines += [f"Published: [{table.paper.source}]({table.paper.url}).", ""]
    for number, reasons in enumerate(table.notes, 1):
        lines.append(f"[^{table.name}-{number}]: Not comparable: {_escaped('; '.join(reasons))}.")
    lines += [""] if table.notes else []
    if table.pairs:
        lines += ["Latent against pixel on the same pictures, in points, with paired 95 % intervals:", ""]
        lines += [_line(["pictures", "latent", "pixel", "way", "top-1", "top-5"]), _line(["---"] * 4 + ["---:"] * 2)]
        for pair in table.pairs:
            told = [
                table.pictures_of(pair),
                pair.latent.name,
                pair.pixel.name,
                f"{pair.latent.result.way} / {pair.pixel.result.way}",
            ]
            mark = " †" if pair.reasons else ""
            lines.append(_line([*map(_escaped, told), in_points(pair.top1) + mark, in_points(pair.top5) + mark]))
        lines.append("")
        if why := list(dict.fromkeys(reason for pair in table.pairs for reason in pair.reasons)):
            lines += [f"†: not comparable with the paper: {_escaped('; '.join(why))}.", ""]
    return lines


def _ours(table: Table, cell: Cell | None) -> str:
    if cell is None:
        return "–"
    note = f"[^{table.name}-{table.note(cell)}]" if cell.reasons else ""
    beside = f"Δ {cell.beside}" if cell.beside else ""
    return " ".join(part for part in (f"**{cell.text}**{note}", cell.interval, beside) if part)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """Text that stays text in a table's cell."""
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())
