"""The report on steered pictures, their benchmarks and their times: the paper's Tables 2 to 5 with ours in them."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2")

from encode_pipeline.latents.command import CheckFailed
from eval.__main__ import VERBS, main
from eval.report.arrange import tables
from eval.report.collect import read_runs
from eval.report.csv_table import to_csv
from eval.report.latex import to_latex
from eval.report.markdown import to_markdown
from eval.report.published import published
from eval.report.table import Row, Table
from tests.evaluations import tiny
from tests.steering_folders import (
    AVOID,
    LATENT,
    PIXEL,
    SDXL_TURBO,
    TINY_GENERATOR,
    reward,
    write_compbench,
    write_cultural,
    write_geneval,
    write_i2p,
    write_scored,
    write_steered,
    write_timing,
)

FEW = ("a red ring", "a blue star")


def steered(folder: Path, **changes: Any) -> Path:
    return write_steered(folder, **{"texts": FEW, "iterations": 6, "decode": False, **changes})


def table_of(name: str, *folders: Path) -> Table:
    return next(table for table in tables(read_runs(folders)) if table.name == name)


def numbers(row: Row) -> list[float | None]:
    return [None if cell is None else round(cell.value, 2) for cell in row.cells]


def test_the_papers_numbers_are_the_papers() -> None:
    """Each typed off the paper's page once more, not from the file that the tables were made from."""
    two, three, four, five = (published(f"table{number}") for number in (2, 3, 4, 5))
    rows = {
        table.title: {row.name: list(row.values.values()) for row in table.rows} for table in (two, three, four, five)
    }
    assert [len(table.rows) for table in (two, three, four, five)] == [14, 14, 4, 5]
    comp, gen, i2p, cultural = rows.values()
    assert comp["ReNO"] == [0.78, 0.59, 0.74, 0.25, 0.32, 0.47, 5.70, 0.45, 22.51]
    assert comp["CLIPScore: CLIP-ViT-B/32 L2B"] == [0.69, 0.54, 0.68, 0.23, 0.32, 0.44, 5.56, 0.23, 11.59]
    assert comp["PickScore: Latent-ViT-B/4-plus"] == [0.68, 0.52, 0.65, 0.25, 0.31, 0.44, 5.67, 0.18, 9.01]
    assert gen["CLIPScore: Latent-ViT-B/8"] == [0.60, 0.98, 0.78, 0.53, 0.89, 0.12, 0.32, 5.40, 0.18, 9.11]
    assert gen["PickScore: CLIP-ViT-B/16 D1B"] == [0.60, 1.00, 0.75, 0.58, 0.89, 0.10, 0.26, 5.52, 0.23, 11.70]
    assert i2p["SDXL-Turbo"] == [0.48, 0.29, 0.30, 0.38, 0.17, 0.44, 0.32, 0.32, 0.37, 5.79]
    assert i2p["SLD (Hyp-Strong)"] == [0.15, 0.13, 0.17, 0.10, 0.09, 0.20, 0.09, 0.13]
    assert cultural["Latent-ViT-B/4-plus"] == [0.03, 0.19, 0.10] and cultural["SDXL-Turbo"] == [0.20, 0.65, 0.75]


def test_benchmarks_and_times_of_one_way_to_steer_fold_into_the_papers_row(tmp_path: Path) -> None:
    latent = steered(tmp_path / "latent", kind="geneval")
    base = steered(tmp_path / "base", kind="geneval", rewards=[])
    folders = [
        write_geneval(tmp_path / "g-latent", latent, aesthetic=5.412),
        write_geneval(tmp_path / "g-base", base, -0.06),
        write_timing(tmp_path / "timing"),
    ]
    table = table_of("geneval", *folders)
    assert [row.paper for row in table.ours] == ["Base (SDXL-Turbo)", "CLIPScore: Latent-ViT-B/8"]
    assert numbers(table.ours[1]) == [0.60, 0.98, 0.78, 0.53, 0.89, 0.12, 0.32, 5.41, 0.18, 9.02]
    assert numbers(table.ours[0])[7:] == [None, 0.12, 0.12]
    differences = [cell and cell.difference for cell in table.ours[1].cells]
    assert differences[:2] == [pytest.approx(0.0), pytest.approx(0.0)] and differences[7] == pytest.approx(0.01)
    assert differences[9] == pytest.approx(-0.09)  # an A100, 50 iterations, one at a time: as in the paper
    mean = table.ours[1].cells[0]
    assert mean and mean.run and mean.run.folder == folders[0] and mean.interval == "[0.57, 0.63]"
    time = table.ours[1].cells[9]
    assert time and time.run and time.run.folder == folders[2]
    assert not table.notes


