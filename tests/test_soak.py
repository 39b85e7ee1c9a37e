"""The soak itself works: a short one, to its reckoning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_short_soak_ends_in_a_reckoning(tmp_path: Path) -> None:
    words = ["minutes=0.3", "tars=6", "machines=2", "pause=3", f"out={tmp_path / 'soak.json'}"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads((tmp_path / "soak.json").read_text())["benchmarks"]["soak"]["details"]
    assert facts["rounds_reconciled"] >= 1 and facts["faults"]
    assert facts["read"] == facts["encoded"] + facts["rejected"] == 72 * facts["rounds_reconciled"]
