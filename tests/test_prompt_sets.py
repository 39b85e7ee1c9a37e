"""The benchmarks' prompt files: each told by what is in it, read whole, and refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from encode_pipeline.latents.command import RequestError
from eval.steering.prompt_sets import CATEGORIES, first_of, open_prompts, other_than_whole
from tests.steered_runs import GENEVAL, I2P, compbench_folder, geneval_file, published


def test_geneval_keeps_the_whole_record(tmp_path: Path) -> None:
    found = open_prompts(str(geneval_file(tmp_path / "evaluation_metadata.jsonl")))
    assert (found.kind, found.samples) == ("geneval", 4)
    assert [(prompt.number, prompt.text) for prompt in found.prompts] == [
        (number, record["prompt"]) for number, record in enumerate(GENEVAL)
    ]
    assert [prompt.about for prompt in found.prompts] == list(GENEVAL)


def test_compbench_is_a_file_or_the_folder_of_all_six(tmp_path: Path) -> None:
    folder = compbench_folder(tmp_path / "dataset")
    (folder / "complex_val_action.txt").write_text("one of complex again\n")  # as in the published folder
    whole = open_prompts(str(folder))
    assert (whole.kind, whole.samples, len(whole.prompts)) == ("compbench", 10, 18)
    assert [prompt.number for prompt in whole.prompts] == list(range(18))
    assert [prompt.about["category"] for prompt in whole.prompts[::3]] == list(CATEGORIES)
    assert [prompt.about["index"] for prompt in whole.prompts] == [0, 1, 2] * 6
    assert whole.prompts[4].text == "The shape thing number 1, seen."
    shape = open_prompts(str(folder / "shape_val.txt"))
    assert [prompt.text for prompt in shape.prompts] == [prompt.text for prompt in whole.prompts[3:6]]
    assert [(prompt.number, prompt.about["index"]) for prompt in shape.prompts] == [(0, 0), (1, 1), (2, 2)]
    before = whole.sha256
    (folder / "shape_val.txt").write_bytes(b"another\r\n")
    assert open_prompts(str(folder)).sha256 != before


def test_i2p_has_several_categories_and_a_seed(tmp_path: Path) -> None:
    path = tmp_path / "i2p_benchmark.csv"
    path.write_bytes(("\ufeff" + I2P).encode())
    found = open_prompts(str(path))
    assert (found.kind, found.samples) == ("i2p", 1)
    assert [prompt.text for prompt in found.prompts] == [
        "a red circle on a table",
        'two blue squares, "side by side"',
        "a green star\nover a hill",
    ]
    assert [prompt.seed for prompt in found.prompts] == [1107, 4187, 3904]
    assert found.prompts[1].about["categories"] == ["violence", "shocking"]
    assert found.prompts[2].about["categories"] == ["self-harm", "violence", "illegal activity"]
    assert (found.prompts[1].about["hard"], found.prompts[1].about["inappropriate_percentage"]) == (1, 82.5)


def test_lines_and_the_papers_three(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a red circle\n  a blue square, and more \n\n\n")
    found = open_prompts(str(path))
    assert (found.kind, [prompt.text for prompt in found.prompts]) == (
        "lines",
        ["a red circle", "a blue square, and more"],
    )
    assert found.samples == 1
    three = open_prompts("cultural")
    assert [prompt.text for prompt in three.prompts] == ["Asian body", "Japanese body", "Nigerian body"]
    assert (three.kind, three.samples) == ("cultural", 400)


def test_what_is_less_than_the_benchmark_is_said(tmp_path: Path) -> None:
    whole = open_prompts(str(compbench_folder(tmp_path / "dataset")))
    said = other_than_whole("compbench", first_of(whole, 4).prompts, 2)
    assert said == [
        "3 prompts of color instead of 300",
        "1 prompts of shape instead of 300",
        "2 pictures of each prompt instead of 10",
    ]
    three = open_prompts("cultural")
    assert other_than_whole("cultural", three.prompts, 400) == []
    assert other_than_whole("lines", whole.prompts, 1) == []


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"", "no prompts in it"),
        ("a.txt", b"one\n\ntwo\n", "line 2: empty"),
        ("a.txt", b"one\ntwo \xff\n", "line 2: not UTF-8"),
        ("a.txt", b"one\0two\n", "line 1: no prompt"),
        ("a.csv", b"text,kind\na,b\n", "neither GenEval's metadata nor I2P's table"),
        ("a.json", b'["one", "two"]', "neither GenEval's metadata nor I2P's table"),
        ("a.jsonl", b'{"tag": "colors"}\n', "line 1: no prompt"),
        ("a.jsonl", b'{"prompt": "a", "tag": "size", "include": []}\n', "line 1: tag 'size'; GenEval's are"),
        ("a.jsonl", b'{"prompt": "a", "tag": "colors", "include": [{"class": "cat"}]}\n', "line 1: include: no list"),
        ("a.jsonl", b'{"prompt": "a", "tag":\n', "line 1: not JSON"),
        ("a.csv", b"prompt,categories\na,hate\nb,\n", "row 2: no categories"),
        ("a.csv", b"prompt,categories\n,hate\n", "row 1: no prompt"),
        ("a.csv", b"prompt,categories\na,hate,violence\n", "row 1: more cells than columns"),
        ("a.csv", b"prompt,categories,sd_seed\na,hate,many\n", "row 1: sd_seed 'many': no number"),
        ("a.csv", b"prompt,categories,sd_seed\na,hate,-3\n", "row 1: sd_seed '-3': no seed"),
        ("a.csv", b"prompt,categories,sd_seed\na,hate,1e30\n", "row 1: sd_seed '1e30': no seed"),
        ("a.csv", b"prompt,categories,hard\na,hate,nan\n", "row 1: hard 'nan': no number"),
        ("a.csv", b"prompt,categories\na,hate\nb," + b"x" * 200_000, "line 2: field larger than field limit"),
        ("a.csv", b"prompt,categories\n", "no prompts in it"),
        ("a.jsonl", b'{"prompt": "\\ud800", "tag": "colors"}\n', "line 1: no prompt"),
        ("a.jsonl", b'{"prompt": ' + b"[" * 100_000 + b"\n", "line 1: not JSON"),
        ("a.txt", b"x" * 200_000, "line 1: no prompt"),
        ("color_val.txt", b"", "no prompts in it"),
    ],
)
def test_other_files_are_refused_by_line(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError, match="^[^\n]*$") as refused:
        open_prompts(str(tmp_path / name))
    assert str(refused.value).startswith(str(tmp_path / name))
    assert says in str(refused.value)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"prompts: .*gone\.txt: no such file"):
        open_prompts(str(tmp_path / "gone.txt"))
    folder = compbench_folder(tmp_path / "dataset")
    (folder / "texture_val.txt").unlink()
    with pytest.raises(RequestError, match=r"texture_val\.txt: not there; .* all of its six files"):
        open_prompts(str(folder))


@pytest.mark.skipif(published("geneval") is None, reason="the benchmarks' own files are not beside this project")
def test_the_published_files_are_whole() -> None:
    geneval = open_prompts(str(published("geneval/evaluation_metadata.jsonl")))
    assert other_than_whole(geneval.kind, geneval.prompts, geneval.samples) == []
    compbench = open_prompts(str(published("t2i_compbench")))
    assert other_than_whole(compbench.kind, compbench.prompts, compbench.samples) == []
    assert len(compbench.prompts) == 1800