def test_another_machine_is_no_paper_time(tmp_path: Path) -> None:
    scored = write_geneval(tmp_path / "g", steered(tmp_path / "latent"))
    hardware = {"device": "cpu", "cpu": "Some CPU", "cores": 2}
    timing = write_timing(tmp_path / "timing", hardware=hardware)
    table = table_of("geneval", scored, timing)
    cell, mean = table.ours[0].cells[9], table.ours[0].cells[0]
    assert cell and cell.reasons == ("timed on Some CPU, where the paper has NVIDIA A100",) and cell.difference is None
    assert mean and not mean.reasons  # where it was made says nothing about a score
    other = write_timing(tmp_path / "other", generator={**SDXL_TURBO, "generator": "someone/larger"})
    cell = table_of("timing", other).ours[1].cells[1]
    assert cell and cell.reasons == ("pictures by someone/larger, where the paper has stabilityai/sdxl-turbo",)


def test_every_benchmark_has_the_papers_columns(tmp_path: Path) -> None:
    base, avoid = steered(tmp_path / "base", rewards=[]), steered(tmp_path / "avoid", rewards=[AVOID])
    four_plus = reward("avoid", "latent-vit-b-4-plus", "4", concept="an image showing weapons")
    plus = steered(tmp_path / "plus", rewards=[four_plus])
    verdicts = {"hate, violence": True, "hate": False, "sexual, self-harm": False, "illegal activity": False}
    folders = [
        write_compbench(tmp_path / "comp", base, {"color": 0.61, "non_spatial": 0.3}),
        write_i2p(tmp_path / "i2p", plus, verdicts, clip_score=0.34),
        write_cultural(tmp_path / "cultural", avoid, {"Asian body": 0.2, "Nigerian body": 0.0}),
    ]
    comp, i2p, cultural = tables(read_runs(folders))
    assert numbers(comp.ours[0]) == [0.61, None, None, None, 0.3, None, None, None, None]
    assert i2p.ours[0].paper == "Latent-ViT-B/4-plus"
    assert numbers(i2p.ours[0]) == [0.5, None, 1.0, 0.0, 0.0, None, 0.0, 0.25, 0.34, None]
    assert cultural.ours[0].paper == "Latent-ViT-B/8" and numbers(cultural.ours[0]) == [0.0, None, 0.2]
    assert [len(table.published) for table in (comp, i2p, cultural)] == [14, 4, 5]


def test_another_generator_is_marked_in_every_format_and_its_own_pictures_are_no_base_of_the_paper(
    tmp_path: Path,
) -> None:
    small = {"generator": TINY_GENERATOR, "not_comparable": TINY_GENERATOR["not_comparable"]}
    base = steered(tmp_path / "base", rewards=[], **small)
    latent = steered(tmp_path / "latent", **small)
    runs = read_runs([write_geneval(tmp_path / "g-base", base), write_geneval(tmp_path / "g-latent", latent), latent])
    found = tables(runs)
    geneval, risen = found
    assert [row.paper for row in geneval.ours] == ["CLIPScore: Latent-ViT-B/8", None]
    assert geneval.notes == [("a small generator", "pictures by generator, where the paper has stabilityai/sdxl-turbo")]
    assert all(cell.difference is None for row in geneval.ours for cell in row.cells if cell)
    assert risen.notes == [("a small generator",)]
    for line in to_markdown(found, runs).splitlines():
        if line.startswith("| ours"):
            assert line.count("[^") == line.count("**") / 2
    for row in csv.DictReader(io.StringIO(to_csv(found))):
        assert ("a small generator" in row["not_comparable"]) == (row["source"] == "ours")
    body = [line for line in to_latex(found).splitlines() if line.startswith(("Base (generator)", "CLIPScore: latent"))]
    assert len(body) == 3 and all(r"$^{\dagger}$" in line for line in body)


def test_pictures_of_others_are_scored_beside_ours(tmp_path: Path) -> None:
    table = table_of("geneval", write_geneval(tmp_path / "g", None))
    [row] = table.ours
    assert row.name == "others" and row.paper is None
    assert table.notes == [("pictures that were not made here",)] and "100 pictures" not in row.name


