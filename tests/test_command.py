"""The command shape that scripts rely on: verbs, keys, files, exit statuses, JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from encode_pipeline.latents.command import CheckFailed, RequestError, Settings, Verb, main

ROOT = Path(__file__).parent.parent


class Paint(Settings):
    store: str
    colour: str = "red"
    layers: int = 1
    deep: bool = False


class Dry(Settings):
    store: str
    hours: float = 2.0


def _paint(settings: Paint) -> Mapping[str, Any]:
    if settings.colour == "plaid":
        raise RequestError("colour=plaid: cannot be painted")
    if settings.colour == "wet":
        raise CheckFailed("still wet")
    return {"ok": settings.colour != "ugly", **settings.model_dump()}


class Clear(Settings):
    rooms: tuple[str, ...]
    keep: str | list[str] = "nothing"


VERBS = {
    "paint": Verb(Paint, _paint, "paint", "store"),
    "dry": Verb(Dry, lambda settings: settings.model_dump(), "dry", "store"),
    "clear": Verb(Clear, lambda settings: settings.model_dump(), "clear", "rooms"),
}


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main("house", VERBS, list(words))
    out, err = capsys.readouterr()
    return status, out, err


def test_argument_keys_and_flags_come_together(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "paint", "s3://wall", "colour=blue", "--layers", "3", "--deep", "--json")
    assert status == 0
    assert json.loads(out) == {"ok": True, "store": "s3://wall", "colour": "blue", "layers": 3, "deep": True}


def test_a_flag_that_is_no_key_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = call(capsys, "paint", "s3://wall", "--colur")
    assert status == 2 and err == "error: unknown key 'colur'; did you mean 'colour'?\n"
    assert call(capsys, "paint", "s3://wall", "--colour")[2] == "error: --colour needs a value\n"


def test_command_line_outweighs_the_file_which_outweighs_defaults(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "house.yaml"
    file.write_text("store: wall\ncolour: green\nhours: 5\n")  # hours is another verb's key: fine in a shared file
    _, out, _ = call(capsys, "paint", "--config", str(file), "layers=2", "colour=1e3", "--json")
    assert json.loads(out) == {"ok": True, "store": "wall", "colour": "1e3", "layers": 2, "deep": False}


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["paint", "wall", "color=blue"], 2, "unknown key 'color'; did you mean 'colour'?"),
        (["piant", "wall"], 2, "unknown verb 'piant' for python -m house; did you mean 'paint'?"),
        (["paint"], 2, "store is required"),
        (["paint", "wall", "layers=many"], 2, "layers='many'"),
        (["paint", "wall", "floor"], 2, "'floor' is not key=value"),
        (["paint", "wall", "layers=1", "layers=2"], 2, "layers is given twice"),
        (["paint", "wall", "store=floor"], 2, "store is given twice"),
        (["paint", "store=floor", "wall"], 2, "store is given twice"),
        (["clear", "hall", "rooms=[attic]", "cellar"], 2, "rooms is given twice"),
        (["paint", "wall", "--config", "no.yaml"], 2, "no.yaml: no such config file"),
        (["paint", "wall", "colour=plaid"], 2, "colour=plaid: cannot be painted"),
        (["paint", "wall", "colour=wet"], 1, "still wet"),
    ],
)
def test_what_is_wrong_is_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], status: int, says: str
) -> None:
    got, out, err = call(capsys, *words)
    assert (got, out) == (status, "")
    assert says in err and err.count("\n") == 1 and err.startswith("error: ")


def test_text_is_taken_as_typed(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "paint", "store=0123", "colour=1e3", "layers=2", "--json")
    assert json.loads(out) == {"ok": True, "store": "0123", "colour": "1e3", "layers": 2, "deep": False}


def test_a_list_takes_every_bare_word(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "clear", "hall", "keep=piano", "0123", "attic", "--json")
    assert json.loads(out) == {"rooms": ["hall", "0123", "attic"], "keep": "piano"}
    _, out, _ = call(capsys, "clear", "hall", "--json")
    assert json.loads(out)["rooms"] == ["hall"]
    _, out, _ = call(capsys, "clear", "rooms=[hall, attic]", "--json")
    assert json.loads(out)["rooms"] == ["hall", "attic"]
    assert call(capsys, "clear", "--help")[1].startswith("python -m house clear [ROOMS ...] ")
    assert call(capsys, "paint", "--help")[1].startswith("python -m house paint [STORE] ")


def test_a_bad_file_names_itself_and_the_key(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "house.yaml"
    file.write_text("store: wall\nlayer: 2\n")
    status, _, err = call(capsys, "paint", "--config", str(file))
    assert status == 2 and "house.yaml: unknown key 'layer'; did you mean 'layers'?" in err
    file.write_text("store: [\n")
    assert call(capsys, "paint", "--config", str(file))[0] == 2


def test_a_result_that_is_not_ok_exits_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "paint", "wall", "colour=ugly", "--json")[0] == 1


def test_json_errors_are_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "paint", "wall", "colour=plaid", "--json")
    assert status == 2 and json.loads(out)["error"] == "colour=plaid: cannot be painted"


def test_help_and_print_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert "paint" in call(capsys, "--help")[1]
    assert "layers (default 1)" in call(capsys, "paint", "--help")[1]
    assert "layers: 4" in call(capsys, "paint", "wall", "layers=4", "--print-config")[1]


def test_whoever_stops_reading_is_not_told_of_it() -> None:
    words = [sys.executable, "-m", "encode_pipeline", "plan", "--estimate", "images=1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as program:
        assert program.stdout is not None and program.stderr is not None
        program.stdout.close()
        assert program.stderr.read() == b""
    assert program.returncode == 141
