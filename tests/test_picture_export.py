"""A run in the official scorers' layouts, read by their own rules; and such folders as pictures to score."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from encode_pipeline.latents.command import CheckFailed, RequestError
from eval.benchmarks.export import ExportConfig, export
from eval.benchmarks.pictures import prompt_pictures
from eval.steering.prompt_sets import CATEGORIES, Prompt, PromptSet, open_prompts
from tests.steered_runs import compbench_folder, drawn_run, geneval_file, number_in, published


def as_geneval_reads(folder: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """The loop over pictures of GenEval's evaluate_images.py."""
    for place in folder.iterdir():
        if not place.is_dir() or not place.name.isdigit():
            continue
        with (place / "metadata.jsonl").open() as file:
            metadata = json.load(file)
        for path in (place / "samples").iterdir():
            if path.is_file() and re.match(r"\d+\.png", path.name):
                yield metadata, path


def as_compbench_reads(folder: Path) -> list[tuple[int, str, Path]]:
    """How BLIP_vqa.py, CLIP_similarity.py and 2D_spatial_eval.py of T2I-CompBench list pictures: number, prompt, file.

    The files of a folder in the order of their numbers; what they count is taken for the number, and must be it.
    """
    names = [path.name for path in (folder / "samples").iterdir()]
    names.sort(key=lambda name: int(name.split("_")[-1].split(".")[0]))
    return [(count, name.split("_")[0], folder / "samples" / name) for count, name in enumerate(names)]


@pytest.fixture(scope="module")
def geneval(tmp_path_factory: pytest.TempPathFactory) -> PromptSet:
    """All 553 prompts if they are to be had, else some of their shape."""
    found = published("geneval/evaluation_metadata.jsonl")
    return open_prompts(str(found or geneval_file(tmp_path_factory.mktemp("geneval") / "evaluation_metadata.jsonl")))


@pytest.fixture(scope="module")
def compbench(tmp_path_factory: pytest.TempPathFactory) -> PromptSet:
    found = published("t2i_compbench")
    return open_prompts(str(found or compbench_folder(tmp_path_factory.mktemp("compbench") / "dataset", 5)))


def test_geneval_reads_every_picture_under_its_record(geneval: PromptSet, tmp_path: Path) -> None:
    run = drawn_run(tmp_path / "run", geneval, 4, seed=3)
    done = export(ExportConfig(run=run, out=tmp_path / "out"))
    assert (done["format"], done["pictures"]) == ("geneval", 4 * len(geneval.prompts))
    read = list(as_geneval_reads(tmp_path / "out"))
    assert len(read) == 4 * len(geneval.prompts)
    order = {prompt.text: prompt.number for prompt in geneval.prompts}
    for metadata, path in read:
        assert metadata == geneval.prompts[order[metadata["prompt"]]].about
        assert path.parent.parent.name == f"{order[metadata['prompt']]:05d}"
        assert number_in(path) == 4 * order[metadata["prompt"]] + int(path.stem)
    found = prompt_pictures(tmp_path / "out")
    assert [(picture.prompt, picture.sample) for picture in found.pictures] == [
        (Prompt(prompt.number, prompt.text, prompt.about), sample) for prompt in geneval.prompts for sample in range(4)
    ]
    assert found.about["run"]["seed"] == 3
    whole = len(geneval.prompts) == 553
    assert found.not_comparable == ([] if whole else [f"{len(geneval.prompts)} prompts instead of 553"])


def test_compbench_reads_numbers_without_a_gap_in_each_category(compbench: PromptSet, tmp_path: Path) -> None:
    run = drawn_run(tmp_path / "run", compbench, 10)
    export(ExportConfig(run=run, out=tmp_path / "out"))
    at = 0
    for category in CATEGORIES:
        prompts = [prompt for prompt in compbench.prompts if prompt.about["category"] == category]
        read = as_compbench_reads(tmp_path / "out" / category)
        # 3_in_1.py finds the ten pictures of a complex prompt by its line alone.
        assert [text for _, text, _ in read] == [prompt.text for prompt in prompts for _ in range(10)]
        for count, _, path in read:
            assert int(path.name.split("_")[-1].split(".")[0]) == count
            assert number_in(path) == 10 * at + count
        at += len(prompts)
    found = prompt_pictures(tmp_path / "out")
    assert [picture.prompt.text for picture in found.pictures[::10]] == [prompt.text for prompt in compbench.prompts]
    assert [picture.prompt.about for picture in found.pictures[::10]] == [prompt.about for prompt in compbench.prompts]
    assert [picture.sample for picture in found.pictures] == list(range(10)) * len(compbench.prompts)
    one = prompt_pictures(tmp_path / "out" / "shape")
    assert {picture.prompt.about["category"] for picture in one.pictures} == {"shape"}
    assert "run" in one.about


def test_the_pictures_of_a_run_are_those_of_its_export(tmp_path: Path) -> None:
    prompts = open_prompts(str(geneval_file(tmp_path / "evaluation_metadata.jsonl")))
    run = drawn_run(tmp_path / "run", prompts, 2, not_comparable=["a tiny generator"], seed=5)
    found = prompt_pictures(run)
    assert (found.kind, found.about["seed"], found.not_comparable) == ("geneval", 5, ["a tiny generator"])
    export(ExportConfig(run=run, out=tmp_path / "out"))
    exported = prompt_pictures(tmp_path / "out")
    assert [(picture.prompt, picture.sample) for picture in found.pictures] == [
        (picture.prompt, picture.sample) for picture in exported.pictures
    ]
    assert [number_in(picture.path) for picture in exported.pictures] == list(range(8))
    fewer = ["4 prompts instead of 553", "2 pictures of each prompt instead of 4"]
    assert exported.not_comparable == ["a tiny generator", *fewer]