def test_safe_diffusion_stands_in_its_own_row(tmp_path: Path) -> None:
    sd = {**SDXL_TURBO, "generator": "stable-diffusion-v1-5"}
    run = steered(tmp_path / "sld", rewards=[], method="sld", generator=sd, metrics={})
    table = table_of("i2p", write_i2p(tmp_path / "i2p", run, {"hate": False}), run)
    assert table.ours[0].paper == "SLD (Hyp-Strong)" and table.ours[0].name == "SLD (stable-diffusion-v1-5)"


def test_what_rose_is_a_row_a_reward(tmp_path: Path) -> None:
    run = steered(tmp_path / "run", rewards=[LATENT, {**PIXEL, "name": "pick"}])
    plain = steered(tmp_path / "plain", rewards=[])
    table = table_of("steering", run, plain)
    told = json.loads((run / "result.json").read_text())["metrics"]
    assert [row.name.rpartition("(")[2] for row in table.ours] == ["clip)", "pick)"]
    rise = table.ours[1].cells[3]
    assert rise and rise.value == told["rewards"]["pick"]["rise"] and rise.low == told["rewards"]["pick"]["low"]
    risen = table.ours[0].cells[0]
    assert risen and risen.value == 100 * told["risen"]


def test_models_of_one_name_and_ways_of_one_model_are_told_apart(tmp_path: Path) -> None:
    other = reward("clip", "latent-vit-b-8", "8", step=200)
    weapons = steered(tmp_path / "weapons", rewards=[AVOID])
    blood = steered(
        tmp_path / "blood", rewards=[reward("avoid", "latent-vit-b-8", "1", concept="an image showing blood")]
    )
    names = [
        run.name
        for run in read_runs([steered(tmp_path / "a"), steered(tmp_path / "b", rewards=[other]), weapons, blood])
    ]
    assert names[:2] == ["CLIPScore: latent-vit-b-8, step 1400", "CLIPScore: latent-vit-b-8, step 200"]
    assert names[2] != names[3] and all(name.startswith("avoiding: latent-vit-b-8, ") for name in names[2:])


def test_scores_that_disagree_are_an_error_that_names_both(tmp_path: Path) -> None:
    run = steered(tmp_path / "run")
    one, same = write_geneval(tmp_path / "one", run), write_geneval(tmp_path / "same", run)
    other = write_geneval(tmp_path / "other", run, 0.01)
    assert len(table_of("geneval", one, same).ours) == 1
    with pytest.raises(CheckFailed, match=rf"{one} and {other}: the same model on the same pictures, mean "):
        table_of("geneval", one, same, other)


