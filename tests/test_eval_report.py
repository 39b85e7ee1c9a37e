"""The report on evaluations: the paper's table with ours in it, every mark and refusal, and the page in a browser."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest

pytest.importorskip("jinja2")

from encode_pipeline.latents.command import CheckFailed
from encode_pipeline.latents.spec import digest
from eval.__main__ import VERBS, main
from eval.report.arrange import tables
from eval.report.collect import read_run, read_runs
from eval.report.csv_table import to_csv
from eval.report.latex import escaped, to_latex
from eval.report.markdown import to_markdown
from eval.report.page import to_html
from eval.report.paired import pairs_of
from eval.report.published import published
from eval.report.table import Table
from eval.report.zero_shot_tables import sets_of
from eval.zero_shot import distinct
from tests.evaluations import (
    B32,
    GENERATED,
    IMAGENET,
    NAMES,
    PICTURES,
    PIXEL,
    TINY,
    imagenet_evaluations,
    pictures_of,
    tiny,
    write_evaluation,
)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return imagenet_evaluations(tmp_path_factory.mktemp("imagenet"))


def values(table: Table, row: int) -> list[float | None]:
    return [None if cell is None else round(cell.value, 1) for cell in table.ours[row].cells]


def test_the_papers_numbers_are_the_papers_and_every_model_has_its_name_here() -> None:
    paper = published("table1")
    assert [column["key"] for column in paper.columns] == ["in_top1", "in_top5", "gin_top1", "gin_top5"]
    by_name = {row.name: row for row in paper.rows}
    assert len(paper.rows) == 12 and all(row.model for row in paper.rows)
    assert list(by_name["(1) Latent-ViT-B/8"].values.values()) == [68.8, 91.3, 82.0, 97.3]
    assert by_name["(2) Latent-ViT-B/4-plus"].values == {"gin_top1": 84.6, "gin_top5": 98.0}
    assert list(by_name["CLIP-ViT-g/14 L2B"].values.values()) == [78.5, 95.3, 86.8, 98.4]
    assert paper.data["classes_sha256"] == IMAGENET["names_sha256"]
    assert paper.data["templates"] == len(open_clip.OPENAI_IMAGENET_TEMPLATES)


def test_runs_of_a_model_fold_into_the_papers_rows(imagenet: list[Path]) -> None:
    runs = read_runs(imagenet)
    [table] = tables(runs)
    assert [row.name for row in table.ours] == [
        "(1) latent-vit-b-8",
        "(2) latent-vit-b-8",
        "ViT-B-32/laion2b_s34b_b79k",
    ]
    assert [row.paper for row in table.ours] == ["(1) Latent-ViT-B/8", "(2) Latent-ViT-B/8", "CLIP-ViT-B/32 L2B"]
    shares = [100 * run.result.metrics["acc1"] for run in runs]
    assert [row[0] for row in (values(table, 0), values(table, 2))] == [round(shares[0], 1), round(shares[3], 1)]
    assert [row[2] for row in (values(table, 0), values(table, 1))] == [round(shares[1], 1), round(shares[2], 1)]
    assert values(table, 1)[:2] == [None, None] and values(table, 2)[2:] == [None, None]
    cell = table.ours[0].cells[0]
    assert cell and cell.low and cell.high and cell.low < cell.value < cell.high
    assert not cell.reasons and cell.difference == pytest.approx(round(cell.value, 1) - 68.8)
    [pair] = table.pairs  # the generated ones had no pixel model
    assert pair.top1.value == pytest.approx((shares[0] - shares[3]) / 100) and pair.top1.low < pair.top1.high


def test_the_papers_numbers_are_there_where_none_of_ours_stands_beside_them(tmp_path: Path) -> None:
    runs = read_runs([tiny(tmp_path / "run")])
    ours, theirs = tables(runs)
    assert ours.ours and not ours.published and not theirs.ours
    assert [row.name for row in theirs.published] == [row.name for row in published("table1").rows]
    assert [cell and cell.value for cell in theirs.published[0].cells] == [68.8, 91.3, 82.0, 97.3]
    assert "none of ours was measured on ImageNet" in to_html([ours, theirs], runs)


def test_fewer_pictures_or_other_templates_are_not_the_papers_numbers(tmp_path: Path) -> None:
    names = distinct(open_clip.IMAGENET_CLASSNAMES)
    folder = write_evaluation(tmp_path / "few", names, pictures_of(names, 1), **{**IMAGENET, "templates": 7})
    [table] = tables(read_runs([folder]))
    [reasons] = table.notes
    assert "1,000 pictures, where the paper has 50,000" in reasons
    assert "7 templates for the class names, where OpenCLIP has 80" in reasons
    assert all(cell is None or cell.difference is None for cell in table.ours[0].cells)


def test_what_is_said_of_a_generator_is_said_of_the_numbers_on_its_pictures(tmp_path: Path) -> None:
    made = {**GENERATED, "not_comparable": ["the generator has random weights"]}
    folder = tiny(tmp_path / "run", way="direct", data={"generated": made})
    table, _ = tables(read_runs([folder]))
    assert all("the generator has random weights" in reasons for reasons in table.notes)


def test_two_readings_of_the_noise_are_two_columns(tmp_path: Path) -> None:
    workflow = {**GENERATED, "noise": "workflow", "levels": [{"t": 499.5, "sigma": 1.616}]}
    folders = [
        tiny(tmp_path / "real"),
        tiny(tmp_path / "one", way="direct", data={"generated": GENERATED}),
        tiny(tmp_path / "two", way="direct", data={"generated": workflow}, accuracy=0.5),
    ]
    table, _ = tables(read_runs(folders))
    assert [group for group, _ in table.groups] == ["Acc (real)", "Acc (generated literal)", "Acc (generated workflow)"]
    assert any("t=659 σ=2.841" in text for text in table.about) and any("t=499.5" in text for text in table.about)


def test_every_number_that_is_not_comparable_is_marked_in_every_format(tmp_path: Path, imagenet: list[Path]) -> None:
    strange = tiny(tmp_path / "tiny")
    runs = read_runs([imagenet[0], strange])
    found = tables(runs)
    text = to_markdown(found, runs)
    for line in text.splitlines():
        if line.startswith("| ours"):
            assert line.count("[^") == (2 if "latent-vit-demo" in line else 0)
    assert all(reason in text.replace("\\", "") for reason in TINY)
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    marked = [row for row in rows if row["not_comparable"]]
    assert [row["model"] for row in marked] == ["(1) latent-vit-demo"]
    assert all(reason in marked[0]["real_top1_not_comparable"] for reason in TINY)
    latex = to_latex(found)
    for line in latex.splitlines():
        assert (r"\dagger" in line) == ("latent-vit-demo" in line or line.startswith(r"\par"))
    page = to_html(found, runs)
    assert page.count('class="mark"') == 2 and page.count('class="badge" title="trained on 179,200') == 2


def test_markdown_and_latex_are_whole(imagenet: list[Path]) -> None:
    runs = read_runs(imagenet)
    found = tables(runs)
    for line in to_markdown(found, runs).splitlines():
        if line.startswith(("| ours", "| published")):
            assert len(re.split(r"(?<!\\)\|", line)) == 8
    latex = to_latex(found)
    for begin, end in (("{", "}"), (r"\begin{table}", r"\end{table}"), (r"\begin{tabular}", r"\end{tabular}")):
        assert latex.count(begin) == latex.count(end)
    body = latex[latex.index(r"\midrule") :]
    lines = [line for line in body.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert len(lines) == 3 + 3 + 12 and all(len(re.split(r"(?<!\\)&", line)) == 5 for line in lines)
    assert escaped("a_b & 5% {x} \\ ~^") == r"a\_b \& 5\% \{x\} \textbackslash{} \textasciitilde{}\textasciicircum{}"


def test_csv_has_a_line_a_model_in_the_papers_order(imagenet: list[Path]) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(tables(read_runs(imagenet))))))
    assert [row["source"] for row in rows] == ["ours"] * 3 + ["published"] * 12
    assert rows[3]["in_top1"] == "68.8" and rows[4]["in_top1"] == "" and rows[4]["gin_top5"] == "97.3"
    result = json.loads((imagenet[0] / "result.json").read_text())
    assert float(rows[0]["in_top1"]) == pytest.approx(100 * result["metrics"]["acc1"], abs=1e-4)
    assert float(rows[0]["in_top5_low"]) == pytest.approx(100 * result["intervals"]["acc5"][0], abs=1e-4)
    assert rows[0]["gin_top1_run"] == str(imagenet[1])


def test_answers_are_paired_by_key_whatever_their_order(tmp_path: Path) -> None:
    latent, pixel = tiny(tmp_path / "latent"), tiny(tmp_path / "pixel", chance=1, data=PICTURES, way="pixels", **B32)
    [pair] = pairs_of(sets_of(read_runs([latent, pixel])))
    lines = (pixel / "predictions.jsonl").read_text().splitlines()
    random.Random(0).shuffle(lines)
    (pixel / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    [again] = pairs_of(sets_of(read_runs([latent, pixel])))
    assert (again.top1, again.top5) == (pair.top1, pair.top5)
    answers = [read_run(folder).answers for folder in (latent, pixel)]
    assert answers[0] and answers[1]
    assert pair.top1.value == pytest.approx(answers[0].first.mean() - answers[1].first.mean())


def test_other_pictures_of_the_same_names_are_another_column(tmp_path: Path) -> None:
    """As those of ImageNet-C, which are called like ImageNet's."""
    one, other = ({**PICTURES, "identity": letter * 64} for letter in "ab")
    folders = [tiny(tmp_path / "one", data=one, way="pixels", **B32), tiny(tmp_path / "two", data=other, **B32)]
    table, _ = tables(read_runs(folders))
    assert [group for group, _ in table.groups] == ["Acc (real 1)", "Acc (real 2)"]


