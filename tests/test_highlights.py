"""The tables of README.md and docs/performance.md say what the records say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.documents import with_tables
from benchmarks.highlights import TABLES, HighlightsConfig, run
from demo.report_machine import ROOT
from encode_pipeline.latents.command import RequestError

RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.parametrize("document", TABLES, ids=lambda path: path.name)
def test_a_document_holds_the_tables_of_today(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    tables = run(HighlightsConfig())[str(document.relative_to(ROOT))]
    assert with_tables(text, tables) == text, "run: python -m benchmarks highlights write=true"


def test_a_record_without_a_figure_is_named(tmp_path: Path) -> None:
    for path in RESULTS.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    record = json.loads((tmp_path / "bench-2-cores.json").read_text())
    figures = record["benchmarks"]["reader"]["figures"]
    record["benchmarks"]["reader"]["figures"] = [figure for figure in figures if "first epoch" not in figure["name"]]
    (tmp_path / "bench-2-cores.json").write_text(json.dumps(record))
    with pytest.raises(RequestError, match=r"bench-2-cores.json: has no reader / first epoch: check"):
        run(HighlightsConfig(results=tmp_path))


@pytest.mark.parametrize("content", [{"machine": {}}, {"machine": {}, "benchmarks": {"gpu": []}}])
def test_a_damaged_record_is_named(tmp_path: Path, content: dict[str, Any]) -> None:
    for path in RESULTS.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "gpu-h200.json").write_text(json.dumps({"format": 2, **content}))
    with pytest.raises(RequestError, match=r"gpu-h200.json: (a damaged record: )?has no (benchmarks|gpu / encoder)"):
        run(HighlightsConfig(results=tmp_path))


def test_what_stands_outside_the_tables_stays() -> None:
    text = "before\n<!-- table: cpu -->\nold\n<!-- end -->\nafter \\1\n"
    assert with_tables(text, {"cpu": r"new \1"}) == "before\n<!-- table: cpu -->\nnew \\1\n<!-- end -->\nafter \\1\n"
