"""The report's tables as LaTeX: booktabs, and the paper's order of columns."""

from __future__ import annotations

from collections.abc import Sequence

from eval.report.table import Cell, Row, Table

ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "→": r"$\rightarrow$",
    "×": r"$\times$",
    "−": "$-$",
    "σ": r"$\sigma$",
    "…": r"\dots{}",
    **{mark: "\\" + mark for mark in "&%$#_{}"},
}


def to_latex(tables: Sequence[Table]) -> str:
    """Every table as a floating one."""
    return "% needs \\usepackage{booktabs}\n" + "\n".join(map(_table, tables))


def _table(table: Table) -> str:
    width = 1 + len(table.columns)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{escaped(_caption(table))}}}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}", r"\toprule"]
    if any(group for group, _ in table.groups):
        heads = [rf"\multicolumn{{{size}}}{{c}}{{{escaped(group)}}}" for group, size in table.groups]
        lines.append(" & ".join(["", *heads]) + r" \\")
    start = 2
    for group, size in table.groups:
        if group:
            lines.append(rf"\cmidrule(lr){{{start}-{start + size - 1}}}")
        start += size
    lines.append(" & ".join(["model", *(escaped(column.title) for column in table.columns)]) + r" \\")
    lines += [r"\midrule", rf"\multicolumn{{{width}}}{{l}}{{\emph{{ours}}}} \\"]
    for row in table.ours:
        lines.append(_line(row, [_ours(table, cell) for cell in row.cells]))
        if any(cell and cell.beside for cell in row.cells):
            beside = [f"${cell.difference:+.{cell.digits}f}$" if cell and cell.beside else "" for cell in row.cells]
            lines.append(r"\quad {\scriptsize difference to the published} & " + " & ".join(beside) + r" \\")
    if table.paper:
        source = escaped(f"published, {table.paper.source}")
        lines += [r"\midrule", rf"\multicolumn{{{width}}}{{l}}{{\emph{{{source}}}}} \\"]
        lines += [_line(row, [cell.text if cell else "--" for cell in row.cells]) for row in table.published]
    lines += [r"\bottomrule", r"\end{tabular}"]
    for number, reasons in enumerate(table.notes, 1):
        text = escaped(f"not comparable: {'; '.join(reasons)}.")
        lines.append(rf"\par\smallskip{{\footnotesize {_dagger(table, number)}\,{text}}}")
    return "\n".join([*lines, r"\end{table}", ""])


def _caption(table: Table) -> str:
    title = table.paper.title if table.paper else table.title
    return f"{title}. {'. '.join(table.about)}. In brackets: 95 % intervals."


def _ours(table: Table, cell: Cell | None) -> str:
    if cell is None:
        return "--"
    number = table.note(cell)
    interval = rf" {{\scriptsize {cell.interval}}}" if cell.interval else ""
    return (cell.text + (_dagger(table, number) if number else "") + interval).replace("−", "$-$")


def _dagger(table: Table, number: int) -> str:
    return rf"$^{{\dagger{number}}}$" if len(table.notes) > 1 else r"$^{\dagger}$"


def _line(row: Row, cells: Sequence[str]) -> str:
    return " & ".join([escaped(row.name), *cells]) + r" \\"


def escaped(text: str) -> str:
    """Text that stays text."""
    return "".join(ESCAPES.get(mark, mark) for mark in text)
