"""Documents whose tables are made from records: what stands between two marks is written anew, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from encode_pipeline.latents.command import RequestError


def with_tables(text: str, found: Mapping[str, str]) -> str:
    """A document whose every `<!-- table: NAME -->` is followed by that table of today."""
    names = re.findall(r"<!-- table: (.*?) -->", text)
    if sorted(names) != sorted(found):
        raise RequestError(f"has places for the tables {sorted(names)}; there are {sorted(found)}")
    for name, table in found.items():
        place = re.compile(rf"<!-- table: {re.escape(name)} -->\n.*?<!-- end -->", re.DOTALL)
        whole = f"<!-- table: {name} -->\n{table}\n<!-- end -->"
        text = place.sub(whole.replace("\\", r"\\"), text)
    return text


def table_of(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown; all but the first column stand to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
