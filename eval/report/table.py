"""What a table of a report is: a row a model, a column a score, ours and those of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from eval.report.paired import Pair
from eval.report.published import PublishedTable
from eval.report.runs import Run

PERCENT = " %"


@dataclass(frozen=True)
class Column:
    """A score."""

    key: str
    group: str
    title: str
    metric: str
    runs: tuple[Run, ...] = ()
    """The evaluations that can fill it: all on the same pictures."""
    paper: str | None = None
    """The column of the paper that it stands beside."""
    digits: int = 1
    """After the point."""

    @property
    def head(self) -> str:
        """Its whole name on one line."""
        return f"{self.group} {self.title}".strip()


@dataclass(frozen=True)
class Cell:
    """A number in the table's unit, and where it came from."""

    value: float
    run: Run | None = None
    low: float | None = None
    high: float | None = None
    reasons: tuple[str, ...] = ()
    """Why it cannot stand beside the paper's; empty if it can."""
    difference: float | None = None
    """To the paper's number of the same model, where that means something."""
    digits: int = 1
    """After the point."""

    @property
    def text(self) -> str:
        return f"{self.value:.{self.digits}f}".replace("-", "−")

    @property
    def interval(self) -> str:
        if self.low is None or self.high is None:
            return ""
        return f"[{self.low:.{self.digits}f}, {self.high:.{self.digits}f}]".replace("-", "−")

    def to_dict(self) -> dict[str, Any]:
        """What scripts see."""
        return {
            "value": self.value,
            "interval": None if self.low is None else [self.low, self.high],
            "difference": self.difference,
            "not_comparable": list(self.reasons),
            "run": str(self.run.folder) if self.run else None,
        }

    @property
    def beside(self) -> str:
        """The difference, with its sign."""
        return "" if self.difference is None else f"{self.difference:+.{self.digits}f}".replace("-", "−")


@dataclass(frozen=True)
class Row:
    name: str
    cells: list[Cell | None]
    paper: str | None = None
    """The paper's name of the same model."""

    @property
    def reasons(self) -> list[str]:
        """Why numbers of it are not comparable, each once."""
        return list(dict.fromkeys(reason for cell in self.cells if cell for reason in cell.reasons))


@dataclass
class Table:
    """Scores of several models on the same pictures or prompts."""

    name: str
    """For files and anchors."""
    title: str
    about: list[str]
    columns: list[Column]
    ours: list[Row]
    published: list[Row] = field(default_factory=list)
    paper: PublishedTable | None = None
    pairs: list[Pair] = field(default_factory=list)
    charted: list[tuple[str, list[Column]]] = field(default_factory=list)
    """What is shown as a chart too: its name, and the columns in it."""
    unit: str = PERCENT
    """What stands behind a number on a chart."""

    @property
    def notes(self) -> list[tuple[str, ...]]:
        """Every set of reasons once, in the order of the numbers that they belong to."""
        cells = [cell for row in self.ours for cell in row.cells if cell and cell.reasons]
        return list(dict.fromkeys(cell.reasons for cell in cells))

    def note(self, cell: Cell) -> int | None:
        """The number of the note that says why a number is not comparable; None if it is."""
        return self.notes.index(cell.reasons) + 1 if cell.reasons else None

    def pictures_of(self, pair: Pair) -> str:
        """On which pictures two models were compared, as the columns call them."""
        group = next(column.group for column in self.columns if any(run is pair.latent for run in column.runs))
        return group.removeprefix("Acc (").removesuffix(")")

    @property
    def groups(self) -> list[tuple[str, int]]:
        """The headings over the columns, each with the number of columns under it."""
        starts = [at for at, column in enumerate(self.columns) if not at or column.group != self.columns[at - 1].group]
        return [(self.columns[at].group, end - at) for at, end in pairwise([*starts, len(self.columns)])]

    def to_dict(self) -> dict[str, Any]:
        """What scripts see."""
        rows = [("ours", row) for row in self.ours] + [("published", row) for row in self.published]
        return {
            "name": self.name,
            "title": self.title,
            "rows": [
                {
                    "source": source,
                    "model": row.name,
                    "scores": {
                        column.key: cell.to_dict()
                        for column, cell in zip(self.columns, row.cells, strict=True)
                        if cell is not None
                    },
                }
                for source, row in rows
            ],
        }


def by_group(columns: Sequence[Column]) -> list[tuple[str, list[Column]]]:
    """The columns under each heading."""
    names = dict.fromkeys(column.group for column in columns)
    return [(name, [column for column in columns if column.group == name]) for name in names]