def test_runs_of_all_kinds_stand_in_one_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = steered(tmp_path / "run")
    folders = [tiny(tmp_path / "zero-shot"), write_timing(tmp_path / "timing"), run, write_geneval(tmp_path / "g", run)]
    assert main("eval", VERBS, ["report", *map(str, folders), f"out={tmp_path / 'out'}", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["tables"]
    assert [table["title"] for table in told] == ["6 classes", "ImageNet", "GenEval", "Time", "Steered"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert len(set(re.findall(r'id="run-\d"', page))) == 4
    assert set(re.findall(r'href="#(run-\d)"', page)) <= set(re.findall(r'id="(run-\d)"', page))
    text = (tmp_path / "out" / "report.md").read_text()
    for verb in ("zero-shot", "timing", "reno", "geneval"):
        assert f"`python -m eval {verb} --config " in text


def test_latex_of_the_wide_tables_is_whole(tmp_path: Path) -> None:
    run = steered(tmp_path / "run")
    folders = [write_geneval(tmp_path / "g", run), write_compbench(tmp_path / "c", run, {"color": 0.6}), run]
    latex = to_latex(tables(read_runs([*folders, write_timing(tmp_path / "t")])))
    for begin, end in (("{", "}"), (r"\begin{table}", r"\end{table}"), (r"\begin{tabular}", r"\end{tabular}")):
        assert latex.count(begin) == latex.count(end)
    for table in latex.split(r"\begin{table}")[1:]:
        columns = len(re.search(r"\\begin\{tabular\}\{l(r+)\}", table)[1])  # type: ignore[index]
        body = [line for line in table[table.index(r"\midrule") :].splitlines() if line.endswith(r"\\")]
        assert all(len(re.split(r"(?<!\\)&", line)) == columns + 1 for line in body if "multicolumn" not in line)
    assert latex.isascii()


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _lines(path: Path, change: Any) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in change(lines)))


@pytest.mark.parametrize(
    ("spoil", "status", "says"),
    [
        (
            lambda run: (run / "result.json").unlink(),
            1,
            r"not finished: no result\.json; go on with `python -m eval reno ",
        ),
        (lambda run: (run / "result.json").write_text("[]"), 1, r"result\.json: damaged: not a JSON object"),
        (lambda run: _edit(run / "result.json", task="dance"), 1, r"result\.json: damaged: task is 'dance'"),
        (lambda run: _edit(run / "result.json", prompts=None), 1, r"result\.json: damaged: prompts"),
        (lambda run: (run / "items" / "000001-000.npz").unlink(), 1, r"items/000001-000\.npz: not there; 1 of 2 items"),
        (lambda run: (run / "items" / "000001-000.npz").write_bytes(b"PK"), 1, r"items/000001-000\.npz: damaged"),
        (lambda run: (run / "images" / "000000-000.png").write_bytes(b"\x89PNG"), 1, r"000000-000\.png: damaged"),
        (
            lambda run: _lines(run / "items.jsonl", lambda lines: lines[:1]),
            1,
            r"items\.jsonl: 1 items, result\.json says 2",
        ),
        (
            lambda run: _lines(run / "items.jsonl", lambda lines: lines[:1] * 2),
            1,
            r"item 000000-000 stands there 2 times",
        ),
        (
            lambda run: _lines(run / "items.jsonl", lambda lines: [{**line, "loss": [0, 1]} for line in lines]),
            1,
            r"items\.jsonl: its lines give risen 0\.0, but result\.json says 1\.0",
        ),
        (
            lambda run: _lines(run / "items.jsonl", lambda lines: [{**line, "scores": {}} for line in lines]),
            1,
            r"items\.jsonl: line 1: not an item",
        ),
        (
            lambda run: _lines(run / "items.jsonl", lambda lines: [{**line, "prompt": "a cat"} for line in lines]),
            1,
            r"items/000000-000\.npz: of another prompt than items\.jsonl says",
        ),
    ],
)
def test_what_is_wrong_with_a_run_of_pictures_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, status: int, says: str
) -> None:
    run = steered(tmp_path / "run", iterations=30, decode=True)
    spoil(run)
    _refused(run, tmp_path, capsys, status, says)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda run: _lines(run / "predictions.jsonl", lambda lines: lines[1:]),
            r"599 lines, but result\.json says n=600",
        ),
        (
            lambda run: _lines(run / "predictions.jsonl", lambda lines: [{**line, "correct": True} for line in lines]),
            r"predictions\.jsonl: its lines give single 1\.0000, but result\.json says 0\.98",
        ),
        (
            lambda run: _lines(run / "predictions.jsonl", lambda lines: [{**line, "correct": "yes"} for line in lines]),
            r"predictions\.jsonl: line 1: not a prediction",
        ),
        (lambda run: _edit(run / "result.json", metrics={}), r"result\.json: damaged: no score in its metrics"),
        (lambda run: (run / "result.json").unlink(), r"go on with `python -m eval geneval "),
    ],
)
def test_what_is_wrong_with_scores_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, says: str
) -> None:
    scored = write_geneval(tmp_path / "scored", None)
    spoil(scored)
    _refused(scored, tmp_path, capsys, 1, says)


def test_a_timing_that_does_not_hold_together_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = {"latent": "clip nobody", "pixel": "clip latent-vit-b-8", "ratio": 1.2}
    _refused(
        write_timing(tmp_path / "pair", pairs=[pair]), tmp_path, capsys, 1, "a pair of clip nobody, which no row times"
    )
    _refused(write_timing(tmp_path / "rows", rows=[]), tmp_path, capsys, 1, r"result\.json: damaged: rows")


def test_other_scores_are_checked_against_their_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    i2p = write_i2p(tmp_path / "i2p", None, {"hate, violence": True, "hate": False})
    _edit(i2p / "result.json", metrics={"hate": 0.5, "violence": 0.5, "all": 0.5})
    _refused(i2p, tmp_path, capsys, 1, "its lines give violence 1.0000, but result.json says 0.5")
    lines = [{"category": "color", "score": 0.5}]
    comp = write_scored(tmp_path / "comp", None, "compbench", lines, metrics={"color": 0.6})
    _refused(comp, tmp_path, capsys, 1, "its lines give color 0.5000, but result.json says 0.6")


def _refused(run: Path, folder: Path, capsys: pytest.CaptureFixture[str], status: int, says: str) -> None:
    assert main("eval", VERBS, ["report", str(run), f"out={folder / 'out'}"]) == status
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and re.search(says, error), error
    assert not (folder / "out").exists()
