"""The report's numbers for other programs: a line a model, ours and published."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from eval.report.table import Cell, Row, Table

PARTS = ("", "_low", "_high", "_difference", "_run", "_not_comparable")


def to_csv(tables: Sequence[Table]) -> str:
    """One header for all tables: a line leaves empty what its table has no column for."""
    keys = list(dict.fromkeys(column.key for table in tables for column in table.columns))
    head = ["table", "source", "model", *(key + part for key in keys for part in PARTS), "not_comparable"]
    file = io.StringIO()
    writer = csv.DictWriter(file, head, restval="", lineterminator="\n")
    writer.writeheader()
    for table in tables:
        writer.writerows(_line(table, "ours", row) for row in table.ours)
        writer.writerows(_line(table, "published", row) for row in table.published)
    return file.getvalue()


def _line(table: Table, source: str, row: Row) -> dict[str, str]:
    line = {"table": table.name, "source": source, "model": row.name}
    reasons: list[str] = []
    for column, cell in zip(table.columns, row.cells, strict=True):
        if cell:
            line |= {column.key + part: text for part, text in zip(PARTS, _texts(cell), strict=True)}
            reasons += cell.reasons
    return {**line, "not_comparable": "; ".join(dict.fromkeys(reasons))}


def _texts(cell: Cell) -> list[str]:
    numbers = (cell.low, cell.high)
    value = f"{cell.value:.4f}" if cell.run else cell.text
    low, high = ("" if number is None else f"{number:.4f}" for number in numbers)
    difference = "" if cell.difference is None else f"{cell.difference:.{cell.digits}f}"
    return [value, low, high, difference, str(cell.run.folder) if cell.run else "", "; ".join(cell.reasons)]