def test_views_prompts_and_architectures_are_not_mixed_up(tmp_path: Path) -> None:
    plain = tiny(tmp_path / "plain")
    other = {"model": "pixels", "provenance": PIXEL, "chance": 1, "way": "decoded"}
    view = tiny(tmp_path / "view", data={"view": 1}, **other)
    table, _ = tables(read_runs([plain, view]))
    assert [column.group for column in table.columns[::2]] == ["Acc (real 1)", "Acc (real 2)"] and not table.pairs
    prompts = tiny(tmp_path / "prompts", templates_sha256="9" * 64, **other)
    table, _ = tables(read_runs([plain, prompts]))
    usual = digest(["a photo of a {c}."])[:8]
    assert table.about[-1] == f"templates differ: 7 ({usual}) for plain; 7 (99999999) for prompts"
    assert table.pairs[0].reasons[-1] == "the two were asked with different prompts"
    weights = {"pretrained": "w.pt", "provenance": {**PIXEL, "weights_sha256": "8" * 64, "address": "x"}}
    two = [tiny(tmp_path / name, model=name, chance=at, **weights) for at, name in enumerate(("B", "B-quickgelu"))]
    table, _ = tables(read_runs(two))
    assert [row.name for row in table.ours] == ["B/w.pt", "B-quickgelu/w.pt"]


