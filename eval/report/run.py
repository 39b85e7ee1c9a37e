"""The verb: finished runs in, the same tables out as Markdown, CSV, LaTeX and one page to open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from encode_pipeline.latents.command import Settings
from encode_pipeline.latents.disk import replace


class ReportConfig(Settings):
    """Which runs to set side by side."""

    runs: list[Path] = Field(
        description="folders that zero-shot, retrieval, reno, geneval, compbench, i2p or timing wrote"
    )
    out: Path = Field(Path("report"), description="folder for report.html, report.md, report.csv and report.tex")


def report(config: ReportConfig) -> dict[str, Any]:
    """Writes the four files; returns where they are and what the tables hold."""
    from eval.report.arrange import tables
    from eval.report.collect import read_runs
    from eval.report.csv_table import to_csv
    from eval.report.latex import to_latex
    from eval.report.markdown import to_markdown
    from eval.report.page import to_html

    runs = read_runs(config.runs)
    found = tables(runs)
    texts = {
        "html": to_html(found, runs),
        "md": to_markdown(found, runs),
        "csv": to_csv(found),
        "tex": to_latex(found),
    }
    files = {kind: config.out / f"report.{kind}" for kind in texts}
    for kind, text in texts.items():
        replace(files[kind], text.encode("utf-8", "replace"))
    return {**{kind: str(path.absolute()) for kind, path in files.items()}, "tables": [one.to_dict() for one in found]}
