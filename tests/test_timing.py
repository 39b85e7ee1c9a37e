"""Where the time of steering goes: parts that come to the whole, in runs that are compared one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from encode_pipeline.latents.command import main
from eval.__main__ import VERBS
from eval.report.timings import read
from eval.steering.timed import Stopwatch
from eval.timing import PLAIN, pairs
from tests.clips import pixel_clip
from tests.steering import PROMPTS, latent_checkpoint


@pytest.fixture(scope="module")
def words(tiny_pipeline: Path, small_vae: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("timing")
    latent, pixel = latent_checkpoint(folder / "latent.pt", small_vae), pixel_clip(folder / "pixel")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return [
        "timing",
        f"generator={tiny_pipeline}",
        f"reward=[clip:{latent}, clip:{pixel}, avoid:{latent}]",
        f"prompts={folder / 'prompts.txt'}",
        "size=64",
        "iterations=4",
        "repeats=3",
        "warmup=1",
        "steps=2",
        "batch_size=2",
    ]


@pytest.fixture(scope="module")
def result(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("timed")
    assert main("eval", VERBS, [*words, f"out={out}"]) == 0
    written: dict[str, Any] = json.loads((out / "result.json").read_text())
    assert read(out, written).result.pairs  # as the report reads it
    return written


def test_parts_come_to_the_whole(result: dict[str, Any]) -> None:
    names = [row["name"] for row in result["rows"]]
    assert len(set(names)) == 4 and names[0] == PLAIN
    for row in result["rows"]:
        assert len(row["runs"]) == result["repeats"] == 3
        for run in (row, *row["runs"]):
            parts = run["parts"]
            whole = sum(value for key, value in parts.items() if key != "backward") + sum(parts["backward"].values())
            assert run["seconds_per_iter"] == pytest.approx(whole)
            in_all = row["iterations"] * run["seconds_per_iter"] + run["picture"]
            assert run["seconds_total"] == pytest.approx(in_all)
            assert (run["picture"] > 0) == (row["reads"] is not None)  # what is not steered is decoded at once
        totals = sorted(run["seconds_total"] for run in row["runs"])
        assert row["seconds_total"] == totals[1]


def test_each_way_has_the_parts_of_its_work(result: dict[str, Any]) -> None:
    plain, latent, pixel, avoid = (row["parts"] for row in result["rows"])
    assert [row["reads"] for row in result["rows"]] == [None, "latents", "pixels", "latents"]
    assert result["rows"][0]["iterations"] == 1 and not any(plain["backward"].values())
    assert (
        plain["decode"] > 0 and plain["generator"] > 0
    )  # a picture that is not steered is decoded, as the paper counts
    for parts in (latent, avoid):
        assert parts["decode"] == parts["backward"]["decode"] == 0 and parts["generator"] > 0
    for parts in (latent, pixel, avoid):
        assert parts["reward"] > 0 and parts["backward"]["reward"] > 0 and parts["backward"]["generator"] > 0
    assert pixel["decode"] > 0 and pixel["backward"]["decode"] > 0
    assert "batch_size is 2, the paper's 1" in result["not_comparable"]


def test_pairs_compare_run_with_run() -> None:
    def row(name: str, reads: str, totals: list[float], decode: float = 0.0) -> dict[str, Any]:
        runs = [{"seconds_total": total, "seconds_per_iter": total / 10} for total in totals]
        parts = {"decode": decode, "backward": {"decode": 2 * decode}}
        return {"name": name, "reads": reads, "runs": runs, "parts": parts, "seconds_per_iter": 0.6}

    rows = [row("a", "latents", [2, 4, 3]), row("b", "pixels", [6, 4, 6], decode=0.06)]
    (pair,) = pairs([{"name": PLAIN, "reads": None}, *rows])
    assert (pair["ratio"], pair["low"], pair["high"]) == (2, 1, 3)
    assert pair["saved"] == 0.5 and pair["saved_per_iter"] == 0.5 and pair["decode_share"] == pytest.approx(0.3)


def test_the_backward_pass_is_told_apart_where_gradients_come_by() -> None:
    """In the order of the pass, however late a part was asked to be told."""
    watch = Stopwatch(torch.device("cpu"))
    leaf = torch.ones(2, requires_grad=True)
    watch.ends_with(leaf, "third")
    middle = leaf * 2
    watch.ends_with(middle, "second")
    last = middle * 3
    watch.ends_with(last, "first")
    watch.ended("forward")
    torch.autograd.grad((last * 4).sum(), leaf)
    watch.ended("rest")
    found = watch.seconds()
    assert list(found) == ["forward", "first", "second", "third", "rest"] and min(found.values()) >= 0


def test_done_once_and_never_as_another(
    words: list[str], result: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = [word for word in words if not word.startswith(("repeats", "iterations"))]
    command = [*quick, "repeats=1", "iterations=2", f"out={tmp_path}"]
    assert main("eval", VERBS, command) == 0
    written = (tmp_path / "result.json").read_bytes()
    assert main("eval", VERBS, command) == 0
    assert (tmp_path / "result.json").read_bytes() == written
    shown = capsys.readouterr().out
    assert "arXiv 2503.08455, Table 2" in shown and "11.59" in shown and "instead of" in shown
    assert main("eval", VERBS, [*quick, "repeats=2", "iterations=2", f"out={tmp_path}"]) == 2
    assert "repeats is 1 there and 2 here" in capsys.readouterr().err