def test_pictures_that_only_share_their_names_never_meet_in_a_column(tmp_path: Path) -> None:
    """Not by way of a store either, that may be of the one or of the other."""
    store = tiny(tmp_path / "store")
    of = {"way": "pixels", "provenance": PIXEL}
    clean = tiny(tmp_path / "clean", model="a", chance=1, data={**PICTURES, "identity": "1"}, **of)
    foggy = tiny(tmp_path / "foggy", model="b", chance=2, data={**PICTURES, "identity": "2"}, **of)
    table, _ = tables(read_runs([store, clean, foggy]))
    assert len(table.columns) == 4
    assert [(pair.latent.folder, pair.pixel.folder) for pair in table.pairs] == [(store, clean)]


def test_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for number, more in enumerate(({"step": 100}, {"step": 200}, {"latents": {"vae": {"name": "pixels"}}})):
        tiny(tmp_path / str(number), provenance={"weights_sha256": str(number) * 64, **more})
    table, _ = tables(read_runs(sorted(tmp_path.iterdir())))
    assert [row.name for row in table.ours] == [
        "(1) latent-vit-demo, step 100",
        "(1) latent-vit-demo, step 200",
        "latent-vit-demo on pixels",
    ]


def test_runs_that_disagree_are_an_error_that_names_both(tmp_path: Path) -> None:
    one, same, other = tiny(tmp_path / "one"), tiny(tmp_path / "same"), tiny(tmp_path / "other", chance=1)
    assert len(tables(read_runs([one, same]))[0].ours) == 1
    with pytest.raises(CheckFailed, match=rf"{one} and {other}: the same model on the same pictures, acc1 "):
        tables(read_runs([one, same, other]))


