"""GenEval's and T2I-CompBench's scorers from pictures to result, by small models of the real architectures."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from encode_pipeline.latents.command import CheckFailed, RequestError
from eval.__main__ import VERBS
from eval.benchmarks.clip_score import open_pixel_clip
from eval.benchmarks.colours import ColourSense
from eval.benchmarks.compbench import CompbenchConfig, compbench
from eval.benchmarks.detection import open_detector
from eval.benchmarks.export import ExportConfig, export
from eval.benchmarks.geneval import GenevalConfig, geneval, summary
from eval.benchmarks.scoring import by_prompt
from eval.benchmarks.vqa import open_blip
from eval.steering.prompt_sets import TAGS, open_prompts
from tests.clips import pixel_clip
from tests.small_judges import (
    aesthetic_state,
    compbench_folder,
    geneval_folder,
    small_blip,
    small_detector,
    write_picture,
)
from tests.steered_runs import drawn_run, geneval_file
from tests.test_compbench_rules import official
from tests.test_eval_resume import command, left_in
from tests.test_train_ranks import torchrun
from tests.traps import Traps


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pixel_clip(tmp_path_factory.mktemp("pixel") / "clip")


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_detector(tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("head") / "head.pth"
    torch.save(aesthetic_state(), file)
    return file


def record(tag: str, *include: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"tag": tag, "include": list(include), "prompt": f"a photo of {tag}", **more}


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def test_geneval_from_pictures_to_shares(detector: Path, clip: Path, head: Path, tmp_path: Path) -> None:
    """The prompts are written for what the detector sees, so that each verdict is known beforehand."""
    first = write_picture(tmp_path / "first.png", 0)
    with torch.inference_mode(), Image.open(first) as picture:
        found = open_detector(str(detector)).objects(picture)
        name = max(found, key=lambda name: found[name][0].score)
        colour = ColourSense(open_pixel_clip(str(clip)))(picture.convert("RGB"), name, found[name][:1])[0]
    other = "red" if colour != "red" else "blue"
    records = [
        record("single_object", {"class": name, "count": 1}),
        record("colors", {"class": name, "count": 1, "color": colour}),
        record("colors", {"class": name, "count": 1, "color": other}),
        record("two_object", {"class": name, "count": 1}, {"class": "zebra", "count": 1}),
        record("counting", {"class": name, "count": 1}, exclude=[{"class": name, "count": 2}]),
        record("position", {"class": "zebra", "count": 1}, {"class": name, "count": 1, "position": ["above", 0]}),
    ]
    folder = geneval_folder(tmp_path / "pictures", records, samples=1)
    for number in range(1, len(records)):
        (folder / f"{number:05d}" / "samples" / "00000.png").write_bytes(first.read_bytes())
    config = GenevalConfig(
        run=str(folder),
        out=tmp_path / "out",
        detector=str(detector),
        clip=str(clip),
        aesthetic=head,
        aesthetic_clip=str(clip),
        batch_size=4,
    )
    result = geneval(config)
    assert result["metrics"] == {
        "single": 1.0,
        "two": 0.0,
        "counting": 0.0,  # nothing is seen with more than 0.9
        "colors": 0.5,
        "position": 0.0,
        "mean": pytest.approx(0.3),
    }
    lines = lines_of(tmp_path / "out")
    assert [line["correct"] for line in lines] == [True, True, False, False, False, False]
    assert lines[2]["faults"] == [f"{name} not {other} but {colour}"]
    assert lines[3]["faults"] == ["0 of 1 zebra"]
    assert lines[5]["faults"] == ["0 of 1 zebra", f"nothing for the {name} to be above"]
    assert lines[0]["objects"][name][0][0] == pytest.approx(found[name][0].score, abs=1e-5)
    assert result["n"] == 6 and result["task"] == "geneval"
    low, high = result["intervals"]["single"]
    assert low < 0.4 and high == 1  # one right picture is not much
    assert result["aesthetic"] == pytest.approx(sum(line["aesthetic"] for line in lines) / 6)
    reasons = "; ".join(result["not_comparable"])
    for said in (
        "6 prompts instead of 553",
        "small model",
        "not those of mmdet",
        "not by ViT-L-14/openai",
        "aesthetic: ",
    ):
        assert said in reasons
    assert set(result["scorer"]) == {"detector", "colours", "aesthetic"}
    assert len(result["scorer"]["detector"]["weights_sha256"]) == 64
    before = (tmp_path / "out" / "result.json").stat().st_mtime_ns
    assert geneval(config) == json.loads((tmp_path / "out" / "result.json").read_text())
    assert (tmp_path / "out" / "result.json").stat().st_mtime_ns == before
    write_picture(folder / "00003" / "samples" / "00000.png", 99)
    with pytest.raises(RequestError, match="holds another evaluation: pictures is"):
        geneval(config)


def test_a_run_and_its_export_are_judged_alike(detector: Path, clip: Path, tmp_path: Path) -> None:
    prompts = open_prompts(str(geneval_file(tmp_path / "evaluation_metadata.jsonl")))
    run = drawn_run(tmp_path / "run", prompts, 2, seed=3, not_comparable=["a generator of nothing"])
    export(ExportConfig(run=run, out=tmp_path / "export"))
    judges: dict[str, Any] = {"detector": str(detector), "clip": str(clip)}
    of_run = geneval(GenevalConfig(run=str(run), out=tmp_path / "of-run", **judges))
    of_export = geneval(GenevalConfig(run=str(tmp_path / "export"), out=tmp_path / "of-export", **judges))
    assert of_run["n"] == 8 and of_run["metrics"] == of_export["metrics"]
    assert lines_of(tmp_path / "of-run") == lines_of(tmp_path / "of-export")
    assert of_run["not_comparable"][0] == "a generator of nothing" and of_run["run"]["task"] == "steering"


def test_the_official_verdicts_on_an_export_are_the_runs(tmp_path: Path) -> None:
    prompts = open_prompts(str(geneval_file(tmp_path / "evaluation_metadata.jsonl")))
    run = drawn_run(tmp_path / "run", prompts, 2, seed=3)
    export(ExportConfig(run=run, out=tmp_path / "export"))
    file = tmp_path / "results.jsonl"
    verdicts = [
        {
            "filename": f"/elsewhere/{number:05d}/samples/{sample:05d}.png",
            "tag": prompt.about["tag"],
            "prompt": prompt.text,
            "correct": number < 2 and sample == 0,
            "reason": "" if number < 2 and sample == 0 else "expected more\nand others",
            "metadata": json.dumps(prompt.about),
            "details": "{}",
        }
        for number, prompt in enumerate(prompts.prompts)
        for sample in range(2)
    ][::-1]  # in the order of a listing, which is none

    def write(lines: Sequence[Mapping[str, Any]]) -> None:
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    write(verdicts)
    result = geneval(GenevalConfig(run=str(run), official=file, out=tmp_path / "out"))
    assert result["metrics"] == {"single": 0.5, "counting": 0.5, "colors": 0, "position": 0, "mean": 0.25}
    assert [line["correct"] for line in lines_of(tmp_path / "out")] == [True, False] * 2 + [False] * 4
    assert lines_of(tmp_path / "out")[1]["faults"] == ["expected more", "and others"]
    assert not any("mmdet" in reason for reason in result["not_comparable"])
    assert geneval(GenevalConfig(run=str(tmp_path / "export"), official=file))["metrics"] == result["metrics"]
    for wrong, said in (
        (verdicts[1:], "7 verdicts, 7 of them on the 8 pictures"),
        ([*verdicts, verdicts[0]], "line 9: 00003/00001.png: two verdicts"),
        ([{**verdicts[0], "prompt": "a photo of a dog"}, *verdicts[1:]], "is on another prompt"),
        ([{**verdicts[0], "filename": "00001.png"}, *verdicts[1:]], "line 1: not what GenEval's scorer writes"),
    ):
        write(wrong)
        with pytest.raises(CheckFailed, match=said):
            geneval(GenevalConfig(run=str(run), official=file))


def test_the_overall_score_is_the_mean_of_tasks_and_not_of_pictures() -> None:
    def lines(tag: str, first: int, right: Sequence[int]) -> list[dict[str, Any]]:
        """Of prompts with four pictures each, so many right ones."""
        return [
            {"number": first + number, "tag": tag, "correct": sample < each}
            for number, each in enumerate(right)
            for sample in range(4)
        ]

    told = summary([*lines(TAGS[0], 0, [4] * 30), *lines(TAGS[5], 30, [0, 2])], seed=0)
    assert told["metrics"] == {"single": 1.0, "color_attr": 0.25, "mean": 0.625}
    low, high = told["intervals"]["color_attr"]
    assert (low, high) == (0.0, 0.5)  # of two prompts, drawn as wholes
    assert told["intervals"]["mean"] == (0.5, 0.75)
    assert by_prompt(lines(TAGS[5], 0, [0, 2, 3]), "correct") == [0, 0.5, 0.75]
    assert by_prompt(lines(TAGS[5], 0, [3]), "correct") == [1, 1, 1, 0]  # of one prompt, pictures are drawn


PROMPTS = {
    "color": ["a green bench and a blue bowl", "a blue bench and a green bowl"],
    "shape": ["a square book and a cylindrical pencil"],
    "spatial": ["a giraffe next to a lamp"],
    "non_spatial": [
        "A dog is playing with a chew toy on the carpet.",
        "A cat is lazily lounging in a sunny windowsill.",
    ],
}


def test_compbench_from_pictures_to_scores(blip: Path, clip: Path, tmp_path: Path) -> None:
    folder = compbench_folder(tmp_path / "pictures", PROMPTS)
    common: dict[str, Any] = {"run": str(folder), "clip": str(clip), "batch_size": 7}
    result = compbench(CompbenchConfig(**common, vqa=str(blip), out=tmp_path / "out"))
    lines = lines_of(tmp_path / "out")
    assert set(result["metrics"]) == set(result["intervals"]) == {"color", "shape", "non_spatial"}
    assert result["judged_by"] == {"color": "vqa", "shape": "vqa", "non_spatial": "clip"}
    assert result["not_measured"] == ["spatial"] and result["n"] == 60
    for category, mean in result["metrics"].items():
        scores = [line["score"] for line in lines if line["category"] == category]
        assert mean == pytest.approx(sum(scores) / len(scores)) and len(set(scores)) > 5
    assert all(line["score"] is None for line in lines if line["category"] == "spatial")

    line = next(line for line in lines if line["number"] == 1 and line["sample"] == 3)
    assert line["prompt"] == PROMPTS["color"][1]
    picture = Image.open(folder / "color" / "samples" / f"{PROMPTS['color'][1]}_000013.png").convert("RGB")
    with torch.inference_mode():
        [chances] = open_blip(str(blip)).chances([picture], [["a blue bench?", "a green bowl?"]])
        assert line["answers"] == pytest.approx(chances, abs=1e-5)
        assert line["score"] == pytest.approx(chances[0] * chances[1], abs=2e-4)
        model = open_pixel_clip(str(clip))
        text = PROMPTS["non_spatial"][1]
        picture = Image.open(folder / "non_spatial" / "samples" / f"{text}_000019.png")
        cosine = (model.embed_pixels(model.prepare(picture)[None]) @ model.embed_texts([text]).T).item()
    assert lines[-1]["score"] == pytest.approx(cosine, abs=1e-5)
    reasons = "; ".join(result["not_comparable"])
    for said in ("2 prompts of color instead of 300", "sees 32 pixels", "small model", "non_spatial by "):
        assert said in reasons
    assert "not measured: spatial" in str(VERBS["compbench"].show(result) if VERBS["compbench"].show else "")

    export = tmp_path / "export"
    official(export, "spatial", "labels/annotation_obj_detection_2d", [number / 10 for number in range(10)])
    official(export, "color", "annotation_blip", [0.5] * 20)
    completed = compbench(CompbenchConfig(**common, official=export, out=tmp_path / "completed"))
    assert completed["judged_by"] == {"color": "official", "spatial": "official", "non_spatial": "clip"}
    assert completed["metrics"]["spatial"] == pytest.approx(0.45) and completed["metrics"]["color"] == 0.5
    assert completed["metrics"]["non_spatial"] == result["metrics"]["non_spatial"]
    assert completed["not_measured"] == ["shape"] and "vqa" not in completed["scorer"]
    official(export, "color", "annotation_blip", [0.5] * 19)
    with pytest.raises(CheckFailed, match="19 scores of color, and 20 pictures"):
        compbench(CompbenchConfig(**common, official=export))


def test_killed_and_resumed_and_shared_it_says_the_same(
    blip: Path, clip: Path, head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [f"a {one} bench and a {other} bowl" for one, other in (("green", "blue"), ("blue", "green"))]
    prompts += [f"a {one} bench and a {other} cake" for one, other in (("green", "blue"), ("blue", "green"))]
    prompts += ["a brown horse and a blue vase", "a blue horse and a brown vase", "a blue backpack and a brown cow"]
    folder = compbench_folder(tmp_path / "pictures", {"color": prompts})  # 70 pictures, two parts

    def words(out: Path) -> list[str]:
        keys = {"vqa": blip, "aesthetic": head, "aesthetic_clip": clip, "out": out, "batch_size": 9}
        return ["-m", "eval", "compbench", str(folder), *(f"{key}={value}" for key, value in keys.items())]

    done = command(*words(tmp_path / "whole"))
    assert done.returncode == 0, done.stderr
    traps = Traps(monkeypatch, tmp_path)
    trap = traps.set("before-commit", "kill", "pictures 64*")
    assert command(*words(tmp_path / "resumed")).returncode == -signal.SIGKILL
    assert len(trap.met()) == 1
    assert [file.name for file in (tmp_path / "resumed" / "parts").iterdir() if file.name[0] != "."] == ["000000"]
    resumed = command(*words(tmp_path / "resumed"))
    assert resumed.returncode == 0 and "pictures 0 to 63" not in resumed.stderr
    assert left_in(tmp_path / "resumed") == left_in(tmp_path / "whole")
    traps.lift()
    shared = torchrun(2, *words(tmp_path / "shared"))
    assert shared.returncode == 0, shared.stderr
    assert left_in(tmp_path / "shared") == left_in(tmp_path / "whole")


def test_wrong_requests_are_one_line(blip: Path, detector: Path, clip: Path, tmp_path: Path) -> None:
    colours = compbench_folder(tmp_path / "colours", {"color": PROMPTS["color"][:1]})
    run: dict[str, Any] = {"run": str(colours)}
    with pytest.raises(RequestError, match="nothing judges color: say vqa= or official="):
        compbench(CompbenchConfig(**run))
    with pytest.raises(RequestError, match="kind compbench, not geneval"):
        geneval(GenevalConfig(**run, detector=str(detector), clip=str(clip)))
    strange = compbench_folder(tmp_path / "strange", {"shape": ["a thing that nobody asked for"]})
    with pytest.raises(RequestError, match="'a thing that nobody asked for': none of T2I-CompBench's prompts"):
        compbench(CompbenchConfig(run=str(strange), vqa=str(blip)))
    damaged = colours / "color" / "samples" / f"{PROMPTS['color'][0]}_000004.png"
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2] + content[len(content) // 2 + 40 :])
    with pytest.raises(CheckFailed, match=r"_000004\.png: cannot be read"):
        compbench(CompbenchConfig(**run, vqa=str(blip)))
    for wrong in (
        record("single_object", {"class": "unicorn", "count": 1}),
        record("counting", {"class": "dog", "count": 0}),
        record("colors", {"class": "dog", "count": 1, "color": "beige"}),
        record("position", {"class": "dog", "count": 1, "position": ["above", 0]}),
        record("position", {"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["near", 0]}),
        {"prompt": "a dog"},
    ):
        folder = geneval_folder(tmp_path / f"{len(list(tmp_path.iterdir()))}", [wrong], samples=1)
        with pytest.raises(CheckFailed, match="comes with none of GenEval's records"):
            geneval(GenevalConfig(run=str(folder), detector=str(detector), clip=str(clip)))
    done = command("-m", "eval", "geneval", str(colours), f"detector={tmp_path / 'nothing'}", f"clip={clip}")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
