"""Records beside one another: what is beyond the noise that both state is flagged, and nothing else."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import VERBS, main
from benchmarks.figures import Figure, Measured, compared, counted, under
from benchmarks.record import entry, record_of
from demo.report_machine import ROOT

BASE = Figure("plain", "views a second", (100.0, 104.0, 96.0))
FAST = compared("fast", "views a second", [200.0, 206.0, 190.0], BASE)
SIZE = counted("a latent", "bytes", 32768, "less")


def written(path: Path, *figures: Figure, processor: str | None = None, **settings: Any) -> Path:
    record = record_of({"encode": entry("Something", settings, Measured(figures), 1.0)}, 1.0)
    if processor:
        record["machine"]["processor"] = processor
    path.write_text(json.dumps(record))
    return path


def verdicts(capsys: pytest.CaptureFixture[str], status: int, *words: Path | str) -> dict[str, str]:
    assert main("benchmarks", VERBS, ["compare", *map(str, words), "--json"]) == status
    changes = json.loads(capsys.readouterr().out)["changes"]
    return {f"{change['name']}, {change['unit']}": change["verdict"] for change in changes}


def times(figure: Figure, factor: float) -> Figure:
    return replace(
        figure,
        rounds=tuple(value * factor for value in figure.rounds),
        ratios=tuple(ratio * factor for ratio in figure.ratios),
    )


def test_a_run_agrees_with_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = written(tmp_path / "a.json", BASE, FAST, SIZE)
    found = verdicts(capsys, 0, record, record)
    assert found == dict.fromkeys(found, "same") and len(found) == 4  # the fast one's ratio is judged as well


def test_what_lies_within_the_rounds_of_both_is_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = written(tmp_path / "a.json", BASE), written(tmp_path / "b.json", times(BASE, 1.07))
    assert verdicts(capsys, 0, old, new) == {"plain, views a second": "same"}


@pytest.mark.parametrize(("factor", "status", "verdict"), [(0.8, 1, "worse"), (1.25, 0, "better")])
def test_what_lies_beyond_is_flagged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], factor: float, status: int, verdict: str
) -> None:
    old, new = written(tmp_path / "a.json", BASE, FAST), written(tmp_path / "b.json", BASE, times(FAST, factor))
    found = verdicts(capsys, status, old, new)
    assert found == {
        "plain, views a second": "same",
        "fast, views a second": verdict,
        "fast, times plain": verdict,
    }


def test_less_is_better_where_it_says_so_and_counts_have_no_noise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = written(tmp_path / "a.json", SIZE), written(tmp_path / "b.json", times(SIZE, 1.01))
    assert verdicts(capsys, 1, old, new) == {"a latent, bytes": "worse"}
    assert verdicts(capsys, 0, new, old) == {"a latent, bytes": "better"}


def test_a_small_change_is_flagged_only_if_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steady = replace(BASE, rounds=(100.0, 100.1, 99.9))
    old, new = written(tmp_path / "a.json", steady), written(tmp_path / "b.json", times(steady, 0.97))
    assert set(verdicts(capsys, 0, old, new).values()) == {"same"}
    assert set(verdicts(capsys, 1, old, new, "rates_at_least=0.01").values()) == {"worse"}


def test_rates_may_drift_with_the_machine_and_ratios_may_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steady = replace(BASE, rounds=(100.0, 100.1, 99.9))
    fast = compared("fast", "views a second", [200.0, 200.2, 199.8], steady)
    old, new = written(tmp_path / "a.json", fast), written(tmp_path / "b.json", times(fast, 0.93))
    assert verdicts(capsys, 1, old, new) == {"fast, views a second": "same", "fast, times plain": "worse"}


def test_rates_of_two_machines_are_shown_but_only_ratios_and_counts_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = written(tmp_path / "a.json", BASE, FAST, SIZE)
    new = written(tmp_path / "b.json", times(BASE, 3), replace(FAST, rounds=(1.0, 1.0, 1.0)), SIZE, processor="another")
    assert verdicts(capsys, 0, old, new) == {
        "plain, views a second": "-",
        "fast, views a second": "-",
        "fast, times plain": "same",
        "a latent, bytes": "same",
    }


def test_what_only_one_has_or_was_told_otherwise_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = written(tmp_path / "a.json", BASE, SIZE), written(tmp_path / "b.json", BASE, FAST)
    assert main("benchmarks", VERBS, ["compare", str(old), str(new)]) == 0
    text = capsys.readouterr().out
    assert "only in the old: encode: a latent" in text and "only in the new: encode: fast" in text
    other = written(tmp_path / "c.json", BASE, batch_size=8)
    assert main("benchmarks", VERBS, ["compare", str(old), str(other)]) == 2
    assert "share no figure measured with the same settings" in capsys.readouterr().err


def test_parts_of_a_benchmark_keep_their_names_apart() -> None:
    first, second = under("batch 8", [BASE, FAST])
    assert (first.name, second.name, second.against) == ("batch 8: plain", "batch 8: fast", "batch 8: plain")


def test_another_pass_adds_its_rounds() -> None:
    both = Measured((BASE, FAST, SIZE)).and_again(Measured((times(BASE, 2), times(FAST, 2), SIZE)))
    assert both.figures[0].rounds == (100, 104, 96, 200, 208, 192) and len(both.figures[1].ratios) == 6
    assert both.figures[2] == SIZE
    with pytest.raises(ValueError, match="other figures"):
        Measured((BASE,)).and_again(Measured((FAST,)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[]", "not a record of benchmarks in format 2 (format: none)"),
        ('{"processor": "x", "results": {}}', "not a record of benchmarks in format 2 (format: none)"),
        ('{"format": 2}', "a damaged record: has no machine"),
        ('{"format": 2, "machine": {}, "benchmarks": []}', "a damaged record: has no benchmarks"),
        (
            '{"format": 2, "machine": {}, "benchmarks": {"a": {"settings": {}, "figures": [{}]}}}',
            "a damaged record: KeyError 'name'",
        ),
    ],
)
def test_a_file_that_is_no_record_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    good, bad = written(tmp_path / "a.json", BASE), tmp_path / "b.json"
    bad.write_text(content)
    assert main("benchmarks", VERBS, ["compare", str(good), str(bad)]) == 2
    assert capsys.readouterr().err.strip() == f"error: {bad}: {said}"


def test_the_two_committed_runs_agree(capsys: pytest.CaptureFixture[str]) -> None:
    """As docs/performance.md says, with the numbers of figures that it names."""
    records = [ROOT / "benchmarks" / "results" / f"{name}-2-cores.json" for name in ("bench", "second")]
    judged = verdicts(capsys, 0, *records)
    closely = Counter(verdicts(capsys, 0, *records, "at_least=0", "rates_at_least=0").values())
    assert set(judged.values()) == {"same"} and set(closely) == {"same", "better"}
    text = " ".join((ROOT / "docs" / "performance.md").read_text(encoding="utf-8").split())
    assert f"judges {closely.total()} figures and flags none. The rounds of {closely['better']} of them" in text


@pytest.mark.parametrize("files", [1, 3])
def test_two_files_are_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str], files: int) -> None:
    record = written(tmp_path / "a.json", BASE)
    assert main("benchmarks", VERBS, ["compare", *[str(record)] * files]) == 2
    assert f"two records are compared, OLD.json and NEW.json; {files} given" in capsys.readouterr().err


def test_make_takes_the_two_files_as_they_are_typed(tmp_path: Path) -> None:
    old, new = written(tmp_path / "a.json", FAST), written(tmp_path / "b.json", times(FAST, 0.5))
    for files, status, said in (([old, old], 0, "0 beyond the noise"), ([old, new], 2, "worse")):
        command = ["make", "--no-print-directory", "-s", "bench-compare", *map(str, files), f"BIN={ROOT / '.venv/bin'}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == status and said in done.stdout, done.stderr