def test_a_name_never_cuts_a_prompt(tmp_path: Path) -> None:
    folder = compbench_folder(tmp_path / "dataset", 2)
    (folder / "color_val.txt").write_text("a red_ish car and/or a blue bus\na green cup\n")
    run = drawn_run(tmp_path / "run", open_prompts(str(folder / "color_val.txt")), 10)
    done = export(ExportConfig(run=run, out=tmp_path / "out"))
    assert done["renamed"] == {"a red_ish car and/or a blue bus": "a red ish car and or a blue bus"}
    read = as_compbench_reads(tmp_path / "out" / "color")
    assert [text for _, text, _ in read[::10]] == ["a red ish car and or a blue bus", "a green cup"]
    (folder / "color_val.txt").write_text("é" * 123 + "\n" + "é" * 122 + "\n")
    run = drawn_run(tmp_path / "long", open_prompts(str(folder / "color_val.txt")), 10)
    with pytest.raises(RequestError, match="000000-000: 257 bytes of prompt and number do not fit"):
        export(ExportConfig(run=run, out=tmp_path / "too-long"))
    assert not (tmp_path / "too-long").exists()


def test_nothing_is_overwritten_and_nothing_left_out(tmp_path: Path) -> None:
    folder = compbench_folder(tmp_path / "dataset", 2)
    prompts = open_prompts(str(folder))
    run = drawn_run(tmp_path / "run", prompts, 10)
    (tmp_path / "out").mkdir()
    with pytest.raises(RequestError, match="out: is there already"):
        export(ExportConfig(run=run, out=tmp_path / "out"))
    with pytest.raises(RequestError, match="format=geneval: the prompts of .* are of kind compbench"):
        export(ExportConfig(run=run, out=tmp_path / "new", format="geneval"))
    picture = run / "images" / "000000-000.png"
    for name in ("000001-003", "000007-009"):
        (run / "images" / f"{name}.png").unlink()
    with pytest.raises(CheckFailed, match=r"000001-003\.png: not there \(2 of 120 are not\): .* decode=true"):
        export(ExportConfig(run=run, out=tmp_path / "new"))
    with pytest.raises(CheckFailed, match=r"000001-003\.png: not there"):
        prompt_pictures(run)
    for name in ("000001-003", "000007-009"):
        (run / "images" / f"{name}.png").write_bytes(picture.read_bytes()[:-20])
    with pytest.raises(CheckFailed, match=r"000001-003\.png: not a whole PNG"):
        export(ExportConfig(run=run, out=tmp_path / "new"))
    (run / "result.json").unlink()
    with pytest.raises(RequestError, match=r"no result\.json: not a finished run"):
        export(ExportConfig(run=run, out=tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    fewer = drawn_run(tmp_path / "fewer", prompts, 4)
    with pytest.raises(RequestError, match="000010-000: the scorer of complex prompts counts on 10 .* not 4"):
        export(ExportConfig(run=fewer, out=tmp_path / "new"))
    lines = tmp_path / "lines.txt"
    lines.write_text("a red circle\n")
    with pytest.raises(RequestError, match="its prompts are of kind lines"):
        export(ExportConfig(run=drawn_run(tmp_path / "lines", open_prompts(str(lines)), 1), out=tmp_path / "new"))


def test_a_folder_of_anyones_that_is_not_whole_is_refused_by_name(tmp_path: Path) -> None:
    prompts = open_prompts(str(geneval_file(tmp_path / "evaluation_metadata.jsonl")))
    export(ExportConfig(run=drawn_run(tmp_path / "run", prompts, 2), out=tmp_path / "geneval"))
    (tmp_path / "geneval" / "export.json").unlink()
    colours = open_prompts(str(compbench_folder(tmp_path / "dataset", 2) / "color_val.txt"))
    export(ExportConfig(run=drawn_run(tmp_path / "run2", colours, 3), out=tmp_path / "compbench"))
    color = tmp_path / "compbench" / "color" / "samples"

    def refused(says: str, folder: Path, *spoilt: Path) -> None:
        kept = [(path, path.read_bytes() if path.is_file() else None) for path in spoilt]
        for path in spoilt:
            path.unlink() if path.is_file() else shutil.move(path, tmp_path / "away")
        with pytest.raises((CheckFailed, RequestError), match=says):
            prompt_pictures(folder)
        for path, content in kept:
            path.write_bytes(content) if content is not None else shutil.move(tmp_path / "away", path)

    geneval = tmp_path / "geneval"
    refused("1 pictures of some prompts, 2 of others", geneval, geneval / "00002" / "samples" / "00001.png")
    refused("no folder 00001, but 00002", geneval, geneval / "00001")
    refused(r"00003/metadata\.jsonl: not there", geneval, geneval / "00003" / "metadata.jsonl")
    refused("neither a run nor pictures in GenEval's layout", color)
    second, last = sorted(color.iterdir(), key=lambda path: path.name[-10:])[1::4]
    refused("no picture number 000001; its scorers count on every one", tmp_path / "compbench", second)
    refused("2 pictures of 'The color thing number 1, seen.', 3 of the first", tmp_path / "compbench", last)
    (color / "notes.txt").write_text("mine")
    refused(r"notes\.txt: not PROMPT_000000\.png", tmp_path / "compbench")
    (color / "notes.txt").unlink()
    whole = second.read_bytes()
    second.write_bytes(whole[:-5])
    refused(f"{second.name}: not a whole PNG", tmp_path / "compbench")
    second.write_bytes(whole)
    found = prompt_pictures(tmp_path / "compbench")
    assert found.not_comparable == ["2 prompts of color instead of 300", "3 pictures of each prompt instead of 10"]
