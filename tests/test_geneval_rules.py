"""GenEval's rules on objects that were placed by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from eval.benchmarks.geneval_rules import Box, Found, faults, objects_that_count, relations


def at(x: float, y: float, side: float = 20, score: float = 0.95) -> Found:
    """A square with its middle there."""
    return Found(score, (x - side / 2, y - side / 2, x + side / 2, y + side / 2))


def colourless(name: str, objects: Sequence[Found]) -> Sequence[str]:
    raise AssertionError("nobody asked for a colour")


def test_an_object_counts_above_its_threshold_and_not_at_it() -> None:
    found = {"dog": [at(0, 0, score=score) for score in (0.3, 0.31, 0.9, 0.91)], "cat": [at(0, 0, score=0.2)]}
    assert [one.score for one in objects_that_count(found, "single_object")["dog"]] == [0.91, 0.9, 0.31]
    assert [one.score for one in objects_that_count(found, "counting")["dog"]] == [0.91]
    assert "cat" not in objects_that_count(found, "single_object")


def test_of_a_class_the_sixteen_surest_count() -> None:
    found = {"dog": [at(0, 0, score=0.4 + number / 100) for number in range(20)]}
    kept = objects_that_count(found, "colors")["dog"]
    assert [round(one.score, 2) for one in kept] == [round(0.59 - number / 100, 2) for number in range(16)]


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (100, 0, {"right of"}),
        (-100, 0, {"left of"}),
        (0, 100, {"below"}),
        (0, -100, {"above"}),
        (100, 100, {"right of", "below"}),  # 96/141 each way
        (-100, -100, {"left of", "above"}),
        (100, 50, {"right of"}),  # down: 46/112, less than half
        (3.9, 0, set()),  # a tenth of 20 + 20 is 4
        (4.0009, 0, set()),  # what is left is less than a thousandth
        (7.9, 0, set()),  # 3.9 of 7.9 are left
        (8.1, 0, {"right of"}),
        (0, 0, set()),
    ],
)
def test_where_one_object_is_from_another(x: float, y: float, said: set[str]) -> None:
    assert relations(at(x, y), at(0, 0)) == said


def test_the_margin_is_of_each_side_by_itself() -> None:
    wide: Box = (-100, -5, 100, 5)
    assert relations(at(60, 0, side=10), Found(1, wide)) == {"right of"}  # 60 - 21 = 39 of 60
    assert relations(at(40, 0, side=10), Found(1, wide)) == set()  # 40 - 21 = 19 of 40
    assert relations(at(0, 40, side=10), Found(1, wide)) == {"below"}  # 40 - 2


def test_counts_are_exact_where_more_is_excluded() -> None:
    record = {"tag": "counting", "include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}]}
    dogs = [at(50 * number, 0) for number in range(3)]
    assert faults(record, {"dog": dogs[:1]}, colourless) == ["1 of 2 dog"]
    assert faults(record, {"dog": dogs[:2]}, colourless) == []
    assert faults(record, {"dog": dogs}, colourless) == ["3 dog, of which there should be fewer than 3"]
    assert faults(record, {}, colourless) == ["0 of 2 dog"]
    at_least = {"include": [{"class": "dog", "count": 2}]}
    assert faults(at_least, {"dog": dogs, "cat": dogs}, colourless) == []


def test_colours_are_asked_of_the_surest_only() -> None:
    record = {"include": [{"class": "car", "count": 1, "color": "red"}]}
    asked = []

    def colours(name: str, objects: Sequence[Found]) -> list[str]:
        asked.append((name, len(objects)))
        return ["blue" if one.score > 0.9 else "red" for one in objects]

    assert faults(record, {"car": [at(0, 0, score=0.95), at(0, 0, score=0.5)]}, colours) == ["car not red but blue"]
    assert faults(record, {"car": [at(0, 0, score=0.5), at(0, 0, score=0.4)]}, colours) == []
    assert asked == [("car", 1), ("car", 1)]


def test_both_objects_must_have_their_own_colour() -> None:
    record = {
        "include": [{"class": "cup", "count": 1, "color": "white"}, {"class": "dog", "count": 1, "color": "black"}]
    }
    objects = {"cup": [at(0, 0)], "dog": [at(9, 9)]}

    def coloured(**colour_of: str) -> list[str]:
        return faults(record, objects, lambda name, found: [colour_of[name]] * len(found))

    assert coloured(cup="white", dog="black") == []
    assert coloured(cup="black", dog="white") == ["cup not white but black", "dog not black but white"]
    assert coloured(cup="white", dog="white") == ["dog not black but white"]


def test_a_position_needs_its_target_and_both_surest_objects() -> None:
    record = {
        "include": [{"class": "dog", "count": 1}, {"class": "tie", "count": 1, "position": ["right of", 0]}],
    }
    assert faults(record, {"dog": [at(0, 0)], "tie": [at(100, 0)]}, colourless) == []
    assert faults(record, {"dog": [at(100, 0)], "tie": [at(0, 0)]}, colourless) == ["tie not right of but left of"]
    assert faults(record, {"dog": [at(0, 0)], "tie": [at(1, 0)]}, colourless) == [
        "tie not right of but too close to say"
    ]
    second_is_right = {"dog": [at(0, 0)], "tie": [at(-100, 0), at(100, 0, score=0.5)]}
    assert faults(record, second_is_right, colourless) == ["tie not right of but left of"]
    assert faults(record, {"tie": [at(100, 0)]}, colourless) == ["0 of 1 dog", "nothing for the tie to be right of"]
    assert faults(record, {"dog": [at(0, 0)]}, colourless) == ["0 of 1 tie"]


def test_each_object_must_be_there_from_each_target() -> None:
    record = {"include": [{"class": "dog", "count": 2}, {"class": "tie", "count": 2, "position": ["above", 0]}]}
    dogs = [at(0, 0), at(30, 0)]
    assert faults(record, {"dog": dogs, "tie": [at(0, -200), at(30, -200)]}, colourless) == []
    assert faults(record, {"dog": dogs, "tie": [at(0, -200), at(30, 200)]}, colourless) == ["tie not above but below"]
