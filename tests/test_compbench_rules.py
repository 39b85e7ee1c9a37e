"""T2I-CompBench's questions and what their answers come to, by known answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from encode_pipeline.latents.command import CheckFailed, RequestError
from eval.benchmarks.compbench_rules import asked, product, questions
from eval.benchmarks.official_compbench import official_scores
from tests.steered_runs import published

PROMPTS = published("t2i_compbench")


def test_a_prompt_is_asked_about_each_of_its_noun_phrases() -> None:
    assert questions("a green bench and a blue bowl") == ["a green bench?", "a blue bowl?"]
    assert questions(
        "The spherical ball and the pentagonal pyramid were the objects of focus in the geometry lesson."
    ) == [
        "the spherical ball?",
        "the pentagonal pyramid?",
        "the objects?",
        "focus?",
        "the geometry lesson?",
    ]
    with pytest.raises(RequestError, match="none of T2I-CompBench's prompts"):
        questions("a green bench and a blue bow")


@pytest.mark.skipif(PROMPTS is None, reason="needs T2I-CompBench's own prompts beside the checkout")
def test_every_prompt_of_attributes_has_questions() -> None:
    assert PROMPTS is not None
    prompts = [
        line for name in ("color", "shape", "texture") for line in (PROMPTS / f"{name}_val.txt").read_text().split("\n")
    ]
    counts = [len(questions(prompt.strip())) for prompt in prompts if prompt.strip()]
    assert len(counts) == 900 and min(counts) == 1 and max(counts) == 8


def test_questions_are_spelt_as_blip_was_taught() -> None:
    assert asked("The (Big) RED 'Car'; no. 5") == "the big red 'car' no 5?"
    assert asked("a dog ") == "a dog ?"
    assert asked("b " * 60).split(" ") == ["b"] * 50


def test_a_picture_gets_the_product_of_its_chances() -> None:
    assert product([0.9, 0.5]) == 0.45
    assert product([]) == 1
    assert product([0.12344, 0.5]) == 0.0617  # 0.1234 / 2
    assert product([0.00004, 1.0]) == 0
    assert product([0.3333333, 0.3333333, 0.9]) == round(0.3333 * 0.3333 * 0.9, 4)


def official(folder: Path, category: str, place: str, scores: list[float], start: int = 0) -> None:
    file = folder / category / place / "vqa_result.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    answers = [{"question_id": start + number, "answer": f"{score:.4f}"} for number, score in enumerate(scores)]
    file.write_text(json.dumps(answers[::-1]))


def test_official_scores_are_read_by_their_numbers(tmp_path: Path) -> None:
    official(tmp_path, "color", "annotation_blip", [0.25, 0.5])
    official(tmp_path, "spatial", "labels/annotation_obj_detection_2d", [0.0, 1.0])
    official(tmp_path, "spatial", "annotation_blip", [0.9, 0.9])  # not the spatial scorer's
    found = official_scores(tmp_path)
    assert {category: scores.scores for category, scores in found.items()} == {
        "color": [0.25, 0.5],
        "spatial": [0.0, 1.0],
    }
    official(tmp_path, "shape", "annotation_blip", [0.25, 0.5], start=1)
    with pytest.raises(CheckFailed, match=r"shape/annotation_blip/vqa_result\.json: its 2 answers are not numbered"):
        official_scores(tmp_path)
    official(tmp_path, "shape", "annotation_blip", [float("nan")])
    with pytest.raises(CheckFailed, match="nan is no score"):
        official_scores(tmp_path)
    (tmp_path / "shape" / "annotation_blip" / "vqa_result.json").write_text("[1]")
    with pytest.raises(CheckFailed, match="not the answers of T2I-CompBench's scorers"):
        official_scores(tmp_path)
    with pytest.raises(RequestError, match="none of color/annotation_blip"):
        official_scores(tmp_path / "color")