def _unfinished(folder: Path) -> None:
    (folder / "result.json").unlink()


def _torn(folder: Path) -> None:
    (folder / "result.json").write_text('{"ok": true, "metrics"')


def _without_a_way(folder: Path) -> None:
    result = json.loads((folder / "result.json").read_text())
    del result["way"]
    (folder / "result.json").write_text(json.dumps(result))


def _short(folder: Path) -> None:
    lines = (folder / "predictions.jsonl").read_text().splitlines(keepends=True)
    (folder / "predictions.jsonl").write_text("".join(lines[:-1]))


def _double(folder: Path) -> None:
    lines = (folder / "predictions.jsonl").read_text().splitlines(keepends=True)
    (folder / "predictions.jsonl").write_text("".join([*lines[:-1], lines[0]]))


def _altered(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    text = "".join(json.dumps({**line, "top5": NAMES[:1]}) + "\n" for line in lines)
    (folder / "predictions.jsonl").write_text(text)


def _no_predictions(folder: Path) -> None:
    (folder / "predictions.jsonl").unlink()


def _no_json(folder: Path) -> None:
    (folder / "predictions.jsonl").write_text("{}\n" * 60)


def _no_evaluation(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "status", "says"),
    [
        (_unfinished, 1, r"not finished: no result\.json; go on with `python -m eval zero-shot "),
        (_torn, 1, r"result\.json: damaged: not a JSON object"),
        (_without_a_way, 1, r"result\.json: damaged: way is required"),
        (_short, 1, r"predictions\.jsonl: 59 lines, but result\.json says n=60"),
        (_double, 1, r"predictions\.jsonl: sample 00000000 of shard 00000 stands there 2 times"),
        (_altered, 1, r"predictions\.jsonl: its lines give acc1 0\.\d+, but result\.json says 0\.\d+"),
        (_no_predictions, 1, r"predictions\.jsonl: no such file"),
        (_no_json, 1, r"predictions\.jsonl: line 1: not a prediction"),
        (_no_evaluation, 2, r"not the folder of a run"),
        (shutil.rmtree, 2, r"run: no such folder"),
    ],
)
def test_what_is_wrong_with_a_run_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, status: int, says: str
) -> None:
    spoil(tiny(tmp_path / "run"))
    assert main("eval", VERBS, ["report", str(tmp_path / "run"), f"out={tmp_path / 'out'}"]) == status
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and re.search(says, error)
    assert not (tmp_path / "out").exists()


def test_retrieval_has_its_own_table(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "run")
    recalls = {
        f"{what}_retrieval_recall@{rank}": rank / 20 + (what == "text") / 100
        for what in ("image", "text")
        for rank in (1, 5, 10)
    }
    result = json.loads((folder / "result.json").read_text())
    result |= {"task": "zeroshot_retrieval", "metrics": recalls, "intervals": {}, "captions": 60}
    (folder / "result.json").write_text(json.dumps(result))
    lines = [{"shard": "0", "key": str(number), "captions": ["a ring"], "text_rank": 1} for number in range(60)]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    runs = read_runs([folder, tiny(tmp_path / "other")])
    classification, _, retrieval = tables(runs)
    assert values(retrieval, 0) == [6.0, 26.0, 51.0, 5.0, 25.0, 50.0]
    assert retrieval.groups == [("image → text", 3), ("text → image", 3)]
    assert classification.title == "6 classes"
    assert "Retrieval" in to_html([retrieval, classification], runs)


def test_json_says_what_the_tables_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny(tmp_path / "run")
    assert main("eval", VERBS, ["report", str(folder), f"out={tmp_path / 'out'}", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    [row] = told["tables"][0]["rows"]
    score = row["scores"]["real_top1"]
    assert row["model"] == "(1) latent-vit-demo" and set(TINY) < set(score["not_comparable"])
    assert score["interval"][0] < score["value"] < score["interval"][1] and score["run"] == str(folder)
